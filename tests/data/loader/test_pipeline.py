"""The pipeline's laws: disjoint and complete, the same from any start, and nothing lost without a word."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import star.data.loader.positions
from star.data.errors import InputError
from star.data.images import decode, pil_to_pixels, pixels_to_image, resize
from star.data.loader.pipeline import Batch, DataConfig, Pipeline
from star.data.shards.faults import Fault
from star.data.shards.tar import Group

MakeShard = Callable[..., Path]


@pytest.fixture
def shards(make_shard: MakeShard) -> tuple[str, ...]:
    """Five shards of 3, 5, 7, 9 and 11 samples, k000 to k034."""
    first, paths = 0, []
    for shard, number in enumerate((3, 5, 7, 9, 11)):
        paths.append(str(make_shard(f"s{shard}.tar", range(first, first + number))))
        first += number
    return tuple(paths)


KEYS = {f"k{number:03d}" for number in range(35)}


def take(batches: Iterator[Batch], number: int) -> list[Batch]:
    return list(islice(batches, number))


def keys_of_epoch(batches: Iterator[Batch], epoch: int) -> list[str]:
    """Keys the stream shows in this epoch, in order."""
    keys: list[str] = []
    for batch in batches:
        keys.extend(key for key, of in zip(batch.keys, batch.epochs, strict=True) if of == epoch)
        if batch.epochs[-1] > epoch:
            break
    return keys


def same(left: Batch, right: Batch) -> bool:
    return torch.equal(left.image_B3HW, right.image_B3HW) and (
        left.prompts,
        left.keys,
        left.captions,
        left.info,
        left.epochs,
    ) == (right.prompts, right.keys, right.captions, right.info, right.epochs)


@pytest.mark.parametrize("cache", [False, True])
def test_a_batch_holds_the_pictures_and_words_of_its_keys(
    shards: tuple[str, ...], picture: Callable[..., bytes], cache: bool
) -> None:
    pipeline = Pipeline(DataConfig(shards=shards, resolution=(4, 6), cache=cache), batch_size=4)
    batch = next(pipeline.batches())
    assert batch.image_B3HW.shape == (4, 3, 4, 6)
    assert batch.image_B3HW.dtype == torch.float32
    assert len(batch) == 4
    for row, key in enumerate(batch.keys):
        number = int(key[1:])
        expected = pixels_to_image(pil_to_pixels(resize(decode(picture(number)), (4, 6), "center")))
        assert torch.equal(batch.image_B3HW[row], expected)
        assert batch.captions[row] == (f"picture {number}", f"no. {number}")
        assert batch.prompts[row] in batch.captions[row]
        assert batch.info[row]["caption"] == f"picture {number}"
    assert pipeline.report.text() == "nothing was skipped"


@pytest.mark.parametrize("buffer", [1, 8, 100])
@pytest.mark.parametrize("cache", [False, True])
def test_every_epoch_shows_every_sample_once_in_another_order(
    shards: tuple[str, ...], cache: bool, buffer: int
) -> None:
    pipeline = Pipeline(DataConfig(shards=shards, resolution=8, cache=cache, buffer=buffer), batch_size=4)
    epochs = [keys_of_epoch(pipeline.batches(), epoch) for epoch in range(3)]
    for keys in epochs:
        assert sorted(keys) == sorted(KEYS)
    assert len({tuple(keys) for keys in epochs}) == 3
    other = Pipeline(DataConfig(shards=shards, resolution=8, cache=cache, buffer=buffer, seed=1), batch_size=4)
    assert keys_of_epoch(other.batches(), 0) != epochs[0]


@pytest.mark.parametrize("cache", [False, True])
def test_unshuffled_epochs_come_in_shard_order(shards: tuple[str, ...], cache: bool) -> None:
    pipeline = Pipeline(DataConfig(shards=shards, resolution=8, cache=cache, shuffle=False), batch_size=4)
    for epoch in range(2):
        assert keys_of_epoch(pipeline.batches(), epoch) == sorted(KEYS)


@pytest.mark.parametrize(
    ("cache", "compressed", "shuffle"),
    [(False, False, True), (False, True, True), (False, True, False), (True, False, True)],
)
def test_starting_anywhere_gives_the_batches_of_an_unbroken_run(
    shards: tuple[str, ...], make_shard: MakeShard, cache: bool, compressed: bool, shuffle: bool
) -> None:
    if compressed:
        shards = tuple(
            str(make_shard(f"{Path(shard).name}.gz", range(9 * n, 9 * n + 9), mode="w:gz"))
            for n, shard in enumerate(shards)
        )
    config = DataConfig(shards=shards, resolution=8, cache=cache, buffer=6, shuffle=shuffle)
    unbroken = take(Pipeline(config, batch_size=4, rank=1, world=2).batches(), 24)
    assert max(unbroken[-1].epochs) >= 2
    pipeline = Pipeline(config, batch_size=4, rank=1, world=2)
    for start in (0, 1, 3, 7, 12, 23):
        for number, batch in enumerate(take(pipeline.batches(start), 2)[: 24 - start]):
            assert same(batch, unbroken[start + number]), (start, number)


def test_starting_far_in_does_not_decode_what_it_passes(
    shards: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0

    def counted(data: bytes) -> Any:
        nonlocal decoded
        decoded += 1
        return decode(data)

    monkeypatch.setattr("star.data.loader.virtual_workers.decode", counted)
    next(Pipeline(DataConfig(shards=shards, resolution=8), batch_size=4).batches(10_000))
    assert decoded == 4


@pytest.mark.parametrize("cache", [False, True])
def test_two_ranks_share_the_data_without_overlap(shards: tuple[str, ...], cache: bool) -> None:
    config = DataConfig(shards=shards, resolution=8, cache=cache)
    seen: Counter[str] = Counter()
    for rank in range(2):
        seen.update(keys_of_epoch(Pipeline(config, batch_size=3, rank=rank, world=2).batches(), 0))
    assert seen == Counter(KEYS)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("world", [1, 2, 7])
def test_one_pass_shows_every_sample_once_under_its_first_caption(
    shards: tuple[str, ...], world: int, cache: bool
) -> None:
    seen: Counter[str] = Counter()
    for rank in range(world):
        pipeline = Pipeline(DataConfig(shards=shards, resolution=8, cache=cache), batch_size=4, rank=rank, world=world)
        batches = list(pipeline.one_pass())
        assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
        assert all(
            prompt == captions[0]
            for batch in batches
            for prompt, captions in zip(batch.prompts, batch.captions, strict=True)
        )
        keys = [key for batch in batches for key in batch.keys]
        assert keys == sorted(keys)
        seen.update(keys)
    assert seen == Counter(KEYS)


def test_cached_ranks_side_by_side_are_one_rank_of_their_joint_size(shards: tuple[str, ...]) -> None:
    config = DataConfig(shards=shards, resolution=8, cache=True)
    alone = take(Pipeline(config, batch_size=6).batches(), 8)
    ranks = [take(Pipeline(config, batch_size=3, rank=rank, world=2).batches(), 8) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert whole.keys == [key for part in parts for key in part.keys]
        assert whole.prompts == [prompt for part in parts for prompt in part.prompts]
        assert torch.equal(whole.image_B3HW, torch.cat([part.image_B3HW for part in parts]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
def test_two_ranks_with_two_workers_see_disjoint_samples_and_together_all(
    shards: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "s2.tar").write_bytes((tmp_path / "s2.tar").read_bytes()[:-9000])
    config = DataConfig(shards=shards, resolution=8, workers=2)
    seen: Counter[str] = Counter()
    lost: set[Fault] = set()
    for rank in range(2):
        pipeline = Pipeline(config, batch_size=3, rank=rank, world=2)
        stream = pipeline.batches()
        unbroken = []
        for batch in stream:
            unbroken.append(batch)
            seen.update(key for key, epoch in zip(batch.keys, batch.epochs, strict=True) if epoch == 0)
            if batch.epochs[-1] > 0 and len(unbroken) > 5:
                break
        lost.update(pipeline.report.named)
        if rank == 0:
            assert same(next(Pipeline(config, batch_size=3, rank=0, world=2).batches(5)), unbroken[5])
    (fault,) = {fault for fault in lost if fault.reason == "truncated or damaged tar"}
    assert fault.shard == shards[2]
    missing = KEYS - set(seen)
    assert missing
    assert missing < {f"k{number:03d}" for number in range(8, 15)}
    broken = {fault.key for fault in lost if fault.key}
    assert broken == {"k013"}
    assert sorted(seen.values())[:-1] == [1] * (len(seen) - 1)
    assert max(seen.values()) <= 1 + len(broken)  # whose place a neighbour took


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_neither_one_pass_nor_the_wording_of_an_error(
    shards: tuple[str, ...], make_shard: MakeShard
) -> None:
    bad = str(make_shard("bad.tar", range(40, 42), {"k040.png": b"broken", "k041.json": None}))
    config = DataConfig(shards=(*shards, bad), resolution=8)
    alone = Pipeline(config, batch_size=4)
    helped = Pipeline(DataConfig(shards=(*shards, bad), resolution=8, workers=2), batch_size=4)
    for left, right in zip(alone.one_pass(), helped.one_pass(), strict=True):
        assert same(left, right)
    assert helped.report.counts == alone.report.counts
    assert helped.report.total == 2
    hopeless = Pipeline(DataConfig(shards=(bad,), resolution=8, workers=1), batch_size=4)
    with pytest.raises(InputError, match=r"^Not one sample of the 1 shards .* run `star data check` on them\.$"):
        next(hopeless.batches())


def test_random_captions_depend_on_seed_epoch_and_key_alone(shards: tuple[str, ...]) -> None:
    def chosen(**options: Any) -> dict[tuple[str, int], str]:
        batch_size = options.pop("batch_size", 4)
        pipeline = Pipeline(DataConfig(shards=shards, resolution=8, **options), batch_size=batch_size)
        found: dict[tuple[str, int], str] = {}
        for batch in islice(pipeline.batches(), 80 // batch_size):
            found.update(zip(zip(batch.keys, batch.epochs, strict=True), batch.prompts, strict=True))
        return found

    first = chosen()
    for other in (chosen(batch_size=8), chosen(buffer=3), chosen(cache=True), chosen(shuffle=False)):
        shared = first.keys() & other.keys()
        assert len(shared) > 30
        assert all(first[item] == other[item] for item in shared)
    assert len({prompt.split()[0] for prompt in first.values()}) == 2
    assert any(first[key, 0] != first[key, 1] for key in KEYS if (key, 1) in first)
    assert all(prompt.startswith("picture") for prompt in chosen(caption="first").values())
    other_seed = chosen(seed=1)
    assert any(first[key, 0] != other_seed[key, 0] for key in KEYS)


def test_remote_shards_resume_through_their_index(
    shards: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an index, shards passed over are not read; without one they are, and the batches are the same."""
    remote = tmp_path / "remote"
    remote.mkdir()
    for shard in shards:
        shutil.copy(shard, remote)
    read: list[str] = []

    def opened(shard: str) -> Any:
        read.append(shard)
        return (remote / shard.rpartition("/")[2]).open("rb")

    monkeypatch.setattr("star.data.shards.tar._open", opened)
    index = {f"s{n}.tar": number for n, number in enumerate((3, 5, 7, 9, 11))}
    for promised in ({}, index):
        monkeypatch.setattr(
            "star.data.loader.positions.Order._index_of", lambda self, folder, promised=promised: promised
        )
        for shuffle, buffer in ((False, 1), (True, 4), (True, 20)):
            config = DataConfig(shards=("http://host/s{0..4}.tar",), resolution=8, shuffle=shuffle, buffer=buffer)
            unbroken = take(Pipeline(config, batch_size=4).batches(), 30)
            for start in (2, 7, 16, 29):
                read.clear()
                assert same(next(Pipeline(config, batch_size=4).batches(start)), unbroken[start])
                if promised and not shuffle:
                    assert len(read) <= 2
    index["s4.tar"] = 12
    config = DataConfig(shards=("http://host/s{0..4}.tar",), resolution=8, shuffle=False)
    pipeline = Pipeline(config, batch_size=5)
    assert set(keys_of_epoch(pipeline.batches(1), 0)) | {f"k{number:03d}" for number in range(5)} == KEYS
    assert {fault.reason for fault in pipeline.report.named} == {"index mismatch"}


