"""Held-out pictures: shared out over processes, and computed in portions that are stated beforehand.

Processes are threads here, whose collectives meet at a barrier; `test_sharded_numerics` has real ones.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import star.tokenizer.portions
import star.training.validation
from star.data.loader.batch import Batch
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generators.training.run import RunConfig
from star.model.losses import token_losses
from star.model.transformer import NextScaleTransformer
from star.tiny import VOCABULARY, tiny_tokenizer, tiny_transformer
from star.tokenizer.portions import at_once, loaded_at_once
from star.tokenizer.tokens import Codes
from star.training.inputs import Encoder
from star.training.validation import Measured, Validation, is_held_out, shared_out


class Processes:
    """Runs a function in so many threads, each with what `star.training.validation` needs of a run."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier = world, threading.Barrier(world, timeout=60)
        self.given: dict[int, Tensor] = {}

    def all(self, rank: int, tensor: Tensor) -> list[Tensor]:
        self.given[rank] = tensor
        self.barrier.wait()
        found = [self.given[other] for other in range(self.world)]
        self.barrier.wait()
        return found

    def run(self, rank: int) -> Any:
        accelerator = SimpleNamespace(
            gather=lambda tensor: torch.cat(self.all(rank, tensor)),
            reduce=lambda tensor, _how: torch.stack(self.all(rank, tensor)).sum(dim=0),
        )
        return SimpleNamespace(
            rank=rank,
            world=self.world,
            device=torch.device("cpu"),
            accelerator=accelerator,
            config=RunConfig(steps=1),
            autocast=lambda: torch.autocast("cpu", enabled=False),
        )

    def each(self, work: Callable[[Any], Any]) -> list[Any]:
        results: dict[int, Any] = {}

        def one(rank: int) -> None:
            try:
                results[rank] = work(self.run(rank))
            except BaseException:
                self.barrier.abort()
                raise

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[rank] for rank in range(self.world)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder, count=46, size=8, test=0)
    return folder / "train"


def pipeline(shards: Path, **changes: Any) -> Pipeline:
    resolution = tiny_tokenizer().resolution
    return Pipeline(DataConfig(shards=(str(shards),), resolution=resolution, **changes), batch_size=4)


def encoder() -> Encoder:
    return Encoder(tiny_tokenizer(), tiny_text_encoder(max_tokens=16), torch.device("cpu"))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("most", [7, 1000])
def test_the_same_samples_are_chosen_by_any_number_of_processes(shards: Path, cache: bool, most: int) -> None:
    every = [key for batch in pipeline(shards).one_pass() for key in batch.keys]
    expected = [key for key in every if is_held_out(key, 0.5)][:most]
    assert len(expected) == most or len(expected) > 15
    for world in (1, 2, 3):

        def keys(run: Any) -> list[str]:
            batches = shared_out(pipeline(shards, cache=cache), run, lambda key: is_held_out(key, 0.5), most)
            return [key for batch in batches for key in batch.keys]

        parts = Processes(world).each(keys)
        assert sorted(key for part in parts for key in part) == sorted(expected), world
        assert max(map(len, parts)) < len(expected) or world == 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_losses_and_frequencies_do_not_depend_on_the_number_of_processes(
    shards: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process of three has no picture at all, and computes along."""
    monkeypatch.setattr(star.training.validation, "looked_at_once", lambda *_, **__: 3)
    training_inputs, batches = encoder(), list(pipeline(shards).one_pass())
    networks = [tiny_transformer() for _ in range(world)]
    schedule = networks[0].schedule
    codes = [training_inputs.targets(batch).codes_BL for batch in batches]
    with torch.no_grad():
        loss_BL = torch.cat([direct(networks[0], training_inputs, batch) for batch in batches[:4]])
    expected_K = torch.stack([part.mean() for part in loss_BL.split(schedule.lengths, dim=1)])
    kind = Codes(VOCABULARY)
    train_KV, held_KV = (kind.counts(schedule.split(torch.cat(some)[:30])) for some in (codes, codes[:4]))
    unigram_K = kind.unigram_nats(train_KV, held_KV)
    seen: list[int] = []
    for network in networks:
        network.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))

    def measure(run: Any) -> tuple[Tensor, Tensor, int]:
        mine = batches[:4] if world == 1 else [batches[:3], batches[3:4], []][run.rank]
        validation = Validation(training_inputs, iter(mine), run)
        validation.count_codes(training_inputs, pipeline(shards), most=30)
        return validation.losses(networks[run.rank]), validation.unigram_K, validation.pictures

    for found in Processes(world).each(measure):
        torch.testing.assert_close(found, (expected_K, unigram_K, 16))
    assert max(seen) == 3


def direct(network: NextScaleTransformer, training_inputs: Encoder, batch: Batch) -> Tensor:
    targets = training_inputs.targets(batch)
    logits_BLV = network(targets.teacher_input_BlE, training_inputs.batch_text(batch, batch.prompts))
    return token_losses(logits_BLV, targets.codes_BL)


def test_without_pictures_there_are_no_losses() -> None:
    measured, network = Measured(encoder(), iter(())), tiny_transformer()
    losses_K = Processes(2).each(lambda run: measured.losses(network, run))[0]
    assert losses_K.isnan().all()


def test_pictures_are_encoded_in_portions(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(pipeline(shards).one_pass())
    whole = encoder()
    assert whole.portion == 64
    each = star.tokenizer.portions.map_bytes(whole.tokenizer.config.autoencoder, whole.tokenizer.resolution)
    monkeypatch.setattr("star.training.inputs.at_once", lambda bytes_each: at_once(bytes_each, budget=3 * each))
    parts, seen = encoder(), []
    parts.tokenizer.load_state_dict(whole.tokenizer.state_dict())
    parts.tokenizer.encoder.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    torch.testing.assert_close(parts.latents(batch), whole.latents(batch))
    assert seen == [3, 1]


def test_how_many_are_computed_at_once() -> None:
    assert at_once(10, budget=35) == 3
    assert at_once(100, budget=35) == 1  # one must be possible, and the plan says whether it is
    assert at_once(1, budget=10**9) == 64
    assert loaded_at_once(64) == 64
    assert 12 * 1024**2 * loaded_at_once(1024) < 300e6
    assert loaded_at_once(64, most=5) == 5
