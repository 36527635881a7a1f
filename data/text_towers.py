"""The kinds of text encoders: transformers' class of each, how its states become one, and how long a prompt may be.

A kind is the `model_type` of a folder's config.json. A package of yours adds one through an entry point of its name,
see docs/extending.md:

    [project.entry-points."star.text_encoders"]
    bert = "their_package.bert:BERT"

B batch, T text tokens, D text width.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from star.data.clip_text import DUAL
from star.data.errors import InputError

GROUP = "star.text_encoders"
# Of what the tower gives, its last hidden states (B, T, D), zero where masked, and the mask (B, T): the state (B, D).
Pooling = Callable[[Any, Tensor, Tensor], Tensor]


def pooler_output(output: Any, tokens_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """What the tower itself calls pooled; CLIP's is the final state at EOS."""
    pooled_BD: Tensor = output.pooler_output
    return pooled_BD


def mean_of_tokens(output: Any, tokens_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over the prompt's own tokens; T5 has no token to pool at. STAR's ablation averaged padding, too."""
    return tokens_BTD.sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTower:
    """One kind of text encoder.

    model: transformers' class as "module:class", which is imported where a folder needs it; called as
    tower(input_ids=, attention_mask=), with last_hidden_state in what it gives.
    pool: see `Pooling`. positions: the field of the tower's config that says how many tokens it can take; "": any
    number. max_tokens: tokens of a prompt where nothing else says so. ends_at_eos: `pool` looks for the token that the
    config calls EOS, so the tokenizer has to end every prompt with it.
    """

    model: str
    pool: Pooling
    positions: str = "max_position_embeddings"
    max_tokens: int = 120
    ends_at_eos: bool = False

    def load(self) -> Any:
        """The class, imported now."""
        module, _, name = self.model.partition(":")
        return getattr(importlib.import_module(module), name)

    def limit(self, config: Any) -> int | None:
        """The most tokens that a tower of this config takes; None for any number."""
        return int(getattr(config, self.positions)) if self.positions else None


_CLIP = TextTower(model="transformers:CLIPTextModel", pool=pooler_output, ends_at_eos=True)
# 120 is the length STAR's T5 ablation used
_T5 = TextTower(model="transformers:T5EncoderModel", pool=mean_of_tokens, positions="", max_tokens=120)
TOWERS: dict[str, TextTower] = {"clip": _CLIP, "clip_text_model": _CLIP, DUAL: _CLIP, "t5": _T5}


def kinds() -> tuple[str, ...]:
    """The names of all kinds, those of other packages included."""
    return tuple(dict.fromkeys([*TOWERS, *(point.name for point in importlib.metadata.entry_points(group=GROUP))]))


def tower_of(kind: str) -> TextTower:
    """What is known of a kind. Raises InputError for one that is unknown, or that its package does not give."""
    if kind in TOWERS:
        return TOWERS[kind]
    for point in importlib.metadata.entry_points(group=GROUP, name=kind):
        found = point.load()
        if not isinstance(found, TextTower):
            raise InputError(
                f"the entry point {kind} of {GROUP} is a {type(found).__name__}, expected a TextTower: mend the package"
            )
        return found
    raise InputError(
        f"{kind!r} is no kind of text encoder, expected one of {', '.join(kinds())}: add it as docs/extending.md shows"
    )
