"""What people call the subjects of captioned pictures, and prompts said in the words of the captions.

    expansion = Expansion.read("wordings.json")         # which `star data wordings` gathered and wrote
    expansion.expand("a red car")                       # "an automobile, fluent flat emoji style"

A model learns from captions that call a thing by one name and always name a style; people say "a dog". Each subject
knows by what it is called, and how surely: its own name, short codes of chat programs, search tags. A prompt is given
to the subject that its words fit best, and drawn as that one's caption; what fits none is drawn as it is. Records of
the shards give names, tags and code points; emojibase (MIT) and emojilib (MIT) the rest.
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from star.clip.colours import NAMES
from star.data.disk import write_text
from star.data.errors import InputError

TONE = re.compile(r"[a-z-]+ skin tone")
OTHER_CODE = 3.0  # points of a short code, which a subject is called by as by its name; others: star.clip.gathering
ENOUGH = 2.0  # points that a prompt needs to stand for a subject
COLOUR_SHARE = 0.3  # of a subject's pixels, for it to have that colour
COLOUR_POINTS = 3.0
ARTICLES = frozenset({"a", "an", "the", "some", "my", "one"})
JOINTS = frozenset({"on", "in", "with", "at", "under", "near", "and", "over", "by", "from", "for", "behind", "beside"})
PORTIONS = frozenset(
    {"cup", "glass", "bowl", "mug", "slice", "piece", "plate", "bunch", "loaf", "bottle", "pair", "picture", "drawing"}
    | {"icon", "emoji", "photo", "image", "group", "can", "box", "bag", "pot", "head", "stack", "pile"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """caption: "an automobile", its captions without the style. style: the words of one it has pictures in.

    names: points by phrase. colours: shares by name. styles: the words of all that it has pictures in. completed: of
    those in which it is drawn by an addition that learnt it beside the others (star.completion).
    """

    caption: str
    style: str
    names: Mapping[str, float]
    colours: Mapping[str, float] = field(default_factory=dict)
    styles: tuple[str, ...] = ()
    completed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expansion:
    """styles: the words that name one, as captions end in them; the first is for prompts that fit no subject.

    nearest: for each style those that draw subjects most like it, the most alike first.
    """

    styles: tuple[str, ...]
    subjects: Mapping[str, Subject]
    about: str = ""
    nearest: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def expand(self, prompt: str) -> str:
        """The prompt in the words of the captions; as it is where it already says a style in other ways, or nothing."""
        head, _, style = prompt.rpartition(", ")
        if style not in self.styles:
            head, style = prompt, ""
        known = self._captions.get(plain(head))
        if known is not None:
            return prompt if style else f"{head}, {known.style}"
        if not plain(head) or "," in head or (not style and self._names_style(prompt)):
            return prompt
        found = self.find(head)
        if found is None:
            return prompt if style else f"{prompt}, {self.styles[0]}"
        subject, caption = found
        return f"{caption}, {style or self.subjects[subject].style}"

    def related(self, caption: str, count: int) -> list[str]:
        """Captions of the same subject in up to `count` other styles, where it was learnt in these, not in its own.

        None for a caption that was learnt, that names no style, or whose subject is unknown.
        """
        head, style, known = self._asked(caption)
        if known is None or style in known.styles or style in known.completed:
            return []
        alike = [other for other in self.nearest.get(style, ()) if other in known.styles]
        return [f"{head}, {other}" for other in alike[:count]]

    def completes(self, caption: str) -> bool:
        """Whether a caption asks for a subject in a style that was completed."""
        _, style, known = self._asked(caption)
        return known is not None and style in known.completed

    def with_completed(self, captions: Iterable[str], *, alone: bool = False) -> "Expansion":
        """The same, with subjects and styles that these captions name as completed; unknown ones are passed over.

        alone: without those that were completed before.
        """
        found: dict[str, set[str]] = defaultdict(set)
        names = {plain(subject.caption): name for name, subject in self.subjects.items()}
        for caption in captions:
            head, style, known = self._asked(caption)
            if known is not None and "," not in head:
                found[names[plain(known.caption)]].add(style)
        subjects = {}
        for name, subject in self.subjects.items():
            both = found[name] | (set() if alone else set(subject.completed))
            completed = tuple(style for style in self.styles if style in both)
            subjects[name] = subject if completed == subject.completed else replace(subject, completed=completed)
        return replace(self, subjects=subjects)

    def _asked(self, caption: str) -> tuple[str, str, Subject | None]:
        """What comes before the style, the words of a style, and the subject; None where one of them is unknown."""
        head, _, style = caption.rpartition(", ")
        plain_head, _, tone = head.partition(", ")
        known = self._captions.get(plain(plain_head))
        asked = style in self.styles and not (tone and not TONE.fullmatch(tone))
        return head, style, known if asked else None

    def find(self, words: str) -> tuple[str, str] | None:
        """The subject that some words fit best, and its caption; the caption says a colour that the subject has not.

        None where no subject has enough points.
        """
        said = [word for word in plain(words).split() if word not in ARTICLES]
        if "of" in said[:-1] and said[0] in PORTIONS and " ".join(said) not in self._index:
            said = said[said.index("of") + 1 :]
        if " ".join(said) not in self._index:
            joint = next((place for place, word in enumerate(said) if place and word in JOINTS), len(said))
            said = said[:joint]
        colours = [word for word in said if word in NAMES]
        points = self._points(said)
        for subject in points:
            shares = self.subjects[subject].colours
            points[subject] += sum(COLOUR_POINTS * (shares.get(colour, 0.0) > COLOUR_SHARE) for colour in colours)
        if not points:
            return None
        best = max(sorted(points), key=lambda subject: points[subject])
        if points[best] < ENOUGH:
            return None
        chosen = self.subjects[best]
        called = plain(" ".join((best, *(name for name, score in chosen.names.items() if score >= OTHER_CODE)))).split()
        missing = [c for c in colours if chosen.colours.get(c, 0.0) <= COLOUR_SHARE and c not in called]
        return best, f"a {missing[0]} {plain(best)}" if missing and chosen.caption[:2] in (
            "a ",
            "an",
        ) else chosen.caption

    @property
    def digest(self) -> str:
        """sha256 (hex) of what `save` writes."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes JSON, a line for each subject."""
        write_text(Path(path), self._text())

    def _text(self) -> str:
        lines = []
        for name, known in sorted(self.subjects.items()):
            numbers = ({key: float(value) for key, value in sorted(of.items())} for of in (known.names, known.colours))
            several = (known.styles, known.completed) if known.completed else (known.styles,) if known.styles else ()
            learnt = [[self.styles.index(style) for style in styles] for styles in several]
            line = json.dumps(
                [known.caption, known.style, *numbers, *learnt], ensure_ascii=False, separators=(",", ":")
            )
            lines.append(f"{json.dumps(name, ensure_ascii=False)}: {line}")
        nearest = f'"nearest": {json.dumps(self.nearest)},\n' if self.nearest else ""
        head = f'"about": {json.dumps(self.about)},\n"styles": {json.dumps(self.styles)},\n{nearest}"subjects": {{\n'
        return "{\n" + head + ",\n".join(lines) + "\n}\n}\n"

    @classmethod
    def read(cls, path: str | Path) -> "Expansion":
        """From the file that `save` wrote. Raises InputError where it is none."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            styles = tuple(str(style) for style in content["styles"])
            subjects = {
                str(name): Subject(
                    caption=str(caption),
                    style=str(style),
                    names={str(phrase): float(points) for phrase, points in names.items()},
                    colours={str(colour): float(share) for colour, share in colours.items()},
                    styles=tuple(styles[number] for numbers in learnt[:1] for number in numbers),
                    completed=tuple(styles[number] for numbers in learnt[1:2] for number in numbers),
                )
                for name, (caption, style, names, colours, *learnt) in content["subjects"].items()
            }
            nearest = {str(to): tuple(map(str, others)) for to, others in content.get("nearest", {}).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{path} is no file of wordings ({type(error).__name__}), expected JSON with styles and subjects: "
                "`star data wordings` makes one"
            ) from error
        if not styles or not subjects:
            raise InputError(f"{path} names no style or no subject: make it again with `star data wordings`")
        return cls(styles, subjects, str(content.get("about", "")), nearest)

    def _points(self, said: Sequence[str]) -> dict[str, float]:
        """Of every subject that some run of the words is a name of; long runs count more, and names that many have less
        unless they are all that was said."""
        points: dict[str, float] = defaultdict(float)
        for first in range(len(said)):
            for last in range(first + 1, len(said) + 1):
                run = " ".join(said[first:last])
                for form in (run, run.removesuffix("s")) if run.endswith("s") else (run,):
                    known = self._index.get(form, {})
                    common = 1 + math.log(max(len(known), 1)) if last - first < len(said) else 1.0
                    for subject, score in known.items():
                        points[subject] += score * (last - first) / common
        return points

    def _names_style(self, prompt: str) -> bool:
        return any(word in self._style_words for word in plain(prompt).split())

    @cached_property
    def _index(self) -> dict[str, dict[str, float]]:
        """By phrase, the points of the subjects that it names."""
        index: dict[str, dict[str, float]] = defaultdict(dict)
        for name, subject in self.subjects.items():
            for phrase, points in subject.names.items():
                index[phrase][name] = points
        return dict(index)

    @cached_property
    def _captions(self) -> dict[str, Subject]:
        return {plain(subject.caption): subject for subject in self.subjects.values()}

    @cached_property
    def _style_words(self) -> frozenset[str]:
        """The names of styles alone: words that no subject is called by."""
        words = {word for style in self.styles for word in plain(style).split()}
        called = {word for phrase in self._index for word in phrase.split()}
        return frozenset(words - called - {"style", "emoji", "and"} | {"drawn"})


def plain(words: str) -> str:
    """In small letters, underscores and hyphens as spaces."""
    return re.sub(r"[\s_-]+", " ", words.replace("’", "'")).strip(" .!?").lower()
