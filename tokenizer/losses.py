"""The tokenizer's losses: reconstruction, quantisation, perceptual distance, and the adversary's.

B batch, E code width, H W pixels, h w latent grid, 3 RGB.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel
from transformers.image_processing_utils import ImageProcessingMixin

from star.data.errors import InputError
from star.data.pretrained import (
    VISION_FILES,
    VISION_KINDS,
    check_folder,
    folder_of,
    loading,
)
from star.data.transformers_network import read_network
from star.tokenizer.lpips import Lpips


def reconstruction_loss(image_B3HW: Tensor, target_B3HW: Tensor, l1_weight: float, *, log: bool = False) -> Tensor:
    """Mean squared error plus l1_weight times mean absolute error; both on the scale of [-1, 1].

    With `log` the squared error of each picture enters by its logarithm, as in its PSNR (Chen et al. 2022, NAFNet, use
    that as a loss), so that the plain pictures, where a small error is seen, count as much as the busy ones.
    """
    error = image_B3HW.float() - target_B3HW.float()
    squared = (error.square().mean(dim=(1, 2, 3)) + 1e-4).log() if log else error.square()
    return squared.mean() + l1_weight * error.abs().mean()


def quantisation_loss(
    latent_BEhw: Tensor,
    sums: Sequence[Tensor],
    *,
    beta: float,
    commit_to: str = "last",
    relative: bool = True,
    mean_square: Tensor | None = None,
) -> Tensor:
    """beta MSE(sg[sum_k], f) + MSE(sum_k, sg[f]), where sum_k is the sum up to scale k; the second term averaged.

    The first term commits the encoder, the second teaches phi (and the codebook, under the "gradient" rule). As
    released (Tian et al. 2024, Eq. 5) the encoder commits to every partial sum, commit_to "all". That pulls the latent
    towards what one 1x1 code can say, and trained from scratch it is what collapses the coarse scales (EXPERIMENTS.md);
    "last" commits to the full sum only. relative divides by the latent's mean square, so that the latent gains nothing
    by growing or shrinking; mean_square is that of all processes where there are several.
    """
    fit = torch.stack([F.mse_loss(total, latent_BEhw.detach()) for total in sums]).mean()
    committed = sums if commit_to == "all" else sums[-1:]
    commitment = torch.stack([F.mse_loss(latent_BEhw, total.detach()) for total in committed]).mean()
    loss = beta * commitment + fit
    if not relative:
        return loss
    mean_square = latent_BEhw.detach().square().mean() if mean_square is None else mean_square
    return loss / mean_square.clamp_min(1e-8)


def straight_through(latent_BEhw: Tensor, quantised_BEhw: Tensor) -> Tensor:
    """The value of the quantised latent with the gradient of the latent (van den Oord et al. 2017, §3.2)."""
    return latent_BEhw + (quantised_BEhw - latent_BEhw).detach()


class PerceptualDistance(Protocol):
    """A differentiable distance between two images in [-1, 1], (B, 3, H, W) each -> scalar."""

    def __call__(self, image_B3HW: Tensor, target_B3HW: Tensor) -> Tensor: ...


class FeatureDistance(nn.Module):
    """Distance between unit-normalised hidden states of a frozen vision network, averaged over its layers.

    Zhang et al. 2018, §3 ("LPIPS") without its learnt channel weights, which `lpips.py` has. Any vision model that
    transformers loads will do, from a folder or the hub: a ViT (DINOv2, CLIP's image tower) or a convolutional one
    (ResNet, ConvNeXt). Each gets pictures on the scale that its own preprocessor_config.json states.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @classmethod
    def from_pretrained(cls, name: str) -> "FeatureDistance":
        """Loads a folder or hub id. Raises InputError if it is neither, or does not say how it scales pictures."""
        folder = folder_of(name, VISION_FILES, "a vision model")
        with loading(name, "a vision model"):
            check_folder(folder, VISION_KINDS)
            # Hidden states are all that is compared: many vision models come without their pooling layer.
            network = read_network(AutoModel, folder, "its network", source=name, spare=("pooler.",))
        network = getattr(network, "vision_model", network)
        size = getattr(network.config, "image_size", 224)
        return cls(network, size, *picture_scale(name))

    def forward(self, image_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
        distances = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
            for a, b in zip(self._features(image_B3HW), self._features(target_B3HW), strict=True)
        ]
        return torch.stack(distances).mean()

    def _features(self, image_B3HW: Tensor) -> list[Tensor]:
        """Hidden states with channels at dimension 1."""
        image_B3HW = F.interpolate(
            image_B3HW, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False
        )
        pixel_values = ((image_B3HW + 1) / 2 - self.mean) / self.std
        states = self.network(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        return [state.transpose(1, 2) if state.ndim == 3 else state for state in states]


def picture_scale(name: str) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, of pixels in [0, 1], that a transformers vision model was trained with.

    Raises InputError where its preprocessor_config.json does not tell: a wrong scale would pass unnoticed.
    """
    try:
        told, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"perceptual network {name!r} has no readable preprocessor_config.json, which tells the scale of its "
            "pictures: put that of the model beside its weights"
        ) from error
    # Pixels times 1/255, unless another factor is stated or none is wanted; then (x - mean) / std.
    factor = 255.0 * told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 255.0
    if not told.get("do_normalize", True):
        return [0.0] * 3, [1 / factor] * 3
    mean, std = _three(told.get("image_mean")), _three(told.get("image_std"))
    if mean is None or std is None or min(std) <= 0 or factor <= 0:
        raise InputError(
            f"the preprocessor_config.json of the perceptual network {name!r} has image_mean {told.get('image_mean')} "
            f"and image_std {told.get('image_std')}, expected three numbers each, of std above 0: put the model's own "
            "beside its weights"
        )
    return [value / factor for value in mean], [value / factor for value in std]


def _three(told: object) -> list[float] | None:
    """One number for each channel, where one or three are told."""
    values = [told] * 3 if isinstance(told, int | float) else told
    if not isinstance(values, list) or len(values) != 3:
        return None
    return [float(value) for value in values] if all(isinstance(value, int | float) for value in values) else None


def perceptual_distance(name: str) -> nn.Module | None:
    """The configured PerceptualDistance: "none", "lpips:FOLDER" (lpips.py), or a folder or hub id of a transformers
    vision model. Raises InputError where it is not there."""
    if name == "none":
        return None
    kind, _, place = name.partition(":")
    return Lpips.from_directory(place) if kind == "lpips" and place else FeatureDistance.from_pretrained(name)


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches: image (B, 3, H, W) -> logits (B, 1, h, w) (Isola et al. 2017, App. 6).

    Spectral normalisation instead of batch norm, so that a verdict does not depend on the rest of the batch.
    """

    def __init__(self, channels: int = 64, depth: int = 3) -> None:
        super().__init__()
        widths = [3, *(channels * min(2**i, 4) for i in range(depth))]
        layers: list[nn.Module] = []
        for wide_in, wide_out in pairwise(widths):
            layers += [nn.Conv2d(wide_in, wide_out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 3, padding=1))
        self.layers = nn.Sequential(
            *(nn.utils.parametrizations.spectral_norm(i) if isinstance(i, nn.Conv2d) else i for i in layers)
        )

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.layers(image_B3HW)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: nn.Parameter) -> Tensor:
    """|grad of reconstruction| / |grad of adversarial| at the last layer, at most 1e4 (Esser et al. 2021, Eq. 7)."""
    wanted = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()
    pushed = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].norm()
    return (wanted / (pushed + 1e-4)).clamp(max=1e4).detach()
