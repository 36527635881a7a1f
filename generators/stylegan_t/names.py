"""The names that the released StyleGAN-T code gives its tensors, and ours: generator and discriminator heads.

Read strictly: a key without a counterpart is refused by name. `None` marks what our networks do not store: the low-pass
filter, which is held against ours, and the backbones (CLIP's text, DINO's image side), models of their own.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from star.generators.gan.released_arguments import Values, check_arguments, clamp_of
from star.generators.gan.released_tensors import Table, check_low_pass, find
from star.generators.stylegan_t.model import StyleGanTConfig

# The arguments of the released synthesis network, and what of them can be told apart from ours.
ARGUMENTS: dict[str, Values] = {
    "channel_base": None,
    "channel_max": None,
    "num_res_blocks": None,
    "gn_groups": None,
    "architecture": ("skip", "orig"),
    "conv_clamp": None,
    "layer_scale_init": None,  # where training starts
    "num_fp16_res": None,  # precision, and how it is computed, is ours to choose
    "use_fp16": None,
    "fp16_channels_last": None,
    "channels_last": None,
    "fused_modconv_default": None,
    "verbose": None,
    "img_channels": (3,),
    "kernel_size": (3,),
    "activation": ("lrelu",),
    "use_noise": (True,),
    "resample_filter": ([1, 3, 3, 1],),
}

_CONV: Table = (
    (r"weight", "weight"),
    (r"bias", "bias"),
    (r"noise_strength", "noise_strength"),
    (r"noise_const", "noise_HW"),
    (r"affine\.proj\.(weight|bias)", r"style.affine.\1"),
    (r"resample_filter", None),
)
_RESIDUAL: Table = (
    (r"norm\.(weight|bias)", r"norm.\1"),
    (r"gamma", "layer_scale_1C11"),
    *((theirs, None if ours is None else f"conv.{ours}") for theirs, ours in _CONV),
)
_INPUT: Table = (
    (r"weight", "weight"),
    (r"affine\.(weight|bias)", r"affine.\1"),
    (r"freqs", "frequencies_C2"),
    (r"phases", "phases_C"),
    (r"transform", "transform_33"),
)
_RGB: Table = (
    (r"weight", "weight"),
    (r"bias", "bias"),
    (r"affine\.proj\.(weight|bias)", r"style.affine.\1"),
)
_BLOCK: Table = (
    *((rf"input\.{theirs}", f"first.{ours}") for theirs, ours in _INPUT),
    *((rf"conv0\.{theirs}", None if ours is None else f"first.{ours}") for theirs, ours in _CONV),
    *((rf"torgb\.{theirs}", f"to_rgb.{ours}") for theirs, ours in _RGB),
    (r"resample_filter", None),
)
_MAPPING: Table = (
    (r"mapping\.mlp\.fc(\d+)\.(weight|bias)", r"mapping.layers.\1.\2"),
    (r"mapping\.x_avg", "mapping.average_W"),
    (r"mapping\.clip\..+", None),
)
_NORMED: Table = (
    (r"0\.bias", "conv.bias"),
    (r"0\.weight_orig", "conv.weight"),
    (r"0\.weight_u", "conv.left_O"),
    (r"0\.weight_v", "conv.right_I"),
    (r"1\.(weight|bias)", r"norm.\1"),
)
_HEAD: Table = (
    *((rf"main\.0\.{theirs}", f"first.{ours}") for theirs, ours in _NORMED),
    *((rf"main\.1\.fn\.{theirs}", f"second.{ours}") for theirs, ours in _NORMED),
    (r"cls\.bias", "classify.bias"),
    (r"cls\.weight_orig", "classify.weight"),
    (r"cls\.weight_u", "classify.left_O"),
    (r"cls\.weight_v", "classify.right_I"),
    (r"cmapper\.(weight|bias)", r"projection.\1"),
)


def config_of_arguments(
    resolution: int, latent: int, condition: int, told: Mapping[str, Any], file: str | Path = "the file"
) -> StyleGanTConfig:
    """The configuration of a generator that the released code made.

    latent, condition: widths, of z and of the text's embedding (0 without text). told: its synthesis_kwargs; what they
    leave out has the released class's own defaults. Raises InputError for an argument that no network here knows, or a
    value that none can do.
    """
    check_arguments(told, ARGUMENTS, "a synthesis network", file)
    return StyleGanTConfig(
        resolution=resolution,
        conditioning="text" if condition else "none",
        condition_width=condition,
        latent_width=latent,
        channel_base=told.get("channel_base", 32768),
        channel_max=told.get("channel_max", 512),
        residual_blocks=told.get("num_res_blocks", 3),
        groups=told.get("gn_groups", 32),
        architecture=told.get("architecture", "orig"),
        clamp=clamp_of(told.get("conv_clamp", 256), file),
    )


def rename_generator(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released generator's state dict under our names, ready for load_state_dict(strict=True).

    Raises ValueError for a name never seen, and for another low-pass filter than ours.
    """
    return _rename(released, _generator_key)


def generator_keys(released: Iterable[str]) -> dict[str, str | None]:
    """For each released name of the generator ours. Raises ValueError for a name never seen."""
    return {key: _generator_key(key) for key in released}


def rename_head(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for one head of the discriminator."""
    return _rename(released, lambda key: _find(key, _HEAD, "", key))


def rename_discriminator(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for the discriminator: its heads alone, under `heads.`; the features are frozen."""
    return _rename(released, _discriminator_key)


def _generator_key(key: str) -> str | None:
    if not (match := re.fullmatch(r"synthesis\.b(\d+)\.(.+)", key)):
        return _find(key, _MAPPING, "", key)
    block, rest = f"blocks.{match[1]}.", match[2]
    if match := re.fullmatch(r"convs1\.(\d+)\.(.+)", rest):
        table = _RESIDUAL if int(match[1]) % 2 else _CONV  # plain and residual ones alternate
        return _find(match[2], table, f"{block}layers.{match[1]}.", key)
    return _find(rest, _BLOCK, block, key)


def _discriminator_key(key: str) -> str | None:
    if re.fullmatch(r"dino\..+", key):
        return None
    if match := re.fullmatch(r"(heads\.\d+\.)(.+)", key):
        return _find(match[2], _HEAD, match[1], key)
    return _find(key, (), "", key)


def _find(rest: str, table: Table, prefix: str, key: str) -> str | None:
    ours = find(rest, table, f"'{key}' is not a tensor of the released StyleGAN-T; is this another file?")
    return None if ours is None else prefix + ours


def _rename(released: Mapping[str, Tensor], our_key: Callable[[str], str | None]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in released.items():
        if (ours := our_key(key)) is not None:
            renamed[ours] = tensor
        elif key.endswith("resample_filter"):
            check_low_pass(key, tensor)
    return renamed
