"""Pictures moved by one matrix and recoloured by another: what the augmentation of StyleGAN2-ADA does to pixels.

Everything is differentiable twice with respect to the picture, as R1 needs it; matrices are constants.

B batch, C channels, H W pixels, h w pixels of the enlarged picture, k filter taps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Low-pass filter of the wavelet "sym6" (Daubechies 1992, table of least asymmetric wavelets), here with sum 1.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
REACH = len(SYM6) // 4  # pixels of the picture that the filter looks to each side at twice the size


def low_pass() -> Tensor:
    """taps_k, with sum 1."""
    taps_k = torch.tensor(SYM6, dtype=torch.float64)
    return (taps_k / taps_k.sum()).float()


def double_size(image_BCHW: Tensor, taps_k: Tensor) -> Tensor:
    """(B, C, 2H, 2W): zeros between pixels, then the filter along both axes."""
    batch, channels, height, width = image_BCHW.shape
    x = image_BCHW.reshape(batch * channels, 1, height, width)
    padding = taps_k.numel() // 2 - 1
    x = F.conv_transpose2d(x, 2 * taps_k[None, None, None], stride=(1, 2), padding=(0, padding))
    x = F.conv_transpose2d(x, 2 * taps_k[None, None, :, None], stride=(2, 1), padding=(padding, 0))
    return x.reshape(batch, channels, 2 * height, 2 * width)


def halve_size(image_BCHW: Tensor, taps_k: Tensor) -> Tensor:
    """The transpose of doubling, apart from its gain, where nothing is padded: k / 2 - 1 pixels fewer than half."""
    batch, channels, height, width = image_BCHW.shape
    x = image_BCHW.reshape(batch * channels, 1, height, width)
    x = F.conv2d(x, taps_k[None, None, None], stride=(1, 2))
    x = F.conv2d(x, taps_k[None, None, :, None], stride=(2, 1))
    return x.reshape(batch, channels, *x.shape[2:])


class _Sample(torch.autograd.Function):
    """Bilinear sampling, zero outside. torch's own cannot be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, image_BCHW: Tensor, grid_Bhw2: Tensor) -> Tensor:
        ctx.save_for_backward(grid_Bhw2)
        ctx.shape = image_BCHW.shape
        return F.grid_sample(image_BCHW, grid_Bhw2, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grid_Bhw2,) = ctx.saved_tensors
        return _Scatter.apply(gradients[0], grid_Bhw2, ctx.shape), None


class _Scatter(torch.autograd.Function):
    """The transpose of `_Sample`; since both are linear, each is the other's derivative."""

    @staticmethod
    def forward(ctx: Any, gradient_BChw: Tensor, grid_Bhw2: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid_Bhw2)
        picture = gradient_BChw.new_zeros(1).expand(shape)  # its values do not matter, bilinear weights are the grid's
        bilinear = zeros = 0
        return torch.ops.aten.grid_sampler_2d_backward(
            gradient_BChw, picture, grid_Bhw2, bilinear, zeros, False, [True, False]
        )[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grid_Bhw2,) = ctx.saved_tensors
        return _Sample.apply(gradients[0], grid_Bhw2), None, None


def move(image_BCHW: Tensor, inverse_B33: Tensor, taps_k: Tensor) -> Tensor:
    """Each picture moved by its own matrix, without aliasing, mirrored beyond its edges. Same shape.

    inverse: takes a pixel of the result to where it comes from, in pixels from the centre. Karras et al. 2020 (ADA),
    §B.2: pad, enlarge, sample, shrink.
    """
    batch, channels, height, width = image_BCHW.shape
    left, top, right, bottom = _margins(inverse_B33, height, width)
    x = F.pad(image_BCHW, (left, right, top, bottom), mode="reflect")
    shift = translation((left - right) / 2, (top - bottom) / 2, like=inverse_B33)
    inverse_B33 = shift @ inverse_B33
    x = double_size(x, taps_k)
    # From pixels to pixels of twice the size, whose centres lie half a pixel further.
    inverse_B33 = scaling(2, 2, like=inverse_B33) @ inverse_B33 @ scaling(0.5, 0.5, like=inverse_B33)
    half = translation(-0.5, -0.5, like=inverse_B33), translation(0.5, 0.5, like=inverse_B33)
    inverse_B33 = half[0] @ inverse_B33 @ half[1]
    size = (batch, channels, 2 * (height + 2 * REACH), 2 * (width + 2 * REACH))
    # From pixels to the sampler's coordinates, in which a picture reaches from -1 to 1.
    inverse_B33 = (
        scaling(2 / x.shape[3], 2 / x.shape[2], like=inverse_B33)
        @ inverse_B33
        @ scaling(size[3] / 2, size[2] / 2, like=inverse_B33)
    )
    grid_Bhw2 = F.affine_grid(inverse_B33[:, :2], list(size), align_corners=False)
    x = _Sample.apply(x, grid_Bhw2)
    return halve_size(x[:, :, 1:-1, 1:-1], taps_k)


def recolour(image_B3HW: Tensor, colour_B44: Tensor) -> Tensor:
    """Each picture's colours through its own affine matrix."""
    moved = torch.einsum("bij,bjhw->bihw", colour_B44[:, :3, :3], image_B3HW)
    return moved + colour_B44[:, :3, 3, None, None]


def matrix(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """(B, n, n) of entries that are numbers or (B,); (n, n) of numbers alone."""
    entries = [torch.as_tensor(entry, dtype=like.dtype, device=like.device) for row in rows for entry in row]
    side = len(rows)
    return torch.stack(torch.broadcast_tensors(*entries), dim=-1).unflatten(-1, (side, side))


def translation(x: Tensor | float, y: Tensor | float, like: Tensor) -> Tensor:
    """Of the plane, by pixels."""
    return matrix([[1, 0, x], [0, 1, y], [0, 0, 1]], like)


def scaling(x: Tensor | float, y: Tensor | float, like: Tensor) -> Tensor:
    """Of the plane, about the origin."""
    return matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]], like)


def rotation(angle: Tensor, like: Tensor) -> Tensor:
    """Of the plane, about the origin, in radians."""
    cos, sin = angle.cos(), angle.sin()
    return matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], like)


def _margins(inverse_B33: Tensor, height: int, width: int) -> list[int]:
    """Pixels to pad at the left, top, right and bottom, so that no picture of the batch is sampled outside."""
    x, y = (width - 1) / 2, (height - 1) / 2
    corners_34 = inverse_B33.new_tensor([[-x, x, x, -x], [-y, -y, y, y], [1, 1, 1, 1]])
    reached_B24 = (inverse_B33 @ corners_34)[:, :2]
    reach = torch.cat([-reached_B24.amin(dim=(0, 2)), reached_B24.amax(dim=(0, 2))])
    centre = reach.new_tensor([x, y, x, y])
    margins = (reach + 2 * REACH - centre).clamp(min=0).minimum(2 * centre)  # a reflection has no more to give
    return [int(margin) for margin in margins.ceil().tolist()]
