"""Records and benchmarks from anybody: nothing outside their folders is shown, nothing swells, nothing hangs."""

import ast
import errno
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from star.data.errors import InputError
from star.data.files import RefusedFileError, read_bytes
from star.data.images import save_png
from star.eval.extractors.classifier import ClassifierConfig
from star.eval.report import gallery
from star.eval.report.comparison import gather
from star.eval.report.grid import write_grid
from star.eval.report.report import write_report
from star.eval.run import feature_cache as rows
from star.eval.run import pictures
from star.eval.run.audit import audit
from star.eval.run.external_images import link
from star.eval.run.feature_cache import open_cache
from star.eval.run.generation import MANIFEST, is_whole, manifest_of
from star.eval.run.layout import read_layout, survey
from star.eval.run.processes import Processes
from star.eval.run.record import Picture, read, read_pictures, write_pictures
from tests.eval.painting import make_benchmark, painted
from tests.eval.records import record, save

ALONE = Processes()
ROOT = Path(__file__).parents[2]


# --- what is shown ---


@pytest.mark.parametrize("key", ["../../secret", "/etc/secret", "a/b", "..", ".hidden", "a\0b", "", "x" * 300, "a\nb"])
def test_a_key_that_leads_out_of_the_folder_is_refused(tmp_path: Path, key: str) -> None:
    (path,) = save(tmp_path / "records", record())
    save_png(painted("secret", 0, 0), tmp_path / "secret.png")
    lines = path.with_suffix("") / "pictures.jsonl"
    line = json.dumps({"key": key, "category": "food", "prompt": "a fish", "scores": {}})
    lines.write_text(lines.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 13 of .*cannot name a file of its folder"):
        gather([path])


@pytest.mark.parametrize("way", ["a file", "the folder"])
def test_a_link_that_leads_out_of_the_folder_shows_nothing(tmp_path: Path, way: str) -> None:
    (path,) = save(tmp_path / "records", record())
    secret = painted("secret", 0, 0)
    drawn = path.with_suffix("") / "pictures"
    if way == "a file":
        save_png(secret, tmp_path / "0000.png")
        (drawn / "0000.png").unlink()
        (drawn / "0000.png").symlink_to(tmp_path / "0000.png")
    else:
        drawn.rename(tmp_path / "elsewhere")
        drawn.symlink_to(tmp_path / "elsewhere")
    content = gallery.side_by_side(gather([path]), 12)
    assert content is not None
    assert [picture.key for picture, (shown,) in content.rows if not shown.data] == (
        ["0000"] if way == "a file" else [picture.key for picture, _ in content.rows]
    )


def test_a_link_within_the_folder_and_a_folder_behind_a_link_are_shown(tmp_path: Path) -> None:
    (path,) = save(tmp_path / "records", record())
    drawn = path.with_suffix("") / "pictures"
    (drawn / "0000.png").unlink()
    (drawn / "0000.png").symlink_to("0001.png")
    (tmp_path / "way").symlink_to(tmp_path / "records")
    content = gallery.side_by_side(gather([tmp_path / "way" / path.name]), 12)
    assert content is not None
    assert all(shown.data for _, (shown,) in content.rows)


def test_pictures_made_elsewhere_become_files_of_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_png(painted("a", 0, 0), tmp_path / "outside/a.png")
    (tmp_path / "outside/b.png").symlink_to("a.png")
    for name in ("names", "copies"):
        for _ in range(2):
            link(tmp_path / "outside", {"0": "a.png", "1": "b.png"}, tmp_path / name)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["0.png", "1.png"]
        for file in (tmp_path / name).iterdir():
            assert not file.is_symlink()
            assert file.read_bytes() == (tmp_path / "outside/a.png").read_bytes()
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "another disk")))


def test_names_become_neither_html_nor_markdown(tmp_path: Path) -> None:
    bad = "x'\n\n# title\n<script>alert(1)</script>"
    one = record(bad, benchmark=bad, name=bad)
    for file in write_report(gather(save(tmp_path / "records", one)), tmp_path / "out"):
        text = file.read_text(encoding="utf-8")
        raw = [line for line in text.splitlines() if not line.startswith("    ")]  # an indented line is code
        assert "<script>" not in "\n".join(raw)
        assert file.suffix == ".html" or not any(line.startswith("# title") for line in raw)


# --- what is read ---


@pytest.mark.parametrize("name", ["0.json", "0/pictures.jsonl", "0/manifest.json", "0/pictures/0000.png"])
def test_a_pipe_in_place_of_a_part_of_a_record_never_waits(tmp_path: Path, name: str) -> None:
    save(tmp_path, record())
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    if name.endswith(".png"):
        assert not is_whole(tmp_path / name)
        content = gallery.side_by_side(gather([tmp_path / "0.json"]), 12)
        assert content is not None
        assert [picture.key for picture, (shown,) in content.rows if not shown.data] == ["0000"]
        return
    with pytest.raises(InputError, match="no regular file"):
        manifest_of(tmp_path / "0") if name.endswith(MANIFEST) else gather([tmp_path / "0.json"])


