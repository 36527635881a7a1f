"""What the tensors of released StyleNAT networks are called there, and here.

Two tables, one for the generator and one for the discriminator, read strictly: a name without a counterpart is refused.
`None` marks what follows from the rest: filters, which are held against ours, and the index into a bias table.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from star.generators.gan.layers import fir_kernel
from star.generators.gan.released_tensors import OurKeys, Table, find

_BLOCK, _OURS = r"layers\.(\d+)\.blocks\.(\d+)", r"levels.\1.blocks.\2"
_GENERATOR: Table = (
    (r"style\.(\d+)\.(weight|bias)", r"mapping.layers.\1.\2"),
    (r"input\.input", "constant_1CHW"),
    (rf"{_BLOCK}\.norm1\.style\.(weight|bias)", rf"{_OURS}.before_attention.style.\3"),
    (rf"{_BLOCK}\.norm2\.style\.(weight|bias)", rf"{_OURS}.before_mlp.style.\3"),
    (rf"{_BLOCK}\.attn\.qkv\.(weight|bias)", rf"{_OURS}.attention.qkv.\3"),
    (rf"{_BLOCK}\.attn\.proj\.(weight|bias)", rf"{_OURS}.attention.projection.\3"),
    (rf"{_BLOCK}\.attn\.rpb", rf"{_OURS}.attention.tables.0"),  # of all heads: attention between all places
    (rf"{_BLOCK}\.attn\.rpb\.?(\d+)", rf"{_OURS}.attention.tables.\3"),  # older files have no dot there
    (rf"{_BLOCK}\.attn\.relative_position_index", None),
    (rf"{_BLOCK}\.mlp\.fc1\.(weight|bias)", rf"{_OURS}.mlp.0.\3"),
    (rf"{_BLOCK}\.mlp\.fc2\.(weight|bias)", rf"{_OURS}.mlp.2.\3"),
    (r"layers\.(\d+)\.upsample\.(alpha|norm\.weight|norm\.bias|reduction\.weight)", r"levels.\1.upsampling.\2"),
    (r"layers\.\d+\.upsample\.sin_pos_embed\._float_tensor", None),
    (r"to_rgbs\.(\d+)\.conv\.weight", r"levels.\1.to_rgb.weight_3C11"),
    (r"to_rgbs\.(\d+)\.conv\.bias", r"levels.\1.to_rgb.conv_bias"),
    (r"to_rgbs\.(\d+)\.bias", r"levels.\1.to_rgb.bias_1311"),
    (r"to_rgbs\.\d+\.upsample\.kernel", None),
)
# Weights and biases under `first`, `second`, ... are named once `_PARTS` has cut off what holds them.
_PARTS: Table = (
    (r"(stages\.\d+\.)?from_rgbs\.conv\.0\.(.+)", r"\1from_rgb.\2"),
    (r"(stages\.\d+\.)?from_rgbs\.conv\.1\.bias", r"\1from_rgb.bias"),
    (r"convs\.(\d+)\.conv1\.0\.(.+)", r"stages.\1.first.\2"),
    (r"convs\.(\d+)\.conv1\.1\.bias", r"stages.\1.first.bias"),
    (r"convs\.(\d+)\.conv2\.1\.(.+)", r"stages.\1.second.\2"),
    (r"convs\.(\d+)\.conv2\.2\.bias", r"stages.\1.second.bias"),
    (r"final_conv\.0\.(.+)", r"last.\1"),
    (r"final_conv\.1\.bias", "last.bias"),
    (r"final_linear\.0\.(.+)", r"hidden.\1"),
    (r"final_linear\.between\.bias", "hidden.bias"),
    (r"final_linear\.last\.(.+)", r"output.\1"),
    (r"(?:.*\.)?(?:dwt|iwt)\.(?:ll|lh|hl|hh)", None),
    (r"(?:.*\.)?(?:downsample|conv2\.0)\.kernel", None),
)
_WEIGHTS = {"weight_orig": "weight", "weight": "weight", "bias": "bias", "weight_u": "left_O", "weight_v": "right_I"}
_HAAR = {"ll": ((1, 1), (1, 1)), "lh": ((-1, -1), (1, 1)), "hl": ((-1, 1), (-1, 1)), "hh": ((1, -1), (-1, 1))}


def generator_keys(released: Iterable[str]) -> dict[str, str | None]:
    """For each released name of the generator ours. Raises ValueError for a name never seen."""
    # Their mapping counts its first normalisation as a layer.
    plain = {key: re.sub(r"^style\.(\d+)", lambda match: f"style.{int(match[1]) - 1}", key) for key in released}
    return {key: find(name, _GENERATOR, _unknown(key)) for key, name in plain.items()}


def discriminator_keys(released: Iterable[str]) -> dict[str, str | None]:
    """For each released name of the discriminator ours. Raises ValueError for a name never seen.

    With spectral norms there is one bias more behind the first linear layer, which ours adds to that layer's.
    """
    released = list(released)
    stages = len({key.split(".")[1] for key in released if key.startswith("convs.")})
    spectral = any(key.startswith("final_linear.2.") for key in released)
    last = {"1": "between", "2": "last"} if spectral else {"1": "last"}
    named = {}
    for key in released:
        plain = re.sub(r"^final_linear\.([12])", lambda match: f"final_linear.{last.get(match[1], '?')}", key)
        if match := re.fullmatch(r"from_rgbs\.(\d+)\.(.+)", key):
            stage = int(match[1])
            plain = f"{f'stages.{stage}.' if stage < stages else ''}from_rgbs.{match[2]}"
        ours = find(plain, _PARTS, _unknown(key))
        if ours is not None:
            part, _, kind = ours.rpartition(".")
            if kind not in _WEIGHTS:
                raise ValueError(_unknown(key))
            ours = f"{part}.{_WEIGHTS[kind]}"
        named[key] = ours
    return named


def rename(released: Mapping[str, Tensor], our_keys: OurKeys = generator_keys) -> dict[str, Tensor]:
    """A released state dict under our names, ready for load_state_dict(strict=True) but for the mean of styles.

    Raises ValueError for an unknown name, for a filter other than ours, and for two tensors of one name.
    """
    renamed: dict[str, Tensor] = {}
    for key, ours in our_keys(released).items():
        if ours is None:
            _check_filter(key, released[key])
        elif ours == "hidden.bias" and ours in renamed:
            renamed[ours] = renamed[ours] + released[key]
        elif ours in renamed:
            raise ValueError(f"{key} comes twice")
        else:
            renamed[ours] = released[key]
    return renamed


def _check_filter(key: str, tensor: Tensor) -> None:
    name = key.rpartition(".")[2]
    if name == "kernel":
        expected = fir_kernel() * (4 if ".upsample." in key else 1)
    elif name in _HAAR:
        expected = torch.tensor(_HAAR[name]) / 2
        if ".iwt." in f".{key}" and name in ("lh", "hl"):
            expected = -expected
    else:
        return
    if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, atol=1e-6):
        raise ValueError(f"{key} is another filter than the released one")


def _unknown(key: str) -> str:
    return f"'{key}' is not a tensor of a released StyleNAT; is this another file?"
