"""Files made to take memory, time or the interpreter: refused with one sentence, in little memory and at once."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from star.data.errors import InputError
from star.generators import pickle_machine as pickles
from star.generators.gan.snapshot_pickles import Saved, read_pickle
from star.generators.pickle_loader import CheckpointFile, check_pieces
from star.generators.pretrained import ModelDirectory
from star.generators.training.checkpoint import Snapshot

MEBIBYTE = 2**20
TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4)}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def hex_bomb() -> bytes:
    """Every turn encodes what the last one made as hexadecimal digits: 2^40 bytes."""
    start = b"c_codecs\nencode\n" + text("a") + text("latin1") + b"\x86R"
    return b"\x80\x02" + b"c_codecs\nencode\n" * 40 + start + (text("hex") + b"\x86R") * 40 + b"."


BOMBS = {
    "hex": hex_bomb(),
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",  # LONG_BINPUT: the interpreter's own list of memos would have 2^31 places
    "build": b"\x80\x04cfunctools\npartial\n(ctypes\nFunctionType\ntR(N}NNtb.",
    "build on a dictionary": b"\x80\x02}}b.",
    "length": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "byte array": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "operations": b"\x80\x02" + b"]" * 1_100 + b".",
    "marks": b"\x80\x02" + b"(" * 1_100 + b".",
    "deep keys": b"\x80\x02}" + b")" + b"\x85" * 50_000 + b"Ns.",
    "digits": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "extension": b"\x80\x02\x82\x01.",
    "no end": b"\x80\x02(",
    "underflow": b"\x80\x02\x86\x86R.",
}


def archive(path: Path, data: bytes, more: dict[str, bytes] | None = None, packed: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {"data.pkl": data, "version": b"3\n", **(more or {})}.items():
            kind = zipfile.ZIP_DEFLATED if name == packed else zipfile.ZIP_STORED
            file.writestr(f"archive/{name}", content, kind)
    return path


def peak_of(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = BOMBS[name]
    if name in ("operations", "marks"):
        monkeypatch.setattr(pickles, "OPERATIONS", 1000)
    (tmp_path / "plain.pkl").write_bytes(data)
    (tmp_path / "step").mkdir()
    archive(tmp_path / "step/state.pt", data)
    readers: tuple[Callable[[], object], ...] = (
        lambda: read_pickle(tmp_path / "plain.pkl"),
        lambda: CheckpointFile(tmp_path / "plain.pkl"),
        Snapshot(1, tmp_path / "step").state,
    )
    for read in readers:
        try:
            found = read()
        except InputError:
            continue
        assert name == "memo"
        assert found is None


def test_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "file.pkl").write_bytes(BOMBS["hex"])

    def read() -> None:
        with pytest.raises(InputError, match="encodes a bytes as hex"):
            read_pickle(tmp_path / "file.pkl")

    assert peak_of(read) < 4 * MEBIBYTE


@pytest.mark.parametrize(
    ("record", "content", "packed", "message"),
    [
        ("byteorder", b"little" + bytes(64 * MEBIBYTE), "byteorder", "the record byteorder is packed"),
        ("byteorder", b"little" + bytes(1000), "", "the record byteorder has 1006 bytes"),
        ("byteorder", b"big", "", "are b'big'-endian"),
        ("constants.pkl", b"x", "", "is a TorchScript program"),
        ("version", b"3" + bytes(64 * MEBIBYTE), "data.pkl", "the record data.pkl is packed"),
    ],
)
def test_records_that_swell(tmp_path: Path, record: str, content: bytes, packed: str, message: str) -> None:
    path = archive(tmp_path / "file.pt", pickle.dumps({}, protocol=2), {record: content}, packed)

    def read() -> None:
        with pytest.raises(InputError, match=message):
            CheckpointFile(path)

    assert peak_of(read) < 4 * MEBIBYTE


def test_a_list_of_records_that_swells(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 40 * MEBIBYTE, 4, 0)
    path.write_bytes(b"PK\x03\x04" + bytes(40 * MEBIBYTE) + end)
    with pytest.raises(InputError, match="list of records is larger"):
        CheckpointFile(path)


@pytest.mark.parametrize(
    ("count", "offset", "shape", "stride"),
    [
        (6, 0, (2**40,), (1,)),
        (6, 0, (2**40,), (0,)),
        (6, 4, (3,), (1,)),
        (6, 0, (-1,), (1,)),
        (6, 0, (2, 3), (1,)),
        (2**40, 0, (2**40,), (1,)),
        (6, 0, (2**62, 2**62), (0, 0)),
        (6, 0.5, (2,), (1,)),
    ],
)
def test_tensors_larger_than_their_storage(tmp_path: Path, count: int, offset: Any, shape: Any, stride: Any) -> None:
    class Place:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (STORAGE, offset, shape, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if thing is STORAGE else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"a": Place()})
    path = archive(tmp_path / "file.pt", stream.getvalue(), {"data/0": bytes(24)})
    with pytest.raises(InputError, match="cut short or damaged"):
        CheckpointFile(path)


STORAGE = object()


def test_networks_within_each_other_without_end() -> None:
    inner = Saved("Layer", {"_parameters": {"weight": torch.ones(1)}})
    for _ in range(40):
        inner = Saved("Layer", {"_modules": {"a": inner, "b": inner}})
    with pytest.raises(InputError, match="layers within each other"):
        inner.tensors()
    circle = Saved("Layer", {})
    circle.state["_modules"] = {"a": circle}
    with pytest.raises(InputError, match="layers within each other"):
        circle.tensors()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model/config.json")
    (tmp_path / "step").mkdir()
    os.mkfifo(tmp_path / "step/state.pt")
    readers: dict[str, Callable[[], object]] = {
        "a pipe or a device": lambda: CheckpointFile(tmp_path / "fifo"),
        "expected a pickle": lambda: read_pickle("/dev/zero"),
        "is a folder": lambda: read_pickle(tmp_path),
        "the description of a model": lambda: ModelDirectory.read(tmp_path / "model"),
        "expected a checkpoint": Snapshot(1, tmp_path / "step").state,
    }
    for message, read in readers.items():
        with pytest.raises(InputError, match=message):
            read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" + b"{}," * 2_000_000 + b"{}]", "bytes, expected"),
        (b'{"a": [' + b"{}," * 300_000 + b"{}]}", "more than 200000 values"),
        (b"[" * 100_000, "nested too deeply|more than"),
        (b'{"format": 1, "format": 1}', "the key 'format' twice"),
        (b'{"format": NaN}', "the number NaN"),
        (b'{"format": 1e999}', "the number 1e999"),
        (b'{"format": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b'{"format": "\xff"}', "cannot be read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-LFS pointer"),
        (b"<!DOCTYPE html>", "a page of a web site"),
        (b"", "is empty"),
    ],
)
def test_descriptions_that_swell(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)

    def read() -> None:
        with pytest.raises(InputError, match=message):
            ModelDirectory.read(tmp_path)

    assert peak_of(read) < 64 * MEBIBYTE


def test_wrong_types_in_a_description(tmp_path: Path) -> None:
    good = {"format": 1, "family": "x", "config": {}, "files": {}}
    (tmp_path / "config.json").write_text(json.dumps(good))
    assert ModelDirectory.read(tmp_path).family == "x"
    for name, value in (
        *(("family", 1), ("config", []), ("files", [1]), ("files", {"a": 1}), ("about", 3), ("references", [])),
        *(("references", {"a": 1}), ("references", {"a": {"location": 1, "digest": ""}}), ("parts", 5)),
    ):
        (tmp_path / "config.json").write_text(json.dumps(good | {name: value}))
        with pytest.raises(InputError):
            ModelDirectory.read(tmp_path)


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "module": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "both": lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    "block by block": lambda state: {name.replace(".", "._orig_mod."): tensor for name, tensor in state.items()},
    "Lightning": lambda state: {"state_dict": {f"net.{name}": tensor for name, tensor in state.items()}},
    **{name: lambda state, name=name: {name: state, "step": 1} for name in ("model", "state_dict", "ema", "g_ema")},  # type: ignore[misc]
    "averaged first": lambda state: {"model": {n: t * 0 for n, t in state.items()}, "model_ema": state},
    "notes": lambda state: {"model": state, "best": np.float64(1), "args": Namespace(a=np.arange(3), b=Path("x"))},
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_checkpoints(tmp_path: Path, name: str, new: bool) -> None:
    path = tmp_path / "file.pth"
    torch.save(WRAPPERS[name](TENSORS), path, _use_new_zipfile_serialization=new)
    found = CheckpointFile.find(path, [()], sign="a.weight")
    assert found is not None
    assert found.shapes == {"a.weight": (2, 3), "b.weight": (4,)}
    assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items())


def test_safetensors_under_any_name(tmp_path: Path) -> None:
    for name in ("file.safetensors", "file.pth"):
        save_file({f"module.{key}": tensor for key, tensor in TENSORS.items()}, tmp_path / name)
        found = CheckpointFile.find(tmp_path / name, [()], sign="a.weight")
        assert found is not None
        assert torch.equal(found["a.weight"], TENSORS["a.weight"])
    torch.save(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"is an archive as torch\.save writes it"):
        CheckpointFile(tmp_path / "other.safetensors")
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 2**25) + b"{" + b" " * 2**25)
    with pytest.raises(InputError, match="has a header of 33554432 bytes"):
        CheckpointFile(tmp_path / "long.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    torch.save({"a": torch.tensor([1.0, value]), "b": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "file.pt")
    source = CheckpointFile(tmp_path / "file.pt").renamed({"x": "a", "y": "b"})
    assert source["y"].sum() == 2
    with pytest.raises(InputError, match="has 1 of 2 values in a that are infinite or not a number"):
        source["x"]


def test_the_list_of_pieces_runs_nothing(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as pieces

    class Harm:
        def __reduce__(self) -> Any:
            return os.system, ("false",)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process alone
        pieces.save({"a/b": torch.ones(3)}, storage_writer=pieces.FileSystemWriter(tmp_path), no_dist=True)
    check_pieces(tmp_path / ".metadata")
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": Harm()}))
    with pytest.raises(InputError, match=r"would run posix\.system on loading"):
        check_pieces(tmp_path / ".metadata")


def test_steps_are_counted_over_all_pickles(tmp_path: Path) -> None:
    torch.save({f"t{i}": torch.ones(1) for i in range(20)}, tmp_path / "file.pt")
    assert len(CheckpointFile(tmp_path / "file.pt")) == 20
    machine = pickles.Machine(lambda name: None, lambda told: None, operations=10)
    data = memoryview(pickle.dumps([1]))
    assert machine.load(pickles.Stream(data)) == [1]
    with pytest.raises(ValueError, match="more steps"):
        machine.load(pickles.Stream(data))