def test_shards_over_http_resume_with_and_without_an_index(
    shards: tuple[str, ...], tmp_path: Path, server: str
) -> None:
    config = DataConfig(shards=(f"{server}/s{{0..4}}.tar",), resolution=8, buffer=6)
    local = take(Pipeline(DataConfig(shards=shards, resolution=8, buffer=6), batch_size=4).batches(), 12)
    assert same(next(Pipeline(config, batch_size=4).batches(7)), local[7])
    entries = {f"s{n}.tar": {"samples": number} for n, number in enumerate((3, 5, 7, 9, 11))}
    (tmp_path / "index.json").write_text(json.dumps({"shards": entries}))
    assert same(next(Pipeline(config, batch_size=4).batches(11)), local[11])


@pytest.mark.parametrize("buckets", [(), ((8, 8), (8, 16))])
def test_a_run_with_lanes_goes_on_with_any_number_of_ranks(
    shards: tuple[str, ...], buckets: tuple[tuple[int, int], ...]
) -> None:
    """Three batches on one rank, the next ones on two, the rest on four: what one rank alone would have seen."""
    config = DataConfig(shards=shards, resolution=8, buffer=6, lanes=4, buckets=buckets)
    alone = [batch.keys for batch in take(Pipeline(config, batch_size=3).batches(), 16)]
    elastic = alone[:4]
    for world, start, steps in ((2, 2, 2), (4, 2, 2)):
        ranks = [take(Pipeline(config, batch_size=3, rank=r, world=world).batches(start), steps) for r in range(world)]
        elastic += [ranks[rank][step].keys for step in range(steps) for rank in range(world)]
    assert elastic == alone
    thirds = [take(Pipeline(config, batch_size=3, rank=rank, world=3).batches(), 5) for rank in range(3)]
    assert [part[step].keys for step in range(5) for part in thirds] == alone[:15]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_with_lanes_goes_on_with_any_number_of_workers(shards: tuple[str, ...]) -> None:
    config = DataConfig(shards=shards, resolution=8, buffer=6, lanes=2)
    alone = take(Pipeline(config, batch_size=4).batches(), 9)
    helped = take(Pipeline(replace(config, workers=2), batch_size=4).batches(5), 4)
    assert all(same(left, right) for left, right in zip(alone[5:], helped, strict=True))


