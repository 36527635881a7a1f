"""A model as a function: prompts in, pictures out, in the shape that users of diffusers know.

    pipe = star.load("star-emoji")                       # or Pipeline.from_pretrained(...)
    drawn = pipe(["a blue fish", "a red car"], num_images_per_prompt=2, seed=3)
    drawn.images, drawn.seeds, drawn.pixels              # PIL pictures, their seeds, uint8 (B, 3, H, W)

What is not given is as the model recommends. A picture is a function of (model, prompt, seed, options); where no seed
is given a fresh one is drawn, and told. For any family of the registry; what only next-scale models can do with a
picture (`vary`, `inpaint`, ...) says so where it is asked of another.

B pictures, H W pixels, 3 RGB.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from star.data.errors import InputError
from star.data.images import pixels_to_pil
from star.editing import encode_picture, given_coarse, given_outside, on_canvas, paste, scales_of, to_pixels
from star.generator import StarGenerator
from star.generators import registry
from star.generators.protocol import LARGEST_SEED, Generator, SampleOptions, check_options
from star.generators.renamed import OPTIONS, now_called
from star.motions import Motions
from star.sampling.sampler import GivenCodes

OutputType = Literal["pil", "pt", "np"]
Callback = Callable[[int, Image.Image], None]
Picture = Image.Image | Tensor | str | Path


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a call drew, in the order of prompts, then of pictures of a prompt.

    images: PIL pictures, or with output_type "pt" float32 (B, 3, H, W), with "np" (B, H, W, 3), in 0..1.
    """

    images: Any
    pixels: Tensor
    prompts: list[str]
    seeds: list[int]
    options: SampleOptions


