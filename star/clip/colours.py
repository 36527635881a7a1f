"""The colours of a picture by their everyday names, as shares of what is not background.

B pictures, H W pixels, 3 RGB.
"""

import torch
from torch import Tensor

# Upper ends of hues in degrees, and which colour ends there.
HUES = (
    (12.0, "red"),
    (38.0, "orange"),
    (68.0, "yellow"),
    (170.0, "green"),
    (255.0, "blue"),
    (290.0, "purple"),
    (340.0, "pink"),
    (360.0, "red"),
)
NAMES = ("black", "gray", "white", "brown", *dict.fromkeys(name for _, name in HUES))
BACKGROUND = 0.93  # the darkest channel of a white ground
FEWEST = 0.03  # share of the picture that must not be background


def shares(pixels_B3HW: Tensor) -> list[dict[str, float]]:
    """Of each picture, uint8 on white: the share of every colour it has; none for a picture that is nearly empty.

    Hue, saturation and value (Smith 1978); dark orange is brown.
    """
    rgb_B3HW = pixels_B3HW.float() / 255
    value_BHW, low_BHW = rgb_B3HW.amax(dim=1), rgb_B3HW.amin(dim=1)
    spread_BHW = value_BHW - low_BHW
    hue_BHW = _hue(rgb_B3HW, value_BHW, spread_BHW)
    place_BHW = torch.bucketize(hue_BHW, torch.tensor([end for end, _ in HUES]), right=True).clamp(max=len(HUES) - 1)
    names = torch.tensor([NAMES.index(name) for _, name in HUES])
    named_BHW = names[place_BHW]
    named_BHW[(value_BHW < 0.62) & (hue_BHW > 8) & (hue_BHW < 45)] = NAMES.index("brown")
    grey_BHW = spread_BHW < 0.14 * value_BHW
    named_BHW[grey_BHW & (value_BHW > 0.8)] = NAMES.index("white")
    named_BHW[grey_BHW & (value_BHW <= 0.8)] = NAMES.index("gray")
    named_BHW[value_BHW < 0.22] = NAMES.index("black")
    subject_BHW = low_BHW <= BACKGROUND
    found = []
    for named_HW, subject_HW in zip(named_BHW, subject_BHW, strict=True):
        counts = torch.bincount(named_HW[subject_HW], minlength=len(NAMES)).tolist()
        total = sum(counts)
        enough = total >= FEWEST * subject_HW.numel()
        found.append({name: count / total for name, count in zip(NAMES, counts, strict=True) if enough and count})
    return found


def _hue(rgb_B3HW: Tensor, value_BHW: Tensor, spread_BHW: Tensor) -> Tensor:
    """Degrees in [0, 360); 0 for greys."""
    red, green, blue = rgb_B3HW.unbind(dim=1)
    safe = spread_BHW.clamp_min(1e-6)
    sixth = torch.where(
        value_BHW == red,
        ((green - blue) / safe).remainder(6),
        torch.where(value_BHW == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return torch.where(spread_BHW > 0, 60 * sixth, torch.zeros_like(sixth))
