"""Training from shards of codes and text features: neither the tokenizer nor the text encoder is there.

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
from star.data.loader.pipeline import Batch
from star.data.shards.faults import SampleError
from star.data.text import TextFeatures
from star.precomputed.format import Encoding, EncodingConfig, metadata, pad
from star.training.targets import Targets, make_targets, targets_of_codes


@dataclass(frozen=True, slots=True)
class EncodedReader:
    """Makes the tensors of a sample from its members (star.data.loader.virtual_workers.Reader), for one of its
    captions.
    """

    config: EncodingConfig

    def __call__(self, members: Mapping[str, bytes], choice: int) -> dict[str, Tensor]:
        """codes_L, text_TD and its length, pooled_D, and latent_Ehw where the shards have it.

        Raises SampleError if a member is missing or broken, InputError if it is of another encoding.
        """
        if "safetensors" not in members:
            raise SampleError("broken encoding", f"only {', '.join(sorted(members))}")
        data = members["safetensors"]
        if isinstance(data, SampleError):
            raise data
        try:
            mark = metadata(data)["encoding"]
            tensors = load(data)
            lengths = tensors["lengths_N"].tolist()
            first = sum(lengths[:choice])
            tokens_tD = tensors["tokens_nD"][first : first + lengths[choice]]
            found = {
                "codes_L": tensors["codes_L"],
                "text_TD": pad(tokens_tD, self.config.max_tokens),
                "text_length": torch.tensor(lengths[choice]),
                "pooled_D": tensors["pooled_ND"][choice],
            }
            if self.config.latents:
                found["latent_Ehw"] = tensors["latent_Ehw"]
            if mark == self.config.mark:
                self._check(found, len(tokens_tD))
        except (SafetensorError, ValueError, KeyError, IndexError, RuntimeError, TypeError, RecursionError) as error:
            raise SampleError("broken encoding", f"{type(error).__name__}: {error}") from error
        if mark != self.config.mark:
            raise InputError(
                f"a shard holds samples of the encoding {mark}, beside it is the description of {self.config.mark}: "
                "keep shards of different encodings in folders of their own"
            )
        return found

    def _check(self, found: Mapping[str, Tensor], tokens: int) -> None:
        """Raises ValueError for tensors that would not fit beside those of other samples, or that name no codes."""
        config = self.config
        if found["text_length"] != tokens:
            raise ValueError(f"{tokens} tokens of a caption that should have {found['text_length']}")
        shapes = {
            "text_TD": (config.max_tokens, config.text_width),
            "pooled_D": (config.text_width,),
        }
        for name, shape in shapes.items():
            if tuple(found[name].shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(found[name].shape)}, expected {shape}")
        config.quantizer.tokens.check(found["codes_L"], config.quantizer.schedule.length)


class EncodedShards:
    """TrainingInputs from encoded samples (encoded.TrainingInputs)."""

    def __init__(self, encoding: Encoding, device: torch.device) -> None:
        self.encoding, self.device = encoding, device
        self.tokenizer = encoding.tokenizer
        self.tokenizer.quantizer.to(device)
        self.null_text = encoding.null_text.to(device)

    def targets(self, batch: Batch, *, noise: float = 0.0, neighbours: int = 0, scales: int | None = None) -> Targets:
        """Inputs and targets of teacher forcing, see targets.make_targets; noise needs shards with latents."""
        quantizer = self.tokenizer.quantizer
        if noise:
            latent_BEhw = batch.extra["latent_Ehw"].to(self.device)
            return make_targets(quantizer, latent_BEhw, noise=noise, neighbours=neighbours, scales=scales)
        codes_BL = self.tokenizer.tokens.restore(batch.extra["codes_L"].to(self.device))
        return targets_of_codes(quantizer, self.tokenizer.schedule.split(codes_BL), scales)

    def batch_text(self, batch: Batch, prompts: Sequence[str]) -> TextFeatures:
        """The features of a batch's prompts, those of the empty one where a prompt was emptied."""
        lengths_B = batch.extra["text_length"]
        text = TextFeatures(
            batch.extra["text_TD"],
            torch.arange(self.encoding.config.max_tokens) < lengths_B[:, None],
            batch.extra["pooled_D"],
        ).to(self.device, torch.float32)
        empty_B = torch.tensor([not prompt for prompt in prompts], device=self.device)
        null = self.null_text
        return TextFeatures(
            torch.where(empty_B[:, None, None], null.tokens_BTD, text.tokens_BTD),
            torch.where(empty_B[:, None], null.mask_BT, text.mask_BT),
            torch.where(empty_B[:, None], null.pooled_BD, text.pooled_BD),
        )

    def unprepared(self) -> "EncodedShards":
        """Held-out shards are encoded like the others."""
        return self