class Pipeline(Motions):
    """A generator with its recommended options."""

    def __init__(self, generator: Generator, options: SampleOptions | None = None, name: str = "") -> None:
        """options: what counts where a call says nothing. name: of the model, for `to` and for records."""
        self.generator, self.options, self.name = generator, options or SampleOptions(), name

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """Reads a name of `star list`, a model directory or a hub id. Raises InputError if there is none."""
        options = registry.recommended(model)
        return cls(registry.build(model, device=device, dtype=dtype), options, str(model))

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a model directory that draws the same pictures, with these options as the recommended ones."""
        from star.generators.config import to_dict

        self.generator.save_pretrained(path, about={"options": to_dict(self.options)})  # type: ignore[attr-defined]

    def push_to_hub(self, repo_id: str, *, private: bool = False, commit_message: str = "Upload model") -> str:
        """Uploads the model directory to the Hugging Face hub and returns the address of the commit.

        Raises InputError where the hub refuses or cannot be reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        with TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model")
            try:
                api = HfApi()
                api.create_repo(repo_id, private=private, exist_ok=True)
                return str(
                    api.upload_folder(
                        repo_id=repo_id, folder_path=Path(folder) / "model", commit_message=commit_message
                    )
                )
            except (HfHubHTTPError, OSError, ValueError) as error:
                raise InputError(
                    f"{repo_id} could not be written on the hub ({str(error).splitlines()[0]}): log in with `hf auth "
                    "login`, and check the name and the connection"
                ) from error

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same model on another device or in another type; reads it anew. Raises InputError if it has no name."""
        if not self.name:
            raise InputError("this pipeline was made around a generator, expected one that was loaded: load it there")
        place = device if device is not None else getattr(self.generator, "device", "cpu")
        self.generator = registry.build(self.name, device=place, dtype=dtype)
        return self

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.generator.resolution

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: OutputType = "pil",
        callback_on_scale: Callback | None = None,
        batch_size: int = 8,
        **options: Any,
    ) -> Drawn:
        """Draws pictures; see the module's text.

        prompt: one or several; "" draws without a condition. negative_prompt: what pictures are led away from, one for
        all or one for each prompt. seed: of the first picture of each prompt, the next ones follow; or one for every
        picture. generator: draws the seed instead. guidance_scale: 1 is off, and what classifier-free guidance usually
        is called by (s cond + (1 - s) uncond). callback_on_scale: gets the number of each scale and the picture so far,
        picture after picture. options: any other field of SampleOptions that the model has a use for (temperature,
        top_k, top_p, truncation, ...). Raises InputError for anything that this model cannot do.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(one, str) for one in prompts):
            raise InputError(f"prompt is {prompt!r:.60}, expected a string or a list of strings: give at least one")
        _check_count("num_images_per_prompt", num_images_per_prompt)
        _check_count("batch_size", batch_size)
        if output_type not in ("pil", "pt", "np"):
            raise InputError(f"output_type is {output_type!r}, expected pil, pt or np: choose one")
        self._check_size(height, width)
        chosen = self._options(guidance_scale, options)
        seeds = _seeds(seed, generator, len(prompts), num_images_per_prompt)
        repeated = [one for one in prompts for _ in range(num_images_per_prompt)]
        negatives = _negatives(negative_prompt, len(prompts), num_images_per_prompt)
        pixels = self._draw(repeated, seeds, chosen, negatives, None, callback_on_scale, batch_size)
        return Drawn(_as_output(pixels, output_type), pixels, repeated, seeds, chosen)

    # ---- what next-scale models do with a picture

    def vary(
        self,
        picture: Picture,
        prompt: str = "",
        *,
        keep: int | str | None = None,
        strength: float | None = None,
        num_images: int = 1,
        seed: int | None = None,
        output_type: OutputType = "pil",
        guidance_scale: float | None = None,
        **options: Any,
    ) -> Drawn:
        """Variations: the codes of a picture's coarse scales stay, the finer ones are drawn anew from the prompt.

        keep: "4x4" keeps the scales up to that grid, 3 the first three. strength: the same as a share, 0 keeps all and
        1 none (image to image); half of the scales where neither is given. Raises InputError for other families.
        """
        star = self._next_scale("vary")
        codes = encode_picture(star, to_pixels(picture))
        count = scales_of(star.tokenizer.schedule, keep, strength)
        given = given_coarse(codes, star.tokenizer.schedule, count, num_images)
        return self._with_given(given, prompt, num_images, seed, output_type, guidance_scale, options)

    def inpaint(
        self,
        picture: Picture,
        mask: Picture,
        prompt: str = "",
        *,
        num_images: int = 1,
        seed: int | None = None,
        output_type: OutputType = "pil",
        guidance_scale: float | None = None,
        **options: Any,
    ) -> Drawn:
        """Draws what a mask covers (white, at least half of 255) anew from the prompt; pixels outside do not change.

        On every scale the codes of places that the mask covers to less than a half stay (on the finest: not at all).
        """
        star = self._next_scale("inpaint")
        pixels_3HW = to_pixels(picture, star.resolution)
        covered_HW = to_pixels(mask, star.resolution)[0] >= 128
        if not bool(covered_HW.any()):
            raise InputError("the mask covers nothing, expected white where the picture is to be drawn anew: mark it")
        given = given_outside(encode_picture(star, pixels_3HW), star.tokenizer.schedule, covered_HW, num_images)
        drawn = self._with_given(given, prompt, num_images, seed, output_type, guidance_scale, options)
        pasted = paste(drawn.pixels, pixels_3HW, covered_HW)
        return replace(drawn, pixels=pasted, images=_as_output(pasted, output_type))

    def outpaint(self, picture: Picture, prompt: str = "", *, margin: float = 0.25, **options: Any) -> Drawn:
        """Puts a picture into the middle, `margin` of the side from each edge, and draws what is around it."""
        star = self._next_scale("outpaint")
        canvas_3HW, covered_HW = on_canvas(to_pixels(picture), star.resolution, margin)
        mask_3HW = covered_HW.to(torch.uint8).mul(255).expand(3, -1, -1)
        return self.inpaint(canvas_3HW, mask_3HW, prompt, **options)

    # ---- the parts

    def _next_scale(self, what: str) -> StarGenerator:
        if not isinstance(self.generator, StarGenerator):
            raise InputError(
                f"{what} was asked of {self.name or 'a model'} that is no next-scale model: load a STAR model"
            )
        return self.generator

    def _with_given(
        self,
        given: GivenCodes,
        prompt: str,
        count: int,
        seed: int | None,
        output_type: OutputType,
        guidance_scale: float | None,
        options: dict[str, Any],
    ) -> Drawn:
        _check_count("num_images", count)
        chosen, seeds = self._options(guidance_scale, options), _seeds(seed, None, 1, count)
        pixels = self._draw([prompt] * count, seeds, chosen, None, given, None, count)
        return Drawn(_as_output(pixels, output_type), pixels, [prompt] * count, seeds, chosen)

    def _options(self, guidance_scale: float | None, options: dict[str, Any]) -> SampleOptions:
        known = set(SampleOptions.__dataclass_fields__)
        if old := sorted(set(options) & set(OPTIONS)):
            raise InputError(now_called(old[0], options[old[0]]))
        if unknown := sorted(set(options) - known):
            raise InputError(
                f"{', '.join(unknown)} is no option of drawing{registry.near(unknown[0], known)}: correct or remove it"
            )
        if guidance_scale is not None:
            options = options | {"guidance_scale": guidance_scale}
        check_options(self.generator, options)
        return replace(self.options, **options)

    def _check_size(self, height: int | None, width: int | None) -> None:
        H, W = self.resolution
        if (height or H, width or W) != (H, W):
            raise InputError(
                f"{height or H} x {width or W} pixels were asked for, this model draws {H} x {W}: leave it out"
            )

    def _draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        options: SampleOptions,
        negatives: Sequence[str] | None,
        given: GivenCodes | None,
        callback: Callback | None,
        batch: int,
    ) -> Tensor:
        if negatives is None and given is None and callback is None:
            parts = [
                self.generator.generate(prompts[i : i + batch], seeds=seeds[i : i + batch], options=options)
                for i in range(0, len(prompts), batch)
            ]
            return torch.cat(parts)
        star = self._next_scale("a negative prompt, a callback or a picture to begin with")
        batch = 1 if callback else batch
        parts = []
        for i in range(0, len(prompts), batch):
            part = slice(i, i + batch)
            parts.append(
                star.generate(
                    prompts[part],
                    seeds=seeds[part],
                    options=options,
                    negative_prompts=None if negatives is None else negatives[part],
                    given=None if given is None else given.rows(part),
                    watch=None if callback is None else _watcher(star, callback),
                )
            )
        return torch.cat(parts)


