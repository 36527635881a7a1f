"""Golden cases: numbers made with the official code, found in folders rather than listed.

A small set comes with the tests, in cases/ beside this file. `GOLDEN_DIR` (default ../shared/golden by the checkout)
adds a folder of more, with `star/` and `generators/` in it; a name that is in both is read from cases/. Every json file
with a key "case" is a case; one whose kind no test claims makes the run fail.
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
SHIPPED = Path(__file__).parent / "cases"


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


def found(folder: str, key: str) -> list[Path]:
    """The json files with a key, of the shipped folder and of GOLDEN_DIR/folder, in alphabetical order of names."""
    by_name = {path.name: path for place in (GOLDEN_DIR, SHIPPED) for path in (place / folder).glob("*.json")}
    return [path for _, path in sorted(by_name.items()) if key in json.loads(path.read_text())]


def discover(folder: str) -> list[Path]:
    """The json files of all cases."""
    return found(folder, "case")


def cases(folder: str, pattern: str) -> list[Any]:
    """Parameters for pytest: the cases of one kind; one skipped parameter where there is none."""
    paths = [path for path in discover(folder) if kind(path.stem) == pattern]
    if not paths:
        reason = f"no golden case of {pattern} in {GOLDEN_DIR / folder}, and none ships; set GOLDEN_DIR"
        return [pytest.param(None, id="missing", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=path.stem) for path in paths]


def kind(name: str) -> str:
    """The kind of a case: its name without the last part, e.g. star_grad for star_grad_a."""
    return name.rpartition("_")[0]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Same shape, and nowhere further apart than the tolerance."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    gap = (actual.double() - expected.double()).abs().max().item()
    assert gap <= tolerance, f"largest gap {gap:.3g}, tolerance {tolerance:.3g}"
