"""Released checkpoints to model directories: `star convert KIND FILE OUT`.

E code width, V codebook, L tokens of all scales, D text width.

The shapes of a file's tensors give the network, a preset of `catalogue.py` the rest; the network is built on the meta
device and every tensor held against it before anything is written. Then the tensors go from the file into the
directory a few at a time, so that no more than a part of them is ever in memory.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import InputError
from data.text import TextEncoder
from generators.checkpoint import ModelDirectory, Reference, write
from generators.config import from_dict, to_dict
from generators.restricted import CheckpointFile, Renamed
from star.catalogue import RELEASED, TEXT_ENCODER, TOKENIZER_FILE, VAR_HUB, Kind, Released
from star.class_generator import VarConfig
from star.generator import StarConfig
from star.refiner import Refiner, RefinerConfig
from star.released import REFINER, our_key
from star.transformer import NextScaleTransformer, TransformerConfig
from tokenizer.released import config_of as tokenizer_config_of
from tokenizer.released import our_key as our_tokenizer_key
from tokenizer.tokenizer import FAMILY as TOKENIZER_FAMILY
from tokenizer.tokenizer import MultiScaleTokenizer, TokenizerConfig, codes_digest

Shapes = Mapping[str, tuple[int, ...]]
IN_TRAINING, OF_TOKENIZER = ("trainer", "var_wo_ddp"), ("trainer", "vae_local")
# A tensor by which a kind is known; the first that is there counts.
SIGNS: dict[Kind, str] = {
    "star-sampler": "head_logits2.weight",
    "star": "encoder_proj.weight",
    "var": "pos_1LC",
    "var-tokenizer": "quantize.embedding.weight",
}
SHARD = 2**29  # bytes per file written, which is also what is in memory at a time


@dataclass(frozen=True, slots=True)
class Network:
    """What a file holds: configurations, and for each of our tensors the file's name of it."""

    transformer: TransformerConfig
    refiner: RefinerConfig | None
    names: dict[str, str]


@dataclass(frozen=True, slots=True)
class Codes:
    """A tokenizer: its configuration, its tensors under our names, and the directory they lie in, if they do."""

    config: TokenizerConfig
    tensors: Mapping[str, Tensor]
    place: Path
    directory: Path | None = None

    @property
    def digest(self) -> str:
        return codes_digest(self.config, self.tensors)

    def write(self, path: Path) -> ModelDirectory:
        """As a model directory, see MultiScaleTokenizer.save."""
        side = self.config.resolution
        return write(
            path,
            family=TOKENIZER_FAMILY,
            config=to_dict(self.config),
            tensors=self.tensors,
            card=f"# The multi-scale tokenizer of VAR at {side} x {side} pixels\n\nConverted from {self.place.name} "
            f"(Tian et al. 2024, https://huggingface.co/{VAR_HUB}; MIT).\n",
            about={"resolution": [side, side], "licence": "MIT"},
            shard_size=SHARD,
        )


def convert(
    kind: Kind,
    file: str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    tokenizer: str | Path | None = None,
    text_encoder: str | None = None,
) -> ModelDirectory:
    """Writes the model directory `out` from a released file.

    preset: a name of `RELEASED`; needed where several fit. tokenizer: VAR's file, or the directory made of it, which is
    then referred to; without it that of the file itself, or VAR's file beside it. text_encoder: a directory or hub id,
    whose digest is then remembered; without it the released one is referred to, unseen.
    Raises InputError, and then has written nothing, for a file that is damaged, would run code, lacks a tensor, has an
    unknown one or one of another shape, and for a tokenizer or text encoder that does not belong to it.
    """
    file, out = Path(file), Path(out)
    source = CheckpointFile.find(file, (OF_TOKENIZER, ()) if kind == "var-tokenizer" else (IN_TRAINING, ()))
    if source is None:
        raise InputError(
            f"{file} holds no dictionary of tensors, neither at its top nor where STAR's training keeps it: give the "
            f"file of a {kind}"
        )
    _check_kind(kind, source.shapes, file)
    released = _preset(kind, source.shapes, preset, file)
    if kind == "var-tokenizer":
        return _codes(source, released.sizes).write(out)
    if kind == "var" and text_encoder is not None:
        raise InputError(f"the text encoder {text_encoder} was given to a var, which reads classes: leave it out")
    network = network_of(source.shapes, released, file)
    codes = _tokenizer(network.transformer, file, tokenizer)
    side, digest = codes.config.resolution, codes.digest
    references = {"tokenizer": Reference(location="tokenizer", digest=digest)}
    parts = {"tokenizer": codes.write}
    if codes.directory is not None:
        references["tokenizer"] = Reference(location=os.path.relpath(codes.directory, out), digest=digest)
        parts = {}
    config: StarConfig | VarConfig = VarConfig(transformer=network.transformer)
    if kind != "var":
        references["text_encoder"] = _text_encoder(network.transformer, text_encoder, out, file)
        config = StarConfig(
            transformer=network.transformer, cross_attention=released.cross_attention, refiner=network.refiner
        )
    return write(
        out,
        family="var" if kind == "var" else "star",
        config=to_dict(config),
        tensors=Renamed(source, network.names),
        card=_card(file, released, side),
        about={
            "resolution": [side, side],
            "conditioning": network.transformer.conditioning,
            "licence": "MIT",
            "source": f"https://huggingface.co/{released.hub}",
            "options": dict(released.options),
        },
        references=references,
        parts=parts,
        shard_size=SHARD,
    )


