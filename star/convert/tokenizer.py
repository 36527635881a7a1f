"""The tokenizer that belongs to a released transformer: inside its file, beside it, or given.

E code width, V codebook.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from star.convert.published import TOKENIZER_FILE, VAR_HUB
from star.data.errors import InputError
from star.data.files import described
from star.data.unfilled import unfilled
from star.generators.config import from_dict, to_dict
from star.generators.pickle_loader import CheckpointFile, check_fit
from star.generators.pretrained import ModelDirectory, write
from star.model.transformer import TransformerConfig
from star.tokenizer.convert import config_of, our_key
from star.tokenizer.tokenizer import FAMILY, MultiScaleTokenizer, TokenizerConfig, codes_digest

OF_TOKENIZER = ("trainer", "vae_local")  # where STAR's training keeps it
SIGN = "quantize.embedding.weight"  # a tensor by which it is known
SHARD = 2**29  # bytes per file written, which is also what is in memory at a time


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
            family=FAMILY,
            config=to_dict(self.config),
            tensors=self.tensors,
            card=f"# The multi-scale tokenizer of VAR at {side} x {side} pixels\n\nConverted from {self.place.name} "
            f"(Tian et al. 2024, https://huggingface.co/{VAR_HUB}; MIT).\n",
            about={"resolution": [side, side], "licence": "MIT"},
            shard_size=SHARD,
        )


def codes_of(source: CheckpointFile, sizes: tuple[int, ...]) -> Codes:
    """A tokenizer in the released layout, held against the network it describes."""
    shapes = source.shapes
    config = config_of(shapes, sizes)
    names = {ours: key for key in shapes if (ours := our_key(key)) is not None}
    with unfilled():
        network = MultiScaleTokenizer(config)
    check_fit(network.state_dict(), names, shapes, source.path)
    return Codes(config, source.renamed(names), source.path)


def belonging(transformer: TransformerConfig, file: Path, given: str | Path | None) -> Codes:
    """The tokenizer that belongs to a transformer, on its scales."""
    inside = CheckpointFile.find(file, [OF_TOKENIZER])
    own = codes_of(inside, transformer.sizes) if inside is not None else None
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
        source = CheckpointFile.find(path, ((), OF_TOKENIZER), SIGN)
        if source is None:
            raise InputError(f"{path} holds no tokenizer: give {TOKENIZER_FILE}, or what was made of it")
        with described(path):
            return codes_of(source, sizes)
    directory = ModelDirectory.read(path, family=FAMILY)
    config = from_dict(TokenizerConfig, directory.config, f"{path} config")
    at_home = config.quantizer.sizes == sizes
    return Codes(config.at(sizes), directory.tensors(), path, path if at_home else None)
