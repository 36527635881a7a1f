"""Gathers what people call the subjects of captioned pictures (star.clip.wordings), from records and three collections.

Records of the shards give names, tags and code points; emojibase (MIT) and emojilib (MIT) short codes and keywords.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.clip.wordings import OTHER_CODE, Expansion, Subject, plain
from star.data.errors import InputError

CHATS = ("github", "emojibase", "iamcal", "joypixels", "cldr")  # files of short codes that emojibase carries
PHRASE = re.compile(r"[a-z][a-z' ]{1,60}[a-z]")
# Points: a subject's own name, its name without "face" and the like, a chat program's first short code (OTHER_CODE: its
# others), tags of three sources, the words of its name alone.
NAME, SHORTENED, FIRST_CODE, TAG, RECORD_TAG, KEYWORD, HEAD = 30.0, 6.0, 4.0, 2.0, 1.0, 1.0, 1.2
BESIDES = ("people-body", "flags", "symbols")  # categories that a word seldom means where there is a thing of that name


def gather(
    captions: Sequence[Sequence[str]],
    infos: Sequence[Mapping[str, Any]],
    colours: Mapping[str, Mapping[str, float]],
    emojibase: str | Path,
    emojilib: str | Path,
    styles: Sequence[str] = (),
    nearest: Mapping[str, Sequence[str]] | None = None,
) -> Expansion:
    """The expansion of all subjects of some records.

    captions: of each picture, the first as in "a crab, twemoji style". infos: records with subject, style, tags and
    codepoints. colours: of a subject's pictures, shares by name, see star.clip.colours. emojibase: its folder `en`.
    emojilib: its emoji-en-US.json. styles: which one a subject's caption names first of all, as records have it; else
    the most frequent. nearest: by style, those that are most like it (star.clip.styles). Raises InputError where a file
    cannot be read or no record will do.
    """
    counts = Counter(info["style"] for info in infos if "style" in info)
    order = [*styles, *(style for style, _ in counts.most_common() if style not in styles)]
    codes: dict[str, Counter[str]] = defaultdict(Counter)
    records: dict[str, dict[str, tuple[str, Mapping[str, Any]]]] = defaultdict(dict)
    for several, info in zip(captions, infos, strict=True):
        if {"subject", "style", "codepoints"} <= info.keys() and "skin_tone" not in info and ", " in several[0]:
            codes[info["subject"]][_bare(info["codepoints"])] += 1
            records[info["subject"]][info["style"]] = (several[0], info)
    if not codes:
        raise InputError("no record names a subject, a style and code points, as those of the emoji shards do")
    sources = _Sources.read(Path(emojibase), Path(emojilib))
    drawn: dict[str, set[str]] = defaultdict(set)
    for info in infos:
        drawn[info.get("subject", "")].add(info.get("style", ""))
    words = {style: caption.rsplit(", ", 1)[1] for found in records.values() for style, (caption, _) in found.items()}
    subjects = {}
    for name, found in records.items():
        caption, info = found[min(found, key=order.index)]
        points: dict[str, float] = defaultdict(float)
        for phrase, score in sources.names(name, codes[name].most_common(1)[0][0], info.get("tags", ())):
            if PHRASE.fullmatch(phrase):
                points[phrase] += score
        # Of equals the plainest, and the one that most collections have; things before signs.
        extra = 0.1 * min(len(found), 10) - 0.15 * len(name.split()) - 0.6 * (info.get("category") in BESIDES)
        head, _, style = caption.rpartition(", ")
        subjects[name] = Subject(
            caption=head,
            style=style,
            names={phrase: round(score + extra, 2) for phrase, score in sorted(points.items()) if score + extra > 0},
            colours={colour: round(share, 2) for colour, share in sorted(colours.get(name, {}).items()) if share > 0.1},
            styles=tuple(words[style] for style in order if style in words and style in drawn[name]),
        )
    alike = {words[to]: tuple(words[one] for one in ones if one in words) for to, ones in (nearest or {}).items()}
    return Expansion(tuple(words[style] for style in order if style in words), subjects, nearest=alike)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sources:
    """By code points: tags of emojibase, short codes by chat program, keywords of emojilib."""

    tags: dict[str, list[str]]
    codes: dict[str, dict[str, Any]]
    keywords: dict[str, list[str]]

    @classmethod
    def read(cls, emojibase: Path, emojilib: Path) -> "_Sources":
        try:
            entries = json.loads((emojibase / "data.json").read_text(encoding="utf-8"))
            folder = emojibase / "shortcodes"
            codes = {chat: json.loads((folder / f"{chat}.json").read_text(encoding="utf-8")) for chat in CHATS}
            library = json.loads(emojilib.read_text(encoding="utf-8"))
            return cls(
                tags={_bare(entry["hexcode"]): entry.get("tags", []) for entry in entries},
                codes={chat: {_bare(code): words for code, words in table.items()} for chat, table in codes.items()},
                keywords={_bare("-".join(f"{ord(c):X}" for c in emoji)): words for emoji, words in library.items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{emojibase} and {emojilib} cannot be read as emojibase-data/en and emojilib's emoji-en-US.json "
                f"({error}): `npm install emojibase-data emojilib` brings both"
            ) from error

    def names(self, subject: str, code: str, tags: Sequence[str]) -> list[tuple[str, float]]:
        """Everything that a subject is called, plain, each with its points."""
        found = [(subject, NAME)]
        endings = (" face", " symbol", " button")
        found += [(subject.removesuffix(end), SHORTENED) for end in endings if subject.endswith(end)]
        for table in self.codes.values():
            several = table.get(code, [])
            several = [several] if isinstance(several, str) else several
            found += [
                (words, OTHER_CODE if place else FIRST_CODE)
                for place, words in enumerate(several)
                if not words[-1:].isdigit()
            ]
        found += [(words, TAG) for words in self.tags.get(code, [])] + [(words, RECORD_TAG) for words in tags]
        found += [(words, KEYWORD + 1 / place) for place, words in enumerate(self.keywords.get(code, [])[1:], 1)]
        words = plain(subject).split()
        if 1 < len(words) < 4 and ":" not in subject:
            found += [(words[-1], HEAD), (words[0], HEAD)]
        return [(plain(words), score) for words, score in found]


def _bare(code: str) -> str:
    """Code points without the one that asks for colour."""
    return code.replace("-FE0F", "")
