"""A tokenizer aligned to another: its coarse codes keep their meaning, and a transformer may change over to it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.listing import list_shards
from star.generators.training.run import RunConfig
from star.tokenizer.align import AlignmentTeacher, alignment_loss
from star.tokenizer.codebook import CodebookConfig, CodebookTrainer
from star.tokenizer.config import TokenizerTrainConfig
from star.tokenizer.presets import PRESETS
from star.tokenizer.quantizer import Quantizer, QuantizerConfig
from star.tokenizer.tokenizer import MultiScaleTokenizer, TokenizerConfig
from star.tokenizer.train import train

# The preset "test" makes 2 of 16 pixels (8 a cell and 4 a patch); the finer one has cells of half the side.
CODES = QuantizerConfig(vocabulary=32, code_width=8, sizes=(1, 2, 4))
OLD = replace(PRESETS["test"].network, quantizer=replace(CODES, sizes=(1, 2)))
FINE = TokenizerConfig(autoencoder=replace(OLD.autoencoder, multipliers=(1,)), quantizer=CODES)


def config(**changes: object) -> TokenizerTrainConfig:
    run = RunConfig(steps=60, batch_size=12, log_every=1, sample_every=0, checkpoint_every=60, trackers=())
    return replace(PRESETS["test"], **{"run": run, "network": OLD, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def old(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("old")
    return train(config(lr=3e-3, dtype="float32"), data=[str(shards / "train")], out=out, resume=False)


def images(shards: Path) -> list[Tensor]:
    settings = DataConfig(shards=tuple(list_shards([str(shards / "train")])), resolution=16)
    return [batch.image_B3HW for batch in Pipeline(settings, batch_size=8).one_pass()]


def test_the_finer_tokenizer_learns_to_say_what_the_old_one_said(shards: Path, old: Path, tmp_path: Path) -> None:
    def distance(tokenizer: MultiScaleTokenizer) -> float:
        """Of the averaged latents from the old ones, as a share of these."""
        teacher, parts = MultiScaleTokenizer.from_directory(old), images(shards)
        pairs = [(tokenizer.image_to_latent(part), teacher.image_to_latent(part) / scale) for part in parts]
        return sum(float(alignment_loss(*pair)) for pair in pairs) / len(pairs)

    first = AlignmentTeacher(str(old), FINE, torch.device("cpu"), keep=False)
    scale = first.mark.scale
    fine = config(network=FINE, align_to=str(old), align_weight=2.0, lr=3e-3, codebook=CodebookConfig(hold=10_000))
    directory = train(
        replace(fine, run=replace(fine.run, steps=200)), data=[str(shards / "train")], out=tmp_path, resume=False
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss_alignment"] > 0.9
    assert lines[-1]["loss_alignment"] < 0.2
    aligned = MultiScaleTokenizer.from_directory(directory)
    with torch.no_grad():
        assert distance(aligned) < 0.2 < 0.9 < distance(MultiScaleTokenizer(FINE).eval())

    teacher = MultiScaleTokenizer.from_directory(old)
    mark = aligned.aligned_to
    assert mark is not None
    assert mark.digest == teacher.digest
    assert isinstance(aligned.quantizer, Quantizer)
    assert isinstance(teacher.quantizer, Quantizer)
    book, theirs = aligned.quantizer.codebook.weight, teacher.quantizer.codebook.weight
    torch.testing.assert_close(book * mark.scale, theirs, rtol=1e-2, atol=1e-4)
    assert book.square().mean().sqrt() == pytest.approx(1, abs=0.01)


def test_without_alignment_the_model_is_not_marked(old: Path) -> None:
    assert MultiScaleTokenizer.from_directory(old).aligned_to is None


def test_latents_that_were_kept_are_those_computed(shards: Path, old: Path) -> None:
    settings = DataConfig(shards=tuple(list_shards([str(shards / "train")])), resolution=16)
    batch = next(Pipeline(settings, batch_size=8).one_pass())
    keeps, computes = (AlignmentTeacher(str(old), FINE, torch.device("cpu"), keep=keep) for keep in (True, False))
    computed = computes.latents(batch)
    teacher = MultiScaleTokenizer.from_directory(old)
    torch.testing.assert_close(computed * computes.mark.scale, teacher.image_to_latent(batch.image_B3HW))
    first = keeps.latents(batch)
    torch.testing.assert_close(first, computed)
    assert torch.equal(keeps.latents(batch), first)
    again = AlignmentTeacher(
        str(old), FINE, torch.device("cpu"), keep=True
    )  # as a resumed run has it, in other company
    assert torch.equal(again.latents(batch.pick([5, 2])), first[[5, 2]])
    assert torch.equal(again.latents(batch), first)
    assert alignment_loss(torch.nn.functional.interpolate(computed, scale_factor=2.0), computed) < 1e-12
    assert alignment_loss(torch.zeros(8, 8, 4, 4), computed) == pytest.approx(1)


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (replace(FINE, quantizer=replace(CODES, vocabulary=64)), "codes 32"),
        (replace(FINE, quantizer=replace(FINE.quantizer, sizes=(2, 4))), r"first scales \(1, 2\)"),
        (replace(FINE, quantizer=replace(FINE.quantizer, sizes=(1, 2, 3))), "resolution 16"),
    ],
)
def test_tokenizers_that_cannot_agree_are_refused(old: Path, network: TokenizerConfig, named: str) -> None:
    with pytest.raises(InputError, match=named):
        AlignmentTeacher(str(old), network, torch.device("cpu"), keep=False)


def test_a_known_codebook_is_held_and_then_moves_slowly() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(QuantizerConfig(vocabulary=32, code_width=4, sizes=(1, 2)))
    with torch.no_grad():
        quantizer.codebook.weight.normal_()
    before = quantizer.codebook.weight.detach().clone()
    trainer = CodebookTrainer(quantizer, CodebookConfig(decay=0.9, scale_floor=0.0, hold=3), known=True)
    moved = []
    for _ in range(5):
        reborn = trainer.update(quantizer, quantizer.encode(torch.randn(16, 4, 2, 2)))
        assert reborn == 0
        moved.append(float((quantizer.codebook.weight.detach() - before).norm() / before.norm()))
    assert moved[:3] == [0, 0, 0]
    assert 0 < moved[3] < moved[4] < 0.2
