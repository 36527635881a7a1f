"""RestyleNetwork: a picture of a subject in one style to the same subject in another.

A U-Net (Ronneberger et al. 2015) with residual blocks that both styles, the given and the wanted one, scale and shift
(Dumoulin et al. 2017, section 2). It sees pairs of pictures of one subject, aligned as their artists drew them.

B pictures, 3 RGB, H W pixels (of four resolutions multiples of 8, of each less half of that), C channels, S styles, D
width of what is told of the styles.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.generators.config import check_ranges

GROUPS = 8  # of every normalisation


@dataclass(frozen=True, kw_only=True, slots=True)
class RestyleConfig:
    """Sizes of the network. styles: the names of all that it was trained with, in the order of their embeddings.

    Raises InputError or ValueError for sizes that no network has.
    """

    styles: tuple[str, ...] = ()
    widths: tuple[int, ...] = (24, 64, 96, 128)  # channels at each resolution, the finest first
    blocks: tuple[int, ...] = (1, 1, 1, 1)  # residual blocks at each, on the way down and up
    style_width: int = 64

    def __post_init__(self) -> None:
        check_ranges(self, widths=(GROUPS, 4096), blocks=(1, 64), style_width=(1, 4096))
        if len(self.widths) != len(self.blocks) or not self.widths:
            raise ValueError(
                f"{len(self.widths)} widths and {len(self.blocks)} numbers of blocks are given, expected as many: "
                "give one of each for every resolution"
            )
        if any(width % GROUPS for width in self.widths):
            raise ValueError(f"widths are {self.widths}, expected multiples of {GROUPS}: correct them")
        if len(set(self.styles)) < len(self.styles) or not all(self.styles):
            raise ValueError(f"styles are {', '.join(self.styles)}, expected different names: correct them")


class StyledBlock(nn.Module):
    """Two convolutions beside the identity, normalised in groups, scaled and shifted by the styles."""

    def __init__(self, given: int, width: int, style_width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.GroupNorm(GROUPS, given), nn.GroupNorm(GROUPS, width)
        self.first = nn.Conv2d(given, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.style = nn.Linear(style_width, 2 * width)
        self.through = nn.Conv2d(given, width, 1) if given != width else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.style.weight)
        nn.init.zeros_(self.style.bias)

    def forward(self, x_BCHW: Tensor, style_BD: Tensor) -> Tensor:
        """(B, width, H, W)."""
        hidden_BCHW = self.first(F.silu(self.first_norm(x_BCHW)))
        scale_BC, shift_BC = self.style(style_BD).chunk(2, dim=1)
        hidden_BCHW = self.second_norm(hidden_BCHW) * (1 + scale_BC[..., None, None]) + shift_BC[..., None, None]
        through_BCHW: Tensor = self.through(x_BCHW)
        return through_BCHW + self.second(F.silu(hidden_BCHW))


class RestyleNetwork(nn.Module):
    """The U-Net; each resolution is half of the one before, halved by strided convolutions, doubled by repetition."""

    def __init__(self, config: RestyleConfig) -> None:
        super().__init__()
        self.config = config
        widths, style = config.widths, config.style_width
        self.given_style = nn.Embedding(max(len(config.styles), 1), style)
        self.wanted_style = nn.Embedding(max(len(config.styles), 1), style)
        self.enter = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down, self.halve, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        for level, (width, count) in enumerate(zip(widths, config.blocks, strict=True)):
            self.down.append(nn.ModuleList(StyledBlock(width, width, style) for _ in range(count)))
            self.up.append(
                nn.ModuleList(StyledBlock(width if i else 2 * width, width, style) for i in range(count))
                if level < len(widths) - 1
                else nn.ModuleList(StyledBlock(width, width, style) for _ in range(count))
            )
            if level < len(widths) - 1:
                self.halve.append(nn.Conv2d(width, widths[level + 1], 3, stride=2, padding=1))
                self.grow.append(nn.Conv2d(widths[level + 1], width, 1))
        self.leave_norm = nn.GroupNorm(GROUPS, widths[0])
        self.leave = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, image_B3HW: Tensor, given_B: Tensor, wanted_B: Tensor) -> Tensor:
        """logits_B3HW, whose sigmoid is the share of full brightness. image_B3HW in -1 to 1, styles int64."""
        style_BD = F.silu(self.given_style(given_B) + self.wanted_style(wanted_B))
        x_BCHW, kept = self.enter(image_B3HW), []
        last = len(self.down) - 1
        for level, blocks in enumerate(self.down):
            x_BCHW = _through(blocks, x_BCHW, style_BD)
            if level < last:
                kept.append(x_BCHW)
                x_BCHW = self.halve[level](x_BCHW)
        for level in range(last, -1, -1):
            if level < last:
                coarse_BCHW = F.interpolate(self.grow[level](x_BCHW), scale_factor=2, mode="nearest")
                x_BCHW = torch.cat((coarse_BCHW, kept[level]), dim=1)
            x_BCHW = _through(self.up[level], x_BCHW, style_BD)
        logits_B3HW: Tensor = self.leave(F.silu(self.leave_norm(x_BCHW)))
        return logits_B3HW


def _through(blocks: nn.Module, x_BCHW: Tensor, style_BD: Tensor) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        x_BCHW = block(x_BCHW, style_BD)
    return x_BCHW


def restyle_loss(logits_B3HW: Tensor, image_B3HW: Tensor) -> Tensor:
    """Cross-entropy of brightness, which keeps lines sharp where L2 blurs them, and L1. image_B3HW in -1 to 1."""
    share_B3HW = (image_B3HW.float() + 1) / 2
    logits_B3HW = logits_B3HW.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits_B3HW, share_B3HW)
    return cross_entropy + (logits_B3HW.sigmoid() - share_B3HW).abs().mean()
