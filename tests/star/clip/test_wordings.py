"""Prompts in everyday words become captions; what already is one stays."""

import json
from pathlib import Path
from typing import Any

import pytest

from star.cli import main
from star.clip.gathering import gather
from star.clip.wordings import Expansion, Subject
from star.data.errors import InputError

STYLES = ("flat emoji style", "noto emoji style")
SUBJECTS = {
    "automobile": Subject(
        caption="an automobile", style=STYLES[0], names={"automobile": 30, "car": 8, "vehicle": 2}, colours={"red": 0.6}
    ),
    "hot beverage": Subject(
        caption="a hot beverage", style=STYLES[1], names={"hot beverage": 30, "coffee": 8, "drink": 2}, colours={}
    ),
    "sunflower": Subject(
        caption="a sunflower", style=STYLES[0], names={"sunflower": 30, "flower": 3.1}, colours={"yellow": 0.7}
    ),
    "rose": Subject(caption="a rose", style=STYLES[0], names={"rose": 30, "flower": 3.2}, colours={"red": 0.5}),
    "tennis": Subject(caption="a tennis racket and ball", style=STYLES[0], names={"tennis": 30, "ball": 2}),
    "yarn": Subject(caption="yarn", style=STYLES[0], names={"yarn": 30, "ball": 3}),
    "cloud with rain": Subject(caption="a cloud with rain", style=STYLES[0], names={"cloud with rain": 30}),
    "cloud": Subject(caption="a cloud", style=STYLES[0], names={"cloud": 30}),
    "flag: Chile": Subject(caption="the flag of Chile", style=STYLES[1], names={"chile": 3}),
}


@pytest.fixture
def expansion() -> Expansion:
    return Expansion(STYLES, SUBJECTS)


@pytest.mark.parametrize(
    ("said", "drawn"),
    [
        ("a car", "an automobile, flat emoji style"),
        ("A Car!", "an automobile, flat emoji style"),
        ("two cars", "an automobile, flat emoji style"),
        ("a red car", "an automobile, flat emoji style"),
        ("a purple car", "a purple automobile, flat emoji style"),
        ("a car, noto emoji style", "an automobile, noto emoji style"),
        ("a cup of coffee", "a hot beverage, noto emoji style"),
        ("a photo of a car on a hill", "an automobile, flat emoji style"),
        ("a car with a coffee", "an automobile, flat emoji style"),
        ("a yellow flower", "a sunflower, flat emoji style"),
        ("a red flower", "a rose, flat emoji style"),
        ("a tennis ball", "a tennis racket and ball, flat emoji style"),
        ("a ball", "yarn, flat emoji style"),
        ("a cloud with rain", "a cloud with rain, flat emoji style"),
        ("a cloud with a car", "a cloud, flat emoji style"),
        ("chile", "the flag of Chile, noto emoji style"),
        ("flibbertigibbet", "flibbertigibbet, flat emoji style"),
        ("flibbertigibbet, noto emoji style", "flibbertigibbet, noto emoji style"),
    ],
)
def test_what_people_say_becomes_a_caption(expansion: Expansion, said: str, drawn: str) -> None:
    assert expansion.expand(said) == drawn
    assert expansion.expand(drawn) == drawn, "a caption stays as it is"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "  ",
        "an automobile, noto emoji style",
        "automobile, car, vehicle, noto emoji style",
        "a noto emoji of an automobile on white",
        "an automobile, drawn as a simple flat icon",
        "the flag of Chile, flat emoji style",
    ],
)
def test_a_prompt_that_already_is_a_caption_or_says_its_style_stays(expansion: Expansion, prompt: str) -> None:
    assert expansion.expand(prompt) == prompt


