"""The plan against measurement: what a real step allocates and computes, and what cannot be is refused.

Memory is measured by watching every operation of a whole step (forward, backward, clipping, AdamW) and adding up the
storages that are alive; a tensor counts until nothing holds its storage. FLOPs are torch's own count.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from star.cli import main
from star.commands.plan import number
from star.data.errors import InputError
from star.data.text import TextFeatures
from star.model.attention_backends import ScaleCausality
from star.model.kernels.choice import BACKENDS
from star.model.losses import token_losses
from star.model.refiner import Refiner, RefinerConfig, ScalePlan
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.planning.flops import FLEX_BLOCK, pairs_seen, refiner_work, work
from star.planning.memory import Parameters, looked_bytes, memory, refiner_memory
from star.planning.plan import GPUS, Plan, Shapes, TooLargeError, plan
from star.planning.propose import proposals
from star.tokenizer.autoencoder import AutoencoderConfig, Decoder, Encoder
from star.tokenizer.portions import map_bytes
from star.training.masking import MaskedLosses, draw_known
from star.training.presets import CURRICULUM_SIZES, PRESETS
from star.training.targets import draw_kept, kept_lengths
from tests.star.ledger import Ledger

TEXT_TOKENS = 12
# name: changes of the network, pictures at once, share of the finest scale
MEASURED: dict[str, tuple[dict[str, Any], int, float]] = {
    "sdpa": ({"attention": "sdpa"}, 4, 1.0),
    "eager, wide and short": ({"attention": "eager", "width": 192, "depth": 2, "heads": 3}, 3, 1.0),
    "recomputed": ({"attention": "sdpa", "checkpointing": True}, 6, 1.0),
    "scalewise, half of the finest": ({"attention": "scalewise", "mlp_ratio": 2.0, "drop_path": 0.1}, 4, 0.5),
    "flash, where there is none": ({"attention": "flash"}, 4, 1.0),
    "few pictures": ({"attention": "scalewise"}, 1, 1.0),
}


def network(changes: dict[str, Any]) -> TransformerConfig:
    shape: dict[str, Any] = {"width": 128, "depth": 4, "heads": 4, "vocabulary": 512, "code_width": 16}
    return TransformerConfig(sizes=(1, 2, 3, 4, 5, 6), text_width=64, **shape | changes)


def fused_counts() -> dict[Any, Callable[..., int]]:
    """torch counts the fused kernels of GPUs; that of the CPU computes the same products."""

    def forward(queries: Any, keys: Any, values: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(queries, keys, values)

    def backward(gradient: Any, queries: Any, keys: Any, values: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient, queries, keys, values)

    kernel = "_scaled_dot_product_flash_attention_for_cpu"
    return {getattr(torch.ops.aten, kernel): forward, getattr(torch.ops.aten, f"{kernel}_backward"): backward}


class Step:
    """One training step that can be repeated, with everything that a run keeps."""

    def __init__(self, config: TransformerConfig, batch: int, keep_last: float) -> None:
        torch.manual_seed(0)
        self.model, self.batch, self.keep_last = NextScaleTransformer(config).train(), batch, keep_last
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        length = config.schedule.length
        mask_BT = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool)
        tokens_BTD = torch.randn(batch, TEXT_TOKENS, config.text_width)
        self.text = TextFeatures(tokens_BTD, mask_BT, tokens_BTD[:, 0])
        self.input_BlE = torch.randn(batch, length - config.schedule.lengths[0], config.code_width)
        self.codes_BL = torch.randint(config.vocabulary, (batch, length))

    def __call__(self) -> None:
        kept_L = draw_kept(self.model.schedule, self.keep_last)
        codes_BL = self.codes_BL if kept_L is None else self.codes_BL[:, kept_L]
        logits_BLV = self.model(self.input_BlE, self.text, kept_L=kept_L)
        token_losses(logits_BLV, codes_BL).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def peak(self) -> int:
        """Bytes, in a step after the first, which makes the moments."""
        self()
        ledger = Ledger()
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        for tensor in (*self.model.parameters(), *self.average.parameters(), *moments):
            ledger.enter(tensor)
        self.model._causality.clear()  # the mask is made anew, and counted
        with ledger:
            self()
        return ledger.peak


@pytest.mark.parametrize("name", MEASURED)
def test_memory_is_what_a_step_has_alive(name: str) -> None:
    changes, batch, keep_last = MEASURED[name]
    config = network(changes)
    planned = memory(config, kept_lengths(config.schedule, keep_last), TEXT_TOKENS, batch=batch, half=False)
    assert planned.peak == pytest.approx(Step(config, batch, keep_last).peak(), rel=0.05)


class RefinerStep(Step):
    """The same, of a refiner behind a network that learns nothing."""

    def __init__(self, config: TransformerConfig, refiner: RefinerConfig, batch: int, masks: int) -> None:
        super().__init__(config, batch, 1.0)
        self.transformer, self.masks = self.model.eval().requires_grad_(False), masks
        self.learner = MaskedLosses(Refiner(refiner, config), self.transformer)
        self.smooth = copy.deepcopy(self.learner).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), fused=True)

    def __call__(self) -> None:
        schedule = self.transformer.schedule
        start = schedule.offsets[self.learner.first]
        with torch.no_grad():
            hidden_BLC, _ = self.transformer.hidden(self.input_BlE, self.text)
        known_BR = draw_known(self.learner.lengths(schedule), self.masks * self.batch, "uniform", torch.device("cpu"))
        codes_BR = self.codes_BL[:, start:]
        vectors_BRE = torch.randn(*codes_BR.shape, self.transformer.config.code_width)
        shown = (self.text.pooled_BD, vectors_BRE, hidden_BLC[:, start:], codes_BR)
        pooled_BD, vectors_BRE, hidden_BRC, codes_BR = (torch.cat([part] * self.masks) for part in shown)
        self.learner(pooled_BD, vectors_BRE, known_BR, hidden_BRC, codes_BR, schedule).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def peak(self) -> int:
        """Bytes, in a step after the first, the frozen network among them."""
        self()
        ledger = Ledger()
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        for tensor in (
            *self.transformer.parameters(),
            *self.learner.parameters(),
            *self.smooth.parameters(),
            *moments,
        ):
            ledger.enter(tensor)
        with ledger:
            self()
        return ledger.peak


REFINER = RefinerConfig(depth=2, plans=tuple(ScalePlan(scale=k, steps=4, plain=0) for k in (3, 4, 5)))


@pytest.mark.parametrize("masks", [1, 3])
def test_a_refiner_is_planned_as_it_is_computed(masks: int) -> None:
    config = network({"attention": "sdpa"})
    step = RefinerStep(config, REFINER, 4, masks)
    planned = refiner_memory(config, REFINER, batch=4 * masks, half=False)
    assert 0.8 * planned.peak < step.peak() < 1.05 * planned.peak
    with FlopCounterMode(display=False, custom_mapping=fused_counts()) as counter:
        step()
    counted = refiner_work(config, REFINER, TEXT_TOKENS, masks)
    assert 4 * counted.total == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_preset_of_a_refiner_is_planned() -> None:
    config = PRESETS["emoji-refiner"]
    planned, alone = (
        plan(asked, Shapes.of(config), gpus=1, gpu="h100") for asked in (config, replace(config, refiner=None))
    )
    assert planned.parameters > alone.parameters
    assert planned.checkpoint_bytes == 16 * (planned.parameters - alone.parameters)
    assert planned.memory.moments < alone.memory.moments
    assert planned.work.backward < alone.work.backward
    tight = replace(config, run=replace(config.run, batch_size=2**14))
    found = proposals(tight, Shapes.of(config), gpus=1, gpu="rtx4090")
    assert found
    assert found[0].config.run.accumulate > 1


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "changes", [{"attention": "sdpa"}, {"attention": "scalewise", "width": 256, "heads": 8}], ids=str
)
def test_losses_of_held_out_pictures_take_at_most_what_is_planned(changes: dict[str, Any], half: bool) -> None:
    config = network(changes)
    step, pictures = Step(config, 8, 1.0), 8
    step.model.eval()._causality.clear()
    ledger = Ledger()
    for weight in step.model.parameters():
        ledger.enter(weight)
    weights = ledger.now
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half), ledger:
        step.model(step.input_BlE, step.text, codes_BL=step.codes_BL)
    planned = pictures * looked_bytes(config, half=half) + (2 * Parameters.of(config).matrices if half else 0)
    assert 0.85 * planned < ledger.peak - weights < 1.03 * planned


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        {"multipliers": (1, 1, 2, 2, 4), "norm_groups": 8},
        {"multipliers": (1, 2, 4), "patch": 2, "norm": "layer", "level_attention": False},
        {"multipliers": (1,), "patch": 4, "norm": "layer", "encoder_blocks": 1},
    ],
    ids=str,
)
def test_maps_of_a_tokenizer_take_at_most_what_is_planned(shape: dict[str, Any], half: bool) -> None:
    config = AutoencoderConfig(channels=32, **shape)
    side = 128 // config.downsampling
    pictures = {Encoder: torch.randn(2, 3, 128, 128), Decoder: torch.randn(2, config.code_width, side, side)}
    peaks = []
    for kind, given in pictures.items():
        coder, ledger = kind(config), Ledger()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half), ledger:
            coder(given)
        peaks.append(ledger.peak / 2 / map_bytes(config, 128))
    assert 0.4 < max(peaks) < (1.2 if half else 1.0001)  # autocast's copies of weights weigh here, where maps are small


def test_what_stands_beside_a_step_is_planned() -> None:
    config = PRESETS["star-d30-1024"]
    planned = plan(config, Shapes.of(config), gpus=64, gpu="h100")
    assert planned.mapped == (1, 5 * 160 * 1024**2 * 4)
    pictures, needed = planned.looked
    assert 1 <= pictures < 16
    assert needed < 6e9  # 64 at once took 9.9 GB of logits alone
    assert planned.memory.peak >= planned.memory.weights + planned.memory.moments + planned.memory.averaged + needed
    assert "held out        6 pictures at once" in planned.text()


def test_a_device_too_small_for_one_picture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GPUS, "small", replace(GPUS["h100"], memory=3 * 10**9))
    config = replace(PRESETS["star-d16-256"], width=64, depth=1, heads=1)
    maps = Shapes(sizes=CURRICULUM_SIZES["models/tokenizer-1024"])
    with pytest.raises(InputError, match=r"encoding one picture takes 3\.36 GB of maps, expected at most 2\.70 GB"):
        plan(replace(config, keep_last_scale=0.01), maps, gpus=512, gpu="small")


@pytest.mark.parametrize("name", MEASURED)
def test_work_is_what_torch_counts(name: str) -> None:
    changes, batch, keep_last = MEASURED[name]
    config = network(changes)
    step = Step(config, batch, keep_last)
    with FlopCounterMode(display=False, custom_mapping=fused_counts()) as counter:
        step()
    planned = work(config, kept_lengths(config.schedule, keep_last), TEXT_TOKENS)
    assert batch * planned.total == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_steps_of_all_tokens_at_the_end_are_planned() -> None:
    shapes = Shapes(sizes=(1, 2, 4, 8, 16), vocabulary=64, code_width=8, text_width=32)

    def planned(**changes: Any) -> Plan:
        every = replace(PRESETS["emoji-128"], coarse_scales=0, coarse_steps=0.0)
        return plan(replace(every, **changes), shapes, gpus=1, gpu="h100")

    part = planned(keep_last_scale=0.25, whole_last=0.0)
    mixed = planned(keep_last_scale=0.25, whole_last=0.3)
    whole = planned(keep_last_scale=1.0)
    assert part.tokens < mixed.tokens == whole.tokens
    assert part.memory.peak < mixed.memory.peak == whole.memory.peak
    assert mixed.work.total == pytest.approx(0.7 * part.work.total + 0.3 * whole.work.total)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_counted_as_they_are_computed(backend: str) -> None:
    lengths = (1, 4, 100, 200)
    sight = ScaleCausality(lengths, "sdpa", torch.float32, torch.device("cpu"))
    assert sight._mask_LL is not None
    allowed_LL = sight._mask_LL == 0
    side = -(-sum(lengths) // FLEX_BLOCK) * FLEX_BLOCK
    padded_LL = torch.zeros(side, side, dtype=torch.bool)
    padded_LL[: sum(lengths), : sum(lengths)] = allowed_LL
    blocks = padded_LL.unfold(0, FLEX_BLOCK, FLEX_BLOCK).unfold(1, FLEX_BLOCK, FLEX_BLOCK).flatten(2).any(dim=2)
    seen = dict.fromkeys(("scalewise", "flash", "auto"), int(allowed_LL.sum()))
    expected = seen | {"flex": int(blocks.sum()) * FLEX_BLOCK**2}
    assert pairs_seen(lengths, backend) == expected.get(backend, sum(lengths) ** 2)


def test_half_precision_halves_what_products_keep() -> None:
    config = network({"attention": "sdpa"})
    full, half = (memory(config, config.schedule.lengths, TEXT_TOKENS, batch=64, half=half) for half in (False, True))
    assert 0.5 < half.activations / full.activations < 0.7
    assert half.weights == full.weights


def test_pieces_divide_what_is_kept_for_every_weight() -> None:
    config = network({"attention": "sdpa"})
    one, four = (
        memory(config, config.schedule.lengths, TEXT_TOKENS, batch=1, half=True, pieces=pieces) for pieces in (1, 4)
    )
    assert four.moments == pytest.approx(one.moments / 4, abs=8)
    assert four.activations == one.activations


def test_the_released_d30_has_its_number_of_parameters() -> None:
    """1,678,731,016 released, of which 1001 rows of class_emb are a leftover without use."""
    config = PRESETS["star-d30-512"]
    planned = plan(config, Shapes.of(config), gpus=64, gpu="h100", images=100_000_000)
    assert planned.parameters == 1_678_731_016 - 1001 * 1920
    assert planned.tokens == 2240
    assert planned.images_per_second == pytest.approx(64 * 0.4 * 494e12 / planned.work.total)
    assert planned.days == pytest.approx(100_000_000 / planned.images_per_second / 86400)


@pytest.mark.parametrize(
    "name", ["star-d16-256", "star-d30-256", "star-d30-256-finish", "star-d30-512", "star-d30-1024"]
)
def test_every_stage_fits_on_32_devices(name: str) -> None:
    config = PRESETS[name]
    planned = plan(config, Shapes.of(config), gpus=32, gpu="h100")
    assert planned.images == config.run.steps * config.run.batch_size
    assert "days for" in planned.text()


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({}, {"gpus": 64, "gpu": "abacus"}, "there is no GPU 'abacus'"),
        ({}, {"gpus": 0, "gpu": "h100"}, "0 devices"),
        ({}, {"gpus": 100, "gpu": "h100"}, "run.batch_size is 192, expected a multiple of 100"),
        ({}, {"gpus": 64, "gpu": "h100", "utilisation": 1.5}, "utilisation is 1.5"),
        ({}, {"gpus": 1, "gpu": "h100"}, r"192 pictures at once needs .* most of it \w+ .*--run.accumulate=192"),
        ({"checkpointing": False}, {"gpus": 8, "gpu": "h100"}, "most of it activations .*--checkpointing=true"),
        ({"tokenizer": "nowhere"}, {"gpus": 8, "gpu": "h100"}, "nowhere is no model directory"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    changes: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    config = replace(PRESETS["star-d30-512"], **changes)
    with pytest.raises(InputError, match=message):
        plan(config, Shapes.of(config), **asked)


@pytest.mark.parametrize(
    ("changes", "gpus", "gpu", "rows"),
    [
        ({}, 1, "h100", 4),
        ({"checkpointing": False}, 8, "rtx4090", 4),
        ({"checkpointing": False}, 2, "h100", 8),
    ],
)
def test_what_is_proposed_fits_and_is_the_largest_that_does(
    changes: dict[str, Any], gpus: int, gpu: str, rows: int
) -> None:
    asked = PRESETS["star-d30-512"]
    config = replace(asked, run=replace(asked.run, sharding="none"), **changes)
    shapes = Shapes.of(config)
    with pytest.raises(TooLargeError):
        plan(config, shapes, gpus=gpus, gpu=gpu)
    found = proposals(config, shapes, gpus=gpus, gpu=gpu, images=10**8)
    assert len(found) == rows
    for one in found:
        planned = plan(
            one.config, shapes, gpus=gpus, gpu=gpu, images=10**8
        )  # it fits, and takes the time that was said
        assert (planned.days, planned.per_device) == (pytest.approx(one.days), one.per_device)
        assert planned.memory.peak == one.peak
        fewer = [n for n in range(1, one.config.run.accumulate) if one.config.run.batch_size % (n * gpus) == 0]
        if fewer:
            larger = replace(one.config, run=replace(one.config.run, accumulate=fewer[-1]))
            with pytest.raises(TooLargeError):
                plan(larger, shapes, gpus=gpus, gpu=gpu)
    assert [one.days for one in found] == sorted(one.days for one in found)
    assert found[0].config.run.precision == "bf16"


def test_the_command_lists_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "star-d30-512", "--gpus", "1", "--images", "100M"]) == 2
    out, err = capsys.readouterr()
    assert "what fits on 1 x h100, 192 pictures in a step:" in out
    options = out.splitlines()[3].split("  ")[-1].split()
    assert main(["plan", "--preset", "star-d30-512", "--gpus", "1", "--images", "100M", *options]) == 0
    assert "take one of the settings above" in err
    assert main(["plan", "--preset", "star-d30-1024", "--gpus", "1", "--gpu", "rtx4090"]) == 2
    out, err = capsys.readouterr()
    assert "what fits" not in out
    assert "nothing makes it fit: take larger or more devices" in err


def test_the_precision_is_said_and_what_the_other_would_take(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--preset", "star-d30-512", "--gpus", "64", "--images", "100M"]
    assert main(asked) == 0
    told = re.search(r"precision +no: float32.*--run.precision=bf16 would take ([\d.]+) days", capsys.readouterr().out)
    assert main([*asked, "--run.precision=bf16"]) == 0
    out = capsys.readouterr().out
    assert "precision       bf16: products in bfloat16" in out
    assert told is not None
    assert f"time            {told[1]} days" in out


def test_weights_in_one_piece_are_what_does_not_fit() -> None:
    config = PRESETS["star-d30-1024"]
    whole = replace(config, run=replace(config.run, sharding="none"))
    with pytest.raises(InputError, match=r"most of it moments .*--run.sharding=fsdp2"):
        plan(whole, Shapes.of(whole), gpus=64, gpu="rtx4090")


@pytest.mark.parametrize(("text", "count"), [("100M", 10**8), ("1.5b", 15 * 10**8), ("7", 7), ("2.5k", 2500)])
def test_counts_with_a_letter(text: str, count: int) -> None:
    assert number(text) == count


@pytest.mark.parametrize("text", ["", "M", "many", "-3", "nan", "inf"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(InputError, match="--images is"):
        number(text)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--preset", "star-d30-1024", "--gpus", "64", "--images", "100M", "--run.accumulate=1"]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert "64 x h100, 1 pictures at once" in told
    assert "100,000,000 images" in told
    assert main(["plan", "--preset", "star-d30-512", "--gpus", "7"]) == 2
    assert "expected a multiple of 7" in capsys.readouterr().err
