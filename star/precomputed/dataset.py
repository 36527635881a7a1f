"""Training from shards of codes and text features: neither the tokenizer nor the text encoder is there. Where shards
hold captions in place of features, the text encoder is, and computes those of each caption once.

B batch, L tokens of all scales, E code width, h w finest latent grid, N captions, n their tokens, T text tokens,
D text width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from star.data.errors import InputError
from star.data.loader.batch import to_device
from star.data.loader.pipeline import Batch
from star.data.shards.faults import SampleError
from star.data.tensor_cache import TensorCache
from star.data.text import TextEncoder, TextFeatures
from star.precomputed.format import TEXT_DTYPES, Encoding, EncodingConfig, metadata, pad, states_of
from star.tokenizer.scales import ScaleSchedule
from star.training.inputs import each_caption_unmentioned
from star.training.targets import Targets, make_targets, targets_of_codes

KEPT = 2**30  # bytes of captions' features in memory


@dataclass(frozen=True, slots=True)
class EncodedReader:
    """Makes the tensors of a sample from its members (star.data.loader.virtual_workers.Reader), for one of its
    captions.
    """

    config: EncodingConfig

    def __call__(self, members: Mapping[str, bytes], choice: int) -> dict[str, Tensor]:
        """codes_L, text_TD and its length, pooled_D, latent_Ehw where the shards have it, and pixels of the latent's
        shape that are none.

        Raises SampleError if a member is missing or broken, InputError if it is of another encoding.
        """
        data = _encoded(members)
        try:
            told = metadata(data)
            mark, schedule = told["encoding"], self._schedule(told)
            tensors = load(data)
            found = {"codes_L": tensors["codes_L"]}
            if self.config.text == "features":
                lengths = tensors["lengths_N"].tolist()
                first = sum(lengths[:choice])
                tokens_tD = tensors["tokens_nD"][first : first + lengths[choice]]
                found |= {
                    "text_TD": pad(tokens_tD, self.config.max_tokens),
                    "text_length": torch.tensor(lengths[choice]),
                    "pooled_D": tensors["pooled_ND"][choice],
                }
                if len(tokens_tD) != lengths[choice]:
                    raise ValueError(f"{len(tokens_tD)} tokens of a caption that should have {lengths[choice]}")
            if self.config.aspects:
                found["pixels"] = torch.empty((0, *schedule.grid), dtype=torch.uint8)
            if self.config.latents:
                found["latent_Ehw"] = tensors["latent_Ehw"]
            if mark == self.config.mark:
                self._check(found, schedule)
        except (SafetensorError, ValueError, KeyError, IndexError, RuntimeError, TypeError, RecursionError) as error:
            raise SampleError("broken encoding", f"{type(error).__name__}: {error}") from error
        if mark != self.config.mark:
            raise InputError(
                f"a shard holds samples of the encoding {mark}, beside it is the description of {self.config.mark}: "
                "keep shards of different encodings in folders of their own"
            )
        return found

    def size(self, members: Mapping[str, bytes]) -> tuple[int, int]:
        """(H, W) of the picture that was encoded, in pixels. Raises SampleError as above."""
        data = _encoded(members)
        try:
            h, w = self._schedule(metadata(data)).grid
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SampleError("broken encoding", f"{type(error).__name__}: {error}") from error
        cell = self.config.resolution // self.config.quantizer.schedule.finest
        return h * cell, w * cell

    def _schedule(self, told: Mapping[str, str]) -> ScaleSchedule:
        """The grids of a sample, by its metadata. Raises ValueError or KeyError where they do not say."""
        schedule = self.config.quantizer.schedule
        if not self.config.aspects:
            return schedule
        h, _, w = told["grid"].partition("x")
        return schedule.at(int(h), int(w))

    def _check(self, found: Mapping[str, Tensor], schedule: ScaleSchedule) -> None:
        """Raises ValueError for tensors that would not fit beside those of other samples, or that name no codes."""
        config = self.config
        shapes = {
            "text_TD": (config.max_tokens, config.text_width),
            "pooled_D": (config.text_width,),
        }
        for name, shape in shapes.items():
            if name not in found:  # features, where the shards hold captions
                continue
            if tuple(found[name].shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(found[name].shape)}, expected {shape}")
        config.quantizer.tokens.check(found["codes_L"], schedule.length)


class EncodedShards:
    """TrainingInputs from encoded samples (encoded.TrainingInputs)."""

    def __init__(self, encoding: Encoding, device: torch.device, text_encoder: TextEncoder | None = None) -> None:
        """text_encoder: computes the features where the shards hold captions, each once unless `KEPT` bytes of others
        came between."""
        self.encoding, self.device, self.text_encoder = encoding, device, text_encoder
        self._kept = TensorCache(KEPT)
        self.tokenizer = encoding.tokenizer
        self.tokenizer.quantizer.to(device)
        self.null_text = encoding.null_text.to(device)

    def targets(self, batch: Batch, *, noise: float = 0.0, neighbours: int = 0, scales: int | None = None) -> Targets:
        """Inputs and targets of teacher forcing, see targets.make_targets; noise needs shards with latents."""
        quantizer = self.tokenizer.quantizer
        if noise:
            latent_BEhw = to_device(batch.extra["latent_Ehw"], self.device)
            return make_targets(quantizer, latent_BEhw, noise=noise, neighbours=neighbours, scales=scales)
        codes_BL = self.tokenizer.tokens.restore(to_device(batch.extra["codes_L"], self.device))
        schedule = self.tokenizer.schedule
        if self.encoding.config.aspects:
            schedule = schedule.at(*batch.image_B3HW.shape[2:])
        return targets_of_codes(quantizer, schedule.split(codes_BL), scales, schedule)

    def batch_text(self, batch: Batch, prompts: Sequence[str]) -> TextFeatures:
        """The features of a batch's prompts, those of the empty one where a prompt was emptied."""
        text_BTD, lengths_B, pooled_BD = (to_device(tensor, self.device) for tensor in self._features(batch))
        mask_BT = torch.arange(self.encoding.config.max_tokens, device=self.device) < lengths_B[:, None]
        text = TextFeatures(text_BTD, mask_BT, pooled_BD).to(self.device, torch.float32)
        empty_B = torch.tensor([not prompt for prompt in prompts]).to(self.device, non_blocking=True)
        null = self.null_text
        return TextFeatures(
            torch.where(empty_B[:, None, None], null.tokens_BTD, text.tokens_BTD),
            torch.where(empty_B[:, None], null.mask_BT, text.mask_BT),
            torch.where(empty_B[:, None], null.pooled_BD, text.pooled_BD),
        )

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of the batch's captions the states (B, T, D) with padding, their numbers (B,) and the pooled ones (B, D)."""
        if self.encoding.config.text == "features":
            return batch.extra["text_TD"], batch.extra["text_length"], batch.extra["pooled_D"]
        known = self._kept.of(batch.prompts, self._encode)
        states = [known[prompt] for prompt in batch.prompts]
        text_BTD = torch.stack([pad(tokens_tD, self.encoding.config.max_tokens) for tokens_tD, _ in states])
        lengths_B = torch.tensor([len(tokens_tD) for tokens_tD, _ in states])
        return text_BTD, lengths_B, torch.stack([pooled_D for _, pooled_D in states])

    def _encode(self, captions: list[str]) -> list[tuple[Tensor, ...]]:
        if self.text_encoder is None:
            raise ValueError("the shards hold captions, whose features need a text encoder: give it")
        with each_caption_unmentioned():
            text = self.text_encoder.encode(captions, chunk=64)
        return states_of(text, TEXT_DTYPES[self.encoding.config.text_dtype])

    def unprepared(self) -> "EncodedShards":
        """Held-out shards are encoded like the others."""
        return self


def _encoded(members: Mapping[str, bytes]) -> bytes:
    """The bytes of a sample's tensors. Raises SampleError if it has none."""
    if "safetensors" not in members:
        raise SampleError("broken encoding", f"only {', '.join(sorted(members))}")
    data = members["safetensors"]
    if isinstance(data, SampleError):
        raise data
    return data
