"""Lists of prompts: lines, tables and JSON become the same requests, and mistakes name their row."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from star.data.errors import InputError
from star.pictures.requests import Request, notice_file_names, read

SEEDS = range(5, 6)


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_lines_are_prompts(tmp_path: Path) -> None:
    file = written(tmp_path, "list.txt", "\ufeffa red apple\n\n  a dog, sitting \r\n{a brace}\n")
    assert read(file, SEEDS) == [Request("a red apple", 5), Request("a dog, sitting", 5), Request("{a brace}", 5)]
    assert read(file, range(2, 4), "blue")[:2] == [Request("a red apple", 2, "blue"), Request("a red apple", 3, "blue")]


def test_tables_and_json_say_the_same(tmp_path: Path) -> None:
    wanted = [
        Request('a "red", apple', 7, None, {"top_k": 9, "refine": False}, {"category": "fruit"}),
        Request("a dog", 5, "a cat", {"guidance_scale": 3.0}, {}),
    ]
    table = (
        "prompt,seed,top_k,refine,guidance_scale,negative_prompt,category\n"
        '"a ""red"", apple",7,9,false,,,fruit\n\na dog,,,,3.0,a cat,\n'
    )
    lines = (
        '{"prompt": "a \\"red\\", apple", "seed": 7, "options": {"top_k": 9, "refine": false}, "category": "fruit"}\n'
        '\n{"prompt": "a dog", "guidance_scale": 3.0, "negative_prompt": "a cat"}\n'
    )
    assert read(written(tmp_path, "list.csv", table), SEEDS) == wanted
    assert read(written(tmp_path, "list.jsonl", lines), SEEDS) == wanted
    assert read(written(tmp_path, "list.tsv", "seed\tprompt\n1\ta\n"), SEEDS) == [Request("a", 1)]


@pytest.mark.parametrize(
    ("text", "count"), [("a dog\na cat\n", 2), ('{"prompt": "a dog"}\n', 1)], ids=["lines", "json"]
)
def test_standard_input_is_told_by_its_beginning(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    found = read("-", SEEDS)
    assert (len(found), found[0].prompt) == (count, "a dog")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.txt", " \n", "holds no prompt"),
        ("list.csv", "caption\na dog\n", "has the columns caption, expected different names, one of them prompt"),
        ("list.csv", "prompt,seed\na dog\n", "line 2 has 1 cells under 2 columns"),
        ("list.csv", 'prompt\n"a dog\n', "line 2 is no row of a table"),
        ("list.csv", "prompt,seed\na dog,3.5\n", "line 2 has seed '3.5', expected a whole number"),
        ("list.csv", "prompt,top_k\na dog,many\n", r"line 2.top_k is 'many', expected int"),
        ("list.csv", "prompt,guidence_scale\na dog,3\n", "did you mean guidance_scale"),
        ("list.jsonl", '{"prompt": "a"}\n["a dog"]\n', "line 2 is a list, expected an object with a prompt"),
        ("list.jsonl", '{"prompt": "a",}\n', "line 1 is no JSON"),
        ("list.jsonl", '{"prompt": 3}\n', "line 1 has prompt 3, expected a text"),
        ("list.jsonl", '{"seed": 3}\n', "line 1 has prompt None, expected a text"),
        ("list.jsonl", '{"prompt": "a", "options": 3}\n', "options that are no object"),
        ("list.jsonl", '{"prompt": "a", "top_k": 1, "options": {"top_k": 2}}\n', "line 1 has top_k twice"),
        ("list.jsonl", '{"prompt": "a", "guidance": 2}\n', "line 1: guidance=2 is guidance_scale=3 now"),
        ("list.jsonl", '{"prompt": "a", "top_p": 7}\n', r"top_p is 7\.0, expected a share"),
        ("list.jsonl", '{"prompt": "a", "seed": -1}\n', "line 1 has seed -1"),
    ],
)
def test_a_mistake_names_its_row(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(written(tmp_path, name, text), SEEDS)


def test_what_is_no_text_or_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a dog\n\xff\xfe\n")
    with pytest.raises(InputError, match="no text in UTF-8"):
        read(str(tmp_path / "list.txt"), SEEDS)
    for place in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read(str(place), SEEDS)


def test_a_file_name_given_as_a_prompt_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "list.txt", "a dog\n")
    written(tmp_path, "cat.png", "")
    with pytest.raises(InputError, match=r"'list.txt' is a file: give --prompts list.txt"):
        notice_file_names(["a dog", "list.txt"])
    with pytest.raises(InputError, match=r"'cat.png' is a file: give --like cat.png"):
        notice_file_names(["cat.png"])
    notice_file_names(["a dog", "a dog. And a cat", "list.txt of words", "", "x" * 5000, "a\0b.txt"])
    assert capsys.readouterr().err == ""
    notice_file_names(["other.csv"])
    assert "looks like a file, which is not there" in capsys.readouterr().err
