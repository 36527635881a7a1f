"""Training of a refiner: it begins as the transformer, learns from known codes alone, and leaves the transformer be."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from star.commands.train import configure
from star.data.errors import InputError
from star.data.loader.batch import Batch
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.synthetic import write
from star.data.text import TextFeatures
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.generators.registry import build
from star.generators.training.run import RunConfig
from star.model.refiner import Refiner
from star.model.transformer import NextScaleTransformer
from star.precomputed.encode import encode
from star.sampling.masked_decoding import MaskedDecoder
from star.sampling.sampler import SampleRng
from star.tiny import SIZES, VOCABULARY, tiny_tokenizer, tiny_transformer
from star.tokenizer.scales import ScaleSchedule
from star.training.config import TrainConfig
from star.training.masking import HIDDEN, SHARES, MaskedLosses, Refined, draw_known, known_share
from star.training.presets import PRESETS
from star.training.refiner_config import RefinerTraining
from star.training.stages import train
from star.training.targets import make_targets
from star.training.train import train as train_transformer
from star.training.train_refiner import altered

SCHEDULE = ScaleSchedule(SIZES)
ASKED = RefinerTraining(depth=2, scales=2, steps=(3, 4))
FIRST = SCHEDULE.offsets[2]  # of the refined tokens


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a tokenizer, a text encoder, and a model of them."""
    root = tmp_path_factory.mktemp("house")
    generator = StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))
    generator._save_tokenizer(root / "tokenizer")
    generator.text_encoder.save_pretrained(root / "text")
    generator.save_pretrained(root / "star")
    write(root / "data", count=24, size=8, test=6)
    return root


def config(house: Path, **changes: Any) -> TrainConfig:
    run = RunConfig(steps=4, batch_size=4, log_every=1, sample_every=4, checkpoint_every=4, trackers=())
    given: dict[str, Any] = {"run": run, "tokenizer": str(house / "tokenizer"), "text_encoder": str(house / "text")}
    given |= {"init_from": str(house / "star"), "code_noise": 0.0, "validate_every": 2}
    return replace(PRESETS["refiner-test"], **given | changes)


def shards(house: Path) -> list[str]:
    return [str(house / "data" / "train")]


def parts(depth: int = 2) -> tuple[NextScaleTransformer, MaskedLosses]:
    """A transformer, and a refiner behind it that is not at its start: known codes count."""
    transformer = tiny_transformer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        refiner = Refiner(replace(ASKED, depth=depth).network(SCHEDULE), transformer.config)
    with torch.no_grad():
        refiner.head.weight.mul_(50)
    return transformer, MaskedLosses(refiner.eval(), transformer)


class Given:
    """Codes, words and the transformer's states of some random pictures."""

    def __init__(self, transformer: NextScaleTransformer, count: int = 2) -> None:
        random = torch.Generator().manual_seed(1)
        self.quantizer = tiny_tokenizer().quantizer
        targets = make_targets(self.quantizer, torch.randn(count, 4, 4, 4, generator=random))
        self.codes_BL, self.teacher_input_BlE = targets.codes_BL, targets.teacher_input_BlE
        self.text: TextFeatures = tiny_text_encoder().encode(["a cat", "a red circle", "", "two"][:count])
        with torch.no_grad():
            self.hidden_BLC, _ = transformer.hidden(self.teacher_input_BlE, self.text)

    def losses(self, masked: MaskedLosses, known_BR: Tensor, codes_BL: Tensor | None = None) -> Tensor:
        """(B, R); codes_BL: other codes than these, whose values are read where they are known."""
        read_BRE = masked.vectors(self.quantizer, self.codes_BL if codes_BL is None else codes_BL, SCHEDULE)
        rest = (self.hidden_BLC[:, FIRST:], self.codes_BL[:, FIRST:], SCHEDULE)
        loss_BR: Tensor = masked(self.text.pooled_BD, read_BRE, known_BR, *rest)
        return loss_BR


