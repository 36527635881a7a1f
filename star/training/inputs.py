"""Pictures and captions as the transformer reads them: latents and text features, computed once or batch by batch.

N pictures or captions, B batch, T text tokens, D text width, E code width, h w finest latent grid.
The tokenizer and the text encoder are frozen, so for a data set that fits into memory each picture's latent and each
distinct caption's features are computed once and looked up afterwards.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from star.data.captions import captions_of
from star.data.errors import InputError
from star.data.loader.batch import to_device
from star.data.loader.pipeline import Batch
from star.data.progress import Progress
from star.data.shards.faults import SampleError
from star.data.shards.tar import read_shard
from star.data.text import TextEncoder, TextFeatures
from star.precomputed.format import QuantizerOnly
from star.tokenizer.portions import at_once, map_bytes
from star.tokenizer.tokenizer import MultiScaleTokenizer
from star.training.frozen_networks import FrozenNetworks
from star.training.targets import Targets, make_targets

logger = logging.getLogger(__name__)


class TrainingInputs(Protocol):
    """Where the training_inputs of a training come from: encoded batch by batch, beforehand, or in shards."""

    null_text: TextFeatures  # of one empty prompt, on the device

    @property
    def tokenizer(self) -> MultiScaleTokenizer | QuantizerOnly: ...

    def targets(self, batch: Batch, *, noise: float = 0.0, neighbours: int = 0, scales: int | None = None) -> Targets:
        """Inputs and targets of teacher forcing for a batch, see targets.make_targets."""
        ...

    def batch_text(self, batch: Batch, prompts: Sequence[str]) -> TextFeatures:
        """The features of a batch's prompts, some of which may have been emptied."""
        ...

    def unprepared(self) -> "TrainingInputs":
        """One that also serves what was not prepared for training: held-out pictures and their captions."""
        ...


class Encoder:
    """Encodes each batch when it comes: for data that do not fit into memory."""

    def __init__(
        self, tokenizer: MultiScaleTokenizer, text_encoder: TextEncoder, device: torch.device, *, half: bool = False
    ) -> None:
        """half: pictures are encoded under bfloat16 autocast, text always in full precision."""
        self.half = half
        self.tokenizer, self.text_encoder, self.device = tokenizer, text_encoder, device
        self.null_text = text_encoder.encode([""]).to(device)
        self.portion = at_once(map_bytes(tokenizer.config.autoencoder, tokenizer.resolution))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """latent_BEhw, float32, before quantisation; as many pictures at once as `portions` allows."""
        parts = batch.image_B3HW.split(self.portion)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return torch.cat([self.tokenizer.image_to_latent(to_device(part, self.device)) for part in parts])

    def targets(self, batch: Batch, *, noise: float = 0.0, neighbours: int = 0, scales: int | None = None) -> Targets:
        """Inputs and targets of teacher forcing for a batch, see targets.make_targets."""
        latent_BEhw = self.latents(batch)
        return make_targets(self.tokenizer.quantizer, latent_BEhw, noise=noise, neighbours=neighbours, scales=scales)

    def text(self, prompts: Sequence[str]) -> TextFeatures:
        """The features of prompts; an empty one is the null condition."""
        return self.text_encoder.encode(prompts, chunk=64).to(self.device, torch.float32)

    def batch_text(self, batch: Batch, prompts: Sequence[str]) -> TextFeatures:
        """The features of a batch's prompts, some of which may have been emptied."""
        return self.text(prompts)

    def unprepared(self) -> "Encoder":
        """One that also encodes what was not prepared for training: held-out pictures and their captions."""
        return Encoder(self.tokenizer, self.text_encoder, self.device, half=self.half)


