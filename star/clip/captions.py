"""What a picture may be called: caption variants for contrastive training, and which of them are true of which picture.

A contrastive batch treats every other picture's caption as false. Many are not: two pictures share a caption, or a
caption built from the tag "animal" fits dozens. So a variant carries a claim, a picture carries the set of claims that
are true of it, and `false_negatives` marks the pairs that training must leave out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Claim = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionConfig:
    """Shares of the variants, in [0, 1]; what they leave is one of the picture's own captions, evenly."""

    tag: float = 0.2  # the subject's name swapped for one of its tags: brings synonyms to the names they belong to
    bare: float = 0.1  # no style: "a red apple"
    drop_words: float = 0.3  # captions in which words are dropped,
    dropped: float = 0.12  # and the share of their words
    misspell: float = 0.05  # captions with two letters of one word swapped, or one lost: unseen pieces of words


class PictureText:
    """The texts and claims of one picture, made once from its captions and its record.

    The record's `subject`, `style` and `tags` are used where present; without them the captions alone are drawn.
    """

    def __init__(self, captions: Sequence[str], info: dict[str, Any]) -> None:
        self.captions = tuple(captions)
        self.phrase: str | None = None
        self.tagged: list[tuple[str, Claim]] = []
        # The first caption without its style, and the words of the style; "" if the record names none.
        self.parts = (self.captions[0], "")
        self.subject = str(info.get("subject", "")) or self.captions[0]
        style = info.get("style")
        if style and ", " in captions[0]:
            self.phrase, style_words = captions[0].rsplit(", ", 1)
            if self.phrase:
                self.parts = (self.phrase, style_words)
            for tag in info.get("tags", ()):
                text = self.phrase.replace(self.subject, tag) if self.subject in self.phrase else tag
                self.tagged.append((f"{text}, {style_words}", ("tag", tag, style)))
        self.claims = frozenset(
            [("text", caption) for caption in self.captions]
            + [claim for _, claim in self.tagged]
            + ([("text", self.phrase)] if self.phrase else [])
            + ([("tag", str(info["subject"]), style)] if style and "subject" in info else [])
        )

    def draw(self, config: CaptionConfig, rng: random.Random) -> tuple[str, Claim]:
        """One caption variant and its claim."""
        kind = rng.random()
        if kind < config.tag and self.tagged:
            text, claim = rng.choice(self.tagged)
        elif config.tag <= kind < config.tag + config.bare and self.phrase:
            text, claim = self.phrase, ("text", self.phrase)
        else:
            text = rng.choice(self.captions)
            claim = ("text", text)
        if rng.random() < config.drop_words:
            words = text.split(" ")
            kept = [word for word in words if rng.random() >= config.dropped]
            text = " ".join(kept or words)
        if rng.random() < config.misspell:
            text = misspell(text, rng)
        return text, claim


def misspell(text: str, rng: random.Random) -> str:
    """Swaps two neighbouring letters of a word of four letters or more, or loses one; shorter words stay."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 3]
    if not long:
        return text
    index = rng.choice(long)
    word = words[index]
    place = rng.randrange(1, len(word) - 1)
    middle = word[place + 1] + word[place] if rng.random() < 0.5 else word[place + 1]
    words[index] = word[:place] + middle + word[place + 2 :]
    return " ".join(words)


def false_negatives(claims: Sequence[Claim], pictures: Sequence[PictureText]) -> Tensor:
    """mask_BB bool, rows texts, columns pictures: True where text i, drawn for another picture, is true of j."""
    owners: dict[Claim, list[int]] = {}
    for index, claim in enumerate(claims):
        owners.setdefault(claim, []).append(index)
    mask_BB = torch.zeros(len(claims), len(pictures), dtype=torch.bool)
    for column, picture in enumerate(pictures):
        for claim in picture.claims:
            for row in owners.get(claim, ()):
                mask_BB[row, column] = row != column
    return mask_BB