def test_files_hold_all_of_it_and_damaged_ones_are_refused(expansion: Expansion, tmp_path: Path) -> None:
    expansion.save(tmp_path / "w.json")
    assert Expansion.read(tmp_path / "w.json") == expansion
    for text in ("", "[]", "{}", '{"styles": [], "subjects": {}}', '{"styles": ["a"], "subjects": {"x": [1]}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match="star data wordings"):
            Expansion.read(tmp_path / "bad.json")


def _sources(folder: Path) -> tuple[Path, Path]:
    """Files as emojibase and emojilib have them, of two emoji."""
    (folder / "shortcodes").mkdir(parents=True)
    entries = [{"hexcode": "1F697", "tags": ["car", "driving"]}, {"hexcode": "2764-FE0F", "tags": ["love"]}]
    (folder / "data.json").write_text(json.dumps(entries))
    for chat in ("github", "emojibase", "iamcal", "joypixels", "cldr"):
        table: dict[str, Any] = {"1F697": ["car", "red_car"], "2764-FE0F": "heart"}
        (folder / "shortcodes" / f"{chat}.json").write_text(json.dumps(table))
    (folder / "lib.json").write_text(json.dumps({"🚗": ["automobile", "ride"], "❤️": ["red_heart", "like", "dog2"]}))
    return folder, folder / "lib.json"


def test_gathered_names_come_from_every_source(tmp_path: Path) -> None:
    captions = [
        ("an automobile, noto emoji style",),
        ("an automobile, flat emoji style",),
        ("a red heart, noto emoji style",),
    ]
    infos: list[dict[str, Any]] = [
        {"subject": "automobile", "style": "noto", "codepoints": "1F697", "tags": ["vehicle"]},
        {"subject": "automobile", "style": "flat", "codepoints": "1F697", "tags": ["vehicle"]},
        {"subject": "red heart", "style": "noto", "codepoints": "2764", "category": "symbols"},
    ]
    found = gather(captions, infos, {"automobile": {"red": 0.5, "blue": 0.05}}, *_sources(tmp_path / "e"), ["flat"])
    assert found.styles == ("flat emoji style", "noto emoji style")
    car, heart = found.subjects["automobile"], found.subjects["red heart"]
    assert (car.caption, car.style, car.colours) == ("an automobile", "flat emoji style", {"red": 0.5})
    assert {"automobile", "car", "red car", "driving", "vehicle", "ride"} == set(car.names)
    assert car.names["automobile"] > car.names["car"] > car.names["driving"] > car.names["vehicle"]
    assert {"red heart", "heart", "love", "like", "red"} == set(heart.names)
    assert found.expand("my heart") == "a red heart, noto emoji style"
    with pytest.raises(InputError, match="npm install"):
        gather(captions, infos, {}, tmp_path, tmp_path / "lib.json")
    with pytest.raises(InputError, match="code points"):
        gather(captions, [{}, {}, {}], {}, *_sources(tmp_path / "f"))


def test_the_command_writes_them_from_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, library = _sources(tmp_path / "e")
    assert main(["data", "synthetic", str(tmp_path / "plain"), "--count", "4", "--test", "2", "--size", "16"]) == 0
    command = ["data", "wordings", "--emojibase", str(folder), "--emojilib", str(library)]
    assert main([*command, "--out", str(tmp_path / "w.json"), str(tmp_path / "plain" / "train")]) == 2
    assert "code points" in capsys.readouterr().err
    shards = Path(__file__).parents[4] / "shared" / "data" / "emoji" / "emoji-train-0000.tar"
    if not shards.is_file():
        pytest.skip("needs ../shared/data/emoji")
    assert main([*command, "--out", str(tmp_path / "w.json"), str(shards)]) == 0
    found = Expansion.read(tmp_path / "w.json")
    assert found.expand("a red car").startswith("an automobile, ")
    assert found.subjects["automobile"].colours


def test_related_captions_are_those_of_styles_that_the_subject_was_learnt_in() -> None:
    styles = ("flat emoji style", "noto emoji style", "blob emoji style", "twemoji style")
    crab = Subject(caption="a crab", style=styles[0], names={"crab": 30.0}, styles=(styles[0], styles[1], styles[3]))
    nearest = {styles[2]: (styles[3], styles[2], styles[0], styles[1])}
    expansion = Expansion(styles, {"crab": crab}, nearest=nearest)
    assert expansion.related("a crab, blob emoji style", 2) == ["a crab, twemoji style", "a crab, flat emoji style"]
    assert len(expansion.related("a crab, blob emoji style", 9)) == 3
    assert expansion.related("a crab, dark skin tone, blob emoji style", 1) == ["a crab, dark skin tone, twemoji style"]
    for caption in (
        "a crab, noto emoji style",
        "a crab",
        "a whale, blob emoji style",
        "a crab, red, blob emoji style",
        "",
    ):
        assert expansion.related(caption, 2) == [], caption


def test_what_was_learnt_in_which_style_is_kept_in_the_file(tmp_path: Path) -> None:
    subjects = {"crab": Subject(caption="a crab", style=STYLES[0], names={"crab": 30.0}, styles=STYLES[1:])}
    expansion = Expansion(STYLES, subjects, nearest={STYLES[0]: STYLES[1:]})
    expansion.save(tmp_path / "w.json")
    assert Expansion.read(tmp_path / "w.json") == expansion
    content = json.loads((tmp_path / "w.json").read_text())
    content["subjects"]["crab"][4] = [7]
    (tmp_path / "w.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="wordings"):
        Expansion.read(tmp_path / "w.json")
