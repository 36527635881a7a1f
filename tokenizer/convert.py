"""The names that the released VAR tokenizer uses, and ours.

One table, read strictly: a key without a counterpart is refused by name. The running hit counts
(`quantize.ema_vocab_hit_SV`) are statistics of training and are left aside.

K scales, V codebook.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from star.data.errors import InputError
from star.tokenizer.autoencoder import AutoencoderConfig
from star.tokenizer.quantizer import QuantizerConfig
from star.tokenizer.tokenizer import TokenizerConfig

_RESIDUAL = r"(?P<rest>(?:norm1|conv1|norm2|conv2)\.(?:weight|bias))"
_SHORTCUT = r"nin_shortcut\.(?P<rest>weight|bias)"
_ATTENTION = r"(?P<rest>(?:norm|qkv)\.(?:weight|bias))"
_PROJECTION = r"proj_out\.(?P<rest>weight|bias)"
_SIDE = r"(?P<side>encoder|decoder)"
_LEVEL = r"(?:down|up)\.(?P<level>\d+)"

_TABLE: tuple[tuple[str, str | None], ...] = (
    (rf"{_SIDE}\.conv_in\.(?P<rest>weight|bias)", "{side}.stem.{rest}"),
    (rf"{_SIDE}\.norm_out\.(?P<rest>weight|bias)", "{side}.norm.{rest}"),
    (rf"{_SIDE}\.conv_out\.(?P<rest>weight|bias)", "{side}.head.{rest}"),
    (rf"{_SIDE}\.mid\.block_1\.{_RESIDUAL}", "{side}.middle.0.{rest}"),
    (rf"{_SIDE}\.mid\.block_2\.{_RESIDUAL}", "{side}.middle.2.{rest}"),
    (rf"{_SIDE}\.mid\.attn_1\.{_ATTENTION}", "{side}.middle.1.{rest}"),
    (rf"{_SIDE}\.mid\.attn_1\.{_PROJECTION}", "{side}.middle.1.proj.{rest}"),
    (rf"{_SIDE}\.{_LEVEL}\.block\.(?P<i>\d+)\.{_RESIDUAL}", "{side}.levels.{level}.blocks.{i}.{rest}"),
    (rf"{_SIDE}\.{_LEVEL}\.block\.(?P<i>\d+)\.{_SHORTCUT}", "{side}.levels.{level}.blocks.{i}.shortcut.{rest}"),
    (rf"{_SIDE}\.{_LEVEL}\.attn\.(?P<i>\d+)\.{_ATTENTION}", "{side}.levels.{level}.attentions.{i}.{rest}"),
    (rf"{_SIDE}\.{_LEVEL}\.attn\.(?P<i>\d+)\.{_PROJECTION}", "{side}.levels.{level}.attentions.{i}.proj.{rest}"),
    (
        rf"{_SIDE}\.{_LEVEL}\.(?:downsample|upsample)\.conv\.(?P<rest>weight|bias)",
        "{side}.levels.{level}.resample.conv.{rest}",
    ),
    (r"(?P<name>quant_conv|post_quant_conv)\.(?P<rest>weight|bias)", "{name}.{rest}"),
    (r"quantize\.embedding\.weight", "quantizer.codebook.weight"),
    (r"quantize\.quant_resi\.qresi_ls\.(?P<i>\d+)\.(?P<rest>weight|bias)", "quantizer.phis.{i}.{rest}"),
    (r"quantize\.quant_resi\.qresi\.(?P<rest>weight|bias)", "quantizer.phis.0.{rest}"),
    (r"quantize\.quant_resi\.(?P<i>\d+)\.(?P<rest>weight|bias)", "quantizer.phis.{i}.{rest}"),
    (r"quantize\.ema_vocab_hit_SV", None),
)


def our_key(released_key: str) -> str | None:
    """Our name of a released tensor; None for one that is not needed. Raises InputError for a name never seen."""
    for pattern, ours in _TABLE:
        if match := re.fullmatch(pattern, released_key):
            return None if ours is None else ours.format(**match.groupdict())
    raise InputError(f"{released_key!r} is no tensor of a released VAR tokenizer: give the tokenizer's own file")


def rename(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under our names, ready for a strict load."""
    renamed = {our_key(key): tensor for key, tensor in released.items()}
    return {key: tensor for key, tensor in renamed.items() if key is not None}


def config_of(shapes: Mapping[str, Iterable[int]], sizes: tuple[int, ...], *, norm_groups: int = 32) -> TokenizerConfig:
    """Reads the configuration off the shapes of a released state dict; only the scales have to be told.

    Raises InputError if a tensor that decides it is missing.
    """
    shape = {key: tuple(value) for key, value in shapes.items()}
    try:
        channels, code_width = shape["encoder.conv_in.weight"][0], shape["encoder.conv_out.weight"][0]
        vocabulary = shape["quantize.embedding.weight"][0]
    except KeyError as error:
        raise InputError(f"The file lacks {error.args[0]!r}; give the file of a released VAR tokenizer.") from error

    def count(pattern: str) -> int:
        return len({match[1] for key in shape if (match := re.match(pattern, key))})

    levels = count(r"encoder\.down\.(\d+)\.")
    shared = count(r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
    single = "quantize.quant_resi.qresi.weight" in shape
    return TokenizerConfig(
        autoencoder=AutoencoderConfig(
            channels=channels,
            multipliers=tuple(
                shape[f"encoder.down.{level}.block.0.conv2.weight"][0] // channels for level in range(levels)
            ),
            encoder_blocks=count(r"encoder\.down\.0\.block\.(\d+)\."),
            decoder_blocks=count(r"decoder\.up\.0\.block\.(\d+)\."),
            code_width=code_width,
            norm_groups=norm_groups,
        ),
        quantizer=QuantizerConfig(
            vocabulary=vocabulary, code_width=code_width, sizes=sizes, phi_count=1 if single else shared
        ),
    )


def released_usage(hits_KV: Tensor, batch: int, grid: int) -> list[float]:
    """The percentage of codes per scale that the released training code reports as used.

    A code counts if its running hits reach 8 % of an equal share of the batch x grid x grid positions.
    """
    threshold = batch * grid * grid / hits_KV.shape[1] * 0.08
    return [100 * float(value) for value in (hits_KV >= threshold).float().mean(dim=1)]
