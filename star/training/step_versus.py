"""A training step of ours against the released arithmetic (baseline.py), in turn: A B A B ..., and the memory of each.

    task = StepTask.of(config, batch=8, device=torch.device("cpu"), half=True)
    sides = [RepeatedStep(task, side) for side in ("ours", "baseline")]
    found = alternate(sides, repetitions=5)
    found.ratio  # how many times as long the baseline takes, median over pairs

A step is forward, backward, clipping, AdamW and, in ours, the moving average (the released trainer has none), on random
codes and text that stay the same: no data, no tokenizer. All tokens of all scales take part, whatever share of
them the config leaves out. B batch, L tokens of all scales, E code width, T text tokens, D text width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

from star.data.text import TextFeatures
from star.generators.measuring import now, peak, reset_peak
from star.generators.training.ema import MovingAverage
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.planning.flops import needed
from star.planning.plan import TEXT_TOKENS, Shapes
from star.training.baseline import BaselineNetwork
from star.training.config import TrainConfig
from star.training.optimizers import make_optimizers, parameter_groups
from star.training.presets import PRESETS
from star.training.train import compile_blocks
from star.untrained import config_of

Side = Literal["ours", "baseline", "baseline-eager"]
SIDES: tuple[Side, ...] = ("ours", "baseline", "baseline-eager")
WARM_UP = 2  # steps of each side that do not count: memory, moments, compiled blocks
SHORT = 1024  # tokens up to which written-out products beat the fused kernel on a CPU, and the mask is small


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTask:
    """What both sides do. config: a preset's; of it count network, dropout, optimiser and average. half: bfloat16."""

    config: TrainConfig
    network: TransformerConfig
    batch: int
    device: torch.device
    half: bool
    text_tokens: int = TEXT_TOKENS

    @classmethod
    def of(cls, config: TrainConfig, *, batch: int, device: torch.device, half: bool) -> "StepTask":
        """The network that a preset prescribes, its attention as this device has it.

        Raises InputError where the directories that say its shape are missing.
        """
        shapes = Shapes.of(config)
        network = config.fresh_network(
            sizes=shapes.sizes,
            vocabulary=shapes.vocabulary,
            code_width=shapes.code_width,
            text_width=shapes.text_width,
            bits=shapes.bits,
        )
        network = replace(network, attention=attention_on(device, network))
        return cls(
            config=config, network=network, batch=batch, device=device, half=half, text_tokens=shapes.text_tokens
        )

    @classmethod
    def of_shape(cls, name: str, *, batch: int, device: torch.device, half: bool = True) -> "StepTask":
        """A released shape such as d16-256 by the recipe that trains those, its blocks compiled on a GPU.

        Raises InputError for other names.
        """
        config = replace(PRESETS["star-d16-256"], compile=device.type == "cuda")
        network = replace(config_of(name), attention=config.attention)
        network = replace(network, attention=attention_on(device, network))
        return cls(config=config, network=network, batch=batch, device=device, half=half)

    @property
    def flops(self) -> int:
        """FLOPs that a step cannot do without, the same for both sides: no pair of tokens that nobody sees."""
        return self.batch * needed(self.network, self.network.schedule.lengths, self.text_tokens)


def attention_on(device: torch.device, network: TransformerConfig) -> Literal["sdpa", "eager", "scalewise", "flex"]:
    """The attention of a preset that is written for GPUs, on a CPU; see attention_backends.py."""
    if device.type != "cpu" or network.attention in ("eager", "scalewise"):
        return network.attention
    return "eager" if network.schedule.length <= SHORT else "scalewise"


