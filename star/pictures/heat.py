"""Numbers over a picture as colours. H W pixels, h w grid of a scale, 3 RGB."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# From dark violet over red to yellow, of equal steps in lightness: readable in grey, too.
COLOURS = np.array([(20, 10, 60), (110, 25, 110), (190, 55, 85), (240, 120, 35), (250, 230, 90)], dtype=np.float64)
OPACITY = 0.65


def overlaid(pixels_3HW: Tensor, share_hw: Tensor) -> Image.Image:
    """A grid of numbers laid over a picture, each cell as a square, from its own smallest to its largest."""
    low, high = float(share_hw.min()), float(share_hw.max())
    scaled_hw = (share_hw.float() - low) / (high - low) if high > low else torch.full_like(share_hw, 0.5)
    size = (int(pixels_3HW.shape[1]), int(pixels_3HW.shape[2]))
    scaled_HW = F.interpolate(scaled_hw[None, None], size=size, mode="nearest-exact")[0, 0].double().cpu().numpy()
    places = np.linspace(0, 1, len(COLOURS))
    heat_HW3 = np.stack([np.interp(scaled_HW, places, COLOURS[:, i]) for i in range(3)], axis=-1)
    picture_HW3 = pixels_3HW.permute(1, 2, 0).cpu().numpy().astype(np.float64)
    mixed_HW3 = OPACITY * heat_HW3 + (1 - OPACITY) * picture_HW3
    return Image.fromarray(mixed_HW3.round().clip(0, 255).astype(np.uint8))
