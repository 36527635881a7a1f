"""What shards of codes and text features say about themselves, in `encoding.safetensors` beside them.

That is all a training needs of the tokenizer and of the text encoder, so that it loads neither: the digests of both,
the quantizer, and the features of the empty prompt. (Where captions were kept in place of features, the text encoder is
loaded after all.) A sample of such a shard is its caption record (`.json`) and

    .safetensors     codes_L             integers, the codes of all scales; of tokens that are bits (L, bytes)
                     latent_Ehw          float32, before quantisation; only where asked for; of another shape than
                                         the square, the metadata say which ("grid": "14x21", h x w)
                     tokens_nD           the states of all its captions, one after the other, without padding,
                     lengths_N           tokens of each caption, and
                     pooled_ND           where features were asked for

B batch, L tokens of all scales, E code width, h w finest latent grid, N captions, n tokens of N captions, D text width.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from star.data.errors import InputError
from star.data.files import RefusedFileError, open_regular, read_all
from star.data.images import Crop
from star.data.shards.remote import is_url, open_stream
from star.data.text import TextEncoder, TextFeatures
from star.generators.config import differences, from_dict, to_dict
from star.generators.pretrained import load_into
from star.tokenizer.bitwise import BitwiseConfig
from star.tokenizer.quantizer import MultiScaleQuantizer, QuantizerConfig
from star.tokenizer.quantizers import make_quantizer
from star.tokenizer.scales import ScaleSchedule
from star.tokenizer.tokenizer import MultiScaleTokenizer
from star.tokenizer.tokens import TokenKind

NAME, INDEX = "encoding.safetensors", "index.json"
HEADER_BYTES = 1 << 20  # of a safetensors file; ours have less than a thousand
DESCRIPTION_BYTES = 1 << 30  # of the file beside shards, most of which is the codebook
TEXT_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingConfig:
    """Two encodings of one config can be trained on together."""

    tokenizer: str  # digest
    text_encoder: str  # digest
    quantizer: QuantizerConfig | BitwiseConfig = field(default_factory=QuantizerConfig)
    resolution: int = 64  # pixels
    crop: Crop = "center"
    max_tokens: int = 77
    text_width: int = 512
    text_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    latents: bool = False
    aspects: tuple[str, ...] = ()  # that pictures were brought to, each to the nearest; empty: squares
    text: Literal["features", "captions"] = "features"
    format: Literal[1] = 1

    @property
    def mark(self) -> str:
        """What every sample carries, so that none of another encoding is taken for one of this."""
        later = {"aspects": [], "text": "features"}  # fields of later versions, which earlier shards do not name
        told = {name: value for name, value in to_dict(self).items() if later.get(name) != value}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class QuantizerOnly:
    """What a training needs of a tokenizer whose codes it is given."""

    quantizer: MultiScaleQuantizer
    resolution: int
    digest: str

    @property
    def schedule(self) -> ScaleSchedule:
        return self.quantizer.schedule

    @property
    def vocabulary(self) -> int:
        return self.quantizer.config.vocabulary

    @property
    def code_width(self) -> int:
        return self.quantizer.config.code_width

    @property
    def bits(self) -> int:
        return self.quantizer.config.bits

    @property
    def tokens(self) -> TokenKind:
        return self.quantizer.tokens


@dataclass(frozen=True, slots=True)
class TextOnly:
    """What a training needs of a text encoder whose features it is given."""

    width: int
    max_tokens: int
    digest: str


class Encoding:
    """An encoding that was read, or is about to be written."""

    def __init__(self, config: EncodingConfig, quantizer: MultiScaleQuantizer, null_text: TextFeatures) -> None:
        """null_text: of one empty prompt."""
        self.config = config
        self.null_text = null_text
        self.tokenizer = QuantizerOnly(quantizer, config.resolution, config.tokenizer)
        self.text_encoder = TextOnly(config.text_width, config.max_tokens, config.text_encoder)

    @classmethod
    def by(
        cls,
        tokenizer: MultiScaleTokenizer,
        text_encoder: TextEncoder,
        *,
        crop: Crop = "center",
        latents: bool = False,
        aspects: tuple[str, ...] = (),
        text: Literal["features", "captions"] = "features",
    ) -> "Encoding":
        """The encoding that these networks make."""
        config = EncodingConfig(
            tokenizer=tokenizer.digest,
            text_encoder=text_encoder.digest,
            quantizer=tokenizer.config.quantizer,
            resolution=tokenizer.resolution,
            crop=crop,
            max_tokens=text_encoder.max_tokens,
            text_width=text_encoder.width,
            latents=latents,
            aspects=aspects,
            text=text,
        )
        return cls(config, tokenizer.quantizer, text_encoder.encode([""]).to("cpu", torch.float32))

    def write(self, folder: Path) -> None:
        """Writes the description, whole or not at all."""
        tensors = {f"quantizer.{name}": value.cpu() for name, value in self.tokenizer.quantizer.state_dict().items()}
        null = self.null_text
        tensors |= {"null.tokens": null.tokens_BTD, "null.mask": null.mask_BT, "null.pooled": null.pooled_BD}
        data = save(
            {name: value.detach().contiguous() for name, value in tensors.items()},
            {"config": json.dumps(to_dict(self.config))},
        )
        partial = folder / f".{NAME}.part"
        partial.write_bytes(data)
        partial.replace(folder / NAME)

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Encoding":
        """From the bytes of a description. Raises InputError if it is damaged."""
        try:
            config = from_dict(EncodingConfig, json.loads(metadata(data)["config"]), f"{where} config")
            tensors = load(data)
            null = TextFeatures(tensors.pop("null.tokens"), tensors.pop("null.mask"), tensors.pop("null.pooled"))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{where} does not describe encoded shards ({error}): encode the pictures anew") from error
        quantizer = make_quantizer(config.quantizer).eval().requires_grad_(False)
        load_into(quantizer, {name.removeprefix("quantizer."): value for name, value in tensors.items()}, where)
        return cls(config, quantizer, null)

    def check_use(self, crop: Crop, noise: float, aspects: Sequence[str] = ()) -> None:
        """Raises InputError if a training asks for what the shards do not have."""
        if noise and not self.config.latents:
            raise InputError(
                f"code_noise is {noise:g}, which needs latents, and the shards hold codes alone: "
                "encode them with --latents, or set --code_noise=0"
            )
        if crop != self.config.crop:
            raise InputError(f"crop is {crop}, the shards were encoded with {self.config.crop}: set --crop to that")
        if tuple(aspects) != self.config.aspects:
            mine, theirs = (" ".join(some) or "none" for some in (aspects, self.config.aspects))
            raise InputError(f"aspects is {mine}, the shards were encoded with {theirs}: set --aspects to that")

    def check(self, other: "EncodingConfig", where: str, todo: str) -> None:
        """Raises InputError, with the first difference and what to do, unless `other` is the same encoding."""
        found = differences(to_dict(self.config), to_dict(other))
        if found:
            name, mine, theirs = found[0]
            raise InputError(f"{where} was encoded with {name} {_short(mine)}, expected {_short(theirs)}: {todo}")


def metadata(data: bytes) -> dict[str, Any]:
    """The strings that a safetensors file carries beside its tensors. Raises ValueError or KeyError on other bytes."""
    length = int.from_bytes(data[:8], "little")
    if length > HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    return dict(json.loads(data[8 : 8 + length])["__metadata__"])


def encoding_of(shards: Sequence[str]) -> Encoding | None:
    """The encoding that all these shards share; None if they hold pictures.

    Raises InputError where encoded shards stand beside others, or beside those of another encoding, or are not all
    there yet.
    """
    folders = list(dict.fromkeys("" if shard.startswith("pipe:") else _folder(shard) for shard in shards))
    found = {folder: _read(folder, NAME) if folder else None for folder in folders}
    described = {folder: data for folder, data in found.items() if data is not None}
    if not described:
        return None
    if plain := sorted(found.keys() - described.keys()):
        raise InputError(
            f"{next(iter(described))} holds encoded shards, {plain[0] or 'a pipe'} pictures: "
            "encode all of them, or give only one kind"
        )
    encodings = {folder: Encoding.parse(data, _within(folder, NAME)) for folder, data in described.items()}
    first_folder, first = next(iter(encodings.items()))
    for folder, encoding in encodings.items():
        encoding.check(first.config, folder, f"encode it with the networks of {first_folder}")
        if _read(folder, INDEX) is None:
            raise InputError(f"{folder} is not encoded to its end: run the same `star data encode` again, it goes on")
    return first


def _folder(shard: str) -> str:
    return shard.rpartition("/")[0] if is_url(shard) else str(Path(shard).parent)


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if is_url(folder) else str(Path(folder) / name)


def _read(folder: str, name: str) -> bytes | None:
    """The bytes of a file beside shards; None if there is none."""
    place = _within(folder, name)
    try:
        with open_stream(place) if is_url(place) else open_regular(place) as stream:
            return read_all(stream, DESCRIPTION_BYTES)
    except (RefusedFileError, ValueError) as error:
        raise InputError(f"{place} cannot be read ({error}): encode the pictures anew") from error
    except OSError as error:
        cause = error.__cause__ or error
        if isinstance(cause, FileNotFoundError | NotADirectoryError | PermissionError | HTTPError):
            return None
        raise InputError(f"{place} cannot be read ({error}): check the connection") from error


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else repr(value)


def states_of(text: TextFeatures, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Of each caption its states without padding (n, D), and the pooled one (D,), on the CPU."""
    text = text.to("cpu", dtype)
    return [
        (tokens_TD[mask_T], pooled_D)
        for tokens_TD, mask_T, pooled_D in zip(text.tokens_BTD, text.mask_BT, text.pooled_BD, strict=True)
    ]


def pad(tokens_tD: Tensor, length: int) -> Tensor:
    """States with zeros behind them up to so many tokens."""
    return torch.cat((tokens_tD, tokens_tD.new_zeros(length - len(tokens_tD), tokens_tD.shape[1])))