def test_a_pipe_in_place_of_a_reference_is_unreadable(tmp_path: Path) -> None:
    benchmark = make_benchmark(tmp_path / "made", 6)
    (benchmark / "food/0001.png").unlink()
    os.mkfifo(benchmark / "food/0001.png")
    (benchmark / "food/0004.png").unlink()
    (benchmark / "food/0004.png").symlink_to("/dev/zero")
    items = survey(benchmark).items
    seen = audit([i.key for i in items], [i.picture for i in items], tmp_path, ALONE, "references")
    assert sorted({i.key for i in items} - set(seen)) == ["0001", "0004"]


def test_a_picture_of_a_zip_that_swells_is_unreadable_and_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = make_benchmark(tmp_path / "made", 6)
    monkeypatch.setattr(pictures, "MAX_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "made.zip", "w", zipfile.ZIP_DEFLATED) as whole:
        for file in sorted(benchmark.rglob("*.*")):
            whole.write(file, file.relative_to(benchmark).as_posix()) if file.name != "0001.png" else None
        whole.writestr("food/0001.png", bytes(2**27))
    items = survey(tmp_path / "made.zip").items
    tracemalloc.start()
    seen = audit([i.key for i in items], [i.picture for i in items], tmp_path / "notes", ALONE, "references")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {i.key for i in items} - set(seen) == {"0001"}
    assert peak < 2**24


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_a_zip_packs_by_methods_without_a_bound_is_refused(tmp_path: Path, method: int) -> None:
    meta = json.dumps({"0": {"category": "food", "prompt": "a fish"}})
    for name, of_meta in (("meta.zip", method), ("picture.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w") as whole:
            whole.writestr("meta_data.json", meta, of_meta)
            whole.writestr("food/0.png", bytes(2**20), method)
    with pytest.raises(InputError, match="packed by another method than deflate"):
        survey(tmp_path / "meta.zip")
    (item,) = survey(tmp_path / "picture.zip").items
    with pytest.raises(RefusedFileError, match="another method than deflate"):
        read_bytes(item.picture, 2**30)


@pytest.mark.parametrize("name", ["meta_data.json", "food/0.png"])
def test_a_damaged_name_inside_a_zip_is_told(tmp_path: Path, name: str) -> None:
    """Found by fuzzing: a name that its own flag calls UTF-8 and that is none."""
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as whole:
        whole.writestr("meta_data.json", json.dumps({"0": {"category": "food", "prompt": "a fish"}}))
        whole.writestr("food/0.png", b"a picture")
    data = bytearray((tmp_path / "made.zip").read_bytes())
    head = data.index(name.encode())  # of the file itself; the list of files comes later
    data[head] = 0xFF
    data[head - 30 + 7] |= 8  # the flag
    (tmp_path / "made.zip").write_bytes(data)
    if name == "meta_data.json":
        with pytest.raises(InputError, match=r"meta_data\.json cannot be read"):
            survey(tmp_path / "made.zip")
        return
    (item,) = survey(tmp_path / "made.zip").items
    with pytest.raises(RefusedFileError, match="its place in the zip is damaged"):
        read_bytes(item.picture, 1000)


def test_a_zip_with_an_endless_list_of_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star.eval.run.layout.MAX_DIRECTORY", 10_000)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as whole:
        for number in range(300):
            whole.writestr(f"food/{number}.png", b"")
    with pytest.raises(InputError, match="list of files is larger"):
        survey(tmp_path / "many.zip")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    target = io.BytesIO()
    Image.new("RGB", (11, 10)).save(target, "PNG")
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match="10 x 11 pixels, at most 100"):
        pictures.decode_bounded(target.getvalue())


def test_a_large_sheet_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star.eval.report.grid.MAX_PIXELS", 2 * 4 * 8 * 8)
    items = read_layout(make_benchmark(tmp_path / "made", 4))
    write_grid([(item, item.picture) for item in items], tmp_path / "sheet.png", None, "lanczos-antialias")
    with Image.open(tmp_path / "sheet.png") as grid:
        assert grid.width < 160 + 4 * 24 + 10


# --- what a record may say ---


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"pictures": 12', '"pictures": -1', "no count"),
        ('"pictures": 12', '"pictures": 1' + "0" * 30, "no count"),
        ('"pictures": 12', '"pictures": 1' + "0" * 5000, "no JSON"),
        ('"value": 30.0', '"value": NaN', "the number NaN"),
        ('"value": 30.0', '"value": 1e999', "the number 1e999"),
        ('"low": 29.0', '"low": 32.0', "interval begins"),
        ('"low": 29.0', '"low": null', "two ends"),
        ('"options": {}', '"options": {"a": [[]]}', "no number and no word"),
        ('"options": {}', '"options": ' + '{"a": ' * 500 + "1" + "}" * 500, "nested too deep|no number and no word"),
        ('"options": {}', '"options": ' + "[" * 100_000, "nested too deep"),
        (
            '"options": {}',
            '"options": {' + ",".join(f'"{n}": 1' for n in range(1_000_001)) + "}",
            "more than 1000000 values",
        ),
        ('"name": "one"', '"name": "half of \\ud83d"', "no Unicode"),
        ('"name": "one"', '"name": "' + "x" * 5000 + '"', "characters, at most"),
        ('"overall"', '"all"', "no group 'overall'"),
        ('"format": 2', '"format": "' + "2" * 100_000 + '"', "has format"),
        ('"family": "star"', '"family": ["' + "x" * 100_000 + '"]', "family is"),
        ('"total": 0.3', '"total": 0.0', "more than 0 seconds"),
    ],
)
def test_a_record_of_no_numbers_or_without_bounds_is_refused_in_a_short_sentence(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    (path,) = save(tmp_path, record())
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message) as refused:
        read(path)
    assert len(str(refused.value)) < 1000


