"""Names, folders and misses of the registry; it imports families only when they are used."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from star.data.errors import InputError
from star.generators import registry
from star.generators.registry import Entry, Registry, Weights
from tests.generators.toy import ToyGenerator

TOY = "tests.generators.toy:ToyGenerator"


@pytest.fixture
def toys() -> Registry:
    toys = Registry()
    toys.register_family("toy", TOY)
    return toys


def test_builds_from_a_folder_what_was_saved(toys: Registry, tmp_path: Path) -> None:
    generator = ToyGenerator.for_test()
    generator.save_pretrained(tmp_path / "model")
    for model in (tmp_path / "model", str(tmp_path / "model")):
        built = toys.build(model)
        assert torch.equal(built.generate([""], seeds=[4]), generator.generate([""], seeds=[4]))
    with torch.no_grad():
        assert next(toys.build(tmp_path / "model", dtype=torch.float64).parameters()).dtype == torch.float64  # type: ignore[attr-defined]


def test_test_generator_has_a_name(toys: Registry) -> None:
    assert isinstance(toys.build("toy-test"), ToyGenerator)
    with pytest.raises(InputError):
        toys.build("other-test")


def test_missing_weights_are_an_error_not_a_random_network(toys: Registry) -> None:
    toys.register("toy-emoji", Entry(family="toy", weights=Weights(location="package:star/weights/none")))
    with pytest.raises(InputError, match=r"weights of toy-emoji are missing"):
        toys.build("toy-emoji")
    assert toys.entries()["toy-emoji"].about()["weights"] == "missing"


def test_unknown_name_lists_near_misses(toys: Registry) -> None:
    toys.register("toy-emoji", Entry(family="toy", weights=Weights(location="package:star/weights/none")))
    with pytest.raises(InputError, match=r"no model 'toy-emjoi'.*did you mean toy-emoji\?"):
        toys.build("toy-emjoi")


def test_unknown_hub_id_is_an_input_error_offline(toys: Registry) -> None:
    with pytest.raises(InputError, match=r"'someone/model'.*could not be had from the Hugging Face hub"):
        toys.build("someone/model")


def test_duplicates_raise(toys: Registry) -> None:
    entry = Entry(family="toy", weights=Weights(location="package:star/weights/none"))
    toys.register("name", entry)
    with pytest.raises(ValueError, match="'name' is registered already"):
        toys.register("name", entry)
    with pytest.raises(ValueError, match="'toy' is registered already"):
        toys.register_family("toy", TOY)
    with pytest.raises(ValueError, match="'nobody', which is not registered"):
        toys.register("other", Entry(family="nobody", weights=entry.weights))
    with pytest.raises(ValueError, match="expected 'module:class'"):
        toys.register_family("wrong", "tests.generators.toy")


def test_folder_of_an_unknown_family_is_named(toys: Registry, tmp_path: Path) -> None:
    ToyGenerator.for_test().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"no family 'toy'"):
        Registry().build(tmp_path / "model")


def test_other_packages_add_families_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("toy", TOY, "some.group")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "some.group" else [])
    found = Registry("some.group")
    assert found.families() == ("toy",)
    assert isinstance(found.build("toy-test"), ToyGenerator)


def test_entry_is_told_by_its_directory(toys: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ToyGenerator.for_test().save_pretrained(tmp_path / "apackage/weights/toy-emoji")
    (tmp_path / "apackage/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    toys.register("toy-emoji", Entry(family="toy", weights=Weights(location="package:apackage/weights/toy-emoji")))
    assert toys.entries()["toy-emoji"].about() == {
        "family": "toy",
        "resolution": [4, 6],
        "conditioning": "none",
        "licence": "MIT",
        "weights": "shipped",
    }
    assert isinstance(toys.build("toy-emoji"), ToyGenerator)


def test_listing_imports_no_torch_and_no_family() -> None:
    program = (
        "import sys; from star.generators import registry; registry.families(); "
        "[entry.about() for entry in registry.entries().values()]; "
        "assert 'star.generator' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_shipped_names_are_of_registered_families() -> None:
    assert "star-emoji" in registry.entries()
    assert {entry.family for entry in registry.entries().values()} <= set(registry.families())
