"""What every generator is, and how a picture is asked for.

A picture belongs to (model, prompt, seed, options): not to the batch it was made in, nor to its place there. On the CPU
that holds to the bit; on a GPU kernels differ by batch size, so it holds within a tolerance that the family states.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from star.data.errors import InputError
from star.generators.renamed import translate_options

Conditioning = Literal["text", "class", "none"]
LARGEST_SEED = 2**63 - 1
# Beyond these logits leave the range of float32, where nothing is left to draw from.
LARGEST_GUIDANCE_SCALE = 1e4 + 1
MOST_RELATED = 64
MOST_HEAT = 1e6  # temperature, and one over the smallest


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOptions:
    """How to draw; saved with every result. A family uses what applies to it and ignores the rest."""

    guidance_scale: float = 5.0  # s of s conditional + (1 - s) unconditional logits; 1 is off
    guidance_ramp: float = (
        1.0  # STAR: share of s - 1 that the coarsest scale lacks, the next ones less; 0: none lack any
    )
    top_k: int = 0  # keep the k likeliest codes; 0 keeps all
    top_p: float = 0.0  # keep the likeliest codes that together reach p; 0 and 1 keep all
    truncation: float = 1.0  # GANs: 1 draws from the whole distribution, 0 its mean
    temperature: float = 1.0  # divides the logits
    temperature_decay: float = (
        0.0  # STAR: the temperature falls linearly to (1 - this) times itself at the finest scale
    )
    # STAR, see star/sampling/sampler.py: "" is what the model directory says; a refiner is used where the checkpoint
    # has one.
    cross_attention: Literal["", "released", "per-sample"] = ""
    refine: bool = True
    size: str = ""  # STAR: height x width in pixels as 56x84, or an aspect width:height as 3:2; "" is the model's own
    # STAR with wordings.json: a prompt is drawn as the caption that it means, "a red car" as "an automobile, ... style"
    expand_prompt: bool = False
    # and for a subject that it did not learn in the style asked for: captions of so many other styles that it did learn
    # have a say of layout_weight in the coarsest layout_scales, see star/sampling/layout.py
    related_captions: int = 0
    layout_scales: int = 3
    layout_weight: float = 0.7

    def __post_init__(self) -> None:
        for name, good, expected in (
            (
                "guidance_scale",
                1 <= self.guidance_scale <= LARGEST_GUIDANCE_SCALE,
                f"a number of at least 1, which is off, and at most {LARGEST_GUIDANCE_SCALE:g}",
            ),
            ("guidance_ramp", 0 <= self.guidance_ramp <= 1, "a share from 0 to 1"),
            ("top_k", self.top_k >= 0, "at least 0, where 0 keeps all codes"),
            ("top_p", 0 <= self.top_p <= 1, "a share from 0 to 1"),
            ("truncation", 0 <= self.truncation <= 1, "a share from 0 to 1"),
            ("temperature", 1 / MOST_HEAT <= self.temperature <= MOST_HEAT, f"{1 / MOST_HEAT:g} to {MOST_HEAT:g}"),
            ("temperature_decay", 0 <= self.temperature_decay < 1, "a share from 0 to below 1"),
            ("related_captions", 0 <= self.related_captions <= MOST_RELATED, f"0, which is off, to {MOST_RELATED}"),
            ("layout_scales", self.layout_scales >= 0, "at least 0, where 0 is none"),
            ("layout_weight", 0 <= self.layout_weight <= 1, "a share from 0 to 1"),
            ("size", not self.size or bool(re.fullmatch(r"\d{1,5}(x|:)\d{1,5}", self.size, re.ASCII)), "56x84 or 3:2"),
            ("cross_attention", self.cross_attention in ("", "released", "per-sample"), "released or per-sample"),
        ):
            if not good:
                raise InputError(f"{name} is {getattr(self, name)}, expected {expected}: correct it")

    @property
    def guidance_strength(self) -> float:
        """t = s - 1 of (1 + t) conditional - t unconditional, as Tian et al. 2024 and Ma et al. 2024 write it."""
        return self.guidance_scale - 1

    @staticmethod
    def translate(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Recorded options with the names of today; star.generators.config.from_dict reads through this."""
        return translate_options(values)


@runtime_checkable
class Generator(Protocol):
    """A trained network that draws pictures."""

    @property
    def conditioning(self) -> Conditioning: ...

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        ...

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions = SampleOptions()
    ) -> Tensor:
        """Draws pixels_B3HW, uint8, one picture for each (prompt, seed); see `check_request` for what is refused."""
        ...


class Family(Generator, Protocol):
    """What a class needs to be registered: the protocol above, its model directory, and a tiny self for the tests."""

    @classmethod
    def from_directory(
        cls, path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """Reads a model directory strictly; `dtype` None keeps float32 for computing whatever the file stores."""
        ...

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a model directory that draws the same pictures."""
        ...

    @classmethod
    def for_test(cls) -> Self:
        """A network of fewer than a million parameters with fixed random weights, for the contract suite."""
        ...


def check_options(generator: Generator | type[Family], given: Collection[str]) -> None:
    """Refuses options (names of fields of SampleOptions) that a family has no use for, instead of recording them.

    What a family uses is its class attribute `heeds`; one of a third party without it is trusted. Raises InputError.
    """
    heeds = getattr(generator, "heeds", None)
    if heeds is not None and (unused := sorted(set(given) - set(heeds))):
        raise InputError(
            f"{', '.join(unused)} was given to a model that has no use for it, expected only "
            f"{', '.join(sorted(heeds))}: leave it out"
        )


def remark_of(generator: Generator, prompts: Sequence[str], options: SampleOptions) -> str:
    """What a record says beside the figures of how a model draws these prompts; a family's own `remark`, if any."""
    remark = getattr(generator, "remark", None)
    return str(remark(prompts, options)) if remark is not None else ""


def check_request(generator: Generator, prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Refuses what no family can draw; every `generate` calls it first.

    Raises InputError if the numbers of prompts and seeds differ, a seed is out of range, or a generator without
    conditioning is given a prompt (it takes empty ones).
    """
    if isinstance(prompts, str):
        raise InputError("prompts is a single string, expected a sequence of strings: put it into a list")
    if len(prompts) != len(seeds):
        raise InputError(f"{len(prompts)} prompts came with {len(seeds)} seeds, expected as many: give each its own")
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise InputError(f"the seed is {seed}, expected 0 to 2^63 - 1: choose another one")
    if generator.conditioning == "none":
        for prompt in prompts:
            if prompt:
                raise InputError(
                    f"the prompt {prompt[:60]!r} was given to a model that draws without one: leave it empty, or "
                    "choose a model of conditioning text"
                )