def network_of(shapes: Shapes, released: Released, file: str | Path = "the file") -> Network:
    """The network that the shapes of a released file describe. Raises InputError unless all tensors fit, one to one."""
    transformer, refiner = configs_of(shapes, released, file)
    try:
        with torch.device("meta"):
            wanted = dict(NextScaleTransformer(transformer).state_dict())
            if refiner is not None:
                behind = Refiner(refiner, transformer).state_dict()
                wanted |= {f"{REFINER}{name}": tensor for name, tensor in behind.items()}
        names = {ours: key for key in shapes if (ours := our_key(key, transformer)) is not None}
    except ValueError as error:
        raise InputError(f"{file} is not what it was given as: {error}") from error
    _check_fit(wanted, names, shapes, file)
    return Network(transformer, refiner, names)


def configs_of(shapes: Shapes, released: Released, file: str | Path) -> tuple[TransformerConfig, RefinerConfig | None]:
    """Reads widths and depths off shapes. Raises InputError where a tensor that decides is missing."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in shapes:
            raise InputError(f"{file} lacks {key}, expected all tensors of a {released.kind}: give the whole file")
        return shapes[key]

    def count(prefix: str) -> int:
        return len({match[1] for key in shapes if (match := re.match(rf"{prefix}\.(\d+)\.", key))})

    is_class = released.kind == "var"
    width, code_width = shape("word_embed.weight")
    if (scales := shape("lvl_embed.weight")[0]) != len(released.sizes):
        raise InputError(
            f"{file} has {scales} scales, the preset {len(released.sizes)}: give the preset of its resolution"
        )
    temperature = shapes.get("blocks.0.attn.scale_mul_1H11")
    settings = TransformerConfig(
        sizes=released.sizes,
        depth=count("blocks"),
        width=width,
        heads=temperature[1] if temperature else max(width // 64, 1),  # 64 channels a head, in all releases
        mlp_ratio=shape("blocks.0.ffn.fc1.weight")[0] / width,
        vocabulary=shape("head.weight" if is_class else "head_logits.weight")[0],
        code_width=code_width,
        conditioning="class" if is_class else "text",
        text_width=1024 if is_class else shape("encoder_proj.weight")[1],
        classes=shape("class_emb.weight")[0] - 1 if is_class else 1000,
        modulation=("shared-adaln" if "shared_ada_lin.1.weight" in shapes else "adaln") if is_class else "none",
        positions="absolute" if is_class else "rope",
        cross_attention=not is_class,
        qk_norm=temperature is not None,
        logit_norm=released.logit_norm,
        rope_theta=released.rope_theta,
        rope_norm=released.rope_norm,
    )
    refiner = RefinerConfig(depth=count("feat_extract_blocks")) if released.kind == "star-sampler" else None
    return settings, refiner


def _check_kind(kind: Kind, shapes: Shapes, file: Path) -> None:
    """The mistake that is easily made; a file like none of them is told what it lacks later."""
    for holds, sign in SIGNS.items():
        if sign in shapes:
            if kind != holds:
                raise InputError(f"{file} looks like a {holds}, not like a {kind}: convert it as that")
            return


def _check_fit(wanted: Mapping[str, Tensor], names: Mapping[str, str], shapes: Shapes, file: str | Path) -> None:
    told = []
    if missing := sorted(wanted.keys() - names.keys()):
        told.append(f"lacks {_shorten(missing)}")
    if foreign := sorted(names[name] for name in names.keys() - wanted.keys()):
        told.append(f"has the unexpected {_shorten(foreign)}")
    wrong = [
        f"{names[name]} {shapes[names[name]]} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & names.keys())
        if shapes[names[name]] != tuple(wanted[name].shape)
    ]
    if wrong:
        told.append(f"has another shape for {_shorten(wrong)}")
    if told:
        raise InputError(f"{file} {' and '.join(told)}: give an unaltered file of the release, with its own preset")


def _preset(kind: Kind, shapes: Shapes, preset: str | None, file: Path) -> Released:
    """The named preset, or the only one that fits the file's kind, number of scales and depth."""
    of_kind = {name: entry for name, entry in RELEASED.items() if kind in ("var-tokenizer", entry.kind)}
    if preset is not None:
        if preset not in of_kind:
            raise InputError(
                f"there is no preset {preset!r} of {kind}, expected one of {', '.join(of_kind)}: choose one"
            )
        return of_kind[preset]
    if kind == "var-tokenizer":  # as it was trained; for other resolutions there are the presets
        return RELEASED["var-d16"]
    scales = shapes.get("lvl_embed.weight", (0,))[0]
    length = shapes.get("pos_1LC", (1, 0))[1]
    depth = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    fits = {
        name: entry
        for name, entry in of_kind.items()
        if len(entry.sizes) == scales and length in (0, sum(size**2 for size in entry.sizes))
    }
    exact = {name: entry for name, entry in fits.items() if entry.depth == depth}
    candidates = exact or fits or of_kind
    if len({entry.sizes for entry in candidates.values()}) == 1:
        return next(iter(candidates.values()))
    raise InputError(
        f"{file} has {scales} scales in {depth} blocks, which does not tell its resolution: give --preset with one of "
        f"{', '.join(candidates)}"
    )


