"""The page as `star demo` serves it, in a process of its own, for tests to ask."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

MODELS = ("star-test", "stylegan-t-test")
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Served:
    """A page that answers: its address and its process."""

    url: str
    process: subprocess.Popen[str]

    def ask(self, name: str, *data: Any, seconds: float = 120) -> list[Any]:
        """What an event of the page gives in the end. Raises Refused where the page refuses."""
        body = json.dumps({"data": data}).encode()
        address = f"{self.url}/gradio_api/call/{name}"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                event = json.load(answer)["event_id"]
        except urllib.error.HTTPError as error:
            raise Refused(f"{error.code} {error.read().decode()}") from error
        last: list[Any] = []
        with urllib.request.urlopen(f"{address}/{event}", timeout=seconds) as stream:
            kind = ""
            for line in stream:
                name, _, value = line.decode().strip().partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "error":
                    raise Refused(value)
                elif name == "data" and kind in ("generating", "complete"):
                    last = (
                        [new if new is not None else old for new, old in zip(json.loads(value), last, strict=True)]
                        if last
                        else json.loads(value)
                    )
        return last

    def get(self, url: str) -> bytes:
        """A file of the page."""
        with urllib.request.urlopen(url, timeout=60) as answer:
            data: bytes = answer.read()
        return data

    @property
    def memory(self) -> int:
        """Bytes that the process holds."""
        resident: int = psutil.Process(self.process.pid).memory_info().rss
        return resident


class Refused(Exception):  # noqa: N818
    """The page did not answer, and said why."""


@contextmanager
def serving(*options: str) -> Iterator[Served]:
    """`star demo` on a free port, ended by an interrupt, after which its exit code is that of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "star.cli", "demo", "--models", *MODELS, "--device", "cpu", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}", process.communicate(timeout=30)
        _wait(url)
        yield Served(url, process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130, told
    finally:
        process.kill()
        process.communicate()


def _wait(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=60):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"{url} does not answer")


def needs_gradio() -> None:
    """Skips where gradio is missing; it is not imported here, where its warnings would be errors."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        pytest.skip("the page needs gradio, of the extra demo")
