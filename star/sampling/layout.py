"""Layout prompts: others than the prompt that have a say in the coarsest scales, where a picture's layout is decided.

A model that knows a subject in other styles, but not in the one asked for, gets its shape from prompts that name those
styles, and its finish from the prompt itself. Coarse codes are drawn from a product of distributions, as conjunctions
are in composed diffusion (Liu et al. 2022, section 4): (1 - w) log p(prompt) + w mean log p(layout prompts).

B pictures, N layout prompts of all of them, l tokens of one scale, V codebook, E code width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from star.model.state import DrawingState
from star.model.transformer import NextScaleTransformer
from star.tokenizer.scales import ScaleSchedule

if TYPE_CHECKING:
    from star.clip.wordings import Expansion
    from star.data.text import TextFeatures
    from star.generators.protocol import SampleOptions


@dataclass(frozen=True, slots=True)
class LayoutPrompts:
    """text: of N prompts. owners: for each of them the place of the picture it belongs to, ascending. scales: so many
    of the coarsest hear them. weight: w above."""

    text: "TextFeatures"
    owners: tuple[int, ...]
    scales: int
    weight: float

    def rows(self, part: slice) -> "LayoutPrompts | None":
        """Those of some of the pictures; None where these have none."""
        chosen = [place for place, owner in enumerate(self.owners) if part.start <= owner < part.stop]
        if not chosen:
            return None
        owners = tuple(self.owners[place] - part.start for place in chosen)
        return LayoutPrompts(self.text[chosen[0] : chosen[-1] + 1], owners, self.scales, self.weight)


class LayoutPass:
    """The layout prompts' own rows of the transformer during one pass: they read the codes that the pictures got."""

    def __init__(
        self, transformer: NextScaleTransformer, prompts: LayoutPrompts, schedule: ScaleSchedule, pictures: int
    ) -> None:
        self.transformer, self.prompts = transformer, prompts
        self.state: DrawingState | None = transformer.begin(prompts.text, schedule=schedule)
        owner_N = torch.tensor(prompts.owners)
        device = self.state.start_BlC.device
        self.owner_N = owner_N.to(device)
        self.count_B11 = torch.bincount(owner_N, minlength=pictures).view(-1, 1, 1).to(device)

    def blend(self, logits_BlV: Tensor, input_BlE: Tensor | None, k: int) -> Tensor:
        """The logits to draw scale k from. input_BlE: of the pictures, None at the coarsest scale.

        Pictures without layout prompts keep theirs, and so do all from scale `scales` on.
        """
        if self.state is None or k >= self.prompts.scales:
            self.state = None  # never needed again
            return logits_BlV
        hidden_NlC = self.transformer.step(None if input_BlE is None else input_BlE[self.owner_N], k, self.state)
        logits_NlV = self.transformer.logits(hidden_NlC, self.state.condition_BC)
        # Logits are log probabilities but for a constant of each token (of each bit), which the choice does not see.
        sum_BlV = torch.zeros_like(logits_BlV).index_add_(0, self.owner_N, logits_NlV)
        blended_BlV = torch.lerp(logits_BlV, sum_BlV / self.count_B11.clamp(min=1), self.prompts.weight)
        return torch.where(self.count_B11 > 0, blended_BlV, logits_BlV)


def related_prompts(
    expansion: "Expansion | None",
    captions: Sequence[str],
    options: "SampleOptions",
    encode: "Callable[[Sequence[str]], TextFeatures]",
) -> LayoutPrompts | None:
    """Of captions that ask for a known subject in a style it was not learnt in, those in styles it was; None if all are
    known, or unknown, or the options ask for none."""
    if expansion is None or not options.related_captions or not options.layout_scales:
        return None
    found = [
        (place, other)
        for place, caption in enumerate(captions)
        for other in expansion.related(caption, options.related_captions)
    ]
    if not found:
        return None
    owners = tuple(place for place, _ in found)
    return LayoutPrompts(encode([other for _, other in found]), owners, options.layout_scales, options.layout_weight)
