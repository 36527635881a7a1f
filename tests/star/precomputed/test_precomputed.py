"""Encoded shards: training on them is training on the pictures, and only the networks that made them will do."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest
import torch
from safetensors.torch import load_file

import star.precomputed.encode
import star.training.train
from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.packing.pack import pack
from star.data.shards.check import check
from star.data.shards.write import write_shard
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.training.run import RunConfig
from star.precomputed.dataset import EncodedReader, EncodedShards
from star.precomputed.encode import encode
from star.precomputed.format import NAME, encoding_of
from star.tiny import tiny_tokenizer, tiny_transformer
from star.training.config import TrainConfig
from star.training.frozen_networks import FrozenNetworks
from star.training.presets import PRESETS
from star.training.train import train


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of eight pictures and one held out of four, two sets of networks, and the shards encoded."""
    root = tmp_path_factory.mktemp("house")
    for seed in range(2):
        networks = (tiny_tokenizer(seed), tiny_text_encoder(seed, max_tokens=64))
        generator = StarGenerator(tiny_transformer(), *networks)
        generator._save_tokenizer(root / f"tokenizer-{seed}")
        generator.text_encoder.save_pretrained(root / f"text-{seed}")
    write(root / "synthetic", count=24, size=8, test=4)
    pack(root / "synthetic" / "train", root / "train", prefix="train", samples_per_shard=8)
    pack(root / "synthetic" / "test", root / "test", prefix="test")
    make(house=root, out=root / "codes")
    make(house=root, out=root / "latents", latents=True)
    return root


def make(house: Path, out: Path, **changes: Any) -> Any:
    networks = {"tokenizer": house / "tokenizer-0", "text_encoder": house / "text-0"}
    return encode([str(house / "train"), str(house / "test")], out, **networks | changes)


def config(house: Path, steps: int = 4, **changes: Any) -> TrainConfig:
    run = RunConfig(steps=steps, batch_size=4, log_every=1, sample_every=0, checkpoint_every=2, trackers=())
    given: dict[str, Any] = {
        "run": run,
        "tokenizer": str(house / "tokenizer-0"),
        "text_encoder": str(house / "text-0"),
        "validate_every": 2,
        "code_noise": 0.0,
        "precompute": False,
    }
    return replace(PRESETS["test"], **given | changes)


def losses(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "loss" in name or name == "grad_norm"} for line in lines]


@pytest.mark.parametrize(
    ("encoded", "changes"),
    [("codes", {}), ("latents", {"code_noise": 0.5, "noise_neighbours": 3})],
    ids=["codes", "latents and noise"],
)
def test_training_on_codes_has_the_losses_of_training_on_pictures(
    house: Path, tmp_path: Path, encoded: str, changes: dict[str, Any]
) -> None:
    pictures = [str(house / "train"), str(house / "test")]
    train(config(house, **changes), data=pictures, out=tmp_path / "pictures")
    train(config(house, **changes), data=[str(house / encoded)], out=tmp_path / "codes")
    for one, other in zip(losses(tmp_path / "pictures"), losses(tmp_path / "codes"), strict=True):
        assert one == pytest.approx(other, rel=2e-3)  # text features are kept in bfloat16
    validation = json.loads((tmp_path / "codes" / "validation.json").read_text())
    assert validation["pictures"] == 4  # the shards keep their names, and with them who is held out


