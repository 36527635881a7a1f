"""A model as a function: prompts in, pictures out, in the shape that users of diffusers know.

    pipe = star.load("star-emoji")                       # or Pipeline.from_pretrained(...)
    drawn = pipe(["a blue fish", "a red car"], num_images_per_prompt=2, seed=3)
    drawn.images, drawn.seeds, drawn.pixels              # PIL pictures, their seeds, uint8 (B, 3, H, W)

What is not given is as the model recommends. A picture is a function of (model, prompt, seed, options); where no seed
is given a fresh one is drawn, and told. For any family of the registry; what only next-scale models can do with a
picture (`vary`, `inpaint`, ...) says so where it is asked of another.

B pictures, H W pixels, 3 RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from star.calls import Callback, OutputType, as_output, as_pil, check_count, negatives_of, seeds_of, watcher
from star.data.errors import InputError
from star.editing import encode_picture, given_coarse, given_outside, on_canvas, paste, scales_of, to_pixels
from star.generator import StarGenerator
from star.generators import registry
from star.generators.placement import as_dtype
from star.generators.protocol import Generator, SampleOptions, check_options
from star.generators.renamed import OPTIONS, now_called
from star.motions import Motions
from star.next_scale import set_graphs
from star.sampling.graphs import GraphMode
from star.sampling.sampler import GivenCodes

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
        cls,
        model: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
        graphs: GraphMode = "auto",
    ) -> Self:
        """Reads a name of `star list`, a model directory or a hub id. Raises InputError if there is none.

        dtype: torch.bfloat16 or "bfloat16" and the like, "auto" as on the command line; None is float32.
        graphs: "auto" draws on a GPU by CUDA graphs where it can (next-scale models alone), "off" never does.
        """
        options = registry.recommended(model)
        chosen = as_dtype(dtype, device, str(model))
        return cls(set_graphs(registry.build(model, device=device, dtype=chosen), graphs), options, str(model))

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

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | str | None = None) -> Self:
        """The same model on another device or in another type; reads it anew. Raises InputError if it has no name."""
        if not self.name:
            raise InputError("this pipeline was made around a generator, expected one that was loaded: load it there")
        place = device if device is not None else getattr(self.generator, "device", "cpu")
        chosen = as_dtype(dtype, place, self.name)
        mode: GraphMode = getattr(self.generator, "graphs", "auto")
        self.generator = set_graphs(registry.build(self.name, device=place, dtype=chosen), mode)
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
        is called by (s cond + (1 - s) uncond). height, width: in pixels; a STAR model draws rectangles, too, of about
        as many pixels as its square; size="3:2" says it by the aspect. callback_on_scale: gets the
        number of each scale and the picture so far, picture after picture. options: any other field of SampleOptions
        that the model has a use for (temperature, top_k, top_p, truncation, ...). Raises InputError for anything that
        this model cannot do.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(one, str) for one in prompts):
            raise InputError(f"prompt is {prompt!r:.60}, expected a string or a list of strings: give at least one")
        check_count("num_images_per_prompt", num_images_per_prompt)
        check_count("batch_size", batch_size)
        if output_type not in ("pil", "pt", "np"):
            raise InputError(f"output_type is {output_type!r}, expected pil, pt or np: choose one")
        chosen = self._options(guidance_scale, options, height, width)
        seeds = seeds_of(seed, generator, len(prompts), num_images_per_prompt)
        repeated = [one for one in prompts for _ in range(num_images_per_prompt)]
        negatives = negatives_of(negative_prompt, len(prompts), num_images_per_prompt)
        pixels = self._draw(repeated, seeds, chosen, negatives, None, callback_on_scale, batch_size)
        return Drawn(as_output(pixels, output_type), pixels, repeated, seeds, chosen)

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
        height: int | None = None,
        width: int | None = None,
        output_type: OutputType = "pil",
        guidance_scale: float | None = None,
        **options: Any,
    ) -> Drawn:
        """Variations: the codes of a picture's coarse scales stay, the finer ones are drawn anew from the prompt.

        keep: "4x4" keeps the scales up to that grid, 3 the first three. strength: the same as a share, 0 keeps all and
        1 none (image to image); half of the scales where neither is given. height, width: as in a call; the picture is
        cut to that shape. Raises InputError for other families.
        """
        star, chosen = self._next_scale("vary"), self._options(guidance_scale, options, height, width)
        codes = encode_picture(star, to_pixels(picture), star.size_of(chosen.size))
        count = scales_of(star.tokenizer.schedule, keep, strength)
        given = given_coarse(codes, count, num_images)
        return self._with_given(given, prompt, num_images, seed, output_type, chosen)

    def inpaint(
        self,
        picture: Picture,
        mask: Picture,
        prompt: str = "",
        *,
        num_images: int = 1,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: OutputType = "pil",
        guidance_scale: float | None = None,
        **options: Any,
    ) -> Drawn:
        """Draws what a mask covers (white, at least half of 255) anew from the prompt; pixels outside do not change.

        On every scale the codes of places that the mask covers to less than a half stay (on the finest: not at all).
        height, width: as in a call; picture and mask are cut to that shape.
        """
        star, chosen = self._next_scale("inpaint"), self._options(guidance_scale, options, height, width)
        size = star.size_of(chosen.size)
        pixels_3HW, covered_HW = to_pixels(picture, size), to_pixels(mask, size)[0] >= 128
        if not bool(covered_HW.any()):
            raise InputError("the mask covers nothing, expected white where the picture is to be drawn anew: mark it")
        codes, schedule = encode_picture(star, pixels_3HW, size), star.tokenizer.config.schedule_of(*size)
        given = given_outside(codes, schedule, covered_HW, num_images)
        drawn = self._with_given(given, prompt, num_images, seed, output_type, chosen)
        pasted = paste(drawn.pixels, pixels_3HW, covered_HW)
        return replace(drawn, pixels=pasted, images=as_output(pasted, output_type))

    def outpaint(
        self,
        picture: Picture,
        prompt: str = "",
        *,
        margin: float | None = None,
        height: int | None = None,
        width: int | None = None,
        **options: Any,
    ) -> Drawn:
        """Puts a picture into the middle, `margin` of the side from each edge, and draws what is around it.

        On a canvas of another height or width, the picture is as large as fits in where no margin is given; on the
        model's own, a margin is 0.25.
        """
        star = self._next_scale("outpaint")
        size = star.size_of(self._options(None, {k: v for k, v in options.items() if k == "size"}, height, width).size)
        margin = 0.25 if margin is None and size == star.resolution else margin
        canvas_3HW, covered_HW = on_canvas(to_pixels(picture), size, margin)
        mask_3HW = covered_HW.to(torch.uint8).mul(255).expand(3, -1, -1)
        return self.inpaint(canvas_3HW, mask_3HW, prompt, height=height, width=width, **options)

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
        chosen: SampleOptions,
    ) -> Drawn:
        check_count("num_images", count)
        seeds = seeds_of(seed, None, 1, count)
        pixels = self._draw([prompt] * count, seeds, chosen, None, given, None, count)
        return Drawn(as_output(pixels, output_type), pixels, [prompt] * count, seeds, chosen)

    def _options(
        self,
        guidance_scale: float | None,
        options: dict[str, Any],
        height: int | None = None,
        width: int | None = None,
    ) -> SampleOptions:
        known = set(SampleOptions.__dataclass_fields__)
        if old := sorted(set(options) & set(OPTIONS)):
            raise InputError(now_called(old[0], options[old[0]]))
        if unknown := sorted(set(options) - known):
            raise InputError(
                f"{', '.join(unknown)} is no option of drawing{registry.near(unknown[0], known)}: correct or remove it"
            )
        if guidance_scale is not None:
            options = options | {"guidance_scale": guidance_scale}
        if height is not None or width is not None:
            options = options | self._size(height, width, options)
        check_options(self.generator, options)
        return replace(self.options, **options)

    def _size(self, height: int | None, width: int | None, options: dict[str, Any]) -> dict[str, str]:
        """Height and width as the option that they are; none for a family that draws its own size alone."""
        H, W = (height or self.resolution[0], width or self.resolution[1])
        if "size" in options:
            raise InputError(f"size {options['size']} and a height or width were both given: leave one out")
        if isinstance(self.generator, StarGenerator):
            return {"size": "" if self.resolution == (H, W) else f"{H}x{W}"}
        if self.resolution != (H, W):
            own = " x ".join(map(str, self.resolution))
            raise InputError(f"{H} x {W} pixels were asked for, this model draws {own}: leave it out")
        return {}

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
                    watch=None if callback is None else watcher(star, options, as_pil(callback)),
                )
            )
        return torch.cat(parts)