def test_a_refiner_begins_as_the_transformer_whatever_is_known() -> None:
    transformer, masked = parts()
    masked.refiner.start_from(transformer, 1.0, 5.0)
    given = Given(transformer)
    with torch.no_grad():
        own_BR = transformer.losses(given.hidden_BLC, None, given.codes_BL)[:, FIRST:]
        for share in SHARES:
            known_BR = known_share(masked.lengths(SCHEDULE), share, torch.device("cpu")).expand(2, -1)
            expected = own_BR.masked_fill(known_BR, 0.0)
            assert torch.allclose(given.losses(masked, known_BR), expected, atol=1e-5)


def test_known_codes_count_and_hidden_ones_are_not_seen() -> None:
    transformer, masked = parts()
    given = Given(transformer)
    known_BR = known_share(masked.lengths(SCHEDULE), 0.5, torch.device("cpu")).expand(2, -1)
    other_BL = (given.codes_BL + 1) % VOCABULARY
    with torch.no_grad():
        loss_BR = given.losses(masked, known_BR)
        hidden_only = torch.cat(
            (other_BL[:, :FIRST], torch.where(known_BR, given.codes_BL[:, FIRST:], other_BL[:, FIRST:])), 1
        )
        assert torch.equal(given.losses(masked, known_BR, hidden_only), loss_BR)
        assert not torch.allclose(given.losses(masked, known_BR, other_BL), loss_BR)
    assert bool((loss_BR[known_BR] == 0).all())
    assert bool((loss_BR[~known_BR] > 0).all())


def test_no_scale_is_told_by_another() -> None:
    """Not even by the token of the text, which in the released training hands on what it saw of finer scales."""
    transformer, masked = parts(depth=3)
    given = Given(transformer)
    known_BR = torch.ones(2, sum(masked.lengths(SCHEDULE)), dtype=torch.bool)
    known_BR[:, ::3] = False
    other_BL, end = given.codes_BL.clone(), SCHEDULE.lengths[2]
    other_BL[:, SCHEDULE.offsets[3] :] = (other_BL[:, SCHEDULE.offsets[3] :] + 1) % VOCABULARY
    with torch.no_grad():
        one, other = given.losses(masked, known_BR), given.losses(masked, known_BR, other_BL)
    assert torch.equal(one[:, :end], other[:, :end])
    assert not torch.equal(one[:, end:], other[:, end:])


