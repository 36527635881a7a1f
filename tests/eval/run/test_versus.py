"""Two contenders in turn: generators that take known times, tiny real ones, and `star bench --against`."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.baseline import BaselineGenerator
from star.cli import main
from star.data.errors import InputError
from star.data.images import read_png
from star.eval.report.growth import write_growth
from star.eval.run import versus
from star.eval.run.latency import measure_speed
from star.eval.run.versus import Contender, alternate, contender, rival, split, warmups
from star.generator import StarGenerator
from star.generators.measuring import copy_ceiling, matmul_ceiling
from star.generators.placement import dtype_of
from star.generators.protocol import Conditioning, SampleOptions
from star.sampling.graphs import Called, Graphs
from star.untrained import untrained

CPU = torch.device("cpu")


class Sleepy:
    conditioning: Conditioning = "none"
    resolution = (2, 2)

    def __init__(self, seconds: float, order: list[float]) -> None:
        self.seconds, self.order = seconds, order

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions = SampleOptions()
    ) -> Tensor:
        self.order.append(self.seconds)
        time.sleep(self.seconds * len(prompts))
        return torch.zeros(len(seeds), 3, 2, 2, dtype=torch.uint8)


def sleepy(name: str, seconds: float, order: list[float]) -> Contender:
    return Contender(name=name, generator=Sleepy(seconds, order), options=SampleOptions(), dtype="float32", device=CPU)


def test_contenders_draw_in_turn_and_the_first_time_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versus, "now", lambda _device: time.perf_counter())
    order: list[float] = []
    found = alternate(sleepy("a", 0.02, order), sleepy("b", 0.06, order), [""], batch=2, repetitions=3)
    assert order == [0.02, 0.06] * 4
    assert len(found.ratios) == 3
    assert found.first.median == pytest.approx(0.02, abs=0.015)
    assert 1.5 < found.ratio < 4
    assert found.first.scales == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("star-emoji", ("star-emoji", "")),
        ("star-emoji@baseline", ("star-emoji", "baseline")),
        ("runs/a@home", ("runs/a@home", "")),
        ("runs/a@home@bfloat16", ("runs/a@home", "bfloat16")),
    ],
)
def test_a_setting_stands_behind_the_model(name: str, expected: tuple[str, str]) -> None:
    assert split(name) == expected


def test_the_rival_is_a_setting_or_a_model() -> None:
    assert rival("star-emoji@float32", "baseline") == "star-emoji@baseline"
    assert rival("star-emoji", "stylenat-emoji") == "stylenat-emoji"


def test_contenders_are_what_they_are_called(tmp_path: Path) -> None:
    StarGenerator.for_test().save_pretrained(tmp_path)
    rounded = contender(f"{tmp_path}@bfloat16", "cpu", "float32")
    assert isinstance(rounded.generator, StarGenerator)
    assert rounded.dtype == "bfloat16"
    assert next(rounded.generator.transformer.parameters()).dtype == dtype_of("bfloat16")
    assert rounded.generator.tokenizer.decoder_dtype == torch.bfloat16
    assert next(rounded.generator.tokenizer.quantizer.parameters()).dtype == torch.float32
    slow = contender(f"{tmp_path}@baseline", "cpu", "bfloat16")
    assert isinstance(slow.generator, BaselineGenerator)
    assert slow.dtype == "float32"
    with pytest.raises(InputError, match="stylenat-test has no baseline"):
        contender("stylenat-test@baseline", "cpu", "float32")


def test_scales_are_timed_one_by_one() -> None:
    fast = contender("star-test", "cpu", "float32")
    slow = contender("star-test@baseline", "cpu", "float32")
    found = alternate(fast, slow, ["a", "b"], batch=1, repetitions=2)
    for side in (found.first, found.second):
        assert len(side.scales) == 4
        assert 0 < sum(side.scales) < side.median
    assert "run_blocks" not in vars(fast.generator.transformer)  # type: ignore[attr-defined]


def test_the_command_tells_and_writes_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    command = ["bench", "star-test", "--against", "baseline", "--batch", "1", "--repetitions", "2", "--out", str(out)]
    assert main([*command, "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "star-test@baseline (float32)" in told
    assert "of which star-test reaches" in told
    assert "GB/s read and written" in told
    (figures,) = json.loads(out.read_text())
    assert len(figures["ratios"]) == len(figures["first"]["seconds"]) == 2
    assert figures["ratios"][0] == pytest.approx(figures["second"]["seconds"][0] / figures["first"]["seconds"][0])


def test_ceilings_are_plausible() -> None:
    assert 1e8 < matmul_ceiling(CPU, "float32", side=256) < 1e14
    assert 1e7 < copy_ceiling(CPU, mebibytes=8, repetitions=2) < 1e13


def test_growth_is_drawn_over_batch_and_resolution(tmp_path: Path) -> None:
    speeds = {
        f"m{side}": tuple(
            replace(speed, total=speed.total * side)
            for speed in measure_speed(Sleepy(0.001, []), [""], (1, 2), repetitions=1, warmup=0)
        )
        for side in (8, 16)
    }
    write_growth(speeds, {"m8": (8, 8), "m16": (8, 8)}, tmp_path / "one.png")
    write_growth(speeds, {"m8": (8, 8), "m16": (16, 16)}, tmp_path / "two.png")
    one, two = read_png(tmp_path / "one.png"), read_png(tmp_path / "two.png")
    assert two.shape[2] == 2 * one.shape[2]
    assert one.float().std() > 5


def test_a_network_of_a_released_shape_draws() -> None:
    generator = untrained("d2-64", dtype=torch.bfloat16)
    assert generator.transformer.config.width == 128
    assert generator.generate(["a"], seeds=[0]).shape == (1, 3, 64, 64)
    assert generator.flops(guided=True) == 2 * generator.flops(guided=False) > 0
    with pytest.raises(InputError, match="expected d16-256 or the like"):
        untrained("d16-300")


def test_a_contender_may_draw_without_graphs() -> None:
    eager = contender("star-test@eager", "cpu", "float32")
    assert isinstance(eager.generator, StarGenerator)
    assert eager.generator.graphs == "off"
    assert eager.dtype == "float32"
    assert contender("stylenat-test@eager", "cpu", "float32").name == "stylenat-test@eager"


def test_replays_are_timed_scale_by_scale_and_only_once_recorded() -> None:
    generator = StarGenerator.for_test()
    assert warmups(generator) == 1
    generator._recorded = Graphs(Called())
    assert warmups(generator) == 2
    side = Contender(
        name="a", generator=generator, options=SampleOptions(), dtype="float32", device=torch.device("cpu")
    )
    found = alternate(side, side, ["a"], repetitions=2)
    assert len(found.first.scales) == 4
    assert 0 < sum(found.first.scales) < found.first.median
    assert "replay" not in vars(generator._recorded)
