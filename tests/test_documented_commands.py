"""Every command that the README and the documentation show is parsed, and run at a tiny size.

A block of code below `<!-- not run: why -->` is parsed only: what needs a GPU, a hub, hours, or an end by hand; and
so is training by another preset than the tiny one. Names of models become those of tiny ones, capital letters what
`house` has made of them. Blocks of one page run one after the other in one folder, as a reader would run them.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from star.cli import main, parser
from star.commands.train import configure
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.tiny import tiny_tokenizer, tiny_transformer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- not run: (.+) -->")
# Pages whose commands another test runs as they stand, or that take minutes at any size.
PARSED_ONLY = {"working-with-pictures.md": "tests/star/commands/test_page.py runs them"}
WHO = re.compile(r"(star|make|torchrun|accelerate) \S")
# What makes a command small; given last, so that it counts. Of training, only the preset test is run.
SMALL = {
    "sample": ("--device", "cpu", "--batch", "2"),
    "finetune": ("--steps", "1", "--batch", "2"),
}
TINY = {"star-emoji": "tiny", "stylegan-t-emoji": "stylegan-t-test", "stylenat-emoji": "stylenat-test"}


@dataclass(frozen=True)
class Command:
    """A command as it is shown, its words, and why it is not run."""

    page: str
    line: int
    words: tuple[str, ...]
    not_run: str = ""

    @property
    def star(self) -> tuple[str, ...]:
        """Arguments of `star`; none for another program."""
        if self.words[0] == "star":
            return self.words[1:]
        return self.words[self.words.index("star.cli") + 1 :] if "star.cli" in self.words else ()

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {' '.join(self.words[:4])}"


def commands(page: str, text: str) -> Iterator[Command]:
    """All commands in fenced and in indented blocks."""
    fenced, mark, before, joined = False, "", "", ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            mark = _mark(before) if fenced else ""
            continue
        inside = fenced or line.startswith("    ")
        if not inside:
            joined = ""
            if line.strip():
                before, mark = line, _mark(line)
            continue
        whole = f"{joined} {line.strip()}".strip()
        joined = whole[:-1] if whole.endswith("\\") else ""
        if not joined and WHO.match(whole) and not whole.startswith("star ="):
            yield Command(page, number, tuple(shlex.split(whole, comments=True)), mark)


def _mark(line: str) -> str:
    found = MARK.fullmatch(line.strip())
    return found[1] if found else ""


ALL = [command for page in PAGES for command in commands(page.name, page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("command", ALL, ids=str)
def test_it_is_parsed(command: Command) -> None:
    if command.words[0] == "make":
        subprocess.run(["make", "--dry-run", *command.words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    assert command.star, "no command of star: say what it is, or leave it out"
    args, rest = parser().parse_known_args(command.star)
    if command.star[0] in ("train", "plan"):
        configure(getattr(args, "network", "star"), args.preset, rest)
    else:
        assert rest == [], f"unknown arguments {rest}"


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with what the pages take for granted: FOLDER, SHARDS, PICTURE and a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "home"))
    StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64)).save_pretrained("tiny")
    for number in range(6):
        place = tmp_path / "FOLDER" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 100, 255 - 40 * number)).save(place)
        place.with_suffix(".txt").write_text(f"colour number {number}\n")
    Image.new("RGB", (8, 8), "red").save("PICTURE.png")
    write("made", count=8, size=8, test=4)
    (tmp_path / "made" / "train").rename("SHARDS")
    return tmp_path


def small(command: Command) -> list[str]:
    """The arguments, with tiny models and few steps."""
    words = [TINY.get(word, word) for word in command.star]
    if words[0] == "sample" and "--model" not in words and "--like" not in words:
        words += ["--model", "tiny"]
    return [*words, *SMALL.get(words[0], ())]


def runs(command: Command) -> bool:
    """Whether it is run: a marked one is not, nor training by another preset than the tiny one."""
    trains = command.words[:2] == ("star", "train")
    return command.words[0] == "star" and not command.not_run and (not trains or "test" in command.words)


RUN = {
    page.name: [one for one in ALL if one.page == page.name and page.name not in PARSED_ONLY and runs(one)]
    for page in PAGES
}


@pytest.mark.parametrize("page", [page for page, several in RUN.items() if several])
def test_its_commands_run_one_after_the_other(page: str, house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in RUN[page]:
        code = main(small(command))
        assert code == 0, f"{command}: {capsys.readouterr().err[-1000:]}"


def test_blocks_are_found_and_marked() -> None:
    text = (
        'Text with `star list`.\n\n    star sample "a b" \\\n        --count 2  # two\n    pipe = star.load("x")\n\n'
        "<!-- not run: it takes a day -->\n\n```sh\nstar train star --preset test\n```\n\nstar is a program.\n\n"
        "    make test\n"
    )
    found = list(commands("page.md", text))
    assert [command.words for command in found] == [
        ("star", "sample", "a b", "--count", "2"),
        ("star", "train", "star", "--preset", "test"),
        ("make", "test"),
    ]
    assert [command.not_run for command in found] == ["", "it takes a day", ""]
