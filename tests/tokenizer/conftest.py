"""Synthetic shards that the tokenizer's training tests share."""

from pathlib import Path

import pytest

from star.data.synthetic import write


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of 16 x 16 pixels under `train`, 6 under `test`."""
    root = tmp_path_factory.mktemp("shards")
    write(root, count=24, size=16, test=6)
    return root
