"""Attention of the next-scale transformer: tokens to tokens of scales so far, and tokens to text.

B batch, l tokens of the queries, L of all keys, T text tokens, D text width, C model width, N heads, d = C / N.
Queries and keys may be normalised to unit length, with a learned temperature per head (Tian et al. 2024, released
configuration); with that, logits stay bounded whatever the depth. Biases exist on queries and values; the keys' is a
buffer of zeros that the released checkpoints carry along.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from star.model.attention_backends import ScaleCausality, attend
from star.model.kernels.choice import BACKENDS, asked
from star.model.linear import dense
from star.model.packed_text import PackedText
from star.model.rope import Rotation, rotate, rotate_to_unit

MAX_LOG_SCALE = math.log(100.0)


class KeyValueCache:
    """Keys and values of the scales drawn so far, in memory set aside once for all L tokens."""

    def __init__(self, keys_BNLd: Tensor, values_BNLd: Tensor, length: int = 0) -> None:
        self.keys_BNLd, self.values_BNLd, self.length = keys_BNLd, values_BNLd, length

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Self:
        """Room for (B, N, L, d)."""
        return cls(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))

    def append(self, keys_BNld: Tensor, values_BNld: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one scale behind the others and returns all so far."""
        start, self.length = self.length, self.length + keys_BNld.shape[2]
        if self.length > self.keys_BNLd.shape[2]:
            raise ValueError(f"the cache holds {self.keys_BNLd.shape[2]} tokens, {self.length} are to be stored")
        self.keys_BNLd[:, :, start : self.length] = keys_BNld
        self.values_BNLd[:, :, start : self.length] = values_BNld
        return self.keys_BNLd[:, :, : self.length], self.values_BNLd[:, :, : self.length]

    def rows(self, span: slice) -> "KeyValueCache":
        """A view of some rows of the batch."""
        return KeyValueCache(self.keys_BNLd[span], self.values_BNLd[span], self.length)


class Constants(NamedTuple):
    """What attention makes of its parameters alone. bias: of all that one product gives; temperature: of each head."""

    bias: Tensor
    temperature_1N11: Tensor | None  # float32


class _Heads(nn.Module):
    """What both kinds of attention share: heads, biases, normalisation and the projection back."""

    key_bias: Tensor

    def __init__(self, width: int, heads: int, *, qk_norm: bool, backend: str) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"unknown attention backend '{backend}'; choose one of {', '.join(BACKENDS)}")
        self.heads, self.backend = heads, asked(backend)
        head_width = width // heads
        # 0.25 / sqrt(d) without normalisation, as released; with it, log_scale takes this place.
        self.scale = 1.0 if qk_norm else 0.25 / math.sqrt(head_width)
        self.log_scale = nn.Parameter(torch.empty(1, heads, 1, 1)) if qk_norm else None
        self.query_bias = nn.Parameter(torch.empty(width))
        self.value_bias = nn.Parameter(torch.empty(width))
        self.register_buffer("key_bias", torch.zeros(width))
        self.output = nn.Linear(width, width)

    def split(self, x_BlC: Tensor) -> Tensor:
        """(B, l, C) -> (B, N, l, d)."""
        return x_BlC.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, x_BNld: Tensor) -> Tensor:
        """(B, N, l, d) -> (B, l, C), through the output projection."""
        return dense(self.output, x_BNld.transpose(1, 2).flatten(2))

    def temperature(self) -> Tensor | None:
        """What unit queries are multiplied by, float32 (1, N, 1, 1); None without normalisation."""
        return None if self.log_scale is None else self.log_scale.float().clamp(max=MAX_LOG_SCALE).exp()

    def shape_queries(
        self, queries: Tensor, rotation: Rotation | None, temperature_1N11: Tensor | None = None
    ) -> Tensor:
        """Rotation, normalisation and temperature; computed in float32, returned in the type given."""
        if self.log_scale is None:
            return queries if rotation is None else rotate(queries, rotation).to(queries.dtype)
        temperature = self.temperature() if temperature_1N11 is None else temperature_1N11
        assert temperature is not None
        return scaled(rotate_to_unit(queries, rotation), temperature, queries.dtype)

    def shape_keys(self, keys: Tensor, rotation: Rotation | None) -> Tensor:
        """Rotation and normalisation; computed in float32, returned in the type given."""
        if self.log_scale is None:
            return keys if rotation is None else rotate(keys, rotation).to(keys.dtype)
        return rotate_to_unit(keys, rotation).to(keys.dtype)


