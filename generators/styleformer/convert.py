"""Released Styleformer checkpoints to model directories.

    directory = convert_styleformer("cifar10.pkl", "models/styleformer-cifar10")

Shapes tell every size but the channels of a head and the clamp, which are among the arguments that the file's network
was made with.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star.data.errors import InputError
from star.data.files import described
from star.generators.gan.released_arguments import Values, check_arguments, clamp_of
from star.generators.gan.released_tensors import averaged_generator, fitted, shape_of, write_released
from star.generators.gan.snapshot_pickles import read_pickle
from star.generators.pickle_loader import Shapes
from star.generators.pretrained import ModelDirectory
from star.generators.styleformer.model import Styleformer, StyleformerConfig
from star.generators.styleformer.names import generator_keys, layers_of, rename

SOURCE = "https://github.com/Jeeseung-Park/Styleformer"
# The arguments of the released networks. Shapes tell what None stands beside, or it changes nothing that is drawn.
SYNTHESIS: dict[str, Values] = {
    "depth": None,
    "minimum_head": None,
    "num_layers": None,
    "G_dict": None,
    "linformer": None,
    "conv_clamp": None,
    "channel_base": None,
    "channel_max": None,
    "num_fp16_res": None,
    "use_fp16": None,
    "fp16_channels_last": None,
    "force_fp32": None,
    "verbose": None,
    "img_channels": (3,),
    "architecture": ("skip",),
    "activation": ("lrelu",),
    "use_noise": (True,),
    "resample_filter": ([1, 3, 3, 1],),
}
MAPPING: dict[str, Values] = {
    "num_layers": None,
    "embed_features": None,
    "layer_features": None,
    "w_avg_beta": None,  # of training
    "activation": ("lrelu",),
    "lr_multiplier": (0.01,),
}


def config_of(shapes: Shapes, arguments: Mapping[str, Any], file: str | Path = "the file") -> StyleformerConfig:
    """The configuration of a released generator.

    shapes: of its tensors, by their released names. arguments: `_init_kwargs` of the file's network, of which
    synthesis_kwargs holds depth, minimum_head and conv_clamp. Raises InputError where one that decides is missing, for
    one that no network here knows, and for a value that none can do.
    """

    def shape(key: str) -> tuple[int, ...]:
        return shape_of(shapes, key, "Styleformer", file)

    told, mapping = arguments.get("synthesis_kwargs", {}), arguments.get("mapping_kwargs", {})
    if not isinstance(told, Mapping) or type(told.get("depth")) is not int:
        raise InputError(
            f"{file} does not tell the depth of its heads in synthesis_kwargs, and no shape does: give the pickle as "
            "it was released"
        )
    check_arguments(told, SYNTHESIS, "a synthesis network", file)
    if not isinstance(mapping, Mapping):
        raise InputError(f"{file} has mapping_kwargs that are no dictionary, expected one: give it as it was released")
    check_arguments(mapping, MAPPING, "a mapping network", file)
    clamp = clamp_of(told.get("conv_clamp", 256), file)
    if clamp is None:
        raise InputError(f"{file} has the conv_clamp none, expected a number, as its authors' code does: give another")
    found = layers_of(shapes)
    if not found:
        raise InputError(f"{file} has no blocks of synthesis, expected those of a Styleformer: give another file")
    layers = Counter(side for side, _ in found)
    start = math.isqrt(shape(f"synthesis.b{found[0][0]}_0.const")[0])
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
        clamp=clamp,
    )


def convert_styleformer(file: str | Path, out: str | Path) -> ModelDirectory:
    """Writes the model directory `out` from a released pickle: its averaged generator, G_ema.

    Nothing that the pickle contains is run (snapshot_pickles.py). Raises InputError, and then has written nothing, for
    a file that is damaged, would run code, or is not exactly a Styleformer.
    """
    content = read_pickle(file)
    with described(file):
        return _converted(content, file, out)


def _converted(content: Any, file: str | Path, out: str | Path) -> ModelDirectory:
    saved = averaged_generator(content, "a released Styleformer", file)
    released = saved.tensors()
    shapes = {key: tuple(tensor.shape) for key, tensor in released.items()}
    config = config_of(shapes, saved.arguments, file)
    tensors = fitted(released, shapes, lambda: Styleformer(config), generator_keys, rename, file)
    text = (
        f"Converted from {Path(file).name} (Park and Kim 2022, {SOURCE}), weights unchanged. The authors state no "
        "licence for them."
    )
    plain = {name: tensor.float() for name, tensor in tensors.items()}
    return write_released(out, "styleformer", config, plain, "Styleformer", text, SOURCE)
