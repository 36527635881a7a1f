"""Which styles of a captioned set draw the same subjects most alike: where to look when one lacks a subject.

B pictures, 3 RGB, H W pixels, D width of a thumbnail's features.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from star.data.images import thumbnail_features

COLOURLESS = 0.02  # mean difference between a pixel's largest and smallest channel, of 1, below which a style has none


class StyleLikeness:
    """Gathers pictures of subjects in styles, one of each pair."""

    def __init__(self) -> None:
        self._features: dict[str, dict[str, Tensor]] = defaultdict(dict)
        self._colour: dict[str, list[float]] = defaultdict(list)

    def add(self, pixels_B3HW: Tensor, infos: Sequence[Mapping[str, Any]]) -> None:
        """uint8 pictures and their records; those without subject or style are passed over."""
        spread_B = (pixels_B3HW.amax(dim=1).float() - pixels_B3HW.amin(dim=1).float()).mean(dim=(1, 2)) / 255
        for info, features_D, spread in zip(infos, thumbnail_features(pixels_B3HW), spread_B.tolist(), strict=True):
            if info.get("subject") and info.get("style"):
                self._features[str(info["subject"])].setdefault(str(info["style"]), features_D)
                self._colour[str(info["style"])].append(spread)

    def nearest(self) -> dict[str, list[str]]:
        """For each style the others, the nearest first: by the median distance of thumbnails of the same subject.

        Styles in colour and those in black and white are not compared with each other: what they have in common is no
        matter of the coarsest tokens, which are mostly colour.
        """
        colourless = {style for style, spreads in self._colour.items() if sum(spreads) / len(spreads) < COLOURLESS}
        distances: dict[tuple[str, str], list[float]] = defaultdict(list)
        for by_style in self._features.values():
            for one, other in permutations(by_style, 2):
                if (one in colourless) == (other in colourless):
                    distances[one, other].append(float((by_style[one] - by_style[other]).norm()))
        medians = {pair: float(torch.tensor(values).median()) for pair, values in distances.items()}
        found: dict[str, list[str]] = {style: [] for style in sorted(self._colour)}
        for one, other in sorted(medians, key=lambda pair: (medians[pair], pair)):
            found[one].append(other)
        return {style: others for style, others in found.items() if others}
