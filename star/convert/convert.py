"""Released checkpoints to model directories: `star convert KIND FILE OUT`.

E code width, V codebook, L tokens of all scales, D text width.

The shapes of a file's tensors give the network, a preset of `catalogue.py` the rest; the network is built on the meta
device and every tensor held against it before anything is written. Then the tensors go from the file into the
directory a few at a time, so that no more than a part of them is ever in memory.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from star.brought_along import StarConfig
from star.class_generator import VarConfig
from star.convert.names import REFINER, our_key
from star.convert.published import RELEASED, TEXT_ENCODER, Kind, Released
from star.convert.tokenizer import OF_TOKENIZER, SHARD, SIGN, belonging, codes_of
from star.data.errors import InputError
from star.data.files import described
from star.data.progress import Progress
from star.data.text import TextEncoder
from star.data.unfilled import unfilled
from star.generators.config import to_dict
from star.generators.pickle_loader import CheckpointFile, Shapes, check_fit
from star.generators.pretrained import ModelDirectory, Reference, write
from star.model.refiner import Refiner, RefinerConfig
from star.model.transformer import NextScaleTransformer, TransformerConfig

IN_TRAINING = ("trainer", "var_wo_ddp")
# A tensor by which a kind is known; the first that is there counts.
SIGNS: dict[Kind, str] = {
    "star-sampler": "head_logits2.weight",
    "star": "encoder_proj.weight",
    "var": "pos_1LC",
    "var-tokenizer": SIGN,
}


@dataclass(frozen=True, slots=True)
class Network:
    """What a file holds: configurations, and for each of our tensors the file's name of it."""

    transformer: TransformerConfig
    refiner: RefinerConfig | None
    names: dict[str, str]


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
    ways = (OF_TOKENIZER, ()) if kind == "var-tokenizer" else (IN_TRAINING, ())
    source = CheckpointFile.find(file, ways, SIGNS[kind])
    if source is None:
        raise InputError(
            f"{file} holds no dictionary of tensors of a {kind}, neither at its top nor inside: give the file that does"
        )
    with described(file):
        return _converted(kind, source, out, preset, tokenizer, text_encoder)


def _converted(
    kind: Kind,
    source: CheckpointFile,
    out: Path,
    preset: str | None,
    tokenizer: str | Path | None,
    text_encoder: str | None,
) -> ModelDirectory:
    file = source.path
    _check_kind(kind, source.shapes, file)
    released = _preset(kind, source.shapes, preset, file)
    if kind == "var-tokenizer":
        return codes_of(source, released.sizes).write(out)
    if kind == "var" and text_encoder is not None:
        raise InputError(f"the text encoder {text_encoder} was given to a var, which reads classes: leave it out")
    network = network_of(source.shapes, released, file)
    codes = belonging(network.transformer, file, tokenizer)
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
    size = sum(4 * math.prod(source.shapes[key]) for key in network.names.values())
    with Progress(size // 10**6, unit="MB", title="convert", enabled=size > SHARD) as progress:
        return write(
            out,
            family="var" if kind == "var" else "star",
            config=to_dict(config),
            tensors=source.renamed(network.names),
            card=_card(source, released, side),
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
            written=lambda count: progress.update(count // 10**6),
        )


def network_of(shapes: Shapes, released: Released, file: str | Path = "the file") -> Network:
    """The network that the shapes of a released file describe. Raises InputError unless all tensors fit, one to one."""
    transformer, refiner = configs_of(shapes, released, file)
    try:
        with unfilled():
            wanted = dict(NextScaleTransformer(transformer).state_dict())
            if refiner is not None:
                behind = Refiner(refiner, transformer).state_dict()
                wanted |= {f"{REFINER}{name}": tensor for name, tensor in behind.items()}
        names = {ours: key for key in shapes if (ours := our_key(key, transformer)) is not None}
    except ValueError as error:
        raise InputError(f"{file} is not what it was given as: {error}") from error
    check_fit(wanted, names, shapes, file)
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
        attention="auto",
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


def _card(source: CheckpointFile, released: Released, side: int) -> str:
    name, paper = ("VAR", "Tian et al. 2024") if released.kind == "var" else ("STAR", "Ma et al. 2024")
    options = ", ".join(f"{key} {value}" for key, value in released.options.items())
    return (
        f"# {name} at {side} x {side} pixels\n\n"
        f"Converted from {source.place} ({paper}, https://huggingface.co/{released.hub}; MIT), weights unchanged.\n"
        f"Drawn by its authors with {options}.\n"
    )
