"""How good a tokenizer is on pictures it has not seen: fidelity at every cut of the pyramid, and life of the codebook.

B batch, H W pixels, K scales, 3 RGB.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from star.data.images import image_to_pixels, labelled_grid
from star.data.loader.pipeline import Batch
from star.tokenizer.portions import at_once, map_bytes
from star.tokenizer.tokenizer import MultiScaleTokenizer
from star.tokenizer.tokens import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerScores:
    """Means over the pictures, of 8-bit pictures. psnr: dB. ssim: Gaussian window of 11 pixels, as Wang et al. 2004.

    psnr_at_cut: K values, decoded from the first 1..K scales. usage: of what tokens can say, per scale.
    """

    pictures: int
    psnr: float
    ssim: float
    psnr_at_cut: list[float]
    usage: Usage

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> str:
        """A small table for people."""
        columns = self.usage.columns()
        rows = [
            f"{self.pictures} pictures: PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f}, {self.usage.summary()}",
            "scale" + "".join(f"{name:>{len(name) + 3}}" for name in columns) + "   PSNR up to here",
        ]
        for k, psnr in enumerate(self.psnr_at_cut):
            cells = "".join(f"{values[k]:>{len(name) + 3}}" for name, values in columns.items())
            rows.append(f"{k:5d}{cells}{psnr:15.2f} dB")
        return "\n".join(rows)


def psnr_B(image_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, of 8-bit pictures; identical ones count as 100 dB."""
    error = image_to_pixels(image_B3HW).double() - image_to_pixels(target_B3HW).double()
    return -10 * torch.log10((error.square().mean(dim=(1, 2, 3)) / 255**2).clamp_min(1e-10))


@torch.no_grad()
def measure(tokenizer: MultiScaleTokenizer, batches: Iterable[Batch], precision: str = "no") -> TokenizerScores:
    """Scores over all batches. precision "bf16" runs the networks under autocast."""
    device = next(tokenizer.parameters()).device
    counts: Tensor | None = None
    cuts: list[Tensor] = []
    ssim: list[Tensor] = []
    portion = at_once(map_bytes(tokenizer.config.autoencoder, tokenizer.resolution))
    for part_B3HW in (part for batch in batches for part in batch.image_B3HW.split(portion)):
        image_B3HW = part_B3HW.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            pyramid = tokenizer.pyramid(image_B3HW)
            decoded = [tokenizer.latent_to_image(total) for total in pyramid.latents]
        found = tokenizer.tokens.counts(pyramid.codes)
        counts = found if counts is None else counts + found
        cuts.append(torch.stack([psnr_B(image, image_B3HW) for image in decoded]).cpu())
        exact = image_to_pixels(decoded[-1]).float()
        truth = image_to_pixels(image_B3HW).float()
        value = structural_similarity_index_measure(exact, truth, data_range=255.0, reduction="none")
        ssim.append(torch.as_tensor(value).reshape(-1).double().cpu())
    if counts is None:
        raise ValueError("no pictures to measure on")
    psnr_KB = torch.cat(cuts, dim=1)
    return TokenizerScores(
        pictures=psnr_KB.shape[1],
        psnr=float(psnr_KB[-1].mean()),
        ssim=float(torch.cat(ssim).mean()),
        psnr_at_cut=[float(row.mean()) for row in psnr_KB],
        usage=tokenizer.tokens.usage(counts),
    )


@torch.no_grad()
def cuts_grid(tokenizer: MultiScaleTokenizer, image_B3HW: Tensor, labels: list[str]) -> Tensor:
    """A contact sheet, pixels_3HW: each picture in a row, the original first, then decoded from 1..K scales."""
    image_B3HW = image_B3HW.to(next(tokenizer.parameters()).device)
    pyramid = tokenizer.pyramid(image_B3HW)
    columns = [image_B3HW, *(tokenizer.latent_to_image(total) for total in pyramid.latents)]
    pixels = [image_to_pixels(column).cpu() for column in columns]
    rows = [[column[b] for column in pixels] for b in range(len(image_B3HW))]
    names = ["original", *(f"to {size}x{size}" for size in tokenizer.schedule)]
    return labelled_grid(rows, labels, names)
