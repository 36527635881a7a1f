"""One pass of drawing, scale by scale: all that goes on between a prompt's features and the latent.

    drawn = ScalePass(transformer, quantizer, shape, rows, rng, numbers)
    for k in range(shape.schedule.count):
        hidden_RlC, logits_BlV = drawn.predict(k)
        drawn.take(drawn.draw(logits_BlV, k), k)

Between two scales nothing is asked of the device and nothing is copied to it, so that a GPU never waits for its host.
B pictures, R rows of the transformer's batch (see star/sampling/sampler.py), l tokens of one scale, C model width,
V codebook, E code width, h w finest latent grid, k scale index.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from star.model.transformer import NextScaleTransformer
from star.sampling.chance import GivenCodes, Numbers, PassShape, SampleRng, guide
from star.tokenizer.quantizer import MultiScaleQuantizer

if TYPE_CHECKING:
    from star.data.text import TextFeatures


class ScalePass:
    """What is carried from scale to scale. codes: of the scales so far, (B, l, ...) each; latent_BEhw: their sum."""

    def __init__(
        self,
        transformer: NextScaleTransformer,
        quantizer: MultiScaleQuantizer,
        shape: PassShape,
        rows: "TextFeatures | Tensor",
        rng: SampleRng,
        numbers: Numbers,
        given: GivenCodes | None = None,
    ) -> None:
        """rows: the prompts, then unconditional ones. rng: one that is no plain SampleRng draws in its own way."""
        self.transformer, self.quantizer, self.shape = transformer, quantizer, shape
        self.rng, self.numbers, self.given = rng, numbers, given
        self.state = transformer.begin(rows, released=shape.released, schedule=shape.schedule)
        words = self.state.text
        if words is not None and isinstance(words.mask_B11T, Tensor) and words.mask_B11T.device.type != "cpu":
            words.mask_B11T = aligned(words.mask_B11T)
        self.latent_BEhw = quantizer.empty_latent(shape.pictures, shape.schedule)
        self.input_BlE: Tensor | None = None
        self.codes: list[Tensor] = []

    @property
    def cfg_rows(self) -> int:
        """Rows for each picture: 2 with guidance, else 1."""
        return len(self.state.start_BlC) // self.shape.pictures

    def predict(self, k: int) -> tuple[Tensor, Tensor]:
        """Hidden states (R, l, C) and, after guidance, logits (B, l, V)."""
        count = self.shape.pictures
        if self.cfg_rows == 2 and k >= self.shape.unguided_from:
            self.state = self.state.first(count)  # the unconditional rows are never needed again
        input_BlE = self.input_BlE
        if input_BlE is not None and self.cfg_rows == 2:
            input_BlE = input_BlE.repeat(2, 1, 1)
        hidden_RlC = self.transformer.step(input_BlE, k, self.state)
        if self.cfg_rows == 2 and self.shape.guided[k]:
            return hidden_RlC, guide(self.logits(hidden_RlC), self.numbers.strength[k], self.numbers.plus[k])
        # The unconditional rows' logits are not read. On a CPU they are computed all the same: products of fewer rows
        # round differently there.
        wanted = len(hidden_RlC) if hidden_RlC.device.type == "cpu" else count
        return hidden_RlC, self.logits(hidden_RlC[:wanted])[:count]

    def logits(self, hidden_BlC: Tensor) -> Tensor:
        """Of the first rows."""
        adaln = None if self.state.prepared is None else self.state.prepared.head
        if adaln is not None:
            adaln = adaln[0][: len(hidden_BlC)], adaln[1][: len(hidden_BlC)]
        return self.transformer.logits(hidden_BlC, adaln=adaln)

    def draw(self, logits_BlV: Tensor, k: int) -> Tensor:
        """Codes (B, l, ...) of scale k."""
        if type(self.rng) is not SampleRng:
            return self.rng.pick(self.rng.keep(logits_BlV, k / max(self.shape.schedule.count - 1, 1)), k)
        head, numbers = self.transformer.token_head, self.numbers
        if self.shape.top_k == 1:
            return head.likeliest(logits_BlV)
        top_p = numbers.top_p if self.shape.top_p else 0.0
        kept_BlV = head.filtered(logits_BlV / numbers.temperature[k], self.shape.top_k, top_p)
        return head.pick(kept_BlV, numbers.uniforms[k])

    def take(self, codes_Bl: Tensor, k: int) -> Tensor:
        """Goes on to scale k + 1 with these codes, or the given ones in their places; returns them."""
        if self.given is not None:
            codes_Bl = self.given.put(codes_Bl, k)
        self.latent_BEhw, self.input_BlE = self.quantizer.accumulate(self.latent_BEhw, codes_Bl, k)
        self.codes.append(codes_Bl)
        return codes_Bl


def aligned(mask_B11T: Tensor) -> Tensor:
    """The same mask in rows of a multiple of 8 numbers, which torch's kernels would otherwise make in every call."""
    rows, tokens = len(mask_B11T), mask_B11T.shape[-1]
    padded = mask_B11T.new_zeros(rows, 1, 1, -(-tokens // 8) * 8)
    padded[..., :tokens] = mask_B11T
    return padded[..., :tokens]