class RepeatedStep:
    """One training step that can be repeated, of one side. Both sides start from the same weights and inputs."""

    def __init__(self, task: StepTask, side: Side, cut: Callable[[NextScaleTransformer], None] | None = None) -> None:
        """cut: makes pieces of our network and of its average, see fsdp_step.py."""
        self.task, self.side, self.cut, config = task, side, cut, task.config
        torch.manual_seed(0)
        self.network = NextScaleTransformer(task.network).to(task.device).train()
        generator = torch.Generator().manual_seed(0)
        self.input_BlE, self.codes_BL, self.text = _inputs(task, generator)
        self.average: MovingAverage | None = None
        if side == "ours":
            self.model: nn.Module = self.network
            self.average = MovingAverage(self.network, lambda: config.ema)
            for network in (self.average.module, self.network) if cut is not None else ():
                cut(network)  # type: ignore[misc, arg-type]
            if config.compile:
                compile_blocks(self.network, task.device)
            (self.optimizer,) = make_optimizers(replace(config, optimizer="adamw"), self.network).values()
        else:
            self.model = BaselineNetwork(self.network, written_out=side == "baseline-eager").train()
            groups = parameter_groups(self.network, config.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, foreach=True)

    def losses(self) -> Tensor:
        """Nats of every token, float32 (B, L)."""
        kind, half, whole = self.task.device.type, self.task.half, self.cut is None
        with torch.autocast(kind, torch.bfloat16, enabled=half, cache_enabled=whole):
            loss_BL: Tensor = self.model(self.input_BlE, self.text, codes_BL=self.codes_BL)
        return loss_BL

    def __call__(self) -> Tensor:
        """The mean loss before the step, a scalar on the device."""
        loss = self.losses().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.task.config.run.grad_clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss.detach()


@dataclass(frozen=True, kw_only=True, slots=True)
class StepVersus:
    """Seconds of every step of two sides, taken in turn. flops: see StepTask. tokens: of a step."""

    sides: tuple[Side, Side]
    seconds: tuple[tuple[float, ...], tuple[float, ...]]
    batch: int
    tokens: int
    flops: int

    @property
    def ratios(self) -> tuple[float, ...]:
        """Time of the second over that of the first, pair by pair."""
        return tuple(two / one for one, two in zip(*self.seconds, strict=True))

    @property
    def ratio(self) -> float:
        """Median of `ratios`."""
        return median(self.ratios)

    def median(self, side: int) -> float:
        """Seconds of a step of the first (0) or second (1) side."""
        return median(self.seconds[side])


def alternate(first: RepeatedStep, second: RepeatedStep, repetitions: int) -> StepVersus:
    """Both in turn, after WARM_UP steps of each that do not count (there blocks are compiled)."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(-WARM_UP, repetitions):
        for one, spent in zip((first, second), found, strict=True):
            start = now(one.task.device)
            one()
            if number >= 0:
                spent.append(now(one.task.device) - start)
    task = first.task
    return StepVersus(
        sides=(first.side, second.side),
        seconds=(tuple(found[0]), tuple(found[1])),
        batch=task.batch,
        tokens=task.batch * task.network.schedule.length,
        flops=task.flops,
    )


def peak_of(task: StepTask, side: Side, threads: int | None = None) -> int:
    """Bytes at most in use in a step, weights, moments and average included; for a process of its own.

    On a GPU what torch allocated; on a CPU by how much the resident memory of the process exceeds what it was before
    the networks were made. Compiled code counts there, too.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    reset_peak(task.device)
    before = peak(task.device)
    step = RepeatedStep(task, side)
    for _ in range(WARM_UP):
        step()
    reset_peak(task.device)
    step()
    return peak(task.device) - before


def _inputs(task: StepTask, generator: torch.Generator) -> tuple[Tensor, Tensor, TextFeatures]:
    """Teacher input (B, L - l_0, E), codes (B, L), and texts of several lengths, all random."""
    network, batch = task.network, task.batch
    length, first = network.schedule.length, network.schedule.lengths[0]
    input_BlE = torch.randn(batch, length - first, network.code_width, generator=generator)
    if network.bits:
        codes_BL = torch.randint(2, (batch, length, network.bits), generator=generator)
    else:
        codes_BL = torch.randint(network.vocabulary, (batch, length), generator=generator)
    used_B = torch.randint(1, task.text_tokens + 1, (batch,), generator=generator)
    mask_BT = torch.arange(task.text_tokens) < used_B[:, None]
    tokens_BTD = torch.randn(batch, task.text_tokens, network.text_width, generator=generator) * mask_BT[..., None]
    text = TextFeatures(tokens_BTD, mask_BT, tokens_BTD[:, 0].clone())
    return input_BlE.to(task.device), codes_BL.to(task.device), text.to(task.device)
