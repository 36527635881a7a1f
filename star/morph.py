"""Ways from one picture to another: prompts and seeds in between, for next-scale models and for GANs.

    for pixels_3HW in morph(generator, [("a red apple", 1), ("a green pear", 7)], options, frames=16):

What a model draws from is moved along arcs (`slerp`): of a GAN the latent and the condition; of STAR the encoded words
and the Gumbel noise behind each picture (star.sampling.gumbel). The pictures of the ways' ends are those that prompt
and seed draw by themselves, on a CPU to the bit.

B pictures, T text tokens, D text width, l tokens of one scale, V codebook, K scales, H W pixels, 3 RGB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.text import TextFeatures
from star.generator import StarGenerator
from star.generators.gan import editing
from star.generators.gan.generator import GanGenerator
from star.generators.interpolation import slerp, steps
from star.generators.protocol import Generator, SampleOptions
from star.sampling.gumbel import GumbelRng, between, choices, posterior
from star.sampling.sampler import SampleRng

Stop = tuple[str, int]  # a prompt and a seed


def morph(generator: Generator, stops: Sequence[Stop], options: SampleOptions, frames: int) -> Iterator[Tensor]:
    """pixels_3HW of the way through all stops: `frames` for each stretch between two, whose ends they share.

    Raises InputError for fewer than two stops or frames, and for a family that has no such way.
    """
    if len(stops) < 2 or frames < 2:
        raise InputError(
            f"{len(stops)} stops with {frames} frames between were given, expected at least 2 of each: give two "
            "prompts, or two seeds"
        )
    if isinstance(generator, StarGenerator):
        return _through(generator, stops, options, frames)
    if isinstance(generator, GanGenerator):
        return editing.morph(generator, stops, options, frames)
    raise InputError(
        f"a morph was asked of a {type(generator).__name__}, expected a STAR model or a style-based GAN: load one"
    )


def mix_text(start: TextFeatures, end: TextFeatures, t: float) -> TextFeatures:
    """Encoded words (1, T, D) between two prompts: token for token, and pooled.

    Tokens that only the longer prompt has are read one after the other, as t grows: the share t of them at t if it is
    the end, 1 - t if it is the start. At 0 and 1 exactly the features of the prompts.
    """
    if t <= 0 or t >= 1:
        return start if t <= 0 else end
    lengths = [int(text.mask_BT.sum()) for text in (start, end)]
    longer = start if lengths[0] > lengths[1] else end
    shared, further = min(lengths), max(lengths) - min(lengths)
    read = shared + round(further * (t if longer is end else 1 - t))
    tokens_BTD = longer.tokens_BTD.clone()
    tokens_BTD[:, :shared] = slerp(start.tokens_BTD[:, :shared], end.tokens_BTD[:, :shared], t)
    tokens_BTD[:, read:] = 0
    mask_BT = torch.zeros_like(longer.mask_BT)
    mask_BT[:, :read] = True
    return TextFeatures(tokens_BTD, mask_BT, slerp(start.pooled_BD, end.pooled_BD, t))


@dataclass(frozen=True, slots=True)
class _End:
    """A stop that was drawn. noise: K tensors (l, V)."""

    caption: str
    text: TextFeatures
    rng: SampleRng
    pixels_3HW: Tensor
    noise: list[Tensor]

    @classmethod
    def draw(cls, star: StarGenerator, stop: Stop, options: SampleOptions) -> "_End":
        prompt, seed = stop
        head = star.transformer.token_head
        rng, last = SampleRng([seed], options, head=head), max(star.tokenizer.schedule.count - 1, 1)
        caption = star.expanded(prompt, options)
        text, noise = star.text_encoder.encode([caption]), []

        def watch(k: int, logits_BlV: Tensor, codes_Bl: Tensor) -> None:
            kept_BlV = rng.keep(logits_BlV, k / last)
            noise.append(posterior(choices(kept_BlV, head), codes_Bl.flatten(), seed, k))

        pixels_13HW = star.draw_one(text, rng, watch=watch, caption=caption)
        return cls(caption, text, rng, pixels_13HW[0], noise)


def _through(star: StarGenerator, stops: Sequence[Stop], options: SampleOptions, frames: int) -> Iterator[Tensor]:
    end = _End.draw(star, stops[0], options)
    yield end.pixels_3HW
    for stop in stops[1:]:
        start, end = end, _End.draw(star, stop, options)
        for t in steps(frames)[1:-1]:
            nearest = start if t < 0.5 else end
            rng = GumbelRng(nearest.rng.seeds, options, noise=between(start.noise, end.noise, t))
            yield star.draw_one(mix_text(start.text, end.text, t), rng, caption=nearest.caption)[0]
        yield end.pixels_3HW