def _codes(source: CheckpointFile, sizes: tuple[int, ...]) -> Codes:
    """A tokenizer in the released layout, held against the network it describes."""
    shapes = source.shapes
    config = tokenizer_config_of(shapes, sizes)
    names = {ours: key for key in shapes if (ours := our_tokenizer_key(key)) is not None}
    with torch.device("meta"):
        network: nn.Module = MultiScaleTokenizer(config)
    _check_fit(network.state_dict(), names, shapes, source.path)
    return Codes(config, Renamed(source, names), source.path)


def _tokenizer(transformer: TransformerConfig, file: Path, given: str | Path | None) -> Codes:
    """The tokenizer that belongs to a transformer, on its scales."""
    inside = CheckpointFile.find(file, [OF_TOKENIZER])
    own = _codes(inside, transformer.sizes) if inside is not None else None
    beside = file.parent / TOKENIZER_FILE
    if given is not None:
        codes = _given_tokenizer(Path(given), transformer.sizes)
    elif own is not None:
        codes = own
    elif beside.is_file():
        codes = _given_tokenizer(beside, transformer.sizes)
    else:
        raise InputError(
            f"{file} comes without a tokenizer: put {TOKENIZER_FILE} of https://huggingface.co/{VAR_HUB} beside it, or "
            "give --tokenizer with that file or with what `star convert var-tokenizer` made of it"
        )
    quantizer = codes.config.quantizer
    if (quantizer.vocabulary, quantizer.code_width) != (transformer.vocabulary, transformer.code_width):
        raise InputError(
            f"the tokenizer {codes.place} has {quantizer.vocabulary} codes of width {quantizer.code_width}, {file} "
            f"speaks {transformer.vocabulary} of width {transformer.code_width}: give the tokenizer it was trained with"
        )
    if own is not None and codes is not own and codes.digest != own.digest:
        raise InputError(
            f"the tokenizer {codes.place} is not the one that {file} was trained with, which it holds: leave "
            "--tokenizer out, or give the same weights"
        )
    return codes


def _given_tokenizer(path: Path, sizes: tuple[int, ...]) -> Codes:
    if not path.is_dir():
        source = CheckpointFile.find(path, ((), OF_TOKENIZER))
        if source is None:
            raise InputError(f"{path} holds no tokenizer: give {TOKENIZER_FILE}, or what was made of it")
        return _codes(source, sizes)
    directory = ModelDirectory.read(path, family=TOKENIZER_FAMILY)
    config = from_dict(TokenizerConfig, directory.config, f"{path} config")
    at_home = config.quantizer.sizes == sizes
    return Codes(config.at(sizes), directory.tensors(), path, path if at_home else None)


def _text_encoder(transformer: TransformerConfig, given: str | None, out: Path, file: Path) -> Reference:
    if given is None:
        return Reference(location=TEXT_ENCODER, digest="")
    encoder = TextEncoder.from_pretrained(given)
    if encoder.width != transformer.text_width:
        raise InputError(
            f"the text encoder {given} is {encoder.width} wide, {file} reads {transformer.text_width}: give the one "
            "it was trained with"
        )
    location = os.path.relpath(given, out) if Path(given).is_dir() else given
    return Reference(location=location, digest=encoder.digest)


def _card(file: Path, released: Released, side: int) -> str:
    name, paper = ("VAR", "Tian et al. 2024") if released.kind == "var" else ("STAR", "Ma et al. 2024")
    options = ", ".join(f"{key} {value}" for key, value in released.options.items())
    return (
        f"# {name} at {side} x {side} pixels\n\n"
        f"Converted from {file.name} ({paper}, https://huggingface.co/{released.hub}; MIT), weights unchanged.\n"
        f"Drawn by its authors with {options}.\n"
    )


def _shorten(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
