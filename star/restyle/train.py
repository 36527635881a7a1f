"""Training of a restyler: shards of subjects drawn in several styles to a network that redraws one style in another.

    star train restyle --preset emoji-cpu --data SHARDS --out RUN        # writes RUN/model
    star data complete SHARDS --model RUN/model --out COMPLETED

Every step: some pictures in target styles, for each one of the same subject in a source style, both mirrored and moved
alike. What is saved is the moving average of the weights.

B pictures, 3 RGB, H W pixels.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from star.data.images import grid, pixels_to_image
from star.data.shards.splits import held_out_shards, training_shards
from star.generators.config import check_ranges, to_dict
from star.generators.training.ema import MovingAverage
from star.generators.training.run import Run, RunConfig
from star.generators.training.schedule import lr_at, set_lr
from star.restyle.model import Restyler, RestylerConfig
from star.restyle.network import RestyleConfig, RestyleNetwork, restyle_loss
from star.restyle.pairs import Collection, Example, Picture, examples, parse_pairs, styles_of, training_examples

PICTURED = 24  # held-out pictures of a sheet
ACROSS = 4  # of them in a row, each with its source and what was made of it


@dataclass(frozen=True, kw_only=True, slots=True)
class RestyleTrainConfig:
    """A whole training of a restyler; the shards to learn from and the folder are given beside it."""

    run: RunConfig
    pairs: tuple[str, ...] = ()  # "source+source>target", see star.restyle.pairs
    network: RestyleConfig = field(default_factory=RestyleConfig)  # without styles, those of the pairs are put in
    resolution: int = 64  # pixels
    learning_rate: float = 2e-3
    lr_floor: float = 0.02  # of the learning rate, at the end of a cosine
    warmup: int = 20  # steps
    weight_decay: float = 0.01
    beta2: float = 0.95
    shift: int = 3  # pixels, at most, both pictures alike
    mirror: bool = True  # half of the pairs, both pictures alike
    ema: float = 0.99  # of the weights, once the run is long enough

    def __post_init__(self) -> None:
        check_ranges(self, shift=(0, self.resolution))
        if self.pairs:
            _ = self.restyler

    @property
    def restyler(self) -> RestylerConfig:
        """Of what is saved. Raises InputError for impossible pairs, or styles and a resolution that do not suit."""
        styles = self.network.styles or styles_of(parse_pairs(self.pairs))
        network = replace(self.network, styles=styles)
        return RestylerConfig(pairs=self.pairs, network=network, resolution=self.resolution)


EMOJI_PAIRS = ("emojitwo>emojitwo_bw", "fluent_flat+fluent_color+fluent_3d>fluent_high_contrast")
PRESETS: dict[str, RestyleTrainConfig] = {
    "emoji-cpu": RestyleTrainConfig(
        run=RunConfig(steps=600, batch_size=24, precision="bf16", log_every=20, sample_every=200, checkpoint_every=100),
        pairs=EMOJI_PAIRS,
    ),
    "test": RestyleTrainConfig(
        run=RunConfig(steps=8, batch_size=4, log_every=1, sample_every=4, checkpoint_every=4),
        pairs=("flat>outline",),
        network=RestyleConfig(widths=(8, 8), blocks=(1, 1), style_width=8),
        resolution=16,
        warmup=2,
        shift=1,
    ),
}


def train(config: RestyleTrainConfig, *, data: Sequence[str], out: str | Path, resume: bool = False) -> Path:
    """Trains on the training shards among `data` and returns the model's directory, `out/model`.

    Pairs whose target is held out are measured every `run.sample_every` steps, and never learnt from. Raises InputError
    for shards without pairs, or an unusable folder, and Stopped where a signal ended the run early.
    """
    out, restyler, pairs = Path(out), config.restyler, parse_pairs(config.pairs)
    shards = training_shards(data)
    run = Run(out, config.run, to_dict(config) | {"shards": [Path(shard).name for shard in shards]}, resume)
    collection = Collection.read(shards, config.resolution, pairs)
    learnt = training_examples(pairs, collection)
    measured = _measured(held_out_shards(data), config, collection)
    run.say(f"{len(learnt)} pictures to learn to redraw, {len(measured)} held out")

    places = {style: place for place, style in enumerate(restyler.network.styles)}
    network = RestyleNetwork(restyler.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = MovingAverage(network, lambda: min(config.ema, (run.step + 1) / (run.step + 10))).to(run.device)
    averaged = average.module
    assert isinstance(averaged, RestyleNetwork)
    network = run.prepare(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, config.beta2), weight_decay=config.weight_decay
    )
    run.track(network=network, optimizer=optimizer, average=average)
    run.restore()
    for step in run.steps():
        rate = lr_at(
            step, peak=config.learning_rate, steps=run.total_steps, warmup=config.warmup, floor=config.lr_floor
        )
        set_lr(optimizer, rate)
        for _ in run.micro_steps(network):
            rng = random.Random(random.getrandbits(64))  # seeded by the run in every step
            drawn = [(one.draw(rng), one.target) for one in _some(learnt, run.micro_batch_size, rng)]
            given_B, wanted_B = (
                torch.tensor([places[picture.style] for picture in several], device=run.device)
                for several in zip(*drawn, strict=True)
            )
            source_B3HW, target_B3HW = (part.to(run.device) for part in _moved(drawn, config, rng))
            with run.autocast():
                logits_B3HW = network(source_B3HW.contiguous(memory_format=torch.channels_last), given_B, wanted_B)
            loss = restyle_loss(logits_B3HW, target_B3HW)
            run.backward(loss)
            run.log({"loss": loss}, images=len(drawn))
        run.log({"grad_norm": run.clip(network.parameters()), "lr": rate})
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(run.unwrap(network))
        if measured and run.sample_due(step):
            sheet_3HW, l1 = measure(Restyler(restyler, averaged), measured)
            run.log({"validation/l1": l1})
            run.picture("held-out", sheet_3HW, step)
    if run.is_main:
        Restyler(restyler, averaged).save(out / "model", card=_card(run, config, len(learnt)))
        run.say(f"wrote {out / 'model'}")
    return out / "model"


def measure(restyler: Restyler, measured: Sequence[Example]) -> tuple[Tensor, float]:
    """A sheet, pixels_3HW, of (source, redrawn, true) of some, and the mean difference of all, as a share of 255."""
    total, shown = 0.0, []
    every = -(-len(measured) // PICTURED)
    for number, example in enumerate(measured):
        source, target = example.sources[0][0], example.target
        redrawn_3HW = restyler.redraw(source.pixels_3HW[None], [source.style], target.style)[0]
        total += float((redrawn_3HW.float() - target.pixels_3HW.float()).abs().mean()) / 255
        if number % every == 0:
            shown += [source.pixels_3HW, redrawn_3HW, target.pixels_3HW]
    return grid(torch.stack(shown), 3 * ACROSS), total / len(measured)


def _measured(shards: Sequence[str], config: RestyleTrainConfig, training: Collection) -> list[Example]:
    """Held-out pictures in target styles, each with pictures of its subject, held out or not, to redraw it from."""
    if not shards:
        return []
    pairs = parse_pairs(config.pairs)
    held_out = Collection.read(shards, config.resolution, pairs)
    return examples(pairs, held_out, training, held_out)


def _some(learnt: Sequence[Example], count: int, rng: random.Random) -> list[Example]:
    """Different ones where there are as many."""
    return rng.sample(learnt, count) if count <= len(learnt) else rng.choices(learnt, k=count)


def _moved(
    drawn: Sequence[tuple[Picture, Picture]], config: RestyleTrainConfig, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """image_B3HW of sources and targets, each two mirrored and moved alike; edges are continued."""
    size, reach = config.resolution, config.shift
    moved: list[Tensor] = []
    for pictures in drawn:
        both_23HW = pixels_to_image(torch.stack([picture.pixels_3HW for picture in pictures]))
        if config.mirror and rng.random() < 0.5:
            both_23HW = both_23HW.flip(-1)
        down, right = rng.randint(0, 2 * reach), rng.randint(0, 2 * reach)
        both_23HW = F.pad(both_23HW, (reach,) * 4, mode="replicate")
        moved.append(both_23HW[:, :, down : down + size, right : right + size])
    source_B3HW, target_B3HW = torch.stack(moved, dim=1)
    return source_B3HW, target_B3HW


def _card(run: Run, config: RestyleTrainConfig, count: int) -> str:
    return (
        f"# A restyler\n\nRedraws pictures of {config.resolution} px: {', '.join(config.pairs)}. Trained for "
        f"{run.step} steps on {count} pictures in the target styles (seed {config.run.seed}). What it makes is made, "
        f"not drawn by an artist.\n\nRecipe:\n\n```json\n{json.dumps(to_dict(config), indent=1)}\n```\n"
    )
