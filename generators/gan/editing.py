"""What a style-based GAN can do with its styles: ways between pictures, mixed styles, directions found without labels.

    w_BSW = generator.styles(["a cat"], [3], options)
    found = directions(generator, "a cat", method="pca")
    pixels_B3HW = generator.pictures(found.move(w_BSW, 0, strength=2.0))

Directions by two methods. "pca": principal components of styles over many latents, as GANSpace finds them (Härkönen et
al. 2020, §2.2). "sefa": the directions that the layers which read styles amplify most, eigenvectors of A^T A of their
stacked weights (Shen & Zhou 2021, Eq. 6); these need no sampling. Either way they are orthonormal in the space of w,
and a strength of 1 is a standard deviation of the model's own styles along the direction.

B pictures, N samples, S style slots, W style width, D directions, Z latent width, H W pixels, 3 RGB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from star.data.errors import InputError
from star.generators.gan.generator import GanGenerator, GanNetwork
from star.generators.gan.layers import EqualLinear
from star.generators.interpolation import slerp, steps
from star.generators.protocol import SampleOptions

Method = Literal["pca", "sefa"]
METHODS: tuple[Method, ...] = ("pca", "sefa")
SAMPLES = 2000  # latents whose styles are looked at


def morph(
    generator: GanGenerator, stops: Sequence[tuple[str, int]], options: SampleOptions, frames: int
) -> Iterator[Tensor]:
    """pixels_3HW of the way through prompts and seeds: latents and conditions on arcs; `frames` for each stretch."""
    prompts, seeds = zip(*stops, strict=True)
    latent_BZ, condition_BP = generator.latents(seeds), generator.condition(prompts)
    for i in range(len(stops) - 1):
        for t in steps(frames)[min(i, 1) :]:
            latent_1Z = slerp(latent_BZ[i : i + 1], latent_BZ[i + 1 : i + 2], t)
            condition_1P = None
            if condition_BP is not None:
                condition_1P = slerp(condition_BP[i : i + 1], condition_BP[i + 1 : i + 2], t)
            yield generator.pictures(generator.styles_of(latent_1Z, condition_1P, options.truncation))[0]


def mix(coarse_BSW: Tensor, fine_BSW: Tensor, first: int) -> Tensor:
    """w_BSW: of the slots before `first` from one, from there on from the other (Karras et al. 2019, §3.1).

    Raises InputError unless `first` is from 0, where all is the other's, to the number of slots.
    """
    slots = coarse_BSW.shape[1]
    if not 0 <= first <= slots:
        raise InputError(f"the slot is {first}, expected 0 to {slots}, as many as this network has: correct it")
    return torch.cat([coarse_BSW[:, :first], fine_BSW[:, first:]], dim=1)


@dataclass(frozen=True, slots=True)
class Directions:
    """Directions in the space of styles, those that matter most first.

    rows_DW: orthonormal, float32. deviations_D: of the model's styles along each. shares_D: of the whole variance of
    styles ("pca") or of what the layers amplify ("sefa").
    """

    method: Method
    rows_DW: Tensor
    deviations_D: Tensor
    shares_D: Tensor

    def move(self, w_BSW: Tensor, number: int, strength: float, slots: slice = slice(None)) -> Tensor:
        """w_BSW moved by so many standard deviations along direction `number`, in some slots alone where given.

        A strength of 0 changes nothing, to the bit. Raises InputError for a direction that there is not.
        """
        if not 0 <= number < len(self.rows_DW):
            raise InputError(f"direction {number} was asked for, expected 0 to {len(self.rows_DW) - 1}: correct it")
        moved_BSW = w_BSW.clone()
        step_W = (strength * self.deviations_D[number] * self.rows_DW[number]).to(w_BSW)
        moved_BSW[:, slots] += step_W
        return moved_BSW


@torch.inference_mode()
def directions(generator: GanGenerator, prompt: str = "", *, method: Method = "pca", count: int = 10) -> Directions:
    """The first `count` directions of a model, for a prompt where it reads prompts.

    Raises InputError for an unknown method, or more directions than there are.
    """
    if method not in METHODS:
        raise InputError(f"the method is {method!r}, expected {' or '.join(METHODS)}: choose one")
    w_NW = _sampled(generator, prompt)
    width = w_NW.shape[1]
    if not 1 <= count <= width:
        raise InputError(f"{count} directions were asked for, expected 1 to {width}: correct it")
    centred_NW = (w_NW - w_NW.mean(dim=0)).double()
    if method == "pca":
        values_W, rows_WW = _eigen(centred_NW.T @ centred_NW)
    else:
        varies_W = centred_NW.abs().amax(dim=0) > 1e-6  # not what the prompt alone fixes, as in StyleGAN-T
        matrix_WW = _amplification(generator.network)
        values_W, rows_WW = _eigen(matrix_WW * varies_W * varies_W[:, None])
    rows_DW = rows_WW[:count]
    deviations_D = (centred_NW @ rows_DW.T).std(dim=0)
    shares_D = values_W[:count] / values_W.sum()
    return Directions(method, rows_DW.float(), deviations_D.float(), shares_D.float())


def _sampled(generator: GanGenerator, prompt: str) -> Tensor:
    """w_NW of many latents, always the same ones: of the first slot, before truncation."""
    latent_NZ = torch.randn(SAMPLES, generator.network.latent_width, generator=torch.Generator().manual_seed(0))
    condition_1P = generator.condition([prompt])
    condition_NP = None if condition_1P is None else condition_1P.expand(SAMPLES, -1)
    return generator.styles_of(latent_NZ.to(generator.device), condition_NP)[:, 0].float().cpu()


def _amplification(network: GanNetwork) -> Tensor:
    """(W, W) float64: A^T A of all layers that read styles, each of which is an EqualLinear outside the mapping."""
    inside = {id(module) for name, module in network.named_modules() if name.split(".")[0] == "mapping"}
    layers = [m for m in network.modules() if isinstance(m, EqualLinear) and id(m) not in inside]
    widths = [layer.weight.shape[1] for layer in layers]
    if not layers or len(set(widths)) > 1:
        raise InputError(
            f"the layers of a {type(network).__name__} that read styles are not found, expected EqualLinear layers of "
            "one width: use the method pca"
        )
    matrix_OW = torch.cat([layer.weight.detach() * layer.scale for layer in layers]).double().cpu()
    return matrix_OW.T @ matrix_OW


def _eigen(matrix_WW: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and eigenvectors as rows, their largest component positive."""
    values_W, columns_WW = torch.linalg.eigh(matrix_WW)
    rows_WW = columns_WW.T.flip(0)
    signs_W1 = rows_WW.gather(1, rows_WW.abs().argmax(dim=1, keepdim=True)).sign()
    return values_W.flip(0).clamp(min=0), rows_WW * signs_W1
