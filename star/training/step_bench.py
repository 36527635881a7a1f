"""What of a training step of the next-scale transformer goes to data: with pictures, and with codes made beforehand.

The pieces are those of `train`, under a clock; what is learnt is thrown away.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.splits import training_shards
from star.data.shards.tar import read_shard
from star.data.shards.write import write_shard
from star.model.transformer import NextScaleTransformer
from star.precomputed.dataset import EncodedReader, EncodedShards
from star.precomputed.encode import encode
from star.precomputed.format import encoding_of
from star.training.config import TrainConfig
from star.training.frozen_networks import FrozenNetworks
from star.training.inputs import Encoder, TrainingInputs
from star.training.optimizers import parameter_groups
from star.training.targets import scale_weights
from star.training.train import compile_blocks

WARM_UP = 3  # steps that are not counted: workers start, memory is allocated, blocks are compiled


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShares:
    """Pictures per second of training, and the shares of a step: waiting for batches, making inputs of them, the rest.

    TrainingInputs are the work of tokenizer and text encoder, or what is left of it with codes.
    """

    codes: bool
    workers: int
    per_second: float
    waiting: float
    training_inputs: float

    @property
    def network(self) -> float:
        """Forward, backward and the optimiser."""
        return 1 - self.waiting - self.training_inputs


def compare(
    config: TrainConfig, data: Sequence[str], workers: Sequence[int], *, steps: int = 20
) -> Iterator[StepShares]:
    """Measures steps on pictures, then on codes of the same pictures, for every number of workers.

    As many pictures as there are steps for are copied from the shards into one of their own.

    Raises InputError for data or a config that cannot be trained on, and for shards that are encoded already.
    """
    shards = training_shards(data)
    if encoding_of(shards) is not None:
        raise InputError(f"{data[0]} holds encoded shards; give shards of pictures, which both ways begin with.")
    with tempfile.TemporaryDirectory() as folder:
        pictures, codes_folder = Path(folder) / "train.tar", Path(folder) / "codes"
        write_shard(pictures, _some(shards, (WARM_UP + steps) * config.run.batch_size))
        encode(
            [str(pictures)],
            codes_folder,
            tokenizer=config.tokenizer,
            text_encoder=config.text_encoder,
            crop=config.crop,
            latents=config.code_noise > 0,
        )
        for codes in (False, True):
            for number in workers:
                place = codes_folder if codes else pictures
                yield _measure(config, training_shards([str(place)]), number, steps)


def _some(shards: Sequence[str], count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys and members of the first samples."""
    groups = (group for shard in shards for group in read_shard(shard, []))
    for group in islice(groups, count):
        yield group.key, {name: data for name, data in group.members.items() if isinstance(data, bytes)}


def _measure(config: TrainConfig, shards: tuple[str, ...], workers: int, steps: int) -> StepShares:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = config.run.precision == "bf16"
    encoding = encoding_of(shards)
    frozen = FrozenNetworks(config.tokenizer, config.text_encoder, encoding)
    training_inputs: TrainingInputs
    if encoding is None:
        training_inputs = Encoder(*frozen.networks(device), device, half=half)
    else:
        training_inputs = EncodedShards(encoding, device)
    network = config.network(frozen)
    model = NextScaleTransformer(network).to(device).train()
    if config.compile:
        compile_blocks(model, device)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, fused=True)
    weights_L = scale_weights(network.schedule.lengths, config.scale_power).to(device)
    settings = DataConfig(
        shards=shards, resolution=frozen.tokenizer.resolution, crop=config.crop, workers=workers, seed=config.run.seed
    )
    reader = None if encoding is None else EncodedReader(encoding.config)
    batches = Pipeline(settings, batch_size=config.run.batch_size, reader=reader).batches()
    marks: list[tuple[float, float, float]] = []
    for _ in range(WARM_UP + steps):
        began = time.monotonic()
        batch = next(batches)
        got = time.monotonic()
        targets = training_inputs.targets(batch, noise=config.code_noise, neighbours=config.noise_neighbours)
        text = training_inputs.batch_text(batch, batch.prompts)
        _wait(targets.teacher_input_BlE)
        prepared = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss_BL = model(targets.teacher_input_BlE, text, codes_BL=targets.codes_BL)
        (loss_BL.mean(dim=0) * weights_L).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(loss_BL)
        marks.append((got - began, prepared - got, time.monotonic() - began))
    waiting, teaching, total = (sum(part) for part in zip(*marks[WARM_UP:], strict=True))
    return StepShares(
        codes=encoding is not None,
        workers=workers,
        per_second=steps * config.run.batch_size / total,
        waiting=waiting / total,
        training_inputs=teaching / total,
    )


def _wait(tensor: Tensor) -> None:
    """Until the device has computed it."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
