"""Golden cases: numbers made with the official code, found in a folder rather than listed.

The folder is a setting, `GOLDEN_DIR` (default ../shared/golden beside the checkout), with `star/` and `generators/` in
it. Every json file with a key "case" is a case; one whose kind no test claims makes the run fail.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

DEFAULT = Path(__file__).parents[3] / "shared" / "golden"
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", DEFAULT))


class Case:
    """One golden case: its json, its tensors, and the weights it names."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem
        self.json: dict[str, Any] = json.loads(path.read_text())
        self.tensors: dict[str, Tensor] = load_file(path.parent / self.json["tensors_file"])

    @property
    def config(self) -> dict[str, Any]:
        return self.json["config"]

    def weights(self) -> dict[str, Tensor]:
        """All weight files in order, later ones overriding, halves cast to float32."""
        merged: dict[str, Tensor] = {}
        for name in self.json["weights_files"]:
            merged |= load_file(self.path.parent / name)
        return {key: t.float() if t.dtype == torch.float16 else t for key, t in merged.items()}

    def sibling(self, name: str) -> "Case":
        """Another case of the same folder, named inside this one."""
        return Case(self.path.parent / f"{name}.json")

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]


def discover(folder: str) -> list[Path]:
    """The json files of all cases in GOLDEN_DIR/folder, in alphabetical order."""
    paths = sorted((GOLDEN_DIR / folder).glob("*.json"))
    return [path for path in paths if "case" in json.loads(path.read_text())]


def cases(folder: str, pattern: str) -> list[Any]:
    """Parameters for pytest: the cases of one kind; one skipped parameter if the folder is missing."""
    if not (GOLDEN_DIR / folder).is_dir():
        reason = f"no golden files in {GOLDEN_DIR / folder}; set GOLDEN_DIR"
        return [pytest.param(None, id="missing", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=path.stem) for path in discover(folder) if kind(path.stem) == pattern]


def kind(name: str) -> str:
    """The kind of a case: its name without the last part, e.g. star_grad for star_grad_a."""
    return name.rpartition("_")[0]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Same shape, and nowhere further apart than the tolerance."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    gap = (actual.double() - expected.double()).abs().max().item()
    assert gap <= tolerance, f"largest gap {gap:.3g}, tolerance {tolerance:.3g}"
