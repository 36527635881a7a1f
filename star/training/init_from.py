"""Starting a training from a model directory: at another resolution, or with another text encoder.

A finer pyramid has more scales: the level embedding grows, its old rows stay. Rotary positions are computed from the
new scales. Where the text encoder has another width, the layers that read its output start anew. Everything else is
taken over exactly (Ma et al. 2024, training recipe: 256 to 512 to 1024 pixels).

A tokenizer that was anchored to the model's own (tokenizer/align.py) speaks nearly the same codes at another scale of
numbers: the layer that reads them is multiplied by it.

E code width, V codebook.
"""

from dataclasses import replace
from pathlib import Path

import torch

from star.data.errors import InputError
from star.generators.config import from_dict
from star.generators.pretrained import ModelDirectory, load_into
from star.generators.registry import place_of
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.precomputed.format import QuantizerOnly
from star.tokenizer.tokenizer import FAMILY as TOKENIZER_FAMILY
from star.tokenizer.tokenizer import MultiScaleTokenizer, TokenizerConfig, codes_digest

LEVELS = "level_embedding.weight"
READS_CODES = "input_projection.weight"
READS_TEXT = ("text_projection.weight", "cross_attention.key_value.weight")


def continued(path: str | Path, fresh: TransformerConfig) -> TransformerConfig:
    """The network of a STAR model directory on the scales, the text width and the training habits of `fresh`.

    Raises InputError if the directory holds no STAR generator, or one with another codebook.
    """
    directory = ModelDirectory.read(place_of(path), family="star")
    source = from_dict(TransformerConfig, directory.config["transformer"], f"{path} config.transformer")
    if (source.tokens, source.code_width) != (fresh.tokens, fresh.code_width):
        raise InputError(
            f"{path} speaks {source.vocabulary} codes of width {source.code_width}, the tokenizer has "
            f"{fresh.vocabulary} of width {fresh.code_width}: give the tokenizer that the model was trained with"
        )
    return replace(
        source,
        sizes=fresh.sizes,
        text_width=fresh.text_width,
        dropout=fresh.dropout,
        drop_path=fresh.drop_path,
        attention=fresh.attention,
        checkpointing=fresh.checkpointing,
        head_float32=fresh.head_float32,
    )


@torch.no_grad()
def start_from(model: NextScaleTransformer, path: str | Path, tokenizer: MultiScaleTokenizer | QuantizerOnly) -> str:
    """Loads a STAR model directory into a network of `continued` and says in one line what was not taken from there.

    Raises InputError if the tokenizer's codes mean something else than those the model was trained with, if the
    model has more scales than the network, or if anything else than level embedding and text layers differs.
    """
    directory = ModelDirectory.read(place_of(path), family="star")
    scale = _scale_of_codes(directory, tokenizer)
    own = model.state_dict()
    tensors = {name: tensor for name, tensor in directory.tensors().items() if not name.startswith("refiner.")}
    anew = []
    if scale != 1:
        tensors[READS_CODES] = tensors[READS_CODES].float() * scale
    if LEVELS in tensors and len(tensors[LEVELS]) != len(own[LEVELS]):
        old = len(tensors[LEVELS])
        if old > len(own[LEVELS]):
            raise InputError(
                f"{path} has {old} scales, the tokenizer {len(own[LEVELS])}: give a tokenizer with at least as many"
            )
        tensors[LEVELS] = torch.cat((tensors[LEVELS].to(own[LEVELS].dtype), own[LEVELS][old:]))
        anew.append(f"rows {old} to {len(own[LEVELS]) - 1} of {LEVELS}")
    for name in own:
        if name.endswith(READS_TEXT) and name in tensors and tensors[name].shape != own[name].shape:
            tensors[name] = own[name]
            anew.append(name)
    load_into(model, tensors, path)
    return f"starting from {path}" + (f"; new are {_shorten(anew)}" if anew else "")


def _scale_of_codes(directory: ModelDirectory, tokenizer: MultiScaleTokenizer | QuantizerOnly) -> float:
    """By how much the old codes are larger than the tokenizer's: 1 unless that one is anchored to the old one.

    Otherwise the scales may differ, and nothing else that gives a code its meaning.
    """
    place = directory.resolve("tokenizer")
    theirs = ModelDirectory.read(place, family=TOKENIZER_FAMILY)
    config, tensors = from_dict(TokenizerConfig, theirs.config, f"{place} config"), theirs.tensors()
    if codes_digest(config.at(tokenizer.schedule.sizes), tensors) == tokenizer.digest:
        return 1.0
    anchored = tokenizer.aligned_to if isinstance(tokenizer, MultiScaleTokenizer) else None
    if anchored is not None and anchored.digest == codes_digest(config, tensors):
        return anchored.scale
    raise InputError(
        f"the tokenizer is not the one that {directory.path} was trained with, whose codes mean something else: "
        f"give the one at {place}, the same weights on other scales, or one that was trained with --align-to={place}"
    )


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
