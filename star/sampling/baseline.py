"""The reference that every speed-up is shown against: a picture drawn as the released code draws it.

Keys and values of all scales are put together anew at each scale, those of the text are computed anew at each scale,
attention goes under a dense mask, all in float32 by torch's own kernels, and codes are filtered by a full stable sort.
It draws the same pictures, which makes it an oracle as well (tests/star/sampling/test_baseline.py).
B pictures, R rows of the transformer's batch, l tokens of one scale, L of all so far, V codebook.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from star.model.attention import KeyValueCache
from star.model.attention_backends import additive
from star.model.state import DrawingState, TextKeys
from star.model.transformer import NextScaleTransformer
from star.sampling.sampler import SampleRng, guidance_at, guide, join, temperature_at
from star.tokenizer.quantizer import MultiScaleQuantizer
from star.tokenizer.scales import ScaleSchedule

if TYPE_CHECKING:
    from star.data.text import TextFeatures
    from star.generators.protocol import SampleOptions


class ConcatenatedCache(KeyValueCache):
    """Keys and values of the scales drawn so far, copied whole for every scale that joins them."""

    def append(self, keys_BNld: Tensor, values_BNld: Tensor) -> tuple[Tensor, Tensor]:
        """All so far, in new memory."""
        self.keys_BNLd = torch.cat((self.keys_BNLd, keys_BNld), dim=2)
        self.values_BNLd = torch.cat((self.values_BNLd, values_BNld), dim=2)
        self.length = self.keys_BNLd.shape[2]
        return self.keys_BNLd, self.values_BNLd

    def rows(self, span: slice) -> "ConcatenatedCache":
        """Some rows of the batch."""
        return ConcatenatedCache(self.keys_BNLd[span], self.values_BNLd[span], self.length)


@torch.no_grad()
def baseline_codes(
    transformer: NextScaleTransformer,
    quantizer: MultiScaleQuantizer,
    text: "TextFeatures | Tensor",
    null_text: "TextFeatures | Tensor",
    *,
    seeds: Sequence[int],
    options: "SampleOptions",
    released: bool = False,
    unguided_last: int = 0,
    schedule: ScaleSchedule | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Codes of all scales, K tensors (B, l) int64, and the latent (B, E, h, w); see sampler.draw_codes.

    schedule: the grids; squares if None. Raises ValueError for a network whose tokens are bits.
    """
    if transformer.config.bits:
        raise ValueError("the baseline draws codes, not bits: compare a model with a codebook")
    tables, count, rng = transformer.tables.of(schedule), len(seeds), SampleRng(seeds, options)
    schedule = tables.schedule
    guided = options.guidance_scale != 1
    state = _begin(transformer, join(text, null_text) if guided else text, released=guided and released)
    state.tables = tables
    latent_BEhw, input_BlE, codes = quantizer.empty_latent(count, schedule), None, list[Tensor]()
    for k in range(schedule.count):
        strength = guidance_at(k, schedule.count, options.guidance_strength, unguided_last, options.guidance_ramp)
        if len(state.start_BlC) > count and k >= schedule.count - unguided_last:
            state = state.first(count)
        rows = len(state.start_BlC) // count
        hidden_RlC = _step(transformer, None if input_BlE is None else input_BlE.repeat(rows, 1, 1), k, state)
        logits_RlV = transformer.logits(hidden_RlC, state.condition_BC)
        logits_BlV = guide(logits_RlV, strength) if rows == 2 else logits_RlV
        if options.top_k != 1:
            depth = k / max(schedule.count - 1, 1)
            logits_BlV = logits_BlV / temperature_at(depth, options.temperature, options.temperature_decay)
        codes.append(rng.pick(full_sort_filter(logits_BlV, options.top_k, options.top_p), k))
        latent_BEhw, input_BlE = quantizer.accumulate(latent_BEhw, codes[-1], k)
    return codes, latent_BEhw


def full_sort_filter(logits_BlV: Tensor, top_k: int, top_p: float) -> Tensor:
    """What heads.filter_logits does, by a stable sort of all logits and of their places."""
    if 0 < top_k < logits_BlV.shape[-1]:
        smallest = logits_BlV.topk(top_k, dim=-1).values[..., -1:]
        logits_BlV = logits_BlV.masked_fill(logits_BlV < smallest, float("-inf"))
    if 0 < top_p < 1:
        ascending, order = logits_BlV.sort(dim=-1, stable=True)
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        removed[..., -1] = False
        logits_BlV = logits_BlV.masked_fill(removed.scatter(-1, order, removed), float("-inf"))
    return logits_BlV


def _begin(transformer: NextScaleTransformer, text: "TextFeatures | Tensor", *, released: bool) -> DrawingState:
    condition_BC, start_BlC = transformer.encode_condition(text)
    shape = (len(start_BlC), transformer.config.heads, 0, transformer.config.head_width)
    caches = [ConcatenatedCache.empty(shape, start_BlC.dtype, start_BlC.device) for _ in transformer.blocks]
    keys = None
    if transformer.config.cross_attention and not isinstance(text, Tensor):
        mask_B11T = additive(text.mask_BT[:, None, None, :].bool(), start_BlC.dtype)
        keys = TextKeys([], text.tokens_BTD, mask_B11T, released)
    return DrawingState(start_BlC, condition_BC, keys, list(caches), transformer.tables)


def _step(transformer: NextScaleTransformer, input_BlE: Tensor | None, k: int, state: DrawingState) -> Tensor:
    span = state.tables.schedule.slices[k]
    x_BlC = state.start_BlC if input_BlE is None else transformer.input_projection(input_BlE)
    mask_lL = x_BlC.new_zeros(x_BlC.shape[1], span.stop)
    tables = state.tables
    x_BlC = transformer.embed(x_BlC, span, tables)
    rotation = tables.rotation(span)
    return transformer.run_blocks(x_BlC, rotation, state.condition_BC, state.text, mask_lL, caches=state.caches)
