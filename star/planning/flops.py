"""Arithmetic of one training step of the next-scale transformer, counted from its shape.

FLOPs of matrix products, two for each multiplication with its addition; everything else is some per cent of that.

B batch, L tokens that take part, T text tokens, D text width, C model width, V codebook, E code width.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

from star.model.refiner import RefinerConfig
from star.model.transformer import TransformerConfig

SCALE_BY_SCALE = ("scalewise", "flash", "auto")
FLEX_BLOCK = 128  # tokens on a side of what FlexAttention computes or skips as a whole


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs for one picture."""

    forward: int
    backward: int
    again: int  # what blocks compute a second time because of checkpointing

    @property
    def total(self) -> int:
        """Of a training step, for one picture."""
        return self.forward + self.backward + self.again


def mean(kinds: Iterable[tuple[Work, float]]) -> Work:
    """Of several kinds of steps, each with its share of the pictures."""
    kinds = list(kinds)
    names = ("forward", "backward", "again")
    return Work(*(round(sum(getattr(work, name) * share for work, share in kinds)) for name in names))


def pairs_seen(lengths: tuple[int, ...], backend: str) -> int:
    """Pairs of query and key for which a backend computes a score on a GPU; see star/model/kernels/choice.py."""
    total, ends = sum(lengths), list(accumulate(lengths))
    if backend in SCALE_BY_SCALE:
        return sum(length * end for length, end in zip(lengths, ends, strict=True))
    if backend == "flex":
        rows = (min(start + FLEX_BLOCK, total) - 1 for start in range(0, total, FLEX_BLOCK))  # the last of each block
        seen = [next(end for end in ends if end > row) for row in rows]
        return sum(FLEX_BLOCK * FLEX_BLOCK * -(-end // FLEX_BLOCK) for end in seen)
    return total * total


def work(network: TransformerConfig, lengths: tuple[int, ...], text_tokens: int) -> Work:
    """What a picture costs whose scales take part with so many tokens, and whose prompt is padded to `text_tokens`.

    Where words are packed padding is not read: with 77 tokens and a width of 1024, some 1 % less than this.
    """
    tokens, width, text_width = sum(lengths), network.width, network.text_width
    hidden = round(width * network.mlp_ratio)
    down = 2 * tokens * hidden * width
    linear = 2 * tokens * width * (4 * width + 2 * width + hidden) + down  # q k v, output; query, output; up; down
    attention = 4 * width * (pairs_seen(lengths, network.attention) + tokens * text_tokens)
    # The two products of attention make four in the backward pass; fused kernels compute the scores again, a fifth.
    attention_backward = 2 * attention if network.attention == "eager" else 5 * attention // 2
    # What is known and has no gradient: the text, and the codes of the coarser scales.
    given = 2 * (tokens - lengths[0]) * network.code_width * width + 2 * text_width * width
    words = 2 * text_tokens * text_width * 2 * width
    given += network.depth * words
    head = 2 * tokens * width * network.tokens.outputs
    return Work(
        forward=network.depth * (linear + attention) + given + head,
        backward=network.depth * (2 * linear + attention_backward) + given + 2 * head,
        # The second time ends before the last product, whose result nobody needs.
        again=network.depth * (linear - down + attention + words) if network.checkpointing else 0,
    )


def refiner_work(network: TransformerConfig, refiner: RefinerConfig, text_tokens: int, masks: int = 1) -> Work:
    """What a picture costs a refiner that learns behind a transformer, of which `masks` masks are drawn.

    The transformer goes forward alone, once, and without its head. A refined scale is computed by itself, beside the
    token that stands for the text.
    """
    schedule, width = network.schedule, network.width
    first = min(plan.scale for plan in refiner.plans)
    lengths = [length + schedule.lengths[0] for length in schedule.lengths[first:]]
    tokens, outputs = sum(lengths), network.tokens.outputs
    linear = 2 * tokens * width * (4 * width + 2 * round(width * network.mlp_ratio))
    attention = 4 * width * sum(length**2 for length in lengths)
    attention_backward = 2 * attention if network.attention == "eager" else 5 * attention // 2
    ends = 2 * tokens * width * (2 * width + outputs)
    given = 2 * tokens * network.code_width * width + 2 * network.text_width * width
    before = work(network, schedule.lengths, text_tokens).forward - 2 * schedule.length * width * outputs
    return Work(
        forward=before + masks * (refiner.depth * (linear + attention) + ends + given),
        backward=masks * (refiner.depth * (2 * linear + attention_backward) + 2 * ends + given),
        again=0,
    )


def needed(network: TransformerConfig, lengths: tuple[int, ...], text_tokens: int) -> int:
    """FLOPs of a picture that no backend can do without, forward and backward: nothing computed twice, and of
    attention only the pairs of tokens that are seen. What a share of the ceiling (MFU) is counted from."""
    done = work(replace(network, attention="scalewise", checkpointing=False), lengths, text_tokens)
    attention = 4 * network.width * (pairs_seen(lengths, "scalewise") + sum(lengths) * text_tokens)
    return done.forward + done.backward - network.depth * attention // 2  # fused kernels compute scores again
