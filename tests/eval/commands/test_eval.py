"""The layout reader, prompt ranking and `star eval`, on a benchmark and networks made on the spot."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from star.cli import main
from star.clip.config import CLIP_PRESETS
from star.clip.network import build_clip
from star.clip.train import save_clip
from star.data.clip_tokenizer import learn_tokenizer
from star.data.errors import InputError
from star.data.images import decode, pil_to_pixels, save_png
from star.eval.metrics.alignment import ClipScorer, prompt_ranks
from star.eval.metrics.resampling import mean_interval
from star.eval.run.layout import read_layout, spread
from star.eval.run.record import read
from star.generator import StarGenerator

COUNT = 24


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmark"
    meta = {}
    for number in range(COUNT):
        key = f"{number:04x}"
        meta[key] = {"category": "ab"[number % 2], "prompt": f"picture number {number} of all"}
        pixels = torch.full((3, 16, 16), number * 10, dtype=torch.uint8)
        save_png(pixels, folder / "ab"[number % 2] / f"{key}.png")
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = CLIP_PRESETS["test"].network
    bpe = learn_tokenizer(["picture number one of all"], config.vocabulary, config.max_tokens)
    save_clip(tmp_path / "clip", build_clip(config, bpe), bpe, config)
    return tmp_path / "clip"


def test_layout_is_read_in_order_of_keys(benchmark: Path) -> None:
    items = read_layout(benchmark)
    assert [item.key for item in items] == sorted(item.key for item in items)
    assert len(items) == COUNT
    assert items[3].category == "b"
    assert items[3].picture.is_file()
    assert [item.key for item in spread(items, 4)] == [items[i].key for i in (0, 6, 12, 18)]
    assert spread(items, 100) == items


def test_missing_pictures_and_meta_are_named(benchmark: Path) -> None:
    (benchmark / "a" / "0002.png").unlink()
    with pytest.raises(InputError, match=r"1 pictures .* a/0002"):
        read_layout(benchmark)
    (benchmark / "meta_data.json").write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        read_layout(benchmark)
    with pytest.raises(InputError, match="MJHQ-30k layout"):
        read_layout(benchmark / "a")


def test_a_perfect_scorer_ranks_first_a_reversed_one_last_and_ties_count_against() -> None:
    prompts = [f"prompt {i}" for i in range(30)]
    eye = torch.eye(30)
    assert prompt_ranks(eye, eye, prompts, 20).tolist() == [0] * 30
    assert prompt_ranks(-eye, eye, prompts, 20).tolist() == [19] * 30
    assert prompt_ranks(torch.ones(30, 30), torch.ones(30, 30), prompts, 20).tolist() == [19] * 30


def test_chance_is_one_in_twenty() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(2000, 8, generator=generator) for _ in range(2))
    first = (prompt_ranks(image, text, [str(i) for i in range(2000)], 20) == 0).double()
    interval = mean_interval(first, 2000, 0)
    assert interval is not None
    low, high = interval
    assert low < 0.05 < high
    assert high - low < 0.03


def test_equal_prompts_are_never_rivals() -> None:
    prompts = ["same"] * 10 + [f"other {i}" for i in range(19)]
    text = torch.cat([torch.eye(20)[:1].repeat(10, 1), torch.eye(20)[1:]])
    assert (prompt_ranks(text, text, prompts, 20) == 0).all()
    with pytest.raises(ValueError, match="20 different prompts"):
        prompt_ranks(text, text, prompts, 21)


def test_scorer_is_independent_of_the_batch(clip: Path, benchmark: Path) -> None:
    scorer = ClipScorer(clip)
    pixels = torch.stack([pil_to_pixels(decode(item.picture.read_bytes())) for item in read_layout(benchmark)])
    together = scorer.images(pixels)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(COUNT))
    torch.testing.assert_close(together[5:6], scorer.images(pixels[5:6]), atol=1e-5, rtol=0)
    prompts = ["one of all", "a much longer prompt than that, " * 20]
    torch.testing.assert_close(scorer.texts(prompts)[:1], scorer.texts(prompts[:1]), atol=1e-5, rtol=0)


def test_the_command_draws_scores_and_continues(
    clip: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "record.json"
    measures = [f"prompt_rank_20/clip:{clip}", f"cmmd/clip:{clip}"]
    command = ["eval", "star-test", "--benchmark", str(benchmark), "--out", str(out), "--bootstrap", "10"]
    command += ["--metrics", *measures]
    assert main(command) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"star-test on benchmark, {COUNT} pictures"
    assert told[1].startswith(f"  true prompt first of 20 by clip:{clip}")
    assert "; the real pictures " in told[1]
    assert told[-2:] == [str(out), str(out.with_suffix("") / "sheet.png")]
    record = read(out)
    assert list(record.metrics["overall"]) == measures
    pictures = sorted(out.with_suffix("").glob("pictures/*.png"))
    assert len(pictures) == COUNT
    before = pictures[7].read_bytes()
    pictures[7].unlink()
    assert main(command) == 0
    assert pictures[7].read_bytes() == before
    assert replace(read(out), times={}) == replace(record, times={})
    capsys.readouterr()
    assert main([*command, "--guidance-scale", "2"]) == 2
    assert "options.guidance_scale was 5.0, now 2.0" in capsys.readouterr().err
    assert main(["eval", "--drawn", str(tmp_path), "--speed", "--benchmark", str(benchmark), "--out", str(out)]) == 2
    assert "--speed was given without a model" in capsys.readouterr().err


def test_the_record_says_in_what_type_pictures_were_drawn(
    clip: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    StarGenerator.for_test().save_pretrained(tmp_path / "model")
    command = ["eval", str(tmp_path / "model"), "--benchmark", str(benchmark), "--bootstrap", "0", "--device", "cpu"]
    command += ["--metrics", f"cmmd/clip:{clip}", "--pictures", "6", "--sheet", "0"]
    values = {}
    for dtype in ("", "bfloat16"):
        out = tmp_path / f"record{dtype}.json"
        assert main([*command, "--out", str(out), *(["--dtype", dtype] if dtype else [])]) == 0
        record = read(out)
        assert (record.measured.dtype, record.measured.device) == (dtype or "float32", "cpu")
        values[dtype] = sorted((path.name, path.read_bytes()) for path in out.with_suffix("").glob("pictures/*.png"))
    assert "6 pictures, drawn in bfloat16" in capsys.readouterr().out
    assert len(values[""]) == 6
    assert values[""] != values["bfloat16"]
    assert main([*command, "--out", str(tmp_path / "record.json"), "--dtype", "bfloat16"]) == 2
    assert "dtype was float32, now bfloat16" in capsys.readouterr().err
