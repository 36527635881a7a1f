"""Styleformer, its discriminator and its augmentation against numbers of the official code."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from generators.losses import PathLength, path_lengths
from generators.released_styleformer import config_of, our_keys, rename
from generators.styleformer import Styleformer
from generators.styleformer_layers import Block
from tests.golden.generator_cases import GanCase, gan_cases


def generator_of(case: GanCase, state: dict[str, Tensor]) -> Styleformer:
    """Built from shapes and the arguments of the case, never from names of configurations."""
    config = config_of({key: tuple(t.shape) for key, t in state.items()}, case.json)
    network = Styleformer(config)
    network.load_state_dict(rename(state), strict=True)
    return network.eval()


def compare_generator(case: GanCase, state: dict[str, Tensor]) -> None:
    network = generator_of(case, state)
    about = case.json
    assert network.slots == about["num_ws"]
    assert network.resolution == (about["img_resolution"], about["img_resolution"])
    sides = [name for name in about["num_heads"]]
    assert [block.attention.heads for block in network.blocks] == [about["num_heads"][name] for name in sides]
    z, c = case["in.z"], case["in.c"] if "in.c" in case else None
    cutoff, psi = about["truncation_cutoff"], about["truncation_psi"]
    w = network.styles(z, c)
    case.compare(w[:, 0], "out.w")
    assert bool((w == w[:, :1]).all())
    truncated = network.styles(z, c, truncation=psi)
    case.compare(truncated[:, -1], "out.w_trunc")
    case.compare(network.synthesis(w, "const"), "out.image")
    case.compare(network.synthesis(truncated, "const"), "out.image_trunc")
    partly = network.styles(z, c, truncation=psi, cutoff=cutoff)
    case.compare(network.synthesis(partly, "const"), "out.image_trunc_cutoff")
    case.compare(network.synthesis(w, "none"), "out.image_noise_none")
    mix = (z.flip(0), about["mix_cutoff"])
    flipped = None if c is None else c.flip(0)
    other = network.styles(mix[0], flipped)
    mixed = torch.cat([w[:, : mix[1]], other[:, mix[1] :]], dim=1)
    case.compare(network.synthesis(mixed, "const"), "out.image_mix")


@pytest.mark.parametrize("path", gan_cases("Styleformer generator"))
def test_generator(path: Path) -> None:
    case = GanCase(path)
    with torch.no_grad():
        compare_generator(case, case.state())
