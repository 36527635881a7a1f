"""What a call of a pipeline is given, as what draws takes it, and what it gives back. B pictures, H W pixels, 3 RGB."""

import secrets
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from star.data.errors import InputError
from star.data.images import pixels_to_pil
from star.generator import StarGenerator
from star.generators.protocol import LARGEST_SEED, SampleOptions

OutputType = Literal["pil", "pt", "np"]
Callback = Callable[[int, Image.Image], None]


def watcher(
    star: StarGenerator, options: SampleOptions, take: Callable[[int, Tensor], object]
) -> Callable[[int, Tensor, Tensor], None]:
    """Decodes what is known of a picture after each scale, and hands over the number of the scale and (3, H, W)."""
    codes: list[Tensor] = []
    schedule = star.schedule_for(options)

    def watch(k: int, _logits: Tensor, codes_Bl: Tensor) -> None:
        codes.append(codes_Bl)
        latent_BEhw = star.tokenizer.quantizer.decode(codes, k + 1, schedule)
        take(k, star.tokenizer.latent_to_pixels(latent_BEhw)[0])

    return watch


def as_pil(callback: Callback) -> Callable[[int, Tensor], None]:
    """What `watcher` hands over, as the callback takes it."""
    return lambda k, pixels_3HW: callback(k, pixels_to_pil(pixels_3HW))


def check_count(name: str, value: int) -> None:
    """Raises InputError unless it is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a whole number of at least 1: correct it")


def seeds_of(seed: int | Sequence[int] | None, generator: torch.Generator | None, prompts: int, each: int) -> list[int]:
    """The seed of every picture. Raises InputError for one out of range, or another number of them than pictures."""
    if seed is not None and generator is not None:
        raise InputError("seed and generator were both given, expected one of them: leave one out")
    if generator is not None:
        first = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    elif seed is None:
        first = secrets.randbelow(2**31)
    elif isinstance(seed, int):
        first = seed
    else:
        if len(seed) != prompts * each:
            raise InputError(
                f"{len(seed)} seeds were given for {prompts * each} pictures: give one for each, or one number"
            )
        return [int(one) for one in seed]
    if not 0 <= first <= LARGEST_SEED - each:
        raise InputError(f"seed is {first}, expected 0 to 2^63 - 1: choose another one")
    return [first + i for _ in range(prompts) for i in range(each)]


def negatives_of(given: str | Sequence[str] | None, prompts: int, each: int) -> list[str] | None:
    """The negative prompt of every picture; None where none is given. Raises InputError for another number of them."""
    if given is None:
        return None
    some = [given] * prompts if isinstance(given, str) else list(given)
    if len(some) != prompts:
        raise InputError(f"{len(some)} negative prompts were given for {prompts} prompts: give one, or one for each")
    return [one for one in some for _ in range(each)]


def as_output(pixels_B3HW: Tensor, kind: OutputType) -> "list[Image.Image] | Tensor | NDArray[np.float32]":
    """The pictures (B, 3, H, W), uint8, as `Drawn.images` has them."""
    if kind == "pil":
        return [pixels_to_pil(pixels_3HW) for pixels_3HW in pixels_B3HW]
    image_B3HW = pixels_B3HW.float() / 255
    return image_B3HW if kind == "pt" else image_B3HW.permute(0, 2, 3, 1).numpy()