@pytest.mark.usefixtures("workers_here")
@pytest.mark.parametrize(("lanes", "per_lane"), [(1, 4), (3, 4), (2, 5), (4, 1)])
def test_lanes_and_their_turns_alone_decide_the_order(
    shards: tuple[str, ...], make_shard: MakeShard, lanes: int, per_lane: int
) -> None:
    """Two broken pictures in a row are among the samples: whoever comes to them, the same ones stand in."""
    bad = make_shard("bad.tar", range(40, 50), {"k044.png": b"broken", "k045.json": None})
    config = DataConfig(shards=(*shards, str(bad)), resolution=8, buffer=6, lanes=lanes, per_lane=per_lane)
    alone = take(Pipeline(config, batch_size=12).batches(), 10)
    keys, epochs = ([item for batch in alone for item in getattr(batch, name)] for name in ("keys", "epochs"))
    seen = Counter(key for key, epoch in zip(keys, epochs, strict=True) if epoch == 0)
    assert set(seen) == KEYS | {f"k{number:03d}" for number in range(40, 50)} - {"k044", "k045"}
    assert len(keys) == 120
    for world, workers, size, start in ((1, 3, 12, 2), (2, 1, 6, 3), (3, 2, 4, 5), (2, 4, 3, 6), (4, 0, 1, 13)):
        helped = replace(config, workers=workers)
        number = 120 // (world * size) - start
        ranks = [
            take(Pipeline(helped, batch_size=size, rank=rank, world=world).batches(start), number)
            for rank in range(world)
        ]
        found = [key for step in range(number) for rank in ranks for key in rank[step].keys]
        assert found == keys[start * world * size :][: len(found)], (world, workers, size)


