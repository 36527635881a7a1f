"""Released StyleNAT checkpoints to model directories.

    directory = convert_stylenat("FFHQ256_940k_flip.pt", "models/stylenat-ffhq-256")

Shapes tell every size but the dilations, for which there is the rule of all releases. Older files, with two groups of
heads even where they do the same, and newer ones differ in their tensors' names only.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from star.data.errors import InputError
from star.data.files import described
from star.generators.gan.released_arguments import Values, check_arguments
from star.generators.gan.released_tensors import fitted, shape_of, write_released
from star.generators.pickle_loader import CheckpointFile, Shapes
from star.generators.pretrained import ModelDirectory
from star.generators.stylenat.model import START, StyleNatConfig, StyleNatNetwork
from star.generators.stylenat.names import generator_keys, rename

SOURCE = "https://github.com/SHI-Labs/StyleNAT"
# The arguments of the released class. Shapes tell what None stands beside, or it changes nothing that is drawn.
ARGUMENTS: dict[str, Values] = {
    "size": None,
    "channel_multiplier": None,
    "in_channels": None,
    "style_dim": None,
    "n_mlp": None,
    "mlp_ratio": None,
    "min_heads": None,
    "qkv_bias": None,
    "kernels": None,
    "dilations": None,
    "enable_full_resolution": None,
    "legacy": None,
    "use_checkpoint": None,
    "proj_drop": None,  # of training, as the next
    "attn_drop": None,
    "block_type": ("nat",),
    "qk_scale": (None,),  # the root of a head's width
    "lr_mlp": (0.01,),
}
WAYS = (("g_ema",), ("state_dicts", "g_ema"))  # to the averaged generator, in older and newer files
SIGN = "input.input"  # a tensor by which such a generator is known
AVERAGE = "mapping.average_W"  # not in the files
LATENTS = 8192  # whose styles give the mean


def config_of(
    shapes: Shapes,
    dilations: Sequence[Sequence[int]] | None = None,
    file: str | Path = "the file",
    arguments: Mapping[str, Any] | None = None,
) -> StyleNatConfig:
    """The configuration of a released generator.

    shapes: of its tensors, by their released names. dilations: for each resolution one for all groups of heads, or as
    many as there are groups; without them, as in all releases, 1 and an eighth of the side. arguments: of the released
    class, where they are known; they are only held against what our network can do. Raises InputError where a tensor
    that decides is missing, no rule tells the dilations, or an argument asks for another network.
    """
    check_arguments(arguments or {}, ARGUMENTS, "a generator", file)

    def shape(key: str) -> tuple[int, ...]:
        return shape_of(shapes, key, "StyleNAT generator", file)

    count = len({match[1] for key in shapes if (match := re.match(r"layers\.(\d+)\.", key))})
    if not count:
        raise InputError(f"{file} has no layers, expected those of a StyleNAT generator: give another file")
    if (side := shape("input.input")[-1]) != START:
        raise InputError(f"{file} starts at {side} pixels, expected {START}: give another file")
    widths, heads, kernels, spread = [], [], [], []
    for i in range(count):
        prefix = f"layers.{i}.blocks.0.attn."
        pattern = re.compile(re.escape(prefix) + r"rpb\.?(\d*)")
        tables = {int(match[1] or 0): key for key in shapes if (match := pattern.fullmatch(key))}
        found = [shapes[key] for _, key in sorted(tables.items())]
        if not found:
            raise InputError(f"{file} lacks {prefix}rpb, expected all tensors of a StyleNAT generator: give the whole")
        widths.append(shape(f"{prefix}proj.bias")[0])
        heads.append(sum(table[0] for table in found))
        kernels.append(tuple((table[1] + 1) // 2 for table in found))
        alone = f"{prefix}rpb" in shapes  # attention between all places
        given = (1,) if alone else None if dilations is None else tuple(dilations[i])
        if given is None:
            if len(found) > 2:
                raise InputError(
                    f"{file} has {len(found)} groups of heads at {START << i} pixels and does not tell their "
                    "dilations, expected up to 2 as released: give such a file"
                )
            given = (1, (START << i) // 8)[: len(found)]
        spread.append(given * len(found) if len(given) == 1 else given)
    width, read = shape("style.1.weight")
    return StyleNatConfig(
        widths=tuple(widths),
        heads=tuple(heads),
        kernels=tuple(kernels),
        dilations=tuple(spread),
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in shapes,
        mlp_ratio=shape("layers.0.blocks.0.mlp.fc1.bias")[0] / widths[0],
        latent_width=read,
        style_width=width,
        mapping_layers=sum(bool(re.fullmatch(r"style\.\d+\.weight", key)) for key in shapes),
    )


def convert_stylenat(file: str | Path, out: str | Path) -> ModelDirectory:
    """Writes the model directory `out` from a released file: its averaged generator, and the mean of its styles.

    The released network has no mean to truncate towards; it is taken over latents that are always the same. Raises
    InputError, and then has written nothing, for a file that is damaged, would run code, or is not exactly a StyleNAT.
    """
    source = CheckpointFile.find(file, WAYS, SIGN, averaged=True)
    if source is None:
        raise InputError(f"{file} has no averaged generator g_ema, expected a released StyleNAT: give another file")
    with described(file):
        return _converted(source, out)


def _converted(source: CheckpointFile, out: str | Path) -> ModelDirectory:
    file, shapes = source.path, source.shapes
    config = config_of(shapes, file=file)
    tensors = fitted(source, shapes, lambda: StyleNatNetwork(config), generator_keys, rename, file, absent=[AVERAGE])
    with torch.random.fork_rng(devices=[]):
        network = StyleNatNetwork(config)
    network.load_state_dict(tensors | {AVERAGE: network.mapping.average_W})
    latent_BZ = torch.randn(LATENTS, config.latent_width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.mapping.average_W.copy_(network.mapping(latent_BZ).mean(dim=0))
    text = (
        f"Converted from {Path(file).name} (Walton et al. 2022, {SOURCE}), weights unchanged; the mean of styles is "
        f"ours, over {LATENTS} latents. The authors' code is under the MIT licence; they state none for the weights, "
        "and ask that samples keep a watermark."
    )
    return write_released(out, "stylenat", config, network.state_dict(), "StyleNAT", text, SOURCE)
