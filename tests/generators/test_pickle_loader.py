"""Checkpoints of others: read as data, never as programs."""

import os
import pickle
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from star.data.errors import InputError
from star.generators.pickle_loader import CheckpointFile, check_fit
from star.generators.pickle_machine import Machine, Stream

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.ones(4, dtype=torch.bfloat16)}


def saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("new", [True, False])
def test_tensors_are_what_was_saved(tmp_path: Path, new: bool) -> None:
    """Also in the format before version 1.6."""
    path = tmp_path / "file.pth"
    state = {"epoch": 3, "model": {"weights": OrderedDict(TENSORS)}}
    torch.save(state, path, _use_new_zipfile_serialization=new)
    file = CheckpointFile(path, ("model", "weights"))
    assert file.shapes == {"a": (2, 3), "b": (), "c": (4,)}
    for _ in range(2):
        assert all(
            torch.equal(file[name], tensor) and file[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
        )
    assert dict(file.renamed({"z": "a"})).keys() == {"z"}
    assert torch.equal(file.renamed({"z": "a"})["z"], TENSORS["a"])


def test_the_first_dictionary_of_tensors_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pth", {"epoch": 3, "model": TENSORS, "empty": {}})
    found = CheckpointFile.find(path, (("other",), ("model", "deeper"), ("epoch",), ("empty",), (), ("model",)))
    assert found is not None
    assert found.way == ("model",)
    assert CheckpointFile.find(path, (("other",), ())) is None


def test_what_trainings_commonly_save_is_harmless(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "parameter": nn.Parameter(torch.ones(2)),
        "optimizer": optimizer.state_dict(),
    }
    state |= {
        "shape": torch.Size((1, 2)),
        "type": torch.float16,
        "device": torch.device("cpu"),
        "set": {1},
        "raw": b"1",
    }
    assert len(CheckpointFile(saved(tmp_path / "file.pth", state), ("model",))) == 2


class Calls:
    """Unpickling it calls a function of the standard library."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        return self.function, ("1",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(eval), "eval"),
        (Calls(os.system), "system"),
        (Calls(shutil.rmtree), r"shutil\.rmtree"),
        (Calls(np.load), r"numpy\.load"),
        (re.compile("a"), r"re\._compile"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_refused_by_its_name(tmp_path: Path, value: Any, name: str) -> None:
    path = saved(tmp_path / "file.pth", {"model": TENSORS, "note": [value]})
    with pytest.raises(InputError, match=rf"would run .*{name}.* on loading"):
        CheckpointFile(path, ("model",))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, os.remove])
def test_names_are_found_in_pickles_of_every_age(protocol: int, function: Any) -> None:
    """A name whose module was named before is kept in the pickle's memo."""
    found: list[str] = []
    data = pickle.dumps(["posix", function, function], protocol=protocol)
    Machine(lambda name: found.append(name), lambda told: None).load(Stream(memoryview(data)))
    assert set(found) == {f"posix.{function.__name__}"}


def test_all_misfits_are_told_in_one_sentence() -> None:
    wanted = {name: torch.empty(2, 3, device="meta") for name in ("a", "b", "c")}
    check_fit(wanted, {"a": "A", "b": "B", "c": "C"}, dict.fromkeys("ABC", (2, 3)), "file")
    with pytest.raises(
        InputError, match=r"^file lacks c and has the unexpected D and has another shape for B \(3, 2\) "
    ):
        check_fit(wanted, {"a": "A", "b": "B", "d": "D"}, {"A": (2, 3), "B": (3, 2), "D": (1,)}, "file")