@pytest.mark.usefixtures("workers_here")
@pytest.mark.parametrize("kind", ["compressed", "buckets", "sources"])
def test_a_stream_goes_on_with_any_workers(shards: tuple[str, ...], make_shard: MakeShard, kind: str) -> None:
    more: dict[str, Any] = {"shards": shards}
    if kind == "compressed":
        more = {
            "shards": tuple(str(make_shard(f"c{n}.tar.gz", range(9 * n, 9 * n + 9), mode="w:gz")) for n in range(4))
        }
    if kind == "sources":
        more = {"sources": ((shards[:2], 1.0), (shards[2:], 2.0))}
    if kind == "buckets":
        more |= {"buckets": ((8, 8), (8, 16))}
    config = DataConfig(resolution=8, buffer=6, lanes=2, workers=1, **more)
    alone = take(Pipeline(config, batch_size=4).batches(), 24)
    for workers, start in ((2, 5), (3, 0), (5, 11), (0, 7)):
        helped = take(Pipeline(replace(config, workers=workers), batch_size=4).batches(start), 24 - start)
        assert all(same(left, right) for left, right in zip(alone[start:], helped, strict=True))


def test_lanes_are_one_a_process_unless_shards_are_read_from_their_front(
    shards: tuple[str, ...], make_shard: MakeShard
) -> None:
    def lanes(*names: str, **options: Any) -> int:
        return Pipeline(DataConfig(shards=names, workers=3, **options), batch_size=1, rank=1, world=2).lanes

    assert lanes(*shards) == 2
    assert lanes(*shards, buckets=((8, 8),)) == 6
    assert lanes(*shards, str(make_shard("z.tar.gz", range(3), mode="w:gz"))) == 6
    assert lanes(*shards, lanes=5) == 5