def scaled(unit: Tensor, temperature_1N11: Tensor, dtype: torch.dtype) -> Tensor:
    """Unit queries times their temperature, rounded to a type on the way where nothing is learnt from them."""
    if unit.dtype == dtype or not torch.is_inference_mode_enabled():
        return (unit * temperature_1N11).to(dtype)
    return torch.mul(unit, temperature_1N11, out=torch.empty_like(unit, dtype=dtype))


class SelfAttention(_Heads):
    """Tokens attend to tokens: to scales so far while training, to everything in the cache while drawing."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool = True, backend: str = "sdpa") -> None:
        super().__init__(width, heads, qk_norm=qk_norm, backend=backend)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)

    def constants(self) -> Constants:
        """Made anew from the parameters as they are."""
        return Constants(torch.cat((self.query_bias, self.key_bias, self.value_bias)), self.temperature())

    def forward(
        self,
        x_BlC: Tensor,
        rotation: Rotation | None = None,
        mask: ScaleCausality | Tensor | None = None,
        cache: KeyValueCache | None = None,
        constants: Constants | None = None,
    ) -> Tensor:
        """(B, l, C) -> (B, l, C). Cached keys are already rotated and normalised.

        mask: which keys a token attends to, all if None; a Tensor is additive, (l, L). constants: where they are known.
        """
        bias = torch.cat((self.query_bias, self.key_bias, self.value_bias)) if constants is None else constants.bias
        fused = dense(self.query_key_value, x_BlC, bias)
        if constants is not None and constants.temperature_1N11 is not None and cache is not None:
            queries, keys, values = self._shaped(fused, rotation, constants.temperature_1N11)
        else:
            queries, keys, values = (self.split(part) for part in fused.chunk(3, dim=-1))  # each (B, N, l, d)
            queries, keys = self.shape_queries(queries, rotation), self.shape_keys(keys, rotation)
        if cache is not None:
            keys, values = cache.append(keys, values)
        if isinstance(mask, ScaleCausality):
            return self.merge(mask.attend(queries, keys, values, self.scale))
        return self.merge(attend(queries, keys, values, mask, self.scale, self.backend))

    def _shaped(
        self, fused_Bl3C: Tensor, rotation: Rotation | None, temperature_1N11: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, l, d) of a scale that is drawn; queries and keys are shaped in one go.

        Keys stay float32: the cache rounds them.
        """
        heads = fused_Bl3C.unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        queries, keys = rotate_to_unit(heads[:, : 2 * self.heads], rotation).chunk(2, dim=1)
        return scaled(queries, temperature_1N11, heads.dtype), keys, heads[:, 2 * self.heads :]


class CrossAttention(_Heads):
    """Image tokens attend to the text tokens of their own prompt, whose keys and values are computed once."""

    def __init__(self, width: int, heads: int, text_width: int, *, qk_norm: bool = True, backend: str = "sdpa") -> None:
        super().__init__(width, heads, qk_norm=qk_norm, backend=backend)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(text_width, 2 * width, bias=False)

    def encode_text(self, tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, T, d) of the text."""
        fused = dense(self.key_value, tokens_BTD, torch.cat((self.key_bias, self.value_bias)))
        keys, values = (self.split(part) for part in fused.chunk(2, dim=-1))
        return self.shape_keys(keys, None), values

    def forward(
        self,
        x_BlC: Tensor,
        keys_BNTd: Tensor,
        values_BNTd: Tensor,
        mask_B11T: Tensor | PackedText,
        temperature_1N11: Tensor | None = None,
    ) -> Tensor:
        """(B, l, C) -> (B, l, C). mask: additive, or where each row's words lie if they are packed.

        temperature_1N11: where it is known.
        """
        queries = self.shape_queries(self.split(dense(self.query, x_BlC, self.query_bias)), None, temperature_1N11)
        if isinstance(mask_B11T, PackedText):
            return self.merge(mask_B11T.attend(queries, keys_BNTd, values_BNTd, self.scale))
        return self.merge(attend(queries, keys_BNTd, values_BNTd, mask_B11T, self.scale, self.backend))
