"""The Inception that FID is defined by: the graph of 5 December 2015, up to its last pooling, as a table.

Szegedy et al. 2016 describe it; the graph that Heusel et al. 2017 took differs: averages leave the border out of their
count, and the pooling of the very last block takes maxima. Names are those of its tensors in the file that pytorch-fid
and torch-fidelity share, so that it loads as it is.
Shapes: B pictures, C channels, D features (2048), H W pixels, 3 RGB.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, SIDE = 2048, 299
EPSILON = 1e-3


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution: channels that leave it, size of its kernel (H, W). At stride 1 it keeps the sides."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Branch:
    """Layers in a row; the ends, if any, each read what these give, side by side."""

    layers: tuple[Layer, ...]
    ends: tuple[Layer, ...] = ()


Pool = Literal["average", "maximum", "halve"]
COLUMN, ROW, SQUARE = (7, 1), (1, 7), (3, 3)


def _block_35(pooled: int) -> tuple[Branch, ...]:
    return (
        Branch((Layer("branch1x1", 64),)),
        Branch((Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5)))),
        Branch(
            (
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, SQUARE),
                Layer("branch3x3dbl_3", 96, SQUARE),
            )
        ),
        Branch((Layer("branch_pool", pooled),)),
    )


def _block_17(inner: int) -> tuple[Branch, ...]:
    return (
        Branch((Layer("branch1x1", 192),)),
        Branch((Layer("branch7x7_1", inner), Layer("branch7x7_2", inner, ROW), Layer("branch7x7_3", 192, COLUMN))),
        Branch(
            (
                Layer("branch7x7dbl_1", inner),
                Layer("branch7x7dbl_2", inner, COLUMN),
                Layer("branch7x7dbl_3", inner, ROW),
                Layer("branch7x7dbl_4", inner, COLUMN),
                Layer("branch7x7dbl_5", 192, ROW),
            )
        ),
        Branch((Layer("branch_pool", 192),)),
    )


BLOCK_8 = (
    Branch((Layer("branch1x1", 320),)),
    Branch(
        (Layer("branch3x3_1", 384),),
        ends=(Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1))),
    ),
    Branch(
        (Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, SQUARE)),
        ends=(Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))),
    ),
    Branch((Layer("branch_pool", 192),)),
)
HALVE_35 = (
    Branch((Layer("branch3x3", 384, SQUARE, 2),)),
    Branch(
        (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, SQUARE), Layer("branch3x3dbl_3", 96, SQUARE, 2)),
    ),
    Branch(()),
)
HALVE_17 = (
    Branch((Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, SQUARE, 2))),
    Branch(
        (
            Layer("branch7x7x3_1", 192),
            Layer("branch7x7x3_2", 192, ROW),
            Layer("branch7x7x3_3", 192, COLUMN),
            Layer("branch7x7x3_4", 192, SQUARE, 2),
        )
    ),
    Branch(()),
)

# name: branches and what the last of them pools with first; in order
BLOCKS: dict[str, tuple[tuple[Branch, ...], Pool]] = {
    "Mixed_5b": (_block_35(32), "average"),
    "Mixed_5c": (_block_35(64), "average"),
    "Mixed_5d": (_block_35(64), "average"),
    "Mixed_6a": (HALVE_35, "halve"),
    "Mixed_6b": (_block_17(128), "average"),
    "Mixed_6c": (_block_17(160), "average"),
    "Mixed_6d": (_block_17(160), "average"),
    "Mixed_6e": (_block_17(192), "average"),
    "Mixed_7a": (HALVE_17, "halve"),
    "Mixed_7b": (BLOCK_8, "average"),
    "Mixed_7c": (BLOCK_8, "maximum"),
}


class FrozenNorm(nn.Module):
    """Batch normalisation by the statistics of a file."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        mean, variance, weight, bias = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(hidden_BCHW, mean, variance, weight, bias, eps=EPSILON)  # type: ignore[arg-type]


class Convolution(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, before: int, layer: Layer, padded: bool) -> None:
        super().__init__()
        padding = (layer.kernel[0] // 2, layer.kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(before, layer.channels, layer.kernel, layer.stride, padding, bias=False)
        self.bn = FrozenNorm(layer.channels)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(hidden_BCHW)))


class Block(nn.Module):
    """Branches side by side; their channels follow one another."""

    def __init__(self, before: int, branches: tuple[Branch, ...], pool: Pool) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        self.channels = 0
        for branch in branches:
            width = before
            for layer in branch.layers:
                self.add_module(layer.name, Convolution(width, layer, padded=layer.stride == 1))
                width = layer.channels
            for layer in branch.ends:
                self.add_module(layer.name, Convolution(width, layer, padded=True))
            self.channels += sum(layer.channels for layer in branch.ends) or width

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            inner_BCHW = self._pooled(hidden_BCHW) if branch is self.branches[-1] else hidden_BCHW
            for layer in branch.layers:
                inner_BCHW = getattr(self, layer.name)(inner_BCHW)
            found += [getattr(self, layer.name)(inner_BCHW) for layer in branch.ends] or [inner_BCHW]
        return torch.cat(found, dim=1)

    def _pooled(self, hidden_BCHW: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(hidden_BCHW, 3, stride=2)
        if self.pool == "maximum":
            return F.max_pool2d(hidden_BCHW, 3, stride=1, padding=1)
        return F.avg_pool2d(hidden_BCHW, 3, stride=1, padding=1, count_include_pad=False)


class InceptionNetwork(nn.Module):
    """image_B3HW float32 of 299 x 299, about [-1, 1] -> features_BD, not negative."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, Layer("", 32, SQUARE, 2), padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, Layer("", 32, SQUARE), padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, Layer("", 64, SQUARE), padded=True)
        self.Conv2d_3b_1x1 = Convolution(64, Layer("", 80), padded=False)
        self.Conv2d_4a_3x3 = Convolution(80, Layer("", 192, SQUARE), padded=False)
        width = 192
        for name, (branches, pool) in BLOCKS.items():
            block = Block(width, branches, pool)
            self.add_module(name, block)
            width = block.channels

    def forward(self, image_B3HW: Tensor) -> Tensor:
        hidden_BCHW = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(image_B3HW)))
        hidden_BCHW = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(hidden_BCHW, 3, stride=2)))
        hidden_BCHW = F.max_pool2d(hidden_BCHW, 3, stride=2)
        for name in BLOCKS:
            hidden_BCHW = getattr(self, name)(hidden_BCHW)
        return hidden_BCHW.mean(dim=(2, 3))