def test_workers_that_share_a_lane_read_the_headers_of_a_shard_once(
    shards: tuple[str, ...], workers_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = star.data.loader.positions.index_shard

    def counted(shard: str, faults: list[Fault]) -> list[Group]:
        read.append(shard)
        return real(shard, faults)

    monkeypatch.setattr(star.data.loader.positions, "index_shard", counted)
    config = DataConfig(shards=shards, resolution=8, buffer=1, workers=2)
    take(Pipeline(config, batch_size=4).batches(), 8)
    assert max(Counter(read).values()) == 2  # each worker by itself


@pytest.mark.parametrize("cache", [False, True])
def test_records_are_those_of_all_ranks_and_no_picture_is_decoded_for_them(
    shards: tuple[str, ...], cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(DataConfig(shards=shards, resolution=8, cache=cache), batch_size=4, rank=1, world=2)
    if not cache:
        monkeypatch.setattr("star.data.loader.virtual_workers.decode", None)
    records = list(pipeline.records())
    assert [captions[0] for captions, _ in records] == [f"picture {number}" for number in range(35)]
    assert all(info["caption"] == captions[0] for captions, info in records)
    monkeypatch.undo()
    assert [key for batch in pipeline.alone(9).one_pass() for key in batch.keys] == sorted(KEYS)


def test_impossible_settings_are_refused(shards: tuple[str, ...]) -> None:
    bad: list[dict[str, Any]] = [
        {"shards": ()},
        {"shards": "a.tar"},
        {"resolution": 0},
        {"resolution": (64, -1)},
        {"crop": "middle"},
        {"caption": "last"},
        {"buffer": 0},
        {"workers": -1},
        {"lanes": -1},
        {"seed": -1},
    ]
    for options in bad:
        with pytest.raises(InputError, match=str(next(iter(options)))):
            DataConfig(**{"shards": shards, **options})
    config = DataConfig(shards=shards)
    with pytest.raises(InputError, match="batch size is 0"):
        Pipeline(config, batch_size=0)
    with pytest.raises(InputError, match="Rank 2 of 2"):
        Pipeline(config, batch_size=1, rank=2, world=2)
    with pytest.raises(InputError, match="-1"):
        Pipeline(config, batch_size=1).batches(-1)


def test_making_batches_leaves_the_random_state_of_training_alone(shards: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(Pipeline(DataConfig(shards=shards, resolution=8), batch_size=4).batches(), 3)
    take(Pipeline(DataConfig(shards=shards, resolution=8, cache=True), batch_size=4).batches(), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_cached_batches_of_64_pixels_come_at_five_thousand_pictures_a_second(shared: Path) -> None:
    config = DataConfig(shards=(str(shared / "data/emoji/emoji-test-*.tar"),), resolution=64, cache=True)
    batches = Pipeline(config, batch_size=64).batches()
    next(batches)
    began = time.process_time()
    take(batches, 100)
    assert 6400 / (time.process_time() - began) > 5000
