"""Released Styleformer checkpoints: what their tensors are called here, and the network that they describe.

    directory = convert_styleformer("cifar10.pkl", "models/styleformer-cifar10")

One table, read strictly: a name without a counterpart is refused. Shapes tell every size but the channels of a head and
the clamp, which are among the arguments that the file's network was made with.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import InputError
from generators.checkpoint import ModelDirectory, write
from generators.config import to_dict
from generators.layers import fir_kernel
from generators.persistent import Saved, read_pickle
from generators.restricted import Shapes, check_fit
from generators.styleformer import Styleformer, StyleformerConfig

SOURCE = "https://github.com/Jeeseung-Park/Styleformer"
_LETTERS = {"q": "query", "k": "key", "v": "value", "w": "output", "u": "skip"}
_BLOCK = re.compile(r"synthesis\.b(\d+)_(\d+)\.(.+)")
# `None`: the low-pass filter, which is checked against ours instead. The file lists a projection twice.
_IN_BLOCK: tuple[tuple[str, str | None], ...] = (
    (r"pos_embedding", "position_1nC"),
    *((rf"enc\.{letter}_weight", f"attention.{name}") for letter, name in _LETTERS.items()),
    (r"enc\.(bias|noise_strength)", r"attention.\1"),
    (r"enc\.noise_const", "attention.noise_n1"),
    (r"enc\.affine1\.(weight|bias)", r"attention.affine.\1"),
    (r"(?:enc\.)?proj_weight", "attention.projection"),
    (r"torgb\.(weight|bias)", r"to_rgb.\1"),
    (r"torgb\.affine\.(weight|bias)", r"to_rgb.affine.\1"),
    (r"resample_filter", None),
)
_OUTSIDE = (
    (r"mapping\.w_avg", "mapping.average_W"),
    (r"mapping\.embed\.(weight|bias)", r"mapping.embedding.\1"),
    (r"mapping\.fc(\d+)\.(weight|bias)", r"mapping.layers.\1.\2"),
)


def our_keys(released: Iterable[str]) -> dict[str, str | None]:
    """For each released name ours; None for the filter. Raises ValueError for a name never seen."""
    found = {key: _BLOCK.fullmatch(key) for key in released}
    blocks = sorted({(int(match[1]), int(match[2])) for match in found.values() if match})
    places = {block: i for i, block in enumerate(blocks)}
    named: dict[str, str | None] = {}
    for key, match in found.items():
        prefix, rest, table = "", key, _OUTSIDE
        if match:
            block = (int(match[1]), int(match[2]))
            prefix, rest, table = f"blocks.{places[block]}.", match[3], _IN_BLOCK
            if rest == "const" and block == blocks[0]:
                named[key] = "constant_nC"
                continue
        named[key] = _translate(prefix, rest, table, key)
    return named


def _translate(prefix: str, rest: str, table: tuple[tuple[str, str | None], ...], key: str) -> str | None:
    for pattern, ours in table:
        if match := re.fullmatch(pattern, rest):
            return None if ours is None else prefix + match.expand(ours)
    raise ValueError(f"'{key}' is not a tensor of a released Styleformer; is this another file?")


def rename(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under our names, ready for load_state_dict(strict=True).

    Raises ValueError for an unknown name, for another low-pass filter than ours, and where the two copies of a
    projection differ.
    """
    renamed: dict[str, Tensor] = {}
    for key, ours in our_keys(released).items():
        tensor = released[key]
        if ours is None:
            kernel_kk = fir_kernel()
            if tensor.shape != kernel_kk.shape or not torch.allclose(tensor.float(), kernel_kk, atol=1e-6):
                raise ValueError(f"{key} is another filter than 1, 3, 3, 1")
        elif ours in renamed and not torch.equal(renamed[ours], tensor):
            raise ValueError(f"{key} differs from its other copy")
        else:
            renamed[ours] = tensor
    return renamed


def config_of(shapes: Shapes, arguments: Mapping[str, Any], file: str | Path = "the file") -> StyleformerConfig:
    """The configuration of a released generator.

    shapes: of its tensors, by their released names. arguments: `_init_kwargs` of the file's network, of which
    synthesis_kwargs holds depth, minimum_head and conv_clamp. Raises InputError where one that decides is missing.
    """

    def shape(key: str) -> tuple[int, ...]:
        if key not in shapes:
            raise InputError(f"{file} lacks {key}, expected all tensors of a Styleformer: give the whole file")
        return shapes[key]

    told = arguments.get("synthesis_kwargs", {})
    if not isinstance(told, Mapping) or type(told.get("depth")) is not int:
        raise InputError(
            f"{file} does not tell the depth of its heads in synthesis_kwargs, and no shape does: give the pickle as "
            "it was released"
        )
    blocks = sorted({(int(match[1]), int(match[2])) for key in shapes if (match := _BLOCK.fullmatch(key))})
    if not blocks:
        raise InputError(f"{file} has no blocks of synthesis, expected those of a Styleformer: give another file")
    layers = Counter(name for name, _ in blocks)
    start = math.isqrt(shape(f"synthesis.b{blocks[0][0]}_0.const")[0])
    projections = {}
    for i, name in enumerate(layers):
        projection = shapes.get(f"synthesis.b{name}_0.proj_weight", shapes.get(f"synthesis.b{name}_0.enc.proj_weight"))
        if projection is not None:
            projections[start << i] = projection[0]
    classes = shapes.get("mapping.embed.weight", (0, 0))[1]
    style, read = shape("mapping.fc0.weight")
    return StyleformerConfig(
        conditioning="class" if classes else "none",
        condition_width=classes,
        start=start,
        widths=tuple(shape(f"synthesis.b{name}_0.enc.q_weight")[0] for name in layers),
        layers=tuple(layers.values()),
        depth=told["depth"],
        minimum_head=told.get("minimum_head", 1),
        linformer_from=min(projections, default=0),
        projection=next(iter(projections.values()), 256),
        latent_width=read - (style if classes else 0),
        style_width=style,
        mapping_layers=sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", key)) for key in shapes),
        clamp=float(told.get("conv_clamp", 256)),
    )


def convert_styleformer(file: str | Path, out: str | Path) -> ModelDirectory:
    """Writes the model directory `out` from a released pickle: its averaged generator, G_ema.

    Nothing that the pickle contains is run (persistent.py). Raises InputError, and then has written nothing, for a file
    that is damaged, would run code, or is not exactly a Styleformer.
    """
    content = read_pickle(file)
    saved = content.get("G_ema") if isinstance(content, dict) else None
    if not isinstance(saved, Saved):
        raise InputError(f"{file} has no network G_ema, expected a released Styleformer: give another file")
    released = saved.tensors()
    shapes = {key: tuple(tensor.shape) for key, tensor in released.items()}
    try:
        config = config_of(shapes, saved.arguments, file)
        tensors = rename(released)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file} is not what it was given as: {error}") from error
    with torch.device("meta"):
        wanted = Styleformer(config).state_dict()
    names = {ours: key for key, ours in our_keys(released).items() if ours is not None}
    check_fit(wanted, names, shapes, file)
    side = config.resolution
    return write(
        out,
        family="styleformer",
        config=to_dict(config),
        tensors={name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()},
        card=(
            f"# Styleformer at {side} x {side} pixels\n\n"
            f"Converted from {Path(file).name} (Park and Kim 2022, {SOURCE}), weights unchanged. The authors state "
            "no licence for them.\n"
        ),
        about={"resolution": [side, side], "conditioning": config.conditioning, "source": SOURCE},
    )
