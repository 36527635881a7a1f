"""Snapshots that the released StyleGAN-T code writes while it trains, to model directories.

    directory = convert_stylegan_t("network-snapshot-025000.pkl", "models/mine", "openai/clip-vit-large-patch14")

No weights were ever released; this is for whoever trained with that code. A snapshot is a pickle of whole networks,
with the text tower, which one phase of the training changes, inside the generator. So the tower comes from the file,
and its tokenizer and settings, which are not in it, from the CLIP that the training began with.

P condition width, D text width.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.files import described
from star.data.text import TextEncoder
from star.generators.gan.released_arguments import Values, check_arguments, clamp_of
from star.generators.gan.released_tensors import Table, averaged_generator, find, fitted, shape_of
from star.generators.gan.snapshot_pickles import Saved, read_pickle
from star.generators.pickle_loader import Shapes
from star.generators.pretrained import ModelDirectory
from star.generators.stylegan_t.model import StyleGanT, StyleGanTConfig, StyleGanTGenerator
from star.generators.stylegan_t.names import generator_keys, rename_generator

SOURCE = "https://github.com/autonomousvision/stylegan-t"
# What the program's own networks name in a file, and dill, the pickler that it uses.
PROGRAM = re.compile(
    r"(networks|training|open_clip|timm|torchvision\.(transforms|ops))\.[\w.]+|functools\.partial"
    r"|dill\._dill(\.\w+)?|builtins\.[gs]etattr"
    r"|torch\.(nn|_C\._nn)\.[\w.]+|numpy\.(_?core\.multiarray\._reconstruct|ndarray)"
)
ATTRIBUTES: dict[str, Values] = {"activation": ("lrelu", "linear"), "use_noise": (True,)}  # of layers, that are ours
CLIP = "mapping.clip.model."
# The text side of open_clip's CLIP, by the names of transformers. What is None is left out: the scale of CLIP's own
# loss, and the projection, which stands beside a tower here.
TOWER: Table = (
    (r"token_embedding\.weight", "embeddings.token_embedding.weight"),
    (r"positional_embedding", "embeddings.position_embedding.weight"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(weight|bias)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(weight|bias)", r"encoder.layers.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(weight|bias)", r"encoder.layers.\1.mlp.fc2.\2"),
    (r"ln_final\.(weight|bias)", r"final_layer_norm.\1"),
    (r"logit_scale|logit_bias|attn_mask|text_projection", None),
)
TOGETHER = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")  # query, key and value


def config_of(
    shapes: Shapes, groups: int, clamp: float | None = 256.0, file: str | Path = "the file"
) -> StyleGanTConfig:
    """The configuration of a generator, from the shapes of its tensors by their released names.

    groups: of its group norms, clamp: of its activations; no shape tells either. Raises InputError where a tensor that
    decides is missing.
    """

    def shape(key: str) -> tuple[int, ...]:
        return shape_of(shapes, key, "StyleGAN-T", file)

    sides = sorted({int(match[1]) for key in shapes if (match := re.match(r"synthesis\.b(\d+)\.", key))})
    channels = {side: shape(f"synthesis.b{side}.convs1.0.weight")[0] for side in sides}
    (latent,), style = shape("mapping.x_avg"), shape("synthesis.b8.input.affine.weight")[1]
    return StyleGanTConfig(
        resolution=sides[-1],
        conditioning="text" if style > latent else "none",
        condition_width=style - latent,
        latent_width=latent,
        channel_base=max(side * count for side, count in channels.items()),
        channel_max=max(channels.values()),
        residual_blocks=sum(bool(re.fullmatch(r"synthesis\.b8\.convs1\.\d+\.gamma", key)) for key in shapes),
        groups=groups,
        architecture="skip" if len(sides) == 1 or "synthesis.b8.torgb.weight" in shapes else "orig",
        clamp=clamp,
    )


def convert_stylegan_t(file: str | Path, out: str | Path, text_encoder: str | None = None) -> ModelDirectory:
    """Writes the model directory `out` from a snapshot: its averaged generator, G_ema, and its text tower.

    text_encoder: directory or hub id of the CLIP that the training began with. Nothing that the pickle contains is run
    (snapshot_pickles.py). Raises InputError, and then has written nothing, for a file that is damaged, would run
    anything but that program, or is not exactly a StyleGAN-T, and for another CLIP.
    """
    content = read_pickle(file, PROGRAM)
    with described(file):
        return _converted(content, file, out, text_encoder)


def _converted(content: Any, file: str | Path, out: str | Path, text_encoder: str | None) -> ModelDirectory:
    saved = averaged_generator(content, "a snapshot of StyleGAN-T's code", file)
    released = saved.tensors()
    tower = {key.removeprefix(CLIP): tensor for key, tensor in released.items() if key.startswith(CLIP)}
    groups = _shared(saved, "num_groups", None, file)
    if type(groups) is not int:
        raise InputError(f"{file} does not tell the groups of its norms, expected a StyleGAN-T: give another file")
    for name in ("activation", "use_noise"):
        for value in _values(saved, name):
            check_arguments({name: value}, ATTRIBUTES, "layers", file)
    shapes = {key: tuple(tensor.shape) for key, tensor in released.items()}
    config = config_of(shapes, groups, clamp_of(_shared(saved, "conv_clamp", 256, file), file), file)
    if (config.conditioning == "text") != (text_encoder is not None):
        raise InputError(
            f"{file} has a generator of conditioning {config.conditioning}, and as text encoder {text_encoder} was "
            "given, expected the CLIP that it was trained with (openai/clip-vit-large-patch14) where it reads text, "
            "and none otherwise: correct --text-encoder"
        )
    tensors = fitted(released, shapes, lambda: StyleGanT(config), generator_keys, rename_generator, file)
    own = _text_side(tower, file)
    with torch.device("meta"):
        network = StyleGanT(config)
    network.load_state_dict(tensors, assign=True)
    encoder, projection_PD = None, None
    if text_encoder is not None:
        if "text_projection" not in tower:
            raise InputError(f"{file} lacks {CLIP}text_projection, expected CLIP's text side: give the whole file")
        encoder, projection_PD = _encoder(text_encoder, own, file), tower["text_projection"].float().T
    side = config.resolution
    StyleGanTGenerator(network, encoder, projection_PD).save_pretrained(
        out,
        card=(
            f"# StyleGAN-T at {side} x {side} pixels\n\nConverted from {Path(file).name}, a snapshot of the released "
            f"code (Sauer et al. 2023, {SOURCE}), weights unchanged.\n"
        ),
        about={"source": SOURCE},
    )
    return ModelDirectory.read(out, StyleGanTGenerator.family)


def _values(saved: Saved, name: str) -> Iterator[Any]:
    """All values that layers within a network have for an attribute, in their order; the text tower's are no matter."""
    for prefix, layer in saved.layers():
        if name in layer.state and "clip" not in prefix.split("."):
            yield layer.state[name]


