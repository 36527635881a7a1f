"""What `star train star` begins: the training of a transformer, or of a refiner behind one where the config has it."""

from collections.abc import Sequence
from pathlib import Path

from star.training.config import TrainConfig
from star.training.train import train as train_transformer
from star.training.train_refiner import train_refiner


def train(config: TrainConfig, *, data: Sequence[str], out: str | Path, resume: bool = False) -> Path:
    """Trains on shards and returns the model directory written at the end; see `train` and `train_refiner`."""
    begin = train_transformer if config.refiner is None else train_refiner
    return begin(config, data=data, out=out, resume=resume)
