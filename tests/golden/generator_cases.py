"""Golden cases of the GANs: NAME.json beside NAME.safetensors, found in the folders of `cases` rather than listed."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.cases import GOLDEN_DIR, found


class GanCase:
    """One case: its json, and its tensors by prefix."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem
        self.json: dict[str, Any] = json.loads(path.read_text())
        self.tensors: dict[str, Tensor] = load_file(path.parent / self.json["file"])

    def state(self, prefix: str = "sd.") -> dict[str, Tensor]:
        """The tensors under a prefix, without it: the official state dict."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def compare(self, actual: Tensor, key: str) -> None:
        """Same shape, within 1e-4 of the expected tensor's scale, and within the case's own tolerance."""
        expected = self.tensors[key]
        assert actual.shape == expected.shape, f"{key}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        gap = (actual.detach().double() - expected.double()).abs()
        own = self.json["recommended"]
        limit = own["atol"] + own["rtol"] * expected.double().abs()
        scale = float(expected.double().abs().max())
        assert bool((gap <= limit).all()), f"{key}: largest gap {gap.max():.3g}, the case allows {own}"
        assert float(gap.max()) <= 1e-4 * scale, f"{key}: largest gap {gap.max():.3g} at a scale of {scale:.3g}"


def discover() -> list[Path]:
    """The json files of all cases, in alphabetical order."""
    return found("generators", "file")


def kind(path: Path) -> str:
    """What a case compares, as its json says: "StyleNAT generator", "Styleformer discriminator (StyleGAN2-ADA)", ..."""
    return json.loads(path.read_text())["model"]


def gan_cases(*kinds: str) -> list[Any]:
    """Parameters for pytest: the cases whose kind begins so; one skipped parameter where there is none."""
    paths = [path for path in discover() if kind(path).startswith(kinds)]
    if not paths:
        reason = (
            f"no golden case of {' or '.join(kinds)} in {GOLDEN_DIR / 'generators'}, and none ships; set GOLDEN_DIR"
        )
        return [pytest.param(None, id="missing", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=path.stem) for path in paths]
