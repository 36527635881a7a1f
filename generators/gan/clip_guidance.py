"""What StyleGAN-T learns from beside the adversarial losses: CLIP's guidance, and a blur that fades.

Sauer et al. 2023, §3.2 and §3.3. B batch, P condition width, H W pixels, 3 RGB.
"""

import math
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.clip_pair import pair_class
from star.generators.gan.backbones import Preprocessing, as_stored, find, load, random_crop

GUIDANCE_SIDE = 64  # pixels: what CLIP sees of a larger picture
SHORTEST_FADE = 1000  # pictures; a blur that is to fade within so few is left out altogether, as released


def squared_angles(one_BP: Tensor, other_BP: Tensor) -> Tensor:
    """(B,): squared angle between vectors of any length, in square radians.

    Cosines are kept a rounding error away from 1 and -1, where the angle has no gradient.
    """
    margin = 4 * torch.finfo(one_BP.dtype).eps
    cosine_B = (F.normalize(one_BP, dim=1) * F.normalize(other_BP, dim=1)).sum(dim=1)
    return cosine_B.clamp(-1 + margin, 1 - margin).acos().square()


class ClipGuidance(nn.Module):
    """How far pictures are from what their text says, by a frozen CLIP (Sauer et al. 2023, §3.3)."""

    def __init__(self, source: str | Path) -> None:
        """source: directory or hub id of a pair of towers (`star.data.clip_pair`) with its image processor.

        Raises InputError if there is none, or something of it is missing.
        """
        super().__init__()
        folder = find(source)
        clip = load(pair_class(folder), folder)
        self.tower, self.projection = clip.vision_model, clip.visual_projection  # texts come as vectors
        vision: Any = clip.config.vision_config
        self.preprocessing = Preprocessing.read(folder, getattr(vision, "image_size", 224))

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever the network around it does."""
        return super().train(False)

    def forward(self, image_B3HW: Tensor, condition_BP: Tensor) -> Tensor:
        """Mean squared angle between picture and text, a scalar.

        image: in [-1, 1]; of one larger than 64 pixels a random square of 64 counts, the same for the whole batch, from
        torch's global generator. condition: vectors of the texts, by the same CLIP.
        """
        if min(image_B3HW.shape[2:]) > GUIDANCE_SIDE:
            image_B3HW = random_crop(image_B3HW, GUIDANCE_SIDE)
        pixels_B3HW = self.preprocessing(image_B3HW)
        with as_stored(self.tower, pixels_B3HW.device) as dtype:
            pooled_BD = self.tower(pixel_values=pixels_B3HW if dtype is None else pixels_B3HW.to(dtype)).pooler_output
            image_BP = self.projection(pooled_BD.flatten(1))
        image_BP = image_BP.to(torch.promote_types(image_BP.dtype, torch.float32))
        return squared_angles(image_BP, condition_BP.to(image_BP.dtype)).mean()


def blur_sigma(images_seen: int, start: float = 32.0, fade_images: int = 1_000_000) -> float:
    """Pixels: from `start` linearly to 0 within `fade_images`; 0 at once if these are at most a thousand."""
    if fade_images <= SHORTEST_FADE:
        return 0.0
    return start * max(1 - images_seen / fade_images, 0.0)


def blur(image_B3HW: Tensor, sigma: float) -> Tensor:
    """Blurred with weights 2^-(i / sigma)^2 up to 3 sigma pixels away, zeros around the picture.

    Unchanged where 3 sigma is less than a pixel. One matrix product for each axis: its cost does not depend on sigma.
    """
    reach = math.floor(3 * sigma)
    if reach == 0:
        return image_B3HW
    offsets = torch.arange(-reach, reach + 1, device=image_B3HW.device, dtype=image_B3HW.dtype)
    total = torch.exp2(-(offsets / sigma).square()).sum()

    def weights(size: int) -> Tensor:
        place = torch.arange(size, device=image_B3HW.device, dtype=image_B3HW.dtype)
        distance = (place[:, None] - place).abs()
        return torch.exp2(-(distance / sigma).square()) * (distance <= reach) / total

    height, width = image_B3HW.shape[2:]
    return weights(height) @ image_B3HW @ weights(width)
