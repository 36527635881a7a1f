"""LPIPS, the perceptual distance of Zhang et al. 2018 with VGG16, from weights that are converted once.

    star convert lpips vgg16.pth models/lpips          # torchvision's or timm's VGG16, or a whole LPIPS
    star train tokenizer ... --perceptual=lpips:models/lpips

Five stages of VGG16's convolutions (Simonyan & Zisserman 2015); after each, states are brought to unit length over the
channels, their squared differences weighed by channel, and averaged over the picture; the distance is the sum over
the stages. The weights by channel, 1,472 numbers learnt on human judgements, are those of version 0.1.

B batch, C channels, H W pixels or cells, 3 RGB.
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.pickle_loader import CheckpointFile, check_fit
from star.generators.pretrained import ModelDirectory, load_into, write

FAMILY = "lpips"
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of each
EPS = 1e-10
SOURCE = "https://github.com/richzhang/PerceptualSimilarity"
WAYS = ((), ("state_dict",))


class Lpips(nn.Module):
    """Frozen; two images (B, 3, H, W) in [-1, 1] of at least 16 pixels -> scalar, the mean over the batch."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(width for width, _ in STAGES)]
        self.stages = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(widths[stage] if i == 0 else width, width, 3, padding=1) for i in range(convolutions)
            )
            for stage, (width, convolutions) in enumerate(STAGES)
        )
        self.channel_weights = nn.ParameterList(nn.Parameter(torch.ones(width)) for width, _ in STAGES)
        # ImageNet's mean and deviation on the scale of [-1, 1], rounded as published.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def from_directory(cls, path: str | Path) -> "Lpips":
        """Raises InputError if there is no such model directory, or it is damaged."""
        if not Path(path).is_dir():
            raise InputError(
                f"the perceptual distance lpips:{path} is not there, expected a folder made by `star convert lpips "
                f"VGG16_FILE {path}`: make it from torchvision's or timm's VGG16, or set --perceptual=none"
            )
        distance = cls()
        load_into(distance, ModelDirectory.read(path, FAMILY).tensors(), path)
        return distance

    def forward(self, image_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
        states = [(image.float() - self.shift) / self.scale for image in (image_B3HW, target_B3HW)]
        total = states[0].new_zeros(())
        for stage, (convolutions, weight_C) in enumerate(zip(self.stages, self.channel_weights, strict=True)):
            units = []
            for side, state_BCHW in enumerate(states):
                x = F.max_pool2d(state_BCHW, 2) if stage else state_BCHW
                for convolution in convolutions:  # type: ignore[attr-defined]  # a ModuleList
                    x = F.relu(convolution(x))
                states[side] = x
                units.append(_unit(x))
            difference_BHW = torch.einsum("bchw,c->bhw", (units[0] - units[1]).square(), weight_C)
            total = total + difference_BHW.mean()
        return total


def _unit(x_BCHW: Tensor) -> Tensor:
    """Length 1 over the channels; a cell of zeros stays one, and has a gradient of 0 and not of nan."""
    return x_BCHW / (x_BCHW.square().sum(dim=1, keepdim=True).clamp_min(EPS**2).sqrt() + EPS)


def convert_lpips(file: str | Path, out: str | Path, *, linear: str | Path | None = None) -> ModelDirectory:
    """Writes the model directory `out` from a file of VGG16 (torchvision's or timm's) or of a whole LPIPS.

    linear: the file of the weights by channel (PerceptualSimilarity's lpips/weights/v0.1/vgg.pth, saved anew); where
    neither it nor `file` has them, those that come with torchmetrics are taken.
    Raises InputError, and then has written nothing, for a file that is damaged, would run code or is another network.
    """
    tensors = dict(_tensors(Path(file)))
    names = {ours: key for key in tensors if (ours := our_key(key)) is not None}
    known = tensors
    if not any(name.startswith("channel_weights") for name in names):
        weights = _bundled() if linear is None else _tensors(Path(linear))
        found = {ours: key for key in weights if (ours := our_key(key)) is not None}
        names |= found
        known = tensors | dict(weights)
    elif linear is not None:
        raise InputError(f"{file} has weights by channel of its own, and {linear} was given, too: leave one out")
    own = Lpips()
    shapes = {key: tuple(tensor.shape) for key, tensor in known.items()}
    for ours, key in names.items():
        if ours.startswith("channel_weights") and shapes[key] == (1, known[key].numel(), 1, 1):
            known[key], shapes[key] = known[key].flatten(), (known[key].numel(),)
    check_fit(own.state_dict(), names, shapes, file)
    return write(
        out,
        family=FAMILY,
        config={},
        tensors={ours: known[key].float() for ours, key in names.items()},
        card=(
            f"# LPIPS\n\nConverted from {Path(file).name}, weights unchanged: VGG16 (Simonyan & Zisserman 2015) and "
            f"the weights by channel of Zhang et al. 2018, version 0.1 ({SOURCE}, BSD-2-Clause).\n"
        ),
        about={"source": SOURCE},
    )


def our_key(key: str) -> str | None:
    """Our name of a tensor of VGG16, of LPIPS or of its weights by channel; None for one that is not needed."""
    if match := re.fullmatch(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)", key):
        place = PLACES.get(int(match[1]))
        return None if place is None else f"stages.{place[0]}.{place[1]}.{match[2]}"
    if match := re.fullmatch(r"lin(\d)\.model\.1\.weight", key):
        return f"channel_weights.{match[1]}"
    return None


def _places() -> dict[int, tuple[int, int]]:
    """Of VGG16's convolutions, by their number among all its layers: the stage, and the place in it."""
    found, number = {}, 0
    for stage, (_, convolutions) in enumerate(STAGES):
        for place in range(convolutions):
            found[number] = (stage, place)
            number += 2  # a ReLU behind each
        number += 1  # pooling
    return found


PLACES = _places()


def _tensors(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read as safetensors ({error}): fetch it again") from error
    found = CheckpointFile.find(file, WAYS)
    if found is None:
        raise InputError(f"{file} holds no dictionary of tensors, expected a VGG16 or an LPIPS: give another file")
    return found


def _bundled() -> Mapping[str, Tensor]:
    """The weights by channel that torchmetrics brings along."""
    spec = importlib.util.find_spec("torchmetrics")
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent
    file = None if file is None else file / "functional" / "image" / "lpips_models" / "vgg.pth"
    if file is None or not file.is_file():
        raise InputError("the weights by channel did not come with torchmetrics here: give --linear with their file")
    return dict(torch.load(file, map_location="cpu", weights_only=True))