def test_what_is_learnt_is_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of the last step of drawing give the losses of training with the same codes known."""
    transformer, masked = parts()
    given, seen = Given(transformer, count=1), []
    forward = Refiner.forward

    def watched(self: Refiner, *arguments: Any, **named: Any) -> Tensor:
        seen.append((arguments[2], forward(self, *arguments, **named)))
        return seen[-1][1]

    decoder = MaskedDecoder(masked.refiner, given.quantizer)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(Refiner, "forward", watched)
        hidden_BlC = given.hidden_BLC[:, SCHEDULE.slices[3]]
        logits_BlV = torch.zeros(1, SCHEDULE.lengths[3], VOCABULARY)
        codes_Bl = decoder.draw(hidden_BlC, logits_BlV, 3, given.text, 0.0, SampleRng([3], SampleOptions()))
    known_Bl, logits_BlV = seen[-1]
    given.codes_BL[:, SCHEDULE.slices[3]] = codes_Bl
    known_BR = torch.cat((torch.zeros(1, SCHEDULE.lengths[2], dtype=torch.bool), known_Bl), dim=1)
    with torch.no_grad():
        loss_Bl = given.losses(masked, known_BR)[:, SCHEDULE.lengths[2] :]
    wanted_Bl = -logits_BlV.log_softmax(dim=-1).gather(-1, codes_Bl.unsqueeze(-1)).squeeze(-1)
    assert 0 < int(known_Bl.sum()) < SCHEDULE.lengths[3]
    assert torch.allclose(loss_Bl, wanted_Bl.masked_fill(known_Bl, 0.0), atol=1e-5)


def test_a_rule_between_neighbours_is_learnt() -> None:
    """All codes of the finest scale are one and the same, which nothing but a known one can tell."""
    transformer, _ = parts()
    masked = MaskedLosses(Refiner(ASKED.network(SCHEDULE), transformer.config).train(), transformer)
    masked.refiner.start_from(transformer, 1.0, 5.0)
    given = Given(transformer, count=4)
    random = torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(masked.refiner.parameters(), lr=5e-3)
    lengths, half = masked.lengths(SCHEDULE), torch.zeros(25, dtype=torch.bool)
    half[12:20] = True
    losses = []
    for _ in range(120):
        given.codes_BL[:, SCHEDULE.slices[3]] = torch.randint(4, (4, 1), generator=random)
        known_BR = (torch.rand(4, sum(lengths), generator=random) < 0.5) | half[: sum(lengths)]
        loss = given.losses(masked, known_BR)[:, lengths[0] :].sum() / (~known_BR[:, lengths[0] :]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.5 < math.log(4)  # without known codes, log 4 at best


@pytest.mark.parametrize("law", ["uniform", "released"])
def test_known_codes_are_drawn_by_their_law(law: Any) -> None:
    torch.manual_seed(0)
    known_BR = draw_known((16, 64), 4000, law, torch.device("cpu"))
    assert known_BR.float().mean().item() == pytest.approx(1 - HIDDEN[law], abs=0.01)
    share_B = known_BR[:, 16:].float().mean(dim=1)
    most = (share_B > 0.75).float().mean().item()  # released: u below cos(3 pi / 8)
    assert most == pytest.approx(0.25 if law == "uniform" else math.cos(3 * math.pi / 8), abs=0.05)


def test_measured_shares_hold_one_another() -> None:
    masks = [known_share((4, 9), share, torch.device("cpu")) for share in SHARES]
    assert [[int(part.sum()) for part in mask.split((4, 9))] for mask in masks] == [[0, 0], [1, 2], [2, 4], [3, 6]]
    assert all(bool((larger | ~smaller).all()) for smaller, larger in pairwise(masks))


def test_held_out_losses_are_those_of_hidden_codes() -> None:
    transformer, masked = parts()
    given, refined = Given(transformer), Refined(transformer, masked, tiny_tokenizer().quantizer)
    refined.share = 0.5
    known_R = known_share(masked.lengths(SCHEDULE), 0.5, torch.device("cpu"))
    with torch.no_grad():
        loss_BL = refined(given.teacher_input_BlE, given.text, codes_BL=given.codes_BL, schedule=SCHEDULE)
        own_BL = transformer(given.teacher_input_BlE, given.text, codes_BL=given.codes_BL)
        expected = given.losses(masked, known_R.expand(2, -1))[:, :9][:, ~known_R[:9]].mean()
        refined.alone = True
        alone_BL = refined(given.teacher_input_BlE, given.text, codes_BL=given.codes_BL, schedule=SCHEDULE)
    hidden_L = torch.cat((torch.ones(FIRST, dtype=torch.bool), ~known_R))
    assert torch.allclose(
        alone_BL[:, SCHEDULE.slices[3]].mean(), own_BL[:, SCHEDULE.slices[3]][:, hidden_L[14:]].mean()
    )
    assert torch.allclose(loss_BL[:, :FIRST], own_BL[:, :FIRST], atol=1e-6)
    assert loss_BL[:, SCHEDULE.slices[2]].mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_run_leaves_the_transformer_and_adds_a_refiner(house: Path, tmp_path: Path) -> None:
    model = train(config(house), data=shards(house), out=tmp_path / "run")
    before = load_file(house / "star" / "model.safetensors")
    after = load_file(model / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"refiner"}
    assert list((tmp_path / "run" / "pictures").glob("samples-*.png"))

    drawn: StarGenerator = build(model)  # type: ignore[assignment]
    assert drawn.refiner is not None
    assert [(plan.scale, plan.steps) for plan in drawn.refiner.config.plans] == [(2, 3), (3, 4)]
    prompts, seeds = ["a red circle", "a blue square"], [1, 2]
    with_it = drawn.generate(prompts, seeds=seeds)
    without = drawn.generate(prompts, seeds=seeds, options=SampleOptions(refine=False))
    assert torch.equal(without, build(house / "star").generate(prompts, seeds=seeds))
    assert not torch.equal(with_it, without)


def test_held_out_losses_are_logged_and_on_the_card(house: Path, tmp_path: Path) -> None:
    model = train(config(house, lr=0.01), data=shards(house), out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [name for name in lines[0] if name.startswith("loss")] == ["loss", "loss_scale/2", "loss_scale/3"]
    last, found = lines[-1], json.loads((tmp_path / "run" / "validation.json").read_text())
    assert [row["size"] for row in found["scales"]] == list(SIZES[2:])
    rows = [list(row["refiner"].values()) for row in found["scales"]]
    before = [list(row["transformer"].values()) for row in found["scales"]]
    assert last["validation_loss"] == pytest.approx(sum(map(sum, rows)) / 8, abs=1e-4)
    gain = (before[0][3] - rows[0][3] + before[1][3] - rows[1][3]) / 2
    assert last["validation_gain_known/0.75"] == pytest.approx(gain, abs=2e-4)
    assert f"| 4 | refiner | {rows[1][0]} | {rows[1][1]} |" in (model / "README.md").read_text()


def test_a_refiner_is_trained_on(house: Path, tmp_path: Path) -> None:
    first = train(config(house), data=shards(house), out=tmp_path / "first")
    run = replace(config(house).run, steps=1)
    still = config(house, run=run, init_from=str(first), lr=1e-12, ema=0.0)
    second = train(still, data=shards(house), out=tmp_path / "second")
    before, after = (load_file(model / "model.safetensors") for model in (first, second))
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in before.items())


def pictures(house: Path) -> Batch:
    return next(Pipeline(DataConfig(shards=tuple(shards(house)), resolution=8), batch_size=4).one_pass())


def test_pictures_are_mirrored_and_moved(house: Path) -> None:
    batch = pictures(house)
    assert torch.equal(altered(batch, 1.0, 0).image_B3HW, batch.image_B3HW.flip(3))
    assert torch.equal(altered(batch, 0.0, 0).image_B3HW, batch.image_B3HW)
    torch.manual_seed(0)
    moved_B3HW = altered(batch, 0.0, 2).image_B3HW
    assert moved_B3HW.shape == batch.image_B3HW.shape
    for moved_3HW, image_3HW in zip(moved_B3HW, batch.image_B3HW, strict=True):
        inner, places = moved_3HW[:, 2:-2, 2:-2], [(y, x) for y in range(5) for x in range(5)]
        assert any(torch.equal(inner, image_3HW[:, y : y + 4, x : x + 4]) for y, x in places)
    assert not torch.equal(moved_B3HW, batch.image_B3HW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "init_from is empty, expected the STAR model"),
        ({"init_from": "nowhere"}, "nowhere is no model directory"),
        ({"refiner": RefinerTraining(scales=4)}, "refiner.scales is 4, but the tokenizer has 4 scales"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_run_begins(
    house: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(config(house, **changes), data=shards(house), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_is_refused(house: Path, tmp_path: Path) -> None:
    other = StarGenerator(tiny_transformer(), tiny_tokenizer(seed=1), tiny_text_encoder(max_tokens=64))
    other._save_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=r"was trained with a tokenizer of digest .* set --tokenizer to .*star"):
        train(config(house, tokenizer=str(tmp_path / "tokenizer")), data=shards(house), out=tmp_path / "run")


def test_codes_cannot_be_altered(house: Path, tmp_path: Path) -> None:
    encode(shards(house), tmp_path / "codes", tokenizer=house / "tokenizer", text_encoder=house / "text")
    asked = config(house, refiner=replace(ASKED, flip=0.5))
    with pytest.raises(InputError, match="the shards hold codes, expected shards of pictures"):
        train(asked, data=[str(tmp_path / "codes")], out=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": 0}, "masks 0, expected at least 1"),
        ({"steps": (4, 4, 4)}, "refiner.steps has 3 numbers for 2 scales"),
        ({"steps": (1,)}, "it needs at least 2 steps"),
        ({"flip": 1.5}, "refiner.flip is 1.5"),
        ({"shift": -1}, "shift -1"),
    ],
)
def test_impossible_refiners_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(ASKED, **changes)


def test_the_transformer_is_not_trained_in_place_of_the_refiner(house: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give it to star\.training\.stages\.train"):
        train_transformer(config(house), data=shards(house), out=tmp_path / "run")


def test_the_command_line_changes_the_refiner() -> None:
    changed = configure("star", "emoji-refiner", ["--refiner.scales=2", "--refiner.steps", "4", "16"])
    assert [(plan.scale, plan.steps) for plan in changed.refiner.network(SCHEDULE).plans] == [(2, 4), (3, 16)]
