"""StarGenerator: prompts to pictures, from a model directory.

The directory holds the transformer; the tokenizer and the text encoder are either brought along as parts or referred to
(several models may share one text encoder). Both are checked by digest: codes or words of another network are noise.
B pictures, H W pixels.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from star.convert.names import REFINER
from star.data.errors import InputError
from star.data.text import TextEncoder, TextFeatures
from star.data.unfilled import unfilled
from star.generators.config import LONGEST, check_ranges, from_dict, to_dict
from star.generators.pretrained import ModelDirectory, Reference, load_into, write
from star.generators.protocol import SampleOptions, check_request
from star.model.refiner import Refiner, RefinerConfig
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.next_scale import NextScaleGenerator
from star.sampling.masked_decoding import MaskedDecoder
from star.sampling.sampler import CrossAttentionMode, GivenCodes, Watcher, draw_codes
from star.tokenizer.tokenizer import MultiScaleTokenizer

FAMILY = "star"


@dataclass(frozen=True, kw_only=True, slots=True)
class StarConfig:
    """What a model directory says about its generator; see sampler.draw_codes for the two in the middle."""

    transformer: TransformerConfig
    cross_attention: CrossAttentionMode = "per-sample"
    unguided_last: int = 0
    refiner: RefinerConfig | None = None

    def __post_init__(self) -> None:
        check_ranges(self, unguided_last=(0, LONGEST))


class StarGenerator(NextScaleGenerator):
    """Text encoder, next-scale transformer and tokenizer as one generator (star.generators.protocol.Family)."""

    conditioning: Literal["text"] = "text"
    heeds: ClassVar[frozenset[str]] = frozenset(
        {
            "guidance_scale",
            "guidance_ramp",
            "top_k",
            "top_p",
            "temperature",
            "temperature_decay",
            "cross_attention",
            "refine",
        }
    )

    def __init__(
        self,
        transformer: NextScaleTransformer,
        tokenizer: MultiScaleTokenizer,
        text_encoder: TextEncoder,
        *,
        cross_attention: CrossAttentionMode = "per-sample",
        unguided_last: int = 0,
        refiner: Refiner | None = None,
    ) -> None:
        """cross_attention, unguided_last: see sampler.draw_codes. refiner: draws the scales that it has a plan for.

        Raises ValueError where the networks do not fit.
        """
        config = transformer.config
        pairs = (
            ("scales", config.sizes, tokenizer.schedule.sizes),
            ("vocabulary", config.vocabulary, tokenizer.vocabulary),
            ("code width", config.code_width, tokenizer.code_width),
            ("text width", config.text_width, text_encoder.width),
        )
        for name, own, other in pairs:
            if own != other:
                raise ValueError(f"the transformer's {name} is {own}, its tokenizer or text encoder has {other}")
        self.transformer = transformer.eval()
        self.tokenizer = tokenizer.eval()
        self.text_encoder = text_encoder
        self.cross_attention: CrossAttentionMode = cross_attention
        self.unguided_last = unguided_last
        self.refiner = None if refiner is None else refiner.eval()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        options: SampleOptions = SampleOptions(),
        negative_prompts: Sequence[str] | None = None,
        given: GivenCodes | None = None,
        watch: Watcher | None = None,
    ) -> Tensor:
        """pixels_B3HW, uint8. On a CPU a picture is the same to the bit whatever else is asked for beside it.

        negative_prompts: what each picture is led away from by guidance, in place of the empty prompt. given: codes
        that are not drawn. watch: see sampler.draw_codes. Raises InputError for a request that cannot be drawn.

        An empty prompt draws without condition. On a GPU kernels round by batch size: a code may then differ where its
        uniform lies within rounding of a boundary.
        """
        check_request(self, prompts, seeds)
        if not prompts:
            return torch.empty(0, 3, *self.resolution, dtype=torch.uint8)
        text, null_text = self.conditions(prompts)
        if negative_prompts is not None and len(negative_prompts) != len(prompts):
            raise InputError(
                f"{len(prompts)} prompts came with {len(negative_prompts)} negative prompts, expected as many: give "
                'each its own, "" for none'
            )
        if negative_prompts is not None and options.guidance_scale == 1:
            raise InputError(
                "a negative prompt needs guidance, which is off: raise guidance_scale above 1, or leave it out"
            )
        if negative_prompts is not None:
            null_text = self._encode(negative_prompts)
        _, latent_BEhw = draw_codes(
            self.transformer,
            self.tokenizer.quantizer,
            text,
            null_text,
            seeds=seeds,
            options=options,
            cross_attention=options.cross_attention or self.cross_attention,
            unguided_last=self.unguided_last,
            stable=MaskedDecoder(self.refiner, self.tokenizer.quantizer) if self.refiner and options.refine else None,
            given=given,
            watch=watch,
        )
        return self.tokenizer.latent_to_pixels(latent_BEhw)

    def conditions(self, prompts: Sequence[str]) -> tuple[TextFeatures, TextFeatures]:
        """Of the prompts, and of the empty one, in the transformer's type and on its device."""
        return self._encode(prompts), self._encode([""])

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        return self.text_encoder.encode(prompts).to(self.device, self.transformer.head.weight.dtype)

    @classmethod
    def from_directory(
        cls, path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """Reads a model directory with all it refers to; float32 unless `dtype` says otherwise.

        Raises InputError where something is missing, damaged, of another shape, or was not trained together.
        """
        directory = ModelDirectory.read(path, FAMILY)
        tokenizer = MultiScaleTokenizer.from_directory(directory.resolve("tokenizer"), device=device)
        directory.check_reference("tokenizer", tokenizer.digest)
        text_encoder = _text_encoder(directory, device, dtype)
        directory.check_reference("text_encoder", text_encoder.digest)
        config = from_dict(StarConfig, directory.config)
        directory.check_fits(lambda: NextScaleTransformer(config.transformer), others=[REFINER])
        if config.refiner:
            plans = config.refiner
            directory.check_fits(lambda: Refiner(plans, config.transformer), prefix=REFINER)
        with unfilled():
            transformer = NextScaleTransformer(config.transformer)
            refiner = Refiner(config.refiner, config.transformer) if config.refiner else None
        tensors = directory.tensors()
        if refiner:
            names = [name for name in tensors if name.startswith(REFINER)]
            own = {name.removeprefix(REFINER): tensors.pop(name) for name in names}
            load_into(refiner, own, path, dtype)
            refiner = refiner.to(device)
        load_into(transformer, tensors, path, dtype)
        return cls(
            transformer.to(device),
            tokenizer.draw_in(dtype or torch.float32),
            text_encoder,
            cross_attention=config.cross_attention,
            unguided_last=config.unguided_last,
            refiner=refiner,
        )

    def save_pretrained(
        self,
        path: str | Path,
        *,
        references: Mapping[str, str] | None = None,
        card: str = "",
        about: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes a model directory that draws the same pictures.

        references: where `tokenizer` or `text_encoder` already lie, relative to the directory or as a hub id; what is
        not named there is brought along. card: the model card. about: licence and the like. dtype: type of the stored
        weights; one narrower than that of the network changes the pictures.
        """
        places = {"tokenizer": "tokenizer", "text_encoder": "text_encoder"} | dict(references or {})
        writers = {"tokenizer": self._save_tokenizer, "text_encoder": self.text_encoder.save_pretrained}
        digests = {"tokenizer": self.tokenizer.digest, "text_encoder": self.text_encoder.digest}
        parts = {name: writer for name, writer in writers.items() if not references or name not in references}
        write(
            path,
            family=FAMILY,
            config=to_dict(
                StarConfig(
                    transformer=self.transformer.config,
                    cross_attention=self.cross_attention,
                    unguided_last=self.unguided_last,
                    refiner=None if self.refiner is None else self.refiner.config,
                )
            ),
            tensors=self._tensors(),
            card=card
            or f"# A STAR generator\n\nDraws {self.resolution[0]} x {self.resolution[1]} pixels from a prompt.\n",
            about={"resolution": list(self.resolution), "conditioning": self.conditioning, **(about or {})},
            references={name: Reference(location=place, digest=digests[name]) for name, place in places.items()},
            parts=parts,
            dtype=dtype,
        )

    @classmethod
    def untrained(cls, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Self:
        """A network of a released shape with random weights, for timing; see star.untrained."""
        from star.untrained import untrained

        made = untrained(name, device, dtype)
        assert isinstance(made, cls)
        return made

    @classmethod
    def for_test(cls) -> Self:
        """A network of fewer than a million parameters with fixed random weights, for the contract suite."""
        from star.data.tiny import tiny_text_encoder
        from star.tiny import tiny_tokenizer, tiny_transformer

        return cls(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder())

    def _tensors(self) -> dict[str, Tensor]:
        refiner = self.refiner.state_dict() if self.refiner else {}
        return self.transformer.state_dict() | {f"{REFINER}{name}": tensor for name, tensor in refiner.items()}

    def _save_tokenizer(self, path: Path) -> None:
        self.tokenizer.save(path, card="# The tokenizer of the STAR generator in the folder above\n")


def _text_encoder(directory: ModelDirectory, device: str | torch.device, dtype: torch.dtype | None) -> TextEncoder:
    place = directory.resolve("text_encoder")
    try:
        return TextEncoder.from_pretrained(place, device=device, dtype=dtype)
    except InputError as error:
        where = Path(os.path.normpath(directory.path / directory.references["text_encoder"].location))
        reason = str(error).removesuffix(".")
        raise InputError(f"{reason}; {directory.path} looks for it at {where} before it asks the hub") from error
