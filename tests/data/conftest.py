"""Tiny shards made on the spot, and hands to damage them with."""

import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

MakeShard = Callable[..., Path]


def picture_bytes(number: int, size: tuple[int, int] = (8, 8), format: str = "PNG") -> bytes:
    """A picture of random pixels, another one for each number; size is (H, W)."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, format)
    return target.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return picture_bytes


@pytest.fixture
def tar() -> Callable[..., Path]:
    return write_tar


@pytest.fixture
def make_shard(tmp_path: Path) -> MakeShard:
    """make_shard("a.tar", range(10)) writes ten good samples k000...; `change` replaces or drops members by name."""

    def make(
        name: str, numbers: Sequence[int], change: Mapping[str, bytes | None] | None = None, mode: str = "w"
    ) -> Path:
        members: list[tuple[str, bytes]] = []
        for number in numbers:
            record: dict[str, Any] = {
                "caption": f"picture {number}",
                "captions": [f"picture {number}", f"no. {number}"],
            }
            members.append((f"k{number:03d}.png", picture_bytes(number)))
            members.append((f"k{number:03d}.json", json.dumps(record).encode()))
        changed = [(member, (change or {}).get(member, data)) for member, data in members]
        return write_tar(tmp_path / name, [(member, data) for member, data in changed if data is not None], mode)

    return make


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of tmp_path served over http on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *values: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()
