"""A fixed handful of mutated files of every kind: none may end a reader in anything but an InputError."""

import random
import warnings
from pathlib import Path

import pytest

from tests.fuzz.harness import run
from tests.fuzz.models import seeds

CASES = 4  # of each kind; `python -m tests.fuzz.models` tries more


@pytest.mark.slow
def test_no_mutation_escapes(tmp_path: Path) -> None:
    rng, failures = random.Random(7), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data, mutation, reader in seeds(tmp_path):
            assert run([(name, data)], reader, ()) == [], f"{name} as it is cannot be read"
            failures += run([(name, mutation(data, rng)) for _ in range(CASES)], reader)
    assert [str(failure) for failure in failures] == []
