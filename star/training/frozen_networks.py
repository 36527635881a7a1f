"""The frozen networks of a training: loaded, or where shards of codes and features are given, only what these say.

Then the networks are looked at once for their digests, and loaded when a picture is to be drawn or the model written.
"""

from collections.abc import Sequence

import torch

from star.data.errors import InputError
from star.data.text import TextEncoder
from star.generator import StarGenerator
from star.generators.config import from_dict
from star.generators.pretrained import ModelDirectory
from star.generators.registry import place_of
from star.model.transformer import NextScaleTransformer
from star.precomputed.format import Encoding, QuantizerOnly, TextOnly
from star.tokenizer.tokenizer import FAMILY, MultiScaleTokenizer, TokenizerConfig, codes_digest


class FrozenNetworks:
    """Tokenizer and text encoder as far as a training needs them."""

    def __init__(self, tokenizer: str, text_encoder: str, encoding: Encoding | None) -> None:
        """tokenizer, text_encoder: where they are, or names of those that ship.

        Raises InputError if the shards were encoded with other ones.
        """
        tokenizer, text_encoder = self.places = (place_of(tokenizer), place_of(text_encoder))
        self.encoding = encoding
        self.tokenizer: MultiScaleTokenizer | QuantizerOnly
        self.text_encoder: TextEncoder | TextOnly
        if encoding is None:
            self.tokenizer, self.text_encoder = self._load("cpu")
        else:
            self.tokenizer, self.text_encoder = encoding.tokenizer, encoding.text_encoder
            _refuse("tokenizer", tokenizer, _tokenizer_digest(tokenizer), self.tokenizer.digest)
            own = TextEncoder.from_pretrained(text_encoder).digest
            _refuse("text encoder", text_encoder, own, self.text_encoder.digest)

    @property
    def digests(self) -> dict[str, str]:
        """Of both, by name."""
        return {"tokenizer": self.tokenizer.digest, "text_encoder": self.text_encoder.digest}

    def networks(self, device: str | torch.device) -> tuple[MultiScaleTokenizer, TextEncoder]:
        """The networks themselves, on a device; loaded anew for every call where the training does without them."""
        if isinstance(self.tokenizer, MultiScaleTokenizer) and isinstance(self.text_encoder, TextEncoder):
            return self.tokenizer.to(device), self.text_encoder.to(device)
        return self._load(device)

    def text(self, device: str | torch.device) -> TextEncoder:
        """The text encoder alone, on a device."""
        own = self.text_encoder
        return (
            own.to(device)
            if isinstance(own, TextEncoder)
            else TextEncoder.from_pretrained(self.places[1], device=device)
        )

    def generator(self, transformer: NextScaleTransformer, aspects: Sequence[str] = ()) -> StarGenerator:
        """The generator that a transformer makes with them, where the transformer is. aspects: those it learnt."""
        made = StarGenerator(transformer, *self.networks(transformer.head.weight.device), aspects=aspects)
        made.graphs = "off"  # they would hold memory that training needs
        return made

    def _load(self, device: str | torch.device) -> tuple[MultiScaleTokenizer, TextEncoder]:
        tokenizer, text_encoder = self.places
        return (
            MultiScaleTokenizer.from_directory(tokenizer, device=device),
            TextEncoder.from_pretrained(text_encoder, device=device),
        )


def _tokenizer_digest(place: str) -> str:
    directory = ModelDirectory.read(place, family=FAMILY)
    return codes_digest(from_dict(TokenizerConfig, directory.config), directory.tensors())


def _refuse(what: str, place: str, own: str, encoded: str) -> None:
    if own != encoded:
        raise InputError(
            f"the shards were encoded with a {what} of digest {encoded[:12]}..., the one at {place} has {own[:12]}...: "
            f"give the {what} they were encoded with, or encode the pictures anew"
        )
