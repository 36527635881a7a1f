"""What every test shares: one thread, no network, and where the data beside the checkout lies."""

import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

# Before torch is imported: small operations on shared cores are many times slower with two threads than with one.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell that starts this in the background has signals ignored that tests need to be heard.
for signal_number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(signal_number) is signal.SIG_IGN:
        signal.signal(signal_number, usual)

import pytest  # noqa: E402

SHARED = Path(os.environ.get("SHARED_DIR", Path(__file__).parents[2] / "shared"))


MOST_PROCESSES = 8  # each holds up to a gigabyte


# Optional, as pytest-xdist is: `pytest FILE` needs no such package.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Processes for `-n auto`: one for every core that this process may use; a lone core needs no second process."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # that number, says pytest-xdist
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES) if cores > 1 else 0


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with data and golden files beside the checkout; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"no data beside the checkout at {SHARED}")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def workers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take turns in this process, as the loader's processes do: the same is made, without the wait."""

    def loader(dataset: Any, workers: int) -> Iterator[Any]:
        working = [dataset.chunks(worker) for worker in range(workers)]
        for turn in count():
            if not any(working):
                return
            if (chunks := working[turn % workers]) is not None:
                try:
                    yield next(chunks)
                except StopIteration:
                    working[turn % workers] = None

    monkeypatch.setattr("star.data.loader.workers._loader", loader)