def test_the_networks_are_loaded_only_to_write_the_model(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    original = FrozenNetworks._load
    saved: list[int] = []
    save = star.training.train.save

    def load(self: FrozenNetworks, device: Any) -> Any:
        loaded.append(device)
        return original(self, device)

    def counted(*given: Any) -> None:
        saved.append(len(loaded))
        save(*given)

    monkeypatch.setattr(FrozenNetworks, "_load", load)
    monkeypatch.setattr(star.training.train, "save", counted)
    model = train(config(house), data=[str(house / "codes")], out=tmp_path / "run")
    assert saved == [1]
    assert len(loaded) == 1
    assert StarGenerator.from_directory(model).tokenizer.digest == tiny_tokenizer(0).digest


def test_a_run_on_codes_resumes_to_the_bit(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [str(house / "codes")]
    train(config(house), data=data, out=tmp_path / "whole")
    calls, original = iter(range(9)), star.training.train.set_lr

    def set_lr(*given: Any) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(star.training.train, "set_lr", set_lr)
        with pytest.raises(KeyboardInterrupt):
            train(config(house), data=data, out=tmp_path / "parts")
    train(config(house), data=data, out=tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(InputError, match="lanes was 1 and is now 2"):
        train(config(house, steps=6, lanes=2), data=data, out=tmp_path / "parts", resume=True)


def test_an_interrupted_encoding_goes_on_and_ends_the_same(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, samples: Iterator[Any]) -> int:
        def cut() -> Iterator[Any]:
            yield from islice(samples, 5)
            raise KeyboardInterrupt

        return write_shard(path, cut() if path.name == "train-00001.tar" else samples)

    with monkeypatch.context() as patch:
        patch.setattr(star.precomputed.encode, "write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            make(house, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["train-00000.tar"]
    with pytest.raises(InputError, match="is not encoded to its end: run the same `star data encode` again"):
        train(config(house), data=[str(tmp_path / "out")], out=tmp_path / "run")
    before = os.stat(tmp_path / "out" / "train-00000.tar").st_mtime_ns
    report = make(house, tmp_path / "out")
    assert (report.written, report.kept, report.samples, report.finished) == (3, 1, 20, True)
    assert report.cut == 0
    assert os.stat(tmp_path / "out" / "train-00000.tar").st_mtime_ns == before
    for path in (house / "codes").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_latents_in_another_memory_format_are_written_the_same(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = star.precomputed.encode.Encoder.latents
    monkeypatch.setattr(
        star.precomputed.encode.Encoder,
        "latents",
        lambda self, batch: original(self, batch).to(memory_format=torch.channels_last),
    )
    make(house, tmp_path / "out", latents=True)
    for name in ("train-00000.tar", "test-00000.tar"):
        assert (tmp_path / "out" / name).read_bytes() == (house / "latents" / name).read_bytes()


def test_several_processes_share_the_shards(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = []
    for rank in range(2):
        state = SimpleNamespace(process_index=rank, num_processes=2, device=torch.device("cpu"))
        monkeypatch.setattr(star.precomputed.encode, "Accelerator", lambda state=state: state)
        report = make(house, tmp_path / "out")
        assert report.written == 2
        finished.append(report.finished)
    assert finished == [False, True]
    assert (tmp_path / "out" / "index.json").read_bytes() == (house / "codes" / "index.json").read_bytes()


def test_what_cannot_be_used_is_named_and_left_out(house: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        source = (house / "train" / f"train-0000{number}.tar").read_bytes()
        (tmp_path / "in" / f"train-{number}.tar").write_bytes(source[: len(source) // 2] if number else b"no tar")
    tokenizer, text_encoder = house / "tokenizer-0", house / "text-0"
    report = encode([str(tmp_path / "in")], tmp_path / "out", tokenizer=tokenizer, text_encoder=text_encoder)
    assert report.finished
    assert 0 < report.samples < 8
    assert {Path(shard).name for shard in report.skipped.counts} == {"train-0.tar", "train-1.tar"}
    assert check(tmp_path / "out", decode_images=False).samples == report.samples
    caption = b'{"caption": "a circle"}'
    members = [("k", {"json": caption}), ("l", {"json": caption, "safetensors": b"\x02\0\0\0\0\0\0\0{}"})]
    write_shard(tmp_path / "out" / "train-2.tar", members)
    encoding = encoding_of([str(tmp_path / "out" / "train-2.tar")])
    assert encoding is not None
    data = DataConfig(shards=(str(tmp_path / "out"),))
    pipeline = Pipeline(data, batch_size=2, reader=EncodedReader(encoding.config))
    assert sum(len(batch) for batch in pipeline.one_pass()) == report.samples
    assert {fault.key for fault in pipeline.report.named if fault.reason == "broken encoding"} == {"k", "l"}


def test_captions_that_are_too_long_are_counted_not_listed(
    house: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = tiny_text_encoder(max_tokens=8)
    short.save_pretrained(tmp_path / "short")
    report = make(house, tmp_path / "out", text_encoder=tmp_path / "short")
    assert report.cut > 0
    assert f"{report.cut} captions are longer than the text encoder reads" in report.text()
    assert caplog.text == ""


def test_shards_of_other_networks_are_refused(house: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"was encoded with tokenizer .*: choose another folder"):
        make(house, house / "codes", tokenizer=house / "tokenizer-1")
    with pytest.raises(InputError, match="was encoded with latents False, expected True"):
        make(house, house / "codes", latents=True)
    for name, what in (("tokenizer", "tokenizer"), ("text_encoder", "text encoder")):
        other: dict[str, Any] = {name: str(house / f"{name.partition('_')[0]}-1")}
        with pytest.raises(InputError, match=f"encoded with a {what} of digest .* give the {what} they were encoded"):
            train(config(house, **other), data=[str(house / "codes")], out=tmp_path / "run")
    with pytest.raises(InputError, match=r"code_noise is 0\.1, which needs latents"):
        train(config(house, code_noise=0.1), data=[str(house / "codes")], out=tmp_path / "run")
    with pytest.raises(InputError, match="encode all of them, or give only one kind"):
        train(config(house), data=[str(house / "codes"), str(house / "train")], out=tmp_path / "run")
    with pytest.raises(InputError, match="was encoded with latents True, expected False"):
        encoding_of([str(house / "codes" / "a.tar"), str(house / "latents" / "a.tar")])
    with pytest.raises(InputError, match=r"Two of the shards would be written as train-00000\.tar"):
        encode([str(house / "train"), str(house / "codes")], tmp_path, tokenizer="", text_encoder="")
    assert not (tmp_path / "run").exists()


def test_a_stray_shard_of_another_encoding_stops_the_run(house: Path, tmp_path: Path) -> None:
    for source, name in (("codes", NAME), ("codes", "index.json"), ("latents", "train-00000.tar")):
        (tmp_path / name).write_bytes((house / source / name).read_bytes())
    with pytest.raises(InputError, match="keep shards of different encodings in folders of their own"):
        train(config(house), data=[str(tmp_path)], out=tmp_path / "run")


def test_encoded_shards_are_recognised_on_a_store(house: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in (house / "codes").iterdir():
        store.pipe(f"/encoded/{path.name}", path.read_bytes())
    try:
        there, here = encoding_of(["memory://encoded/train-00000.tar"]), encoding_of([str(house / "codes" / "x.tar")])
    finally:
        store.rm("/encoded", recursive=True)
    assert there is not None
    assert here is not None
    assert there.config == here.config
    assert encoding_of([str(house / "train" / "train-00000.tar")]) is None


def test_sources_have_weights(house: Path, tmp_path: Path) -> None:
    places = [str(house / "codes" / f"train-0000{number}.tar") for number in range(2)]
    train(config(house, weights=(3.0, 1.0), held_out=0.2), data=places, out=tmp_path / "run")
    with pytest.raises(InputError, match="1 weights were given for 2 places of data"):
        train(config(house, weights=(1.0,)), data=places, out=tmp_path / "run2")


def test_training_on_captions_is_training_on_their_features(house: Path, tmp_path: Path) -> None:
    """The text encoder computes in the training what it would have computed before: the losses are the same."""
    report = make(house, house / "captions", text="captions")
    assert report.finished
    names = sorted(path.name for path in (house / "captions").iterdir())
    assert names == [
        "encoding.safetensors",
        "index.json",
        *(f"{name}.tar.gz" for name in ("test-00000", "train-00000", "train-00001", "train-00002")),
    ]
    train(config(house, dropout=0.1), data=[str(house / "codes")], out=tmp_path / "features")
    train(config(house, dropout=0.1), data=[str(house / "captions")], out=tmp_path / "captions")
    assert losses(tmp_path / "features") == losses(tmp_path / "captions")
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("features", "captions"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_captions_alone_are_small_and_bytes_are_the_same_again(house: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(house, tmp_path / name, text="captions")
    for path in sorted((tmp_path / "one").glob("*.tar.gz")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        features = house / "codes" / path.name.removesuffix(".gz")
        assert path.stat().st_size < features.stat().st_size / 8
    assert make(house, tmp_path / "one", text="captions").kept == 4
    with pytest.raises(InputError, match="text 'captions', expected 'features'"):
        make(house, tmp_path / "two", text="features")


def test_each_caption_is_encoded_once(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(house, house / "captions", text="captions")
    shards = [str(path) for path in sorted((house / "captions").glob("train*.tar.gz"))]
    encoding = encoding_of(shards)
    assert encoding is not None
    encoder, seen = tiny_text_encoder(0, max_tokens=64), []
    encode_text = encoder.encode

    def counted(prompts: list[str], **more: Any) -> Any:
        seen.extend(prompts)
        return encode_text(prompts, **more)

    monkeypatch.setattr(encoder, "encode", counted)
    inputs = EncodedShards(encoding, torch.device("cpu"), encoder)
    pipeline = Pipeline(DataConfig(shards=tuple(shards)), batch_size=6, reader=EncodedReader(encoding.config))
    for batch in islice(pipeline.batches(), 12):
        text = inputs.batch_text(batch, ["", *batch.prompts[1:]])
        assert torch.equal(text.tokens_BTD[0], encoding.null_text.tokens_BTD[0])
        assert torch.equal(text.mask_BT[1], encode_text(batch.prompts[1:2]).mask_BT[0])
    assert len(seen) == len(set(seen))
    with pytest.raises(ValueError, match="need a text encoder"):
        EncodedShards(encoding, torch.device("cpu")).batch_text(batch, batch.prompts)
