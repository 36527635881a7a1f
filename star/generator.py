"""StarGenerator: prompts to pictures, from a model directory.

The directory holds the transformer; the tokenizer and the text encoder are either brought along as parts or referred to
(several models may share one text encoder). Both are checked by digest: codes or words of another network are noise.
B pictures, H W pixels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from star.brought_along import WORDINGS, StarConfig, read_expansion, read_text_encoder
from star.clip.wordings import Expansion
from star.completion import COMPLETION, Completion, stretches
from star.convert.names import REFINER
from star.data.errors import InputError
from star.data.text import TextEncoder, TextFeatures
from star.data.unfilled import unfilled
from star.generators.config import from_dict, to_dict
from star.generators.pretrained import ModelDirectory, Reference, load_into, write
from star.generators.protocol import SampleOptions, check_request
from star.model.refiner import Refiner
from star.model.transformer import NextScaleTransformer
from star.next_scale import NextScaleGenerator
from star.sampling.layout import related_prompts
from star.sampling.masked_decoding import MaskedDecoder
from star.sampling.sampler import CrossAttentionMode, GivenCodes, SampleRng, Watcher, draw_codes, draw_pass, join
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokenizer import MultiScaleTokenizer

FAMILY = "star"
logger = logging.getLogger(__name__)


class StarGenerator(NextScaleGenerator):
    """Text encoder, next-scale transformer and tokenizer as one generator (star.generators.protocol.Family)."""

    conditioning: Literal["text"] = "text"
    heeds: ClassVar[frozenset[str]] = frozenset(option.name for option in fields(SampleOptions)) - {"truncation"}

    def __init__(
        self,
        transformer: NextScaleTransformer,
        tokenizer: MultiScaleTokenizer,
        text_encoder: TextEncoder,
        *,
        cross_attention: CrossAttentionMode = "per-sample",
        unguided_last: int = 0,
        refiner: Refiner | None = None,
        aspects: Sequence[str] = (),
        expansion: Expansion | None = None,
        completion: Completion | None = None,
    ) -> None:
        """cross_attention, unguided_last: see sampler.draw_codes. refiner: draws the scales that it has a plan for.
        aspects: of the pictures that the transformer learnt from, see StarConfig. expansion: says prompts as captions.
        completion: heard for captions that the expansion lists as completed.

        Raises ValueError where the networks do not fit.
        """
        config = transformer.config
        pairs = (
            ("scales", config.sizes, tokenizer.schedule.sizes),
            ("vocabulary", config.vocabulary, tokenizer.vocabulary),
            ("bits of a token", config.bits, tokenizer.bits),
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
        self.aspects = tuple(aspects)
        self.expansion = expansion
        if completion is not None:
            completion.check(transformer)
        self.completion = completion
        self._warned: set[ScaleSchedule] = set()
        self._encoded: tuple[object, TextFeatures] | None = None

    def expanded(self, prompt: str, options: SampleOptions) -> str:
        """The prompt in the words that the text encoder gets: as typed, or with options.expand_prompt as a caption."""
        return self.expansion.expand(prompt) if self.expansion is not None and options.expand_prompt else prompt

    def size_of(self, size: str) -> tuple[int, int]:
        """(H, W) in pixels of "56x84", of an aspect "3:2" (width:height) with about as many as the square, or of "".

        Raises InputError for a size that cannot be drawn.
        """
        if not size:
            return self.resolution
        if "x" in size:
            H, _, W = size.partition("x")
            self.tokenizer.config.schedule_of(int(H), int(W))
            return int(H), int(W)
        h, w = self.tokenizer.schedule.of_aspect(size).grid
        cell = self.tokenizer.config.autoencoder.downsampling
        return h * cell, w * cell

    def schedule_for(self, options: SampleOptions) -> ScaleSchedule:
        """The grids of a picture of that size; a shape that the transformer never learnt from is told, once."""
        H, W = self.size_of(options.size)
        schedule = self.tokenizer.config.schedule_of(H, W)
        sizes = [self.size_of(aspect) for aspect in self.aspects] or [self.resolution]
        if (H, W) not in sizes and schedule not in self._warned:
            learnt = ", ".join(f"{height} x {width}" for height, width in sizes)
            logger.warning(
                "%d x %d pixels are asked of a model trained on %s; it may not compose them well.", H, W, learnt
            )
            self._warned.add(schedule)
        return schedule

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
        schedule = self.schedule_for(options)
        if not prompts:
            return torch.empty(0, 3, *self.size_of(options.size), dtype=torch.uint8)
        captions = [self.expanded(prompt, options) for prompt in prompts]
        text, null_text = self._encode(captions), self._empty()
        if negative_prompts is not None:
            null_text = self._negative(prompts, negative_prompts, options)
        layout = related_prompts(self.expansion, captions, options, self._encode)
        latents = []
        for transformer, part in stretches([self.transformer_for(caption) for caption in captions]):
            _, latent_BEhw = draw_codes(
                transformer,
                self.tokenizer.quantizer,
                text[part],
                null_text if len(null_text) == 1 else null_text[part],
                seeds=seeds[part],
                options=options,
                cross_attention=options.cross_attention or self.cross_attention,
                unguided_last=self.unguided_last,
                stable=self._masked_decoder(options, schedule),
                given=None if given is None else given.rows(part),
                watch=watch,
                schedule=schedule,
                graphs=self.recorded(),
                layout=None if layout is None else layout.rows(part),
            )
            latents.append(latent_BEhw)
        latent_BEhw = latents[0] if len(latents) == 1 else torch.cat(latents)
        return self.to_pixels(latent_BEhw)

    @torch.inference_mode()
    def draw_one(
        self, text: TextFeatures, rng: SampleRng, *, watch: Watcher | None = None, caption: str = ""
    ) -> Tensor:
        """pixels_13HW of encoded words (one row), which need not be any prompt's; rng: of one seed.

        On a CPU the same as `generate` draws of a prompt with these features, to the bit. caption: in which they were
        said, for what else hears it: related captions and the completion.
        """
        rows = text.to(self.device, self.transformer.head.weight.dtype)
        schedule, guided = self.schedule_for(rng.options), rng.options.guidance_scale != 1
        if guided:
            rows = join(rows, self._empty())  # type: ignore[assignment]
        _, latent_BEhw = draw_pass(
            self.transformer_for(caption),
            self.tokenizer.quantizer,
            rows,
            rng,
            released=guided and (rng.options.cross_attention or self.cross_attention) == "released",
            unguided_last=self.unguided_last,
            stable=self._masked_decoder(rng.options, schedule),
            watch=watch,
            schedule=schedule,
            graphs=self.recorded(),
            layout=related_prompts(self.expansion, [caption], rng.options, self._encode) if caption else None,
        )
        return self.to_pixels(latent_BEhw)

    def transformer_for(self, caption: str) -> NextScaleTransformer:
        """What draws a caption: the transformer, or the one with the completion, where that was learnt for it."""
        completion = self._completion_for(caption)
        return self.transformer if completion is None else completion.complete(self.transformer)

    def _completion_for(self, caption: str) -> Completion | None:
        return self.completion if self.expansion is not None and self.expansion.completes(caption) else None

    def remark(self, prompts: Sequence[str], options: SampleOptions) -> str:
        """What records of an evaluation say of these prompts; empty where there is nothing to say."""
        heard = sum(self._completion_for(self.expanded(prompt, options)) is not None for prompt in prompts)
        return f"{heard:,} of {len(prompts):,} prompts ask for what its completion learnt" if heard else ""

    def conditions(self, prompts: Sequence[str], options: SampleOptions) -> tuple[TextFeatures, TextFeatures]:
        """Of the prompts, and of the empty one, in the transformer's type and on its device."""
        return self._encode([self.expanded(prompt, options) for prompt in prompts]), self._empty()

    def _negative(self, prompts: Sequence[str], negative: Sequence[str], options: SampleOptions) -> TextFeatures:
        if len(negative) != len(prompts):
            raise InputError(
                f"{len(prompts)} prompts came with {len(negative)} negative prompts, expected as many: give each its "
                'own, "" for none'
            )
        if options.guidance_scale == 1:
            raise InputError("a negative prompt needs guidance, which is off: raise guidance_scale, or leave it out")
        return self._encode(negative)

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        return self.text_encoder.encode(prompts).to(self.device, self.transformer.head.weight.dtype)

    def _empty(self) -> TextFeatures:
        key = (self.text_encoder, self.device, self.transformer.head.weight.dtype)
        if self._encoded is None or self._encoded[0] != key:
            self._encoded = key, self._encode([""])  # once for a model
        return self._encoded[1]

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
        text_encoder = read_text_encoder(directory, device, dtype)
        directory.check_reference("text_encoder", text_encoder.digest)
        config = from_dict(StarConfig, directory.config)
        directory.check_fits(lambda: NextScaleTransformer(config.transformer), others=[REFINER, COMPLETION])
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
        completion = Completion.taken(tensors, path, transformer) if config.completion else None
        load_into(transformer, tensors, path, dtype)
        return cls(
            transformer.to(device),
            tokenizer.draw_in(dtype or torch.float32),
            text_encoder,
            cross_attention=config.cross_attention,
            unguided_last=config.unguided_last,
            refiner=refiner,
            aspects=config.aspects,
            expansion=read_expansion(directory, config.wordings),
            completion=completion,
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
        if self.expansion is not None:
            parts[WORDINGS] = self.expansion.save
        write(
            path,
            family=FAMILY,
            config=to_dict(
                StarConfig(
                    transformer=self.transformer.config,
                    cross_attention=self.cross_attention,
                    unguided_last=self.unguided_last,
                    refiner=None if self.refiner is None else self.refiner.config,
                    aspects=self.aspects,
                    wordings="" if self.expansion is None else self.expansion.digest,
                    completion=0 if self.completion is None else self.completion.rank,
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

    def _masked_decoder(self, options: SampleOptions, schedule: ScaleSchedule) -> MaskedDecoder | None:
        if self.refiner is None or not options.refine:
            return None
        return MaskedDecoder(self.refiner, self.tokenizer.quantizer, schedule)

    def _tensors(self) -> dict[str, Tensor]:
        refiner = self.refiner.state_dict() if self.refiner else {}
        beside = {} if self.completion is None else self.completion.tensors()
        return self.transformer.state_dict() | {f"{REFINER}{name}": tensor for name, tensor in refiner.items()} | beside

    def _save_tokenizer(self, path: Path) -> None:
        self.tokenizer.save(path, card="# The tokenizer of the STAR generator in the folder above\n")