def _watcher(star: StarGenerator, callback: Callback) -> Callable[[int, Tensor, Tensor], None]:
    """Decodes what is known of a picture after each scale."""
    codes: list[Tensor] = []

    def watch(k: int, _logits: Tensor, codes_Bl: Tensor) -> None:
        codes.append(codes_Bl)
        latent_BEhw = star.tokenizer.quantizer.decode(codes, k + 1)
        callback(k, pixels_to_pil(star.tokenizer.latent_to_pixels(latent_BEhw)[0]))

    return watch


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a whole number of at least 1: correct it")


def _seeds(seed: int | Sequence[int] | None, generator: torch.Generator | None, prompts: int, each: int) -> list[int]:
    """One for every picture."""
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


def _negatives(given: str | Sequence[str] | None, prompts: int, each: int) -> list[str] | None:
    if given is None:
        return None
    some = [given] * prompts if isinstance(given, str) else list(given)
    if len(some) != prompts:
        raise InputError(f"{len(some)} negative prompts were given for {prompts} prompts: give one, or one for each")
    return [one for one in some for _ in range(each)]


def _as_output(pixels_B3HW: Tensor, kind: OutputType) -> "list[Image.Image] | Tensor | NDArray[np.float32]":
    if kind == "pil":
        return [pixels_to_pil(pixels_3HW) for pixels_3HW in pixels_B3HW]
    image_B3HW = pixels_B3HW.float() / 255
    return image_B3HW if kind == "pt" else image_B3HW.permute(0, 2, 3, 1).numpy()
