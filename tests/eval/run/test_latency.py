"""Where the time of a picture goes: a generator that sleeps for known times, a tiny real one, and `star bench`."""

import json
import mmap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.cli import main
from star.data.errors import InputError
from star.eval.run.latency import measure_speed
from star.generators.measuring import peak, reset_peak
from star.generators.protocol import Conditioning, SampleOptions
from star.generators.registry import build

CPU = torch.device("cpu")


class Sleeper:
    """Both the parts of `Sleepy`: takes a known time for each picture."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def encode(self, prompts: Sequence[str]) -> int:
        time.sleep(self.seconds * len(prompts))
        return len(prompts)

    def latent_to_pixels(self, latent_BEhw: Tensor) -> Tensor:
        time.sleep(self.seconds * len(latent_BEhw))
        return torch.zeros(len(latent_BEhw), 3, 2, 2, dtype=torch.uint8)


class Sleepy:
    """Spends 10 ms a picture on text, 20 ms on the decoder, 30 ms on itself; the first call takes 200 ms more."""

    conditioning: Conditioning = "text"
    resolution = (2, 2)

    def __init__(self) -> None:
        self.text_encoder, self.tokenizer = Sleeper(0.01), Sleeper(0.02)
        self.request: list[list[str]] = []
        self.options: list[SampleOptions] = []

    def generate(
        self, prompts: Sequence[str], *, seeds: Sequence[int], options: SampleOptions = SampleOptions()
    ) -> Tensor:
        time.sleep(0.03 * self.text_encoder.encode(prompts) + (0 if self.request else 0.2))
        self.request.append(list(prompts))
        self.options.append(options)
        return self.tokenizer.latent_to_pixels(torch.zeros(len(seeds), 1, 1, 1))


def test_time_is_split_into_its_parts() -> None:
    generator = Sleepy()
    for speed, size in zip(measure_speed(generator, ["a", "b", "c"], (1, 4), repetitions=3), (1, 4), strict=True):
        assert (speed.batch, speed.repetitions, speed.threads) == (size, 3, 1)
        assert speed.text == pytest.approx(0.01, abs=0.008)
        assert speed.decoder == pytest.approx(0.02, abs=0.008)
        assert speed.generator == pytest.approx(0.03, abs=0.012)
        assert speed.total == pytest.approx(speed.text + speed.generator + speed.decoder)
        assert speed.device.startswith("CPU")
        assert speed.peak_bytes > 10_000_000
    warm, *counted = generator.request[:4]
    assert warm == ["a"]
    assert counted == [["a"], ["b"], ["c"]]
    assert generator.request[5:] == [["a", "b", "c", "a"], ["b", "c", "a", "b"], ["c", "a", "b", "c"]]


def test_without_warm_up_the_slow_first_call_counts() -> None:
    (speed,) = measure_speed(Sleepy(), ["a"], (1,), repetitions=1, warmup=0)
    assert speed.total > 0.25


def test_the_generator_is_left_as_it_was() -> None:
    generator = build("star-test")
    before = [dict(vars(part)) for part in (generator.text_encoder, generator.tokenizer)]  # type: ignore[attr-defined]
    pixels_B3HW = generator.generate(["a red circle"], seeds=[0])
    measure_speed(generator, ["a red circle"], (1,), repetitions=1, warmup=0)
    assert [dict(vars(part)) for part in (generator.text_encoder, generator.tokenizer)] == before  # type: ignore[attr-defined]
    assert torch.equal(pixels_B3HW, generator.generate(["a red circle"], seeds=[0]))


def test_a_failure_leaves_no_stopwatch_behind() -> None:
    generator = Sleepy()
    generator.tokenizer.seconds = -1
    with pytest.raises(ValueError, match="non-negative"):
        measure_speed(generator, ["a"], (1,))
    assert set(vars(generator.text_encoder)) == set(vars(generator.tokenizer)) == {"seconds"}


def test_every_part_of_a_real_generator_takes_time() -> None:
    speeds = measure_speed(build("star-test"), ["a red circle", "a blue square"], (1, 2), repetitions=2)
    for speed in speeds:
        assert min(speed.text, speed.generator, speed.decoder) > 0
        assert speed.text + speed.generator + speed.decoder == pytest.approx(speed.total)


def test_a_generator_without_parts_is_all_generator() -> None:
    (speed,) = measure_speed(build("var-test"), ["1"], (1,), repetitions=1)
    assert speed.text == 0
    assert speed.decoder > 0


def test_options_reach_the_generator() -> None:
    generator = Sleepy()
    measure_speed(generator, ["a"], (1,), repetitions=1, options=SampleOptions(guidance_scale=1.0))
    assert {options.guidance_scale for options in generator.options} == {1.0}


def test_peak_memory_follows_what_is_in_use() -> None:
    reset_peak(CPU)
    before = peak(CPU)
    block = mmap.mmap(-1, 2**27)  # not by malloc, which may have 128 MiB left of what is no longer used
    block.write(b"\1" * 2**27)
    with_block = peak(CPU)
    block.close()
    assert with_block - before > 100e6
    reset_peak(CPU)
    if peak(CPU) == with_block:
        pytest.skip("this system does not let a process reset its peak")
    assert with_block - peak(CPU) > 100e6


@pytest.mark.parametrize(
    ("prompts", "sizes", "repetitions", "warmup"),
    [([], (1,), 1, 1), (["a"], (), 1, 1), (["a"], (0,), 1, 1), (["a"], (1,), 0, 1), (["a"], (1,), 1, -1)],
)
def test_impossible_numbers_are_refused(
    prompts: list[str], sizes: tuple[int, ...], repetitions: int, warmup: int
) -> None:
    with pytest.raises(InputError, match="correct them"):
        measure_speed(Sleepy(), prompts, sizes, repetitions, warmup)


@pytest.mark.slow
def test_the_command_measures_each_model_in_a_process_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speeds.json"
    command = ["bench", "star-test", "var-test", "--batch", "1", "2", "--repetitions", "1", "--threads", "1"]
    assert main([*command, "--out", str(out)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split()[:6] == ["model", "batch", "total", "text", "generator", "decoder"]
    assert [line.split()[:2] for line in lines[1:5]] == [[m, b] for m in ("star-test", "var-test") for b in "12"]
    told = ["drawing: whole rows, sdpa (attention is sdpa)", "text: under a mask, sdpa (attention is sdpa)"]
    assert lines[5:8] == [*(f"star-test: {line}" for line in told), f"var-test: {told[0]}"]  # classes have no words
    speeds = json.loads(out.read_text())
    assert [speed["kernels"] for speed in (speeds["star-test"][1], speeds["var-test"][0])] == [told, told[:1]]
    assert [(speed["batch"], speed["threads"]) for speed in speeds["var-test"]] == [(1, 1), (2, 1)]
    assert speeds["var-test"][0]["text"] == 0 < speeds["star-test"][0]["text"]


def test_the_command_tells_mistakes_before_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "star-test", "--batch", "0"]) == 2
    assert "expected at least 1 each" in capsys.readouterr().err
    assert main(["bench", "star-test", "star-tset"]) == 2
    assert "there is no model 'star-tset'" in capsys.readouterr().err
