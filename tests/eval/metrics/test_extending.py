"""A metric of another package, as docs/extending.md shows one: its code is what runs here."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from star.data.errors import InputError
from star.eval.metrics import registry
from star.eval.metrics.metric import Inputs, Metric
from star.eval.report.comparison import gather
from star.eval.report.report import markdown
from star.eval.run.benchmark import EvaluationRequest, evaluate
from star.eval.run.processes import Processes
from star.generators import registry as generators
from tests.eval.painting import FAMILY, load, make_benchmark

TEXT = (Path(__file__).parents[3] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTION = re.split(r"^## ", TEXT, flags=re.MULTILINE)
NAME = "nearest_real/tiny"


def block(language: str) -> str:
    """The code block of a language in the section "A metric"."""
    section = next(part for part in SECTION if part.startswith("A metric\n"))
    found = re.findall(rf"^```{language}\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return found[0]


def install(folder: Path, code: str, entry: str) -> None:
    """What pip would put into site-packages."""
    package, about = folder / "their_package", folder / "their_package-1.0.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").touch()
    (package / "metrics.py").write_text(code)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(entry.replace("project.entry-points.", "").replace('"', ""))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    registry.entry_points.cache_clear()
    yield folder
    registry.entry_points.cache_clear()
    registry._of_another_package.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_package"]:
        del sys.modules[name]


def test_the_example_is_short() -> None:
    assert block("python").count("\n") + block("toml").count("\n") < 60


def test_the_example_is_evaluated_and_compared(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, block("python"), block("toml"))
    monkeypatch.setitem(generators._shared._families, *FAMILY)
    benchmark, out = make_benchmark(tmp_path / "benchmark", 24), tmp_path / "record.json"
    request = EvaluationRequest(
        benchmark=benchmark, out=out, model="painter-test", metrics=("fd/tiny", NAME), bootstrap=20, grid=0
    )
    record = evaluate(request, Processes(), load)
    assert record is not None
    found = record.metrics["overall"][NAME]
    assert found.pictures == 24
    assert found.low is not None
    assert 0 < found.low < found.value
    assert record.metrics["food"][NAME].pictures == 8
    assert "distance to the nearest real one ↑ (tiny)" in markdown(gather([out]))
    assert registry.names()[-1] == "nearest_real"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [("NEAREST_REAL = 3", "expected a Metric of that name"), ("import nothing_of_that_name", "cannot be imported")],
)
def test_a_broken_package_is_named(site: Path, code: str, sentence: str) -> None:
    install(site, code, block("toml"))
    with pytest.raises(InputError, match=sentence):
        registry.metric(NAME)
    assert registry.metric("fd/tiny").title == "FD"


def test_without_the_package_there_is_no_such_metric() -> None:
    with pytest.raises(InputError, match="there is no metric"):
        registry.metric(NAME)


def mean(inputs: Inputs) -> tuple[float, None]:
    return float(inputs.generated[:].mean()), None


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "A/b"},
        {"needs": ()},
        {"needs": ("generated", "rewards")},
        {"needs": ("texts",)},
        {"digits": -1},
        {"needs": ("labels",)},
    ],
)
def test_what_is_no_metric_is_refused(wrong: dict) -> None:
    right: dict = {
        "name": "mean",
        "title": "mean",
        "direction": "lower",
        "digits": 1,
        "needs": ("generated",),
        "per_picture": False,
    }
    assert Metric(**right, function=mean).function(Inputs(generated=torch.ones(2, 3))) == (1.0, None)
    with pytest.raises(ValueError, match=r"expected|digits"):
        Metric(**(right | wrong), function=mean)
