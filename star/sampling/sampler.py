"""Drawing codes scale by scale: guidance, temperature, and randomness that belongs to the picture.

What a token's logits mean, top-k and top-p included, is the head's (star/model/heads.py); codes are tokens (B, l, ...).

B pictures, R rows of the transformer's batch (CFG rows: one conditional for each picture, then, with guidance, as many
unconditional ones), l tokens of one scale,
V codebook, E code width, h w finest latent grid, K number of scales, k scale index.

Free functions, in the order they are used. A picture is a function of (network, prompt, seed, options): its uniforms
come from its seed alone, and no row ever reads another prompt's row. Matrix products on a CPU round differently for
different numbers of rows, so there each picture is drawn in a pass of its own, which makes pixels equal to the bit.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from star.model.heads import CODES, TokenHead
from star.model.transformer import NextScaleTransformer
from star.tokenizer.quantizer import MultiScaleQuantizer
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokens import where

if TYPE_CHECKING:
    from star.data.text import TextFeatures
    from star.generators.protocol import SampleOptions
    from star.sampling.masked_decoding import MaskedDecoder

CrossAttentionMode = Literal["per-sample", "released"]
Watcher = Callable[[int, Tensor, Tensor], None]


def guidance_at(k: int, count: int, strength: float, unguided_last: int = 0, ramp: float = 1.0) -> float:
    """Strength t of scale k in (1 + t) cond - t uncond: up to `strength` at the finest.

    ramp: the share of it that the coarsest lacks. 1 begins at 0, as Tian et al. 2024 do; 0 is the same for every scale.
    The last `unguided_last` scales get 0: details are then drawn from the prompt's own distribution.
    """
    if k >= count - unguided_last:
        return 0.0
    last = max(count - 1, 1)
    return strength * k / last + (1 - ramp) * strength * (last - k) / last


def temperature_at(depth: float, temperature: float, decay: float) -> float:
    """Linear from `temperature` at depth 0, the coarsest scale, to (1 - decay) times that at depth 1, the finest.

    Tokens of one scale are drawn independently of each other. Where they are many and fine, chance shows as texture.
    """
    return temperature * (1 - decay * depth)


def guide(logits_RlV: Tensor, strength: float) -> Tensor:
    """Conditional rows first, unconditional after: their extrapolation (Ho & Salimans 2022, Eq. 6)."""
    conditional, unconditional = logits_RlV.chunk(2)
    return (1 + strength) * conditional - strength * unconditional


def uniforms(seeds: Sequence[int], k: int | str, length: int) -> Tensor:
    """One float64 in [0, 1) per token of scale k for every seed: (B, l), on the CPU.

    Each (seed, scale) has a generator of its own, seeded with the first 8 bytes of SHA-256 of "seed/scale": the same on
    every device, whatever the batch, and nearby seeds share nothing.
    """
    rows = []
    for seed in seeds:
        digest = hashlib.sha256(f"{seed}/{k}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        rows.append(torch.rand(length, dtype=torch.float64, generator=generator))
    return torch.stack(rows)


@dataclass(frozen=True, slots=True)
class SampleRng:
    """The randomness of one pass: it comes from the seeds of its pictures alone. head: what the logits mean."""

    seeds: Sequence[int]
    options: "SampleOptions"
    head: TokenHead = field(default=CODES, kw_only=True)

    def keep(self, logits_BlV: Tensor, depth: float = 0.0) -> Tensor:
        """The logits to draw from: after temperature, top-k and top-p; of the likeliest alone if top_k is 1.

        depth: of their scale, from 0 at the coarsest to 1 at the finest, which is the coldest (`temperature_at`).
        """
        if self.options.top_k == 1:
            return self.head.filtered(logits_BlV, 1, 0.0)
        temperature = temperature_at(depth, self.options.temperature, self.options.temperature_decay)
        return self.head.filtered(logits_BlV / temperature, self.options.top_k, self.options.top_p)

    def pick(self, kept_BlV: Tensor, k: int, step: int | None = None) -> Tensor:
        """Codes (B, l) of scale k; `step` where a scale is drawn several times."""
        if self.options.top_k == 1:
            return self.head.likeliest(kept_BlV)
        count = kept_BlV.shape[1] * self.head.draws(kept_BlV)
        return self.head.pick(kept_BlV, uniforms(self.seeds, k if step is None else f"{k}/{step}", count))

    def order(self, k: int, step: int, length: int) -> Tensor:
        """Random numbers (B, l) that say in which order tokens come."""
        return uniforms(self.seeds, f"{k}/{step}/order", length)


@dataclass(frozen=True, slots=True)
class GivenCodes:
    """Codes that are not drawn: of a picture to be varied, or of what lies outside the mask of an inpainting.

    codes: K tensors (B, l, ...). known: K tensors (B, l) bool, True where the code stays as it is.
    """

    codes: Sequence[Tensor]
    known: Sequence[Tensor]

    def rows(self, part: slice) -> "GivenCodes":
        """Those of some of the pictures."""
        return GivenCodes([code[part] for code in self.codes], [known[part] for known in self.known])

    def put(self, codes_Bl: Tensor, k: int) -> Tensor:
        """The codes (B, l, ...) of scale k, with the given ones in their places."""
        known_Bl = self.known[k].to(codes_Bl.device)
        return where(known_Bl, self.codes[k].to(codes_Bl.device), codes_Bl)


def choose(logits_BlV: Tensor, seeds: Sequence[int], k: int, options: "SampleOptions") -> Tensor:
    """Codes (B, l) of scale k: the likeliest if top_k is 1, else drawn after temperature, top-k and top-p."""
    rng = SampleRng(seeds, options)
    return rng.pick(rng.keep(logits_BlV), k)


def join(text: "TextFeatures | Tensor", null_text: "TextFeatures | Tensor") -> "TextFeatures | Tensor":
    """Conditional rows, then as many unconditional ones; null_text has one row, or one for each."""
    count = len(text)
    if isinstance(text, Tensor) or isinstance(null_text, Tensor):
        if not (isinstance(text, Tensor) and isinstance(null_text, Tensor)):
            raise ValueError("the prompts and the null prompt must both be text or both be class labels")
        return torch.cat((text, null_text.expand(count)))
    return type(text)(
        tokens_BTD=torch.cat((text.tokens_BTD, null_text.tokens_BTD.expand(count, -1, -1))),
        mask_BT=torch.cat((text.mask_BT, null_text.mask_BT.expand(count, -1))),
        pooled_BD=torch.cat((text.pooled_BD, null_text.pooled_BD.expand(count, -1))),
    )


@torch.inference_mode()
def draw_codes(
    transformer: NextScaleTransformer,
    quantizer: MultiScaleQuantizer,
    text: "TextFeatures | Tensor",
    null_text: "TextFeatures | Tensor",
    *,
    seeds: Sequence[int],
    options: "SampleOptions",
    cross_attention: CrossAttentionMode = "per-sample",
    unguided_last: int = 0,
    stable: "MaskedDecoder | None" = None,
    batch: int | None = None,
    given: GivenCodes | None = None,
    watch: Watcher | None = None,
    schedule: ScaleSchedule | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Codes of all scales, K tensors (B, l, ...), and the latent (B, E, h, w) they describe.

    text: B prompts, null_text: the empty prompt, one row, or B rows of what pictures are led away from. given: codes
    that stay as they are. cross_attention: "per-sample" reads every row's own words;
    "released" gives the unconditional row what the conditional row of the same prompt read, which is what the official
    STAR code does for one prompt. stable: reveals the scales it covers step by step. batch: pictures per pass; by
    default one on a CPU (see above) and all elsewhere.
    watch(k, logits_BlV, codes_Bl) sees every scale of every pass. schedule: the grids; squares if None.
    """
    if len(text) != len(seeds):
        raise ValueError(f"{len(text)} prompts and {len(seeds)} seeds given; every picture needs one of each")
    transformer.token_head.check(options)
    if cross_attention not in ("per-sample", "released"):
        raise ValueError(f"cross-attention mode '{cross_attention}' is unknown; choose per-sample or released")
    size = batch or (1 if quantizer.device.type == "cpu" else len(seeds))
    passes = []
    for start in range(0, len(seeds), size):
        part = slice(start, start + size)
        rows = text[part]
        guided = options.guidance_scale != 1
        passes.append(
            draw_pass(
                transformer,
                quantizer,
                join(rows, null_text if len(null_text) == 1 else null_text[part]) if guided else rows,
                SampleRng(seeds[part], options),
                released=guided and cross_attention == "released",
                unguided_last=unguided_last,
                stable=stable,
                given=None if given is None else given.rows(part),
                watch=watch,
                schedule=schedule,
            )
        )
    codes = [torch.cat(scale) for scale in zip(*(codes for codes, _ in passes), strict=True)]
    return codes, torch.cat([latent for _, latent in passes])


