"""What anybody may write about a picture costs at most that sample, and is told."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from star.data.captions import captions_of, text_repaired
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.check import check
from star.data.shards.faults import SampleError

MakeShard = Callable[..., Path]


def test_halves_of_pairs_are_repaired_everywhere_in_a_record() -> None:
    data = (
        rb'{"caption": "an \ud83c apple", "captions": ["\udf4e", "whole \ud83c\udf4e"], "n\ud800": [{"x": "\udfff"}]}'
    )
    captions, info = captions_of({"json": data})
    assert captions == ("an \ufffd apple", "\ufffd", "whole 🍎")
    assert info["n\ufffd"] == [{"x": "\ufffd"}]
    json.dumps(info, ensure_ascii=False).encode()
    assert text_repaired({"json": data})
    assert not text_repaired({"json": rb'{"caption": "whole \ud83c\udf4e"}'})
    assert not text_repaired({"txt": b"\xff"})


def test_a_list_of_captions_means_the_same_as_in_a_table() -> None:
    assert captions_of({"json": b'{"caption": ["a", " b ", "a", "", 7]}'})[0] == ("a", "b")
    assert captions_of({"json": b'{"caption": ["a"], "captions": ["c", "a"]}'})[0] == ("a", "c")
    assert captions_of({"json": b'{"captions": "one"}'})[0] == ("one",)
    for data, reason in ((b'{"caption": []}', "missing caption"), (b'{"caption": [" "]}', "empty caption")):
        with pytest.raises(SampleError) as caught:
            captions_of({"json": data})
        assert caught.value.reason == reason


def test_marks_of_byte_order_are_no_part_of_a_caption() -> None:
    mark = b"\xef\xbb\xbf"
    assert captions_of({"txt": mark + b"a"})[0] == captions_of({"json": mark + b'{"caption": "\xef\xbb\xbfa"}'})[0]
    assert captions_of({"txt": mark + b"a"})[0] == ("a",)
    with pytest.raises(SampleError) as caught:
        captions_of({"txt": mark})
    assert caught.value.reason == "empty caption"


BAD: dict[str, tuple[bytes, str]] = {
    "k001": (b'{"caption": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "broken json"),
    "k002": (b'{"caption": "a", "x": ' + b"[" * 400 + b"]" * 400 + b"}", "broken json"),
    "k003": (b'{"caption": "a", "x": [' + b"[]," * 300_000 + b"0]}", "broken json"),
    "k004": (b'{"caption": "' + b"a" * (5 << 20) + b'"}', "too large"),
    "k005": (b'{"caption": "' + b"a" * 200_000 + b'"}', "too large"),
    "k006": (json.dumps({"captions": [f"c{n}" for n in range(2000)]}).encode(), "too large"),
    "k007": (b'{"caption": "a", "n": ' + b"9" * 5000 + b"}", "broken json"),
}


@pytest.mark.parametrize("workers", [0, 1])
def test_texts_that_would_end_a_run_cost_themselves_only(make_shard: MakeShard, workers: int) -> None:
    half = b'{"caption": "half \\ud83c"}'
    changes = {"k000.json": half, **{f"{key}.json": data for key, (data, _) in BAD.items()}}
    shard = make_shard("s.tar", range(10), changes)
    expected = {(reason, key) for key, (_, reason) in BAD.items()} | {("repaired text", "k000")}
    if not workers:
        report = check(shard)
        assert {(fault.reason, fault.key) for fault in report.faults} == expected
        assert (report.samples, report.usable) == (10, 3)
    pipeline = Pipeline(DataConfig(shards=(str(shard),), resolution=8, workers=workers), batch_size=3)
    batches = list(islice(pipeline.batches(), 4))
    assert {key for batch in batches for key in batch.keys} == {"k000", "k008", "k009"}
    assert {(fault.reason, fault.key) for fault in pipeline.report.named} == expected
    assert pipeline.report.total == len(BAD)
    for batch in batches:
        "".join(batch.prompts).encode()
