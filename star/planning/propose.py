"""What does fit, where a step as it was asked for does not: the largest micro-batch under each way of saving memory.

    for one in proposals(config, shapes, gpus=1, gpu="h100", images=0, utilisation=0.4): print(one.options, one.days)

The batch of a step stays as it is, so that the same is learnt: smaller micro-batches are accumulated to it.
"""

from dataclasses import dataclass, replace
from itertools import product

from star.planning.plan import GPUS, USABLE, Shapes, needs, shape_of, size_of, work_done
from star.training.config import TrainConfig

HEADER = ("at once", "accumulated", "sharding", "checkpointing", "precision", "memory", "days", "options")


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A setting that fits on the devices."""

    config: TrainConfig
    per_device: int  # pictures at once on a device
    peak: int  # bytes on a device
    days: float  # of computing
    options: str  # what to add to the command

    def cells(self) -> tuple[str, ...]:
        """In the order of HEADER."""
        run = self.config.run
        checkpointing = "yes" if self.config.checkpointing else "no"
        numbers = (str(self.per_device), str(run.accumulate))
        return (
            *numbers,
            run.sharding,
            checkpointing,
            run.precision,
            size_of(self.peak),
            f"{self.days:,.2f}",
            self.options,
        )


def proposals(
    config: TrainConfig, shapes: Shapes, *, gpus: int, gpu: str, images: int = 0, utilisation: float = 0.4
) -> list[Proposal]:
    """For each sharding, checkpointing and precision the largest micro-batch that fits, the fastest first.

    bf16 is proposed beside float32, never the other way round; arguments as of `plan`. Empty if nothing fits.
    """
    found = []
    each_device = (images or config.run.steps * config.run.batch_size) / (gpus * utilisation)
    precisions = ("no", "bf16") if config.run.precision == "no" else ("bf16",)
    shardings = ("none", "fsdp2") if gpus > 1 else ("none",)
    for precision, sharding, checkpointing in product(precisions, shardings, (False, True)):
        run = replace(config.run, precision=precision, sharding=sharding)  # type: ignore[arg-type]
        one = _largest(replace(config, run=run, checkpointing=checkpointing), config, shapes, gpus, gpu, each_device)
        if one is not None:
            found.append(one)
    return sorted(found, key=lambda one: (one.days, one.config.run.sharding == "fsdp2", one.config.run.accumulate))


def table(found: list[Proposal]) -> str:
    """Aligned lines, for a terminal."""
    rows = [HEADER, *(one.cells() for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _largest(
    config: TrainConfig, asked: TrainConfig, shapes: Shapes, gpus: int, gpu: str, each_device: float
) -> Proposal | None:
    """each_device: pictures that a device would have to do at full use."""
    device = GPUS[gpu]
    network, lengths, shares = shape_of(config, shapes)
    each = config.run.batch_size // gpus
    for per_device in (count for count in range(each, 0, -1) if each % count == 0):
        needed, _ = needs(config, network, lengths, per_device, gpus)
        if needed.peak > device.memory * USABLE:
            continue
        config = replace(config, run=replace(config.run, accumulate=each // per_device))
        done = work_done(config, network, shares)
        speed = (device.half if config.run.precision == "bf16" else device.full) / done.total
        options = _options(config, asked)
        days = each_device / speed / 86400
        return Proposal(config=config, per_device=per_device, peak=needed.peak, days=days, options=options)
    return None


def _options(config: TrainConfig, asked: TrainConfig) -> str:
    """The fields that differ, as they are typed."""
    changes = {
        "--run.accumulate": (config.run.accumulate, asked.run.accumulate),
        "--run.sharding": (config.run.sharding, asked.run.sharding),
        "--run.precision": (config.run.precision, asked.run.precision),
        "--checkpointing": (str(config.checkpointing).lower(), str(asked.checkpointing).lower()),
    }
    return " ".join(f"{name}={new}" for name, (new, old) in changes.items() if new != old) or "as asked"