@torch.inference_mode()
def draw_pass(
    transformer: NextScaleTransformer,
    quantizer: MultiScaleQuantizer,
    rows: "TextFeatures | Tensor",
    rng: SampleRng,
    *,
    released: bool = False,
    unguided_last: int = 0,
    stable: "MaskedDecoder | None" = None,
    given: GivenCodes | None = None,
    watch: Watcher | None = None,
    schedule: ScaleSchedule | None = None,
) -> tuple[list[Tensor], Tensor]:
    """One pass of `draw_codes`.

    rows: the prompts and, unless guidance is off, as many unconditional rows after them. rng: seeds and options of the
    pictures. released: the mode of cross-attention, see `draw_codes`.
    """
    rng = replace(rng, head=transformer.token_head)
    schedule, count, options = schedule or transformer.schedule, len(rng.seeds), rng.options
    state = transformer.begin(rows, released=released, schedule=schedule)
    latent_BEhw = quantizer.empty_latent(count, schedule)
    input_BlE: Tensor | None = None
    codes: list[Tensor] = []
    for k in range(schedule.count):
        strength = guidance_at(k, schedule.count, options.guidance_strength, unguided_last, options.guidance_ramp)
        if len(state.start_BlC) > count and (options.guidance_scale == 1 or k >= schedule.count - unguided_last):
            state = state.first(count)  # the unconditional rows are never needed again
        cfg_rows = len(state.start_BlC) // count  # for each picture: 2 with guidance, else 1
        hidden_RlC = transformer.step(None if input_BlE is None else input_BlE.repeat(cfg_rows, 1, 1), k, state)
        logits_RlV = transformer.logits(hidden_RlC, state.condition_BC)
        logits_BlV = guide(logits_RlV, strength) if cfg_rows == 2 else logits_RlV
        if stable is not None and stable.covers(k):
            full_strength = 0.0 if cfg_rows == 1 else options.guidance_strength
            codes_Bl = stable.draw(hidden_RlC, logits_BlV, k, rows, full_strength, rng)
        else:
            codes_Bl = rng.pick(rng.keep(logits_BlV, k / max(schedule.count - 1, 1)), k)
        if given is not None:
            codes_Bl = given.put(codes_Bl, k)
        if watch is not None:
            watch(k, logits_BlV, codes_Bl)
        latent_BEhw, input_BlE = quantizer.accumulate(latent_BEhw, codes_Bl, k)
        codes.append(codes_Bl)
    return codes, latent_BEhw
