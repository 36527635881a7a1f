"""What is recorded of a picture: the pass, scale by scale, and the decoder (see star/sampling/graphs.py).

B pictures, R rows of the transformer's batch, l tokens of one scale, E code width, h w latent grid, H W pixels, 3 RGB.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from star.data.images import rounded
from star.model.transformer import NextScaleTransformer
from star.sampling.chance import GivenCodes, PassShape, SampleRng, unpack
from star.sampling.graphs import Graphs, Step
from star.sampling.scale_pass import ScalePass
from star.tokenizer.quantizer import MultiScaleQuantizer
from star.tokenizer.tokenizer import MultiScaleTokenizer

if TYPE_CHECKING:
    from star.data.text import TextFeatures


class PassProgram:
    """A whole pass: one step for all that comes before the first scale, and one for each scale."""

    def __init__(
        self,
        transformer: NextScaleTransformer,
        quantizer: MultiScaleQuantizer,
        shape: PassShape,
        rows: "TextFeatures | Tensor",
        rng: SampleRng,
        packed: Tensor,
        given: GivenCodes | None,
    ) -> None:
        """All but the networks and the shape are examples of what will come. packed: see chance.pack."""
        self.networks, self.shape, self.rng = (transformer, quantizer), shape, rng
        self.rows = (
            torch.empty_like(rows) if isinstance(rows, Tensor) else type(rows)(*map(torch.empty_like, _parts(rows)))
        )
        self.packed = torch.empty(packed.shape, dtype=packed.dtype, device=quantizer.device)
        self.given = given and GivenCodes(
            [torch.empty_like(codes) for codes in given.codes], [torch.empty_like(known) for known in given.known]
        )
        self.inputs = inputs_of(self.rows, self.packed, self.given)
        self.drawn: ScalePass | None = None

    def steps(self) -> Sequence[Step]:
        """K + 1 of them."""
        return [self.begin, *(partial(self.scale, k) for k in range(self.shape.schedule.count))]

    def begin(self) -> None:
        """Text keys, caches, and what blocks compute beforehand."""
        numbers = unpack(self.packed, self.shape, self.networks[0].config.bits)
        self.drawn = ScalePass(*self.networks, self.shape, self.rows, self.rng, numbers, self.given)

    def scale(self, k: int) -> None:
        """From the input of scale k to that of scale k + 1."""
        assert self.drawn is not None
        self.drawn.take(self.drawn.draw(self.drawn.predict(k)[1], k), k)

    def results(self) -> tuple[Tensor, ...]:
        """The codes of all scales, then the latent."""
        assert self.drawn is not None
        return (*self.drawn.codes, self.drawn.latent_BEhw)


class DecodeProgram:
    """A latent to pixels, in one step."""

    def __init__(self, tokenizer: MultiScaleTokenizer, latent_BEhw: Tensor) -> None:
        self.tokenizer, self.latent_BEhw = tokenizer, torch.empty_like(latent_BEhw)
        self.inputs = (self.latent_BEhw,)
        self.left: tuple[Tensor, ...] = ()

    def steps(self) -> Sequence[Step]:
        """One."""
        return [self.decode]

    def decode(self) -> None:
        """Pixels (B, 3, H, W), uint8, and whether the image was finite."""
        image_B3HW = self.tokenizer.latent_to_image(self.latent_BEhw)
        self.left = (rounded(image_B3HW), image_B3HW.isfinite().all())

    def results(self) -> tuple[Tensor, ...]:
        """Both."""
        return self.left


def draw_recorded(
    graphs: Graphs,
    transformer: NextScaleTransformer,
    quantizer: MultiScaleQuantizer,
    shape: PassShape,
    rows: "TextFeatures | Tensor",
    rng: SampleRng,
    packed: Tensor,
    given: GivenCodes | None,
) -> tuple[list[Tensor], Tensor] | None:
    """Codes and latent as `draw_pass` gives them; None where they are to be computed in the usual way."""
    if reason := hindrance(transformer, rng):
        graphs.tell(reason)
        return None
    values = inputs_of(rows, packed, given)
    kinds = tuple((tuple(value.shape), value.dtype) for value in values)
    found = graphs.run(
        (shape, kinds, transformer.head.weight.dtype, transformer.training, id(transformer)),
        lambda: PassProgram(transformer, quantizer, shape, rows, SampleRng((), rng.options), packed, given),
        values,
        size=fixed_bytes(transformer, shape, len(rows)),
    )
    return None if found is None else (list(found[:-1]), found[-1])


def decode_recorded(graphs: Graphs, tokenizer: MultiScaleTokenizer, latent_BEhw: Tensor) -> Tensor | None:
    """pixels_B3HW on the CPU; None where the decoder is to be called in the usual way."""
    key = (tuple(latent_BEhw.shape), latent_BEhw.dtype, tokenizer.decoder_dtype)
    found = graphs.run(
        key, lambda: DecodeProgram(tokenizer, latent_BEhw), (latent_BEhw,), size=decoder_bytes(tokenizer, latent_BEhw)
    )
    if found is None:
        return None
    pixels_B3HW = found[0].cpu()
    return pixels_B3HW if bool(found[1]) else None  # then the usual way says what is wrong


def hindrance(transformer: NextScaleTransformer, rng: SampleRng) -> str:
    """Why a pass cannot be recorded, as "while ..."; nothing if it can."""
    if type(rng) is not SampleRng:
        return "pictures are drawn from noise of their own"
    if "run_blocks" in vars(transformer) or any(
        module._forward_hooks or module._forward_pre_hooks for module in transformer.modules()
    ):
        return "somebody looks into the transformer by hooks"
    return ""


def fixed_bytes(transformer: NextScaleTransformer, shape: PassShape, rows: int) -> int:
    """Of the keys and values of all tokens."""
    config = transformer.config
    return 2 * rows * shape.schedule.length * config.width * config.depth * transformer.head.weight.itemsize


def decoder_bytes(tokenizer: MultiScaleTokenizer, latent_BEhw: Tensor) -> int:
    """About as much as a decoder needs at once: four activations at full size."""
    config, (rows, _, h, w) = tokenizer.config.autoencoder, latent_BEhw.shape
    cell = (config.downsampling // config.patch) ** 2
    return 4 * rows * h * w * cell * config.channels * (tokenizer.decoder_dtype or torch.float32).itemsize


def inputs_of(rows: "TextFeatures | Tensor", packed: Tensor, given: GivenCodes | None) -> list[Tensor]:
    """All tensors that change from pass to pass."""
    parts = [rows] if isinstance(rows, Tensor) else _parts(rows)
    return [*parts, packed, *(() if given is None else (*given.codes, *given.known))]


def _parts(rows: "TextFeatures") -> list[Tensor]:
    return [rows.tokens_BTD, rows.mask_BT, rows.pooled_BD]