class EncodedSet(Encoder):
    """Everything encoded beforehand, looked up by key and by caption; what is not found is an error."""

    def __init__(
        self,
        tokenizer: MultiScaleTokenizer,
        text_encoder: TextEncoder,
        device: torch.device,
        batches: Iterable[Batch],
        *,
        half: bool = False,
        text_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """batches: every picture once, with all its captions."""
        super().__init__(tokenizer, text_encoder, device, half=half)
        self.row_of_key: dict[str, int] = {}
        captions: dict[str, int] = {"": 0}
        latents = []
        with Progress(None, unit="images", title="latents") as progress:
            for batch in batches:
                latents.append(super().latents(batch).cpu())
                for key, several in zip(batch.keys, batch.captions, strict=True):
                    if key in self.row_of_key:
                        raise InputError(
                            f"two samples of the shards have the key '{key}', expected it once: list each shard once, "
                            "or pack the pictures anew"
                        )
                    self.row_of_key[key] = len(self.row_of_key)
                    for caption in several:
                        captions.setdefault(caption, len(captions))
                progress.update(len(batch))
        latent_NEhw = torch.cat(latents)
        self.row_of_caption = captions
        prompts, parts = list(captions), []
        cut = sum(lost > 0 for lost in text_encoder.truncated(prompts))
        if cut:
            logger.warning(
                "%d of %d captions are longer than %d tokens and lose their end.",
                cut,
                len(prompts),
                text_encoder.max_tokens,
            )
        with Progress(len(prompts), unit="captions", title="text features") as progress:
            for start in range(0, len(prompts), 256):
                with each_caption_unmentioned():
                    part = text_encoder.encode(prompts[start : start + 256], chunk=256)
                parts.append(part.to("cpu", text_dtype))
                progress.update(len(part))
        text_N = TextFeatures.cat(parts)
        place = place_for(device, sum(map(tensor_bytes, (latent_NEhw, text_N.tokens_BTD, text_N.pooled_BD))))
        self.latent_NEhw, self.text_N = latent_NEhw.to(place), text_N.to(place)

    def latents(self, batch: Batch) -> Tensor:
        """latent_BEhw, float32, before quantisation."""
        rows = torch.tensor([self.row_of_key[key] for key in batch.keys])
        return self.latent_NEhw[rows.to(self.latent_NEhw.device, non_blocking=True)].to(self.device)

    def text(self, prompts: Sequence[str]) -> TextFeatures:
        """The features of captions of the set; an empty one is the null condition."""
        rows = torch.tensor([self.row_of_caption[prompt] for prompt in prompts])
        return self.text_N[rows.to(self.text_N.pooled_BD.device, non_blocking=True)].to(self.device, torch.float32)


def tensor_bytes(tensor: Tensor) -> int:
    """What a tensor takes, in bytes."""
    return tensor.numel() * tensor.element_size()


def place_for(device: torch.device, size: int) -> torch.device:
    """Where `size` bytes that every step reads from lie: on a GPU if they take at most a quarter of what is free there.

    Rows that a step fetches from the host's memory have the host wait for the GPU; rows on the GPU do not.
    """
    if device.type == "cuda" and 4 * size <= torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def encoded_bytes(frozen: FrozenNetworks, shard: str, *, looked_at: int = 64) -> int:
    """What an `EncodedSet` takes for a sample beside its pixels, judged by the captions of a shard's first ones."""
    quantizer = frozen.tokenizer.quantizer.config
    latent = 4 * quantizer.code_width * quantizer.sizes[-1] ** 2
    captions: set[str] = set()
    groups = [] if shard.startswith("pipe:") else list(islice(read_shard(shard, []), looked_at))
    for group in groups:
        with suppress(SampleError):
            captions.update(captions_of(group.members)[0])
    text = frozen.text_encoder.width * frozen.text_encoder.max_tokens * 2  # bfloat16
    return latent + text * max(1, len(captions)) // max(1, len(groups))


@contextmanager
def each_caption_unmentioned() -> Iterator[None]:
    """No warning for each caption that is cut; how many are is said once."""
    encoder_logger = logging.getLogger("star.data.text")
    level = encoder_logger.level
    encoder_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        encoder_logger.setLevel(level)
