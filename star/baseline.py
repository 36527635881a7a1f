"""A next-scale generator drawn with as the released code does: slower, same pictures (star/sampling/baseline.py).

`star bench MODEL --against baseline` measures against it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.images import image_to_pixels
from star.generators.protocol import Conditioning, SampleOptions, check_request
from star.sampling.baseline import baseline_codes
from star.tokenizer.scales import ScaleSchedule

if TYPE_CHECKING:
    from star.next_scale import NextScaleGenerator


class BaselineGenerator:
    """Text encoder, transformer and tokenizer of a generator, which it takes over and turns to float32."""

    conditioning: Conditioning

    def __init__(self, generator: "NextScaleGenerator") -> None:
        self.generator: Any = generator
        self.transformer, self.tokenizer = generator.transformer.float(), generator.tokenizer
        self.tokenizer.draw_in(torch.float32)
        self.conditioning, self.text_encoder = generator.conditioning, getattr(generator, "text_encoder", None)

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.generator.resolution

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return self.generator.device

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions = SampleOptions()
    ) -> Tensor:
        """pixels_B3HW, uint8, of options.size; a refiner is left unused. On a CPU one by one, as the fast way."""
        check_request(self, prompts, seeds)
        schedule = self._schedule(options)
        if not prompts:
            cell = self.tokenizer.config.autoencoder.downsampling
            return torch.empty(0, 3, *(cell * side for side in schedule.grid), dtype=torch.uint8)
        mode = options.cross_attention or getattr(self.generator, "cross_attention", "per-sample")
        text, null_text = self.generator.conditions(prompts, options)
        size = 1 if self.device.type == "cpu" else len(prompts)
        pictures = []
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            _, latent_BEhw = baseline_codes(
                self.transformer,
                self.tokenizer.quantizer,
                text[part],
                null_text,
                seeds=seeds[part],
                options=options,
                released=mode == "released",
                unguided_last=getattr(self.generator, "unguided_last", 0),
                schedule=schedule,
            )
            pictures.append(image_to_pixels(self.tokenizer.latent_to_image(latent_BEhw)).cpu())
        return torch.cat(pictures)

    def _schedule(self, options: SampleOptions) -> ScaleSchedule:
        """The grids of the size that was asked for. Raises InputError for one that the generator cannot draw."""
        if hasattr(self.generator, "schedule_for"):
            schedule: ScaleSchedule = self.generator.schedule_for(options)
            return schedule
        if options.size:
            raise InputError(
                f"size is {options.size!r}, but this model draws squares alone, expected no size: leave it out"
            )
        return self.transformer.schedule
