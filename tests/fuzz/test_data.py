"""The readers of data take sound files, and a few minutes of broken ones; `python -m tests.fuzz.data` tries more."""

import pytest

from star.data.errors import InputError
from star.data.shards.faults import SampleError
from tests.fuzz.data import READERS, fuzz, seeds
from tests.fuzz.harness import run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", READERS)
def test_sound_files_are_read(kind: str) -> None:
    allowed = (InputError,) if kind == "list" else ()  # its shards are not there
    assert not run(seeds()[kind], READERS[kind], allowed)


def test_a_reader_that_fails_is_found() -> None:
    def broken(path: object) -> None:
        raise KeyError("not allowed")

    failures = run(seeds()["captions"], broken, (InputError, SampleError))
    assert [failure.reason for failure in failures] == ["KeyError: 'not allowed'"]


@pytest.mark.slow
def test_mutated_files_are_read_or_refused() -> None:
    assert not [str(failure) for _, failures in fuzz(60, 3) for failure in failures]
