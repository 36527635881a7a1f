"""The names that the released STAR and VAR checkpoints use, and ours.

One table, read strictly both ways: a key without a counterpart is refused by name. `None` marks what the files carry
but the network does not need: buffers that follow from the schedule, and STAR's class embedding, which nothing reads.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from star.model.transformer import TransformerConfig

_ATTENTION = (
    (r"mat_qkv\.weight", "query_key_value.weight"),
    (r"mat_q\.weight", "query.weight"),
    (r"mat_kv\.weight", "key_value.weight"),
    (r"q_bias", "query_bias"),
    (r"v_bias", "value_bias"),
    (r"zero_k_bias", "key_bias"),
    (r"scale_mul_1H11", "log_scale"),
    (r"proj\.(weight|bias)", r"output.\1"),
)
_BLOCK: tuple[tuple[str, str | None], ...] = (
    *((rf"attn\.{theirs}", f"attention.{ours}") for theirs, ours in _ATTENTION),
    *((rf"cross_attn\.{theirs}", f"cross_attention.{ours}") for theirs, ours in _ATTENTION),
    (r"ffn\.fc1\.(weight|bias)", r"mlp.up.\1"),
    (r"ffn\.fc2\.(weight|bias)", r"mlp.down.\1"),
    (r"ada_lin\.1\.(weight|bias)", r"modulation.\1"),
    (r"ada_gss", "modulation_offset"),
)
_OUTSIDE: tuple[tuple[str, str | None], ...] = (
    (r"pos_start", "start_position"),
    (r"pos_1LC", "position_embedding"),
    (r"lvl_embed\.weight", "level_embedding.weight"),
    (r"word_embed\.(weight|bias)", r"input_projection.\1"),
    (r"encoder_proj\.(weight|bias)", r"text_projection.\1"),
    (r"shared_ada_lin\.1\.(weight|bias)", r"shared_modulation.\1"),
    (r"head_nm\.ada_lin\.1\.(weight|bias)", r"head_modulation.\1"),
    (r"head(?:_logits)?\.(weight|bias)", r"head.\1"),
    (r"lvl_1L", None),
    (r"attn_bias_for_masking", None),
)
_REFINER: tuple[tuple[str, str | None], ...] = (
    (r"pos_start_last", "start_position"),
    (r"word_embed_head\.(weight|bias)", r"code_projection.\1"),
    (r"lvl_embed_2\.weight", "level_embedding.weight"),
    (r"encoder_proj2\.(weight|bias)", r"text_projection.\1"),
    (r"head_proj\.(weight|bias)", r"merge.\1"),
    (r"head_logits2\.(weight|bias)", r"head.\1"),
)
_IN_BLOCK = re.compile(r"(blocks|feat_extract_blocks)\.(\d+)\.(.+)")
REFINER = "refiner."  # what our names of the stable sampler's network begin with


def our_key(released_key: str, config: TransformerConfig) -> str | None:
    """Our name of a released tensor; None for one that is not needed. Raises ValueError for a name never seen."""
    if released_key == "class_emb.weight":
        return "class_embedding.weight" if config.conditioning == "class" else None
    places = [("", released_key, _OUTSIDE), (REFINER, released_key, _REFINER)]
    if match := _IN_BLOCK.fullmatch(released_key):
        owner = REFINER if match[1] != "blocks" else ""
        places = [(f"{owner}blocks.{match[2]}.", match[3], _BLOCK)]
    for prefix, rest, table in places:
        for pattern, ours in table:
            if match := re.fullmatch(pattern, rest):
                return None if ours is None else prefix + match.expand(ours)
    raise ValueError(f"'{released_key}' is not a tensor of a released STAR or VAR transformer; is this another file?")


def rename(released: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """A released state dict under our names, ready for load_state_dict(strict=True)."""
    renamed = {our_key(key, config): tensor for key, tensor in released.items()}
    return {key: tensor for key, tensor in renamed.items() if key is not None}
