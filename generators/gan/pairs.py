"""How far a drawn picture is from the one that its caption belongs to: the paired term of pix2pix (Isola et al. 2017,
§3.1), absolute differences of pixels, here of thumbnails too.

Where nearly every caption has one picture of its own, this shows a generator where things are long before its
discriminator could; alone it draws means, which are blurred.

B batch, H W pixels, 3 RGB.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 4  # pixels, side of the smallest thumbnail


def paired_loss(raw_B3HW: Tensor, real_B3HW: Tensor) -> Tensor:
    """The mean absolute difference, averaged over the pictures and their thumbnails of half the side, a quarter, ... 4
    pixels. A scalar, float32; both in the same range and of the same even size."""
    difference_B3HW = raw_B3HW.to(torch.promote_types(raw_B3HW.dtype, torch.float32)) - real_B3HW
    losses = [difference_B3HW.abs().mean()]
    while min(difference_B3HW.shape[2:]) >= 2 * SMALLEST:
        difference_B3HW = F.avg_pool2d(difference_B3HW, 2)
        losses.append(difference_B3HW.abs().mean())
    return torch.stack(losses).mean()
