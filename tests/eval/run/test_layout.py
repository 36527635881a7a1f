"""Layouts as published and as they go wrong: folders, zips, and every fault by its name."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from star.data.errors import InputError
from star.data.mjhq import META_NAME as META
from star.eval.run.layout import Item, prompts_digest, read_layout, spread, survey
from tests.eval.painting import make_benchmark

COUNT = 12


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return make_benchmark(tmp_path / "made", COUNT)


def pack(folder: Path, archive: Path, top: str = "", meta: bool = True) -> Path:
    with zipfile.ZipFile(archive, "w") as whole:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and (meta or file.name != META):
                whole.write(file, top + file.relative_to(folder).as_posix())
        whole.writestr("__MACOSX/animals/._0000.png", b"")
    return archive


def change(folder: Path, **entries: object) -> None:
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps(meta | entries))


def test_a_folder_is_read_in_the_order_of_keys(benchmark: Path) -> None:
    layout = survey(benchmark)
    assert [item.key for item in layout.items] == [f"{number:04x}" for number in range(COUNT)]
    assert (layout.name, layout.faults) == ("made", {})
    assert layout.items[4].place == "food/0004"
    assert layout.prompts == prompts_digest(layout.items)
    assert spread(layout.items, 4) == layout.items[::3]
    assert spread(layout.items, 100) == layout.items


def test_subjects_and_styles_count_in_the_digest_only_where_there_are_any(benchmark: Path) -> None:
    before = survey(benchmark)
    assert {(item.subject, item.style) for item in before.items} == {("", "")}
    change(benchmark, **{"0004": {"category": "food", "prompt": before.items[4].prompt, "subject": "a pie"}})
    named = survey(benchmark)
    assert (named.items[4].subject, named.items[4].style) == ("a pie", "")
    assert named.prompts == prompts_digest(named.items) != before.prompts
    change(benchmark, **{"0004": {"category": "food", "prompt": before.items[4].prompt, "style": "a pie"}})
    assert survey(benchmark).prompts not in (named.prompts, before.prompts)
    change(benchmark, **{"0004": {"category": "food", "prompt": before.items[4].prompt, "subject": 5}})
    assert survey(benchmark).prompts == before.prompts


@pytest.mark.parametrize("top", ["", "MJHQ-30K/"])
def test_a_zip_is_the_folder(benchmark: Path, tmp_path: Path, top: str) -> None:
    found = survey(pack(benchmark, tmp_path / "made.zip", top))
    same(found.items, survey(benchmark).items)
    assert (found.name, found.faults, found.prompts) == ("made", {}, survey(benchmark).prompts)


def test_a_zip_of_pictures_beside_its_prompts_as_published(benchmark: Path, tmp_path: Path) -> None:
    published = tmp_path / "MJHQ-30K"
    published.mkdir()
    pack(benchmark, published / "mjhq30k_imgs.zip", meta=False)
    shutil.copy(benchmark / META, published / META)
    for place in (published, published / "mjhq30k_imgs.zip"):
        same(survey(place).items, survey(benchmark).items)


def same(found: list[Item], expected: list[Item]) -> None:
    assert [(i.key, i.category, i.prompt) for i in found] == [(i.key, i.category, i.prompt) for i in expected]
    assert [i.picture.read_bytes() for i in found] == [i.picture.read_bytes() for i in expected]


def without_a_category(folder: Path) -> None:
    shutil.rmtree(folder / "food")


def with_an_empty_category(folder: Path) -> None:
    for file in (folder / "food").iterdir():
        file.unlink()


def without_a_picture(folder: Path) -> None:
    (folder / "food/0004.png").unlink()


def with_two_pictures_of_one(folder: Path) -> None:
    shutil.copy(folder / "food/0004.png", folder / "food/0004.jpg")


def with_an_id_twice(folder: Path) -> None:
    text = (folder / META).read_text()
    (folder / META).write_text(text[:-1] + ', "0004": {"category": "food", "prompt": "again"}}')


def without_a_prompt(folder: Path) -> None:
    change(folder, **{"0004": {"category": "food"}})


def with_a_number_for_a_prompt(folder: Path) -> None:
    change(folder, **{"0004": {"category": "food", "prompt": 7}})


def with_a_category_that_tables_need(folder: Path) -> None:
    change(folder, **{"0004": {"category": "overall", "prompt": "a fish"}})


def with_an_id_that_leads_elsewhere(folder: Path) -> None:
    change(folder, **{"../0004": {"category": "food", "prompt": "a fish"}})


def with_a_stray_picture(folder: Path) -> None:
    shutil.copy(folder / "food/0004.png", folder / "food/stray.png")


def with_a_stray_folder(folder: Path) -> None:
    (folder / "more").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message", "left"),
    [
        (without_a_category, "4 pictures missing with the whole folder food, the first food/0001, food/0004", 8),
        (with_an_empty_category, "4 pictures missing in the empty folder food, the first food/0001", 8),
        (without_a_picture, "1 pictures missing: food/0004", 11),
        (with_two_pictures_of_one, "1 ids with several pictures: food/0004", 11),
        (with_an_id_twice, "1 ids given twice: food/0004", 11),
        (
            without_a_prompt,
            "1 entries without a category or a prompt: 0004; 1 pictures without a prompt: food/0004",
            11,
        ),
        (with_a_number_for_a_prompt, "1 entries without a category or a prompt: 0004", 11),
        (
            with_a_category_that_tables_need,
            "1 entries of a category 'overall', as tables call all of them: overall/0004; 1 pictures without",
            11,
        ),
        (with_an_id_that_leads_elsewhere, "1 ids that cannot name a file: food/../0004", 12),
        (with_a_stray_picture, "1 pictures without a prompt: food/stray", 12),
        (with_a_stray_folder, "1 empty category folders without prompts: more", 12),
    ],
)
def test_faults_are_named_and_left_out_or_refused(
    benchmark: Path, spoil: Callable[[Path], None], message: str, left: int
) -> None:
    whole = survey(benchmark)
    spoil(benchmark)
    assert len(survey(benchmark).items) == left
    with pytest.raises(InputError) as refused:
        read_layout(benchmark)
    assert message in str(refused.value)
    assert str(refused.value).endswith("correct it, or leave them out and have them counted with --skip-bad")
    assert set(survey(benchmark).items) <= set(whole.items)


def test_what_a_finder_leaves_behind_is_passed_over(benchmark: Path) -> None:
    (benchmark / "food/.hidden.png").write_bytes(b"")
    (benchmark / "food/Thumbs.db").write_bytes(b"")
    (benchmark / "__MACOSX").mkdir()
    assert survey(benchmark).faults == {}


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no JSON"), ("[]", "holds no entries"), ("{}", "holds no entries")]
)
def test_a_damaged_list_of_prompts_is_refused(benchmark: Path, text: str, message: str) -> None:
    (benchmark / META).write_text(text)
    with pytest.raises(InputError, match=message):
        survey(benchmark)


def test_what_is_no_benchmark_is_refused(benchmark: Path, tmp_path: Path) -> None:
    for place in (benchmark / "food", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="MJHQ-30k layout"):
            survey(place)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="cannot be read as a zip"):
        survey(tmp_path / "broken.zip")
    change(benchmark, **{f"{number:04x}": {} for number in range(COUNT)})
    with pytest.raises(InputError, match="no prompt with a picture"):
        survey(benchmark)
