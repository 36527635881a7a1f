"""Pairs of styles are read, and pictures found for them by subject and skin tone."""

import random
from pathlib import Path

import pytest

from star.data.errors import InputError
from star.restyle.pairs import Collection, Pair, examples, parse_pairs, styles_of, training_examples
from tests.star.restyle.drawings import PAIR, SIDE, draw, sample, write


def test_pairs_are_read_and_written() -> None:
    pairs = parse_pairs(["a>b", " c + d > e "])
    assert pairs == (Pair(("a",), "b"), Pair(("c", "d"), "e"))
    assert [str(pair) for pair in pairs] == ["a>b", "c+d>e"]
    assert styles_of(pairs) == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"], "the pair is 'a', expected source>target"),
        (["a>"], "expected source>target"),
        (["a++b>c"], "expected source>target"),
        (["a>b>c"], "expected source>target"),
        (["a>b+c"], "expected source>target"),
        (["a>a"], "names a style twice"),
        (["a+b+a>c"], "names a style twice"),
        (["a>c", "b>c"], "c is the target of two pairs"),
        ([], "no pairs of styles were given"),
    ],
)
def test_other_pairs_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_pairs(texts)


def read(folder: Path, *pairs: str) -> Collection:
    return Collection.read([str(path) for path in sorted(folder.glob("*.tar"))], SIDE, parse_pairs(pairs or [PAIR]))


def test_sources_are_of_the_same_subject_and_skin_tone(tmp_path: Path) -> None:
    toned = [sample("hand", style, tone) for style in ("colour", "negative") for tone in ("", "dark", "light")]
    alone = [sample("face", "pale", "dark"), sample("face", "pale", "light"), sample("face", "negative")]
    unmatched = [sample("tree", "negative"), sample("sun", "colour")]
    collection = read(write(tmp_path, "train", [*toned, *alone, *unmatched]))
    found = training_examples(parse_pairs([PAIR]), collection)
    told = {one.target.key: [[picture.key for picture in several] for several in one.sources] for one in found}
    assert told == {
        "negative-hand": [["colour-hand"]],
        "negative-hand-dark": [["colour-hand-dark"]],
        "negative-hand-light": [["colour-hand-light"]],
        "negative-face": [["pale-face-dark", "pale-face-light"]],
    }
    assert (found[1].target.pixels_3HW == draw("hand", "negative", "dark")).all()


def test_every_source_style_is_drawn_alike(tmp_path: Path) -> None:
    many = [sample("hand", "colour", str(tone)) for tone in range(9)]
    collection = read(write(tmp_path, "train", [*many, sample("hand", "pale", "x"), sample("hand", "negative")]))
    [example] = training_examples(parse_pairs([PAIR]), collection)
    rng = random.Random(0)
    drawn = [example.draw(rng).style for _ in range(400)]
    assert 160 < drawn.count("pale") < 240


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    collection = read(write(tmp_path, "train", [sample("hand", "colour"), sample("tree", "negative")]))
    with pytest.raises(InputError, match=r"name pale, of which .* there are colour, negative: correct --pairs"):
        training_examples(parse_pairs([PAIR]), collection)
    with pytest.raises(
        InputError, match=r"no subject has a picture in both styles of colour>negative.*there are colour"
    ):
        training_examples(parse_pairs(["colour>negative"]), collection)
    with pytest.raises(InputError, match="there are none, as no record names a style"):
        training_examples(parse_pairs([PAIR]), Collection())


def test_held_out_targets_find_sources_in_the_training_shards_first(tmp_path: Path) -> None:
    training = read(write(tmp_path / "one", "train", [sample("hand", "colour"), sample("hand", "pale")]))
    held_out = read(write(tmp_path / "two", "test", [sample("hand", "negative"), sample("hand", "pale", source="two")]))
    [example] = examples(parse_pairs([PAIR]), held_out, training, held_out)
    assert [[picture.info["source"] for picture in several] for several in example.sources] == [
        ["the colour set"],
        ["the pale set", "two"],
    ]