def test_bytes_that_are_no_utf_8_are_told(tmp_path: Path) -> None:
    (path,) = save(tmp_path, record())
    path.write_bytes(path.read_bytes().replace(b'"one"', b'"\xff"'))
    with pytest.raises(InputError, match="no Unicode"):
        read(path)


def test_a_key_twice_is_told(tmp_path: Path) -> None:
    write_pictures([Picture(key="a", category="b", prompt="c")] * 2, tmp_path / "r.json")
    with pytest.raises(InputError, match=r"line 2 of .* the key a a second time"):
        read_pictures(tmp_path / "r.json")


def test_sizes_of_a_judge_are_bounded() -> None:
    for changes in ({"widths": (8, 10**9), "blocks": (1, 1)}, {"widths": (8,), "blocks": (10**9,)}):
        with pytest.raises(InputError, match=r"image_size|widths|blocks"):
            ClassifierConfig(**changes)
    with pytest.raises(InputError, match=r"image_size|widths|blocks"):
        ClassifierConfig(image_size=10**9)


# --- rows on the disk ---


def opened(folder: Path, count: int = 40) -> rows.FeatureCache:
    return open_cache(folder, "net", {"a": 1}, shape=(count, 3), processes=ALONE)


@pytest.mark.parametrize("name", ["rows.npy", "done.npy"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other", "pickle", "zip", "pipe", "gone", "noise"])
def test_damaged_rows_are_told_not_read(tmp_path: Path, name: str, damage: str) -> None:
    file = opened(tmp_path).folder / name
    data = file.read_bytes()
    file.unlink()
    if damage == "pipe":
        os.mkfifo(file)
    elif damage == "other":
        np.save(file, np.zeros((40, 4), np.float32))
    elif damage == "pickle":
        np.save(file, np.array([{}], dtype=object))
    elif damage == "zip":
        with file.open("wb") as target:
            np.savez(target, rows=np.zeros((40, 3), np.float32))
    elif damage != "gone":
        file.write_bytes({"cut": data[:-1], "empty": b"", "noise": data[:20] + bytes(range(256))}[damage])
    with pytest.raises(InputError, match=r"is damaged .*: remove .*, and run again"):
        opened(tmp_path)


def test_a_full_disk_is_told_and_what_was_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(tmp_path)
    found.put(0, np.ones((32, 3), np.float32))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"No space left on device.*make room"):
            found.put(1, np.ones((8, 3), np.float32))
        for write in (lambda: write_pictures([], tmp_path / "r.json"),):
            with pytest.raises(InputError, match="No space left on device"):
                write()
    assert not list((tmp_path / "r").iterdir())
    again = opened(tmp_path)
    assert (again.done(0), again.done(1)) == (True, False)
    again.put(1, np.ones((8, 3), np.float32))
    assert opened(tmp_path).blocks_done == 2


# --- locales ---


def test_every_text_file_says_its_encoding() -> None:
    silent = []
    for file in sorted((ROOT / "eval").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            said = {keyword.arg for keyword in node.keywords}
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args)
            if name in ("read_text", "write_text") or (name == "open" and node.args and not binary):
                silent += [] if "encoding" in said else [f"{file.name}:{node.lineno} {name}"]
    # pictures, numbers of open files and parts of zips are bytes; star bench writes ASCII
    assert [one for one in silent if not one.startswith(("inspection.py", "table.py", "bench_command.py"))] == []


def test_records_and_layouts_are_the_same_in_every_locale(tmp_path: Path) -> None:
    category, key = "food é ♥", "schön"
    save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "made" / category / f"{key}.png")
    meta = {key: {"category": category, "prompt": "красный 🐟"}}
    (tmp_path / "made/meta_data.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
    (path,) = save(tmp_path / "records", record("modèle"), prompts={"0": "красный 🐟"})
    code = (
        "import sys; from star.eval.run.layout import survey; from star.eval.run.record import read, read_pictures;"
        "layout = survey(sys.argv[1]); data = layout.items[0].picture.read_bytes();"
        "print(layout.prompts, ascii(layout.items[0].place), len(data));"
        "print(ascii(read(sys.argv[2])), ascii(read_pictures(sys.argv[2])))"
    )
    told = []
    for changes in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        environment: dict[str, Any] = {**os.environ, **changes}
        words = [sys.executable, "-c", code, str(tmp_path / "made"), str(path)]
        ran = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=False)
        assert ran.returncode == 0, ran.stderr
        told.append(ran.stdout)
    assert told[0] == told[1]
