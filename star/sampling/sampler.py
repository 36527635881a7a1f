"""Drawing codes scale by scale: guidance, temperature, and randomness that belongs to the picture.

What a token's logits mean, top-k and top-p included, is the head's (star/model/heads.py); codes are tokens (B, l, ...).

B pictures, R rows of the transformer's batch (CFG rows: one conditional for each picture, then, with guidance, as many
unconditional ones), l tokens of one scale,
V codebook, E code width, h w finest latent grid, K number of scales, k scale index.

Free functions, in the order they are used. A picture is a function of (network, prompt, seed, options): its uniforms
come from its seed alone, and no row ever reads another prompt's row. Matrix products on a CPU round differently for
different numbers of rows, so there each picture is drawn in a pass of its own, which makes pixels equal to the bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from star.model.transformer import NextScaleTransformer
from star.sampling.chance import (
    GivenCodes,
    PassShape,
    SampleRng,
    guidance_at,
    guide,
    pack,
    strengths_of,
    temperature_at,
    uniforms,
    unpack,
)
from star.sampling.graphs import Graphs
from star.sampling.layout import LayoutPass, LayoutPrompts
from star.sampling.programs import draw_recorded
from star.sampling.scale_pass import ScalePass
from star.tokenizer.quantizer import MultiScaleQuantizer
from star.tokenizer.scales import ScaleSchedule

if TYPE_CHECKING:
    from star.data.text import TextFeatures
    from star.generators.protocol import SampleOptions
    from star.sampling.masked_decoding import MaskedDecoder

__all__ = [
    "GivenCodes",
    "SampleRng",
    "choose",
    "draw_codes",
    "draw_pass",
    "guidance_at",
    "guide",
    "join",
    "temperature_at",
    "uniforms",
]

CrossAttentionMode = Literal["per-sample", "released"]
Watcher = Callable[[int, Tensor, Tensor], None]


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
    graphs: Graphs | None = None,
    layout: LayoutPrompts | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Codes of all scales, K tensors (B, l, ...), and the latent (B, E, h, w) they describe.

    text: B prompts, null_text: the empty prompt, one row, or B rows of what pictures are led away from. given: codes
    that stay as they are. cross_attention: "per-sample" reads every row's own words;
    "released" gives the unconditional row what the conditional row of the same prompt read, which is what the official
    STAR code does for one prompt. stable: reveals the scales it covers step by step. batch: pictures per pass; by
    default one on a CPU (see above) and all elsewhere.
    watch(k, logits_BlV, codes_Bl) sees every scale of every pass. schedule: the grids; squares if None. graphs: where
    passes are recorded and replayed; a watched one, and one with a refiner or layout prompts, is not.
    layout: prompts that have a say in the coarsest scales.
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
                graphs=graphs,
                layout=None if layout is None else layout.rows(part),
            )
        )
    if len(passes) == 1:
        return passes[0]
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
    graphs: Graphs | None = None,
    layout: LayoutPrompts | None = None,
) -> tuple[list[Tensor], Tensor]:
    """One pass of `draw_codes`.

    rows: the prompts and, unless guidance is off, as many unconditional rows after them. rng: seeds and options of the
    pictures. released: the mode of cross-attention, see `draw_codes`.
    """
    rng = replace(rng, head=transformer.token_head)
    schedule, count, device = schedule or transformer.schedule, len(rng.seeds), quantizer.device
    strengths = [0.0] * schedule.count
    if len(rows) > count:
        strengths = strengths_of(rng.options, schedule.count, unguided_last)
    shape, bits = PassShape.of(rng.options, schedule, count, strengths, released), transformer.config.bits
    packed = pack(shape, rng, strengths, bits, pinned=device.type == "cuda")
    given = given and given.to(device)
    if graphs is not None and stable is None and watch is None and layout is None:
        drawn = draw_recorded(graphs, transformer, quantizer, shape, rows, rng, packed, given)
        if drawn is not None:
            return drawn
    elif graphs is not None:
        graphs.tell(
            "somebody watches the scales" if watch else "a refiner draws" if stable else "layout prompts are heard"
        )
    numbers = unpack(packed.to(device, non_blocking=True), shape, bits)
    one = ScalePass(transformer, quantizer, shape, rows, rng, numbers, given)
    others = None if layout is None else LayoutPass(transformer, layout, schedule, count)
    for k in range(schedule.count):
        hidden_RlC, logits_BlV = one.predict(k)
        if others is not None:
            logits_BlV = others.blend(logits_BlV, one.input_BlE, k)
        if stable is not None and stable.covers(k):
            full_strength = 0.0 if one.cfg_rows == 1 else rng.options.guidance_strength
            codes_Bl = stable.draw(hidden_RlC, logits_BlV, k, rows, full_strength, rng)
        else:
            codes_Bl = one.draw(logits_BlV, k)
        codes_Bl = one.take(codes_Bl, k)
        if watch is not None:
            watch(k, logits_BlV, codes_Bl)
    return one.codes, one.latent_BEhw
