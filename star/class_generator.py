"""VarGenerator: an ImageNet class to a picture (Tian et al. 2024). The family `var` of the registry.

A prompt is the number of a class in digits: "0" to "999" for ImageNet's thousand in their usual order, where "207" is a
golden retriever. An empty prompt draws without a class. B pictures, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.unfilled import unfilled
from star.generators.config import from_dict, to_dict
from star.generators.pretrained import ModelDirectory, Reference, load_into, write
from star.generators.protocol import SampleOptions, check_request
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.next_scale import NextScaleGenerator
from star.sampling.sampler import draw_codes
from star.tokenizer.tokenizer import MultiScaleTokenizer

FAMILY = "var"


@dataclass(frozen=True, kw_only=True, slots=True)
class VarConfig:
    """What a model directory says about its generator."""

    transformer: TransformerConfig


class VarGenerator(NextScaleGenerator):
    """Class-conditional next-scale transformer and tokenizer as one generator (star.generators.protocol.Family)."""

    conditioning: Literal["class"] = "class"
    heeds: ClassVar[frozenset[str]] = frozenset(
        {"guidance_scale", "guidance_ramp", "top_k", "top_p", "temperature", "temperature_decay"}
    )

    def __init__(self, transformer: NextScaleTransformer, tokenizer: MultiScaleTokenizer) -> None:
        """Raises ValueError where the networks do not fit, or the transformer is not conditioned on classes."""
        config = transformer.config
        if config.conditioning != "class":
            raise ValueError("a VarGenerator needs a transformer with conditioning='class'")
        own = (config.sizes, config.vocabulary, config.code_width, config.bits)
        other = (tokenizer.schedule.sizes, tokenizer.vocabulary, tokenizer.code_width, tokenizer.bits)
        if own != other:
            raise ValueError(f"the transformer's scales, vocabulary, code width and bits are {own}, not {other}")
        self.transformer, self.tokenizer = transformer.eval(), tokenizer.eval()

    def label(self, prompt: str) -> int:
        """The class that a prompt names; the number of classes for an empty one, which is the unconditional label.

        Raises InputError for anything else.
        """
        classes, text = self.transformer.config.classes, prompt.strip()
        if not text:
            return classes
        if not (text.isascii() and text.isdigit() and int(text) < classes):
            raise InputError(
                f"the prompt {prompt[:60]!r} was given to a model of classes, expected a number from 0 to "
                f'{classes - 1}: give one, or "" to draw without a class'
            )
        return int(text)

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions = SampleOptions()
    ) -> Tensor:
        """pixels_B3HW, uint8. On a CPU a picture is the same to the bit whatever else is asked for beside it."""
        check_request(self, prompts, seeds)
        if not prompts:
            return torch.empty(0, 3, *self.resolution, dtype=torch.uint8)
        labels_B, none_1 = self.conditions(prompts, options)
        _, latent_BEhw = draw_codes(
            self.transformer,
            self.tokenizer.quantizer,
            labels_B,
            none_1,
            seeds=seeds,
            options=options,
            graphs=self.recorded(),
        )
        return self.to_pixels(latent_BEhw)

    def conditions(self, prompts: Sequence[str], options: SampleOptions) -> tuple[Tensor, Tensor]:
        """Labels of the prompts, and that of none."""
        labels_B = torch.tensor([self.label(prompt) for prompt in prompts], device=self.device)
        return labels_B, torch.tensor([self.transformer.config.classes], device=self.device)

    @classmethod
    def from_directory(
        cls, path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """Reads a model directory with its tokenizer; float32 unless `dtype` says otherwise.

        Raises InputError where something is missing, damaged, of another shape, or was not trained together.
        """
        directory = ModelDirectory.read(path, FAMILY)
        tokenizer = MultiScaleTokenizer.from_directory(directory.resolve("tokenizer"), device=device)
        directory.check_reference("tokenizer", tokenizer.digest)
        config = from_dict(VarConfig, directory.config)
        directory.check_fits(lambda: NextScaleTransformer(config.transformer))
        with unfilled():
            transformer = NextScaleTransformer(config.transformer)
        load_into(transformer, directory.tensors(), path, dtype)
        return cls(transformer.to(device), tokenizer.draw_in(dtype or torch.float32))

    def save_pretrained(self, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
        """Writes a model directory that draws the same pictures, the tokenizer inside. about: licence and the like."""
        write(
            path,
            family=FAMILY,
            config=to_dict(VarConfig(transformer=self.transformer.config)),
            tensors=self.transformer.state_dict(),
            card=f"# A VAR generator\n\nDraws {self.resolution[0]} x {self.resolution[1]} pixels from a class.\n",
            about={"resolution": list(self.resolution), "conditioning": self.conditioning, **(about or {})},
            references={"tokenizer": Reference(location="tokenizer", digest=self.tokenizer.digest)},
            parts={
                "tokenizer": lambda folder: self.tokenizer.save(folder, card="# The tokenizer of the model above\n")
            },
        )

    @classmethod
    def for_test(cls) -> Self:
        """A network of fewer than a million parameters with fixed random weights, for the contract suite."""
        from star.tiny import tiny_tokenizer, tiny_transformer

        transformer = tiny_transformer(
            conditioning="class", cross_attention=False, classes=5, modulation="adaln", positions="absolute"
        )
        return cls(transformer, tiny_tokenizer())
