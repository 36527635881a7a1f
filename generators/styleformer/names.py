"""What the tensors of released Styleformer networks are called there, and here.

Two tables, one for the generator and one for the discriminator, read strictly: a name without a counterpart is refused.
`None` marks the low-pass filter, which each layer of the files carries along: it is held against ours instead.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from star.generators.gan.released_tensors import OurKeys, Table, check_low_pass, find

_BLOCK = re.compile(r"synthesis\.b(\d+)_(\d+)\.(.+)")  # side and number of a layer
_GENERATOR: Table = (
    (r"mapping\.w_avg", "mapping.average_W"),
    (r"mapping\.embed\.(weight|bias)", r"mapping.embedding.\1"),
    (r"mapping\.fc(\d+)\.(weight|bias)", r"mapping.layers.\1.\2"),
    (r"blocks\.0\.const", "constant_nC"),
    (r"(blocks\.\d+)\.pos_embedding", r"\1.position_1nC"),
    *(
        (rf"(blocks\.\d+)\.enc\.{letter}_weight", rf"\1.attention.{name}")
        for letter, name in (("q", "query"), ("k", "key"), ("v", "value"), ("w", "output"), ("u", "skip"))
    ),
    (r"(blocks\.\d+)\.enc\.(bias|noise_strength)", r"\1.attention.\2"),
    (r"(blocks\.\d+)\.enc\.noise_const", r"\1.attention.noise_n1"),
    (r"(blocks\.\d+)\.enc\.affine1\.(weight|bias)", r"\1.attention.affine.\2"),
    (r"(blocks\.\d+)\.(?:enc\.)?proj_weight", r"\1.attention.projection"),  # the files list it twice
    (r"(blocks\.\d+)\.torgb\.((?:affine\.)?(?:weight|bias))", r"\1.to_rgb.\2"),
    (r"(blocks\.\d+)\.resample_filter", None),
)
_SIDE = re.compile(r"b(\d+)\.(.+)")
_DISCRIMINATOR: Table = (
    (r"blocks\.0\.fromrgb\.(weight|bias)", r"from_rgb.\1"),
    (r"(blocks\.\d+)\.conv0\.(weight|bias)", r"\1.first.\2"),
    (r"(blocks\.\d+)\.conv1\.(weight|bias)", r"\1.second.\2"),
    (r"(blocks\.\d+)\.skip\.weight", r"\1.skip.weight"),
    (r"blocks\.\d+\.conv\.(weight|bias)", r"last.\1"),
    (r"blocks\.\d+\.fc\.(weight|bias)", r"hidden.\1"),
    (r"blocks\.\d+\.out\.(weight|bias)", r"output.\1"),
    (r"mapping\.embed\.(weight|bias)", r"embedding.\1"),
    (r"mapping\.fc(\d+)\.(weight|bias)", r"mapping.\1.\2"),
    (r"(blocks\.\d+)\.(?:\w+\.)?resample_filter", None),
)


def layers_of(released: Iterable[str]) -> list[tuple[int, int]]:
    """(side, number) of the generator's layers as they are named, in order. A name's side need not be the true one."""
    return sorted({(int(match[1]), int(match[2])) for key in released if (match := _BLOCK.fullmatch(key))})


def generator_keys(released: Iterable[str]) -> dict[str, str | None]:
    """For each released name of the generator ours. Raises ValueError for a name never seen."""
    released = list(released)
    places = {layer: i for i, layer in enumerate(layers_of(released))}
    named = {}
    for key in released:
        match = _BLOCK.fullmatch(key)
        plain = key if match is None else f"blocks.{places[int(match[1]), int(match[2])]}.{match[3]}"
        named[key] = find(plain, _GENERATOR, _unknown(key))
    return named


def discriminator_keys(released: Iterable[str]) -> dict[str, str | None]:
    """For each released name of the discriminator ours. Raises ValueError for a name never seen."""
    found = {key: _SIDE.fullmatch(key) for key in released}
    sides = sorted({int(match[1]) for match in found.values() if match}, reverse=True)
    named = {}
    for key, match in found.items():
        plain = key if match is None else f"blocks.{sides.index(int(match[1]))}.{match[2]}"
        named[key] = find(plain, _DISCRIMINATOR, _unknown(key))
    return named


def rename(released: Mapping[str, Tensor], our_keys: OurKeys = generator_keys) -> dict[str, Tensor]:
    """A released state dict under our names, ready for load_state_dict(strict=True).

    Raises ValueError for an unknown name, for another low-pass filter than ours, and where two copies of a tensor
    differ.
    """
    renamed: dict[str, Tensor] = {}
    for key, ours in our_keys(released).items():
        tensor = released[key]
        if ours is None:
            check_low_pass(key, tensor)
        elif ours in renamed and not torch.equal(renamed[ours], tensor):
            raise ValueError(f"{key} differs from its other copy")
        else:
            renamed[ours] = tensor
    return renamed


def _unknown(key: str) -> str:
    return f"'{key}' is not a tensor of a released Styleformer; is this another file?"