def _shared(saved: Saved, name: str, default: Any, file: str | Path) -> Any:
    """The one value that all layers have for an attribute; the default where none has it."""
    found: list[Any] = []
    for value in _values(saved, name):
        if value not in found:
            found.append(value)
    if len(found) > 1:
        raise InputError(
            f"{file} has layers with {name} {', '.join(map(repr, found))}, expected the same in all: give another file"
        )
    return found[0] if found else default


def _text_side(released: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    """The text side of an open_clip model by transformers' names. Raises InputError for a name never seen."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in released.items():
        if match := TOGETHER.fullmatch(key):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"encoder.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}"] = part
            continue
        try:
            ours = find(key, TOWER, f"'{CLIP}{key}' is not a tensor of open_clip's text side")
        except ValueError as error:
            raise InputError(f"{file} is not what it was given as: {error}") from error
        if ours is not None:
            renamed[ours] = tensor
    return renamed


def _encoder(source: str, tower: Mapping[str, Tensor], file: str | Path) -> TextEncoder:
    """The text encoder of a source, with the weights of the file instead of its own."""
    encoder = TextEncoder.from_pretrained(source)
    try:
        encoder.tower.load_state_dict(tower)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise InputError(
            f"{source} is another CLIP than that of {file} ({reason}): give the one that it was trained with"
        ) from error
    return TextEncoder(encoder.tower, encoder.tokenizer, encoder.max_tokens)
