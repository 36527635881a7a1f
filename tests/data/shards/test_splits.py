"""What a name says about a shard leaves no other shard out, and nothing is left out without a word."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from star.data.errors import InputError
from star.data.shards.splits import held_out_shards, training_shards

MakeShard = Callable[..., Path]


def test_shards_beside_one_named_train_are_trained_on(
    make_shard: MakeShard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, test = (str(make_shard(name, range(1))) for name in ("train.tar", "b.tar", "my-test-0.tar"))
    with caplog.at_level(logging.INFO):
        assert training_shards([a, b]) == (a, b)
        assert not caplog.records
        assert set(training_shards([str(tmp_path)])) == {a, b}
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert training_shards([a, test]) == (a,)  # named by itself, so somebody meant it
    assert caplog.records[-1].levelname == "WARNING"
    assert test in caplog.text
    assert held_out_shards([str(tmp_path)]) == (test,)
    with pytest.raises(InputError, match="held out"):
        training_shards([test])


def test_a_shard_is_never_both(make_shard: MakeShard, tmp_path: Path) -> None:
    both = str(make_shard("train-val-0.tar", range(1)))
    assert training_shards([both]) == (both,)
    assert held_out_shards([both]) == ()
