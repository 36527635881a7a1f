"""Training of judge-emoji: captioned shards to the feature network of the metrics, a model directory.

    star train judge --preset emoji-cpu --data SHARDS --out RUN      # writes RUN/model
    star.eval.extractors.extractor.extractor("judge-emoji")                           # the one that ships

A classifier with four heads: subject, style, category (cross-entropy with smoothed labels) and tags (each yes or no).
The labels are those found in the training shards; what is held out is measured, and never learnt from.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from star.data.errors import InputError
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.shards.splits import held_out_shards, training_sources
from star.eval.extractors.classifier import FAMILY, PHRASES, ClassifierConfig, ClassifierNetwork, phrases_of
from star.generators.config import to_dict
from star.generators.pretrained import ModelDirectory, write
from star.generators.training.data_feed import CachedFeedConfig, Feed
from star.generators.training.run import Run, RunConfig
from star.generators.training.schedule import lr_at, set_lr

SINGLE = ("subject", "style", "category")  # heads of which one label is true
NONE = -100  # the label of a picture that has none, or one never seen in training


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierTrainConfig(CachedFeedConfig):
    """A whole training of a classifier; the shards to learn from and the folder are given beside it."""

    network: ClassifierConfig = field(default_factory=ClassifierConfig)  # its labels are found in the shards
    learning_rate: float = 3e-3
    warmup: int = 100  # steps
    weight_decay: float = 0.05
    smoothing: float = 0.1  # share of a label given to all others
    tag_weight: float = 100.0  # of the tags' loss, a mean over mostly absent tags
    rarest_tag: int = 20  # pictures that a tag needs to be learnt
    shift: float = 0.06  # of the side
    zoom: float = 0.1
    turn: float = 5.0  # degrees

    def __post_init__(self) -> None:
        for name in ("smoothing", "shift", "zoom"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a share of at least 0 and below 1.")


PRESETS: dict[str, ClassifierTrainConfig] = {
    "emoji-cpu": ClassifierTrainConfig(
        run=RunConfig(
            steps=6000,
            batch_size=128,
            precision="bf16",
            grad_clip=5.0,
            log_every=20,
            sample_every=1000,
            checkpoint_every=100,
            seed=7,
        )
    ),
    "test": ClassifierTrainConfig(
        run=RunConfig(steps=6, batch_size=8, log_every=1, sample_every=3, checkpoint_every=3, seed=7),
        network=ClassifierConfig(image_size=16, widths=(8, 16), blocks=(1, 1)),
        warmup=2,
        rarest_tag=1,
    ),
}


class Labels:
    """Pictures' records to the numbers of their labels."""

    def __init__(self, config: ClassifierConfig) -> None:
        self.places = {
            name: {label: place for place, label in enumerate(labels)} for name, labels in config.heads.items()
        }

    def __call__(self, infos: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """int64 (B,) by single head, `NONE` where there is no such label; float32 (B, tags) for tags."""
        found = {
            name: torch.tensor([self.places[name].get(str(info.get(name, "")), NONE) for info in infos])
            for name in SINGLE
        }
        tags = torch.zeros(len(infos), len(self.places["tags"]))
        for row, info in enumerate(infos):
            tags[row, [self.places["tags"][tag] for tag in info.get("tags", ()) if tag in self.places["tags"]]] = 1
        return {**found, "tags": tags}


def train(config: ClassifierTrainConfig, *, data: Sequence[str], out: str | Path, resume: bool = False) -> Path:
    """Trains on the training shards among `data` and returns the model's directory, `out/model`.

    Raises InputError for shards without usable pictures or labels, or an unusable folder, and Stopped where a signal
    ended the run early.
    """
    out = Path(out)
    feed = Feed(
        config, training_sources(data, config.weights), out, resume=resume, resolution=config.network.image_size
    )
    config = feed.config
    run = Run(out, config.run, to_dict(config) | feed.names, resume)
    pipeline = feed.pipeline(run)
    records = list(pipeline.records())
    network_config = with_labels(config.network, [info for _, info in records], config.rarest_tag)
    phrases = phrases_of((captions[0], str(info["subject"])) for captions, info in records if info.get("subject"))
    labels = Labels(network_config)
    held_out = held_out_shards(data)

    network = run.prepare(ClassifierNetwork(network_config).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(_groups(network, config.weight_decay), betas=(0.9, 0.99), fused=True)
    run.track(network=network, optimizer=optimizer)
    run.restore()
    batches = feed.batches(run, pipeline)
    for step in run.steps():
        rate = lr_at(step, peak=config.learning_rate, steps=run.total_steps, warmup=config.warmup)
        set_lr(optimizer, rate)
        for _ in run.micro_steps(network):
            batch = next(batches)
            image_B3HW = jitter(batch.image_B3HW.to(run.device), config.shift, config.zoom, config.turn)
            with run.autocast():
                logits = network(image_B3HW)
            losses = _losses(logits, labels(batch.info), config)
            total = sum(losses.values(), torch.zeros((), device=run.device))
            run.backward(total)
            run.log({"loss": total, **{f"loss/{name}": value for name, value in losses.items()}}, images=len(batch))
        run.log({"grad_norm": run.clip(network.parameters()), "lr": rate})
        optimizer.step()
        optimizer.zero_grad()
        if held_out and run.sample_due(step):
            run.log({f"validation/{name}": value for name, value in accuracy(run.unwrap(network), held_out).items()})
    if run.is_main:
        save_classifier(out / "model", run.unwrap(network), phrases=phrases)
        run.say(f"wrote {out / 'model'}")
    return out / "model"


def with_labels(config: ClassifierConfig, infos: Sequence[Mapping[str, Any]], rarest_tag: int) -> ClassifierConfig:
    """The config with the labels that pictures carry. Raises InputError if they carry none of a kind."""
    found = {name: sorted({str(info[name]) for info in infos if info.get(name)}) for name in SINGLE}
    tags = Counter(tag for info in infos for tag in set(info.get("tags", ())))
    missing = [name for name, values in found.items() if not values]
    if missing:
        raise InputError(
            f"The records of {len(infos)} pictures hold no {' and no '.join(missing)}; give shards whose captions' "
            "JSON carries subject, style and category."
        )
    return replace(
        config,
        subjects=tuple(found["subject"]),
        styles=tuple(found["style"]),
        categories=tuple(found["category"]),
        tags=tuple(sorted(tag for tag, count in tags.items() if count >= rarest_tag)),
    )


def _losses(
    logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], config: ClassifierTrainConfig
) -> dict[str, Tensor]:
    labels = {name: value.to(logits[name].device) for name, value in labels.items()}
    losses = {
        name: F.cross_entropy(logits[name].float(), labels[name], ignore_index=NONE, label_smoothing=config.smoothing)
        for name in SINGLE
        if bool((labels[name] != NONE).any())
    }
    if labels["tags"].shape[1]:
        losses["tags"] = config.tag_weight * F.binary_cross_entropy_with_logits(logits["tags"].float(), labels["tags"])
    return losses


def jitter(image_B3HW: Tensor, shift: float, zoom: float, turn: float) -> Tensor:
    """Moves each picture by up to `shift` of its side, scales it by up to 1 +- `zoom`, turns it up to `turn` degrees.

    No flips and no colours: arrows, letters and names such as "red heart" must stay true. Edges are continued. Draws
    from torch's own generator on the CPU.
    """
    random_B4 = (torch.rand(len(image_B3HW), 4) * 2 - 1).to(image_B3HW.device)
    angle_B = random_B4[:, 0] * math.radians(turn)
    scale_B = 1 + zoom * random_B4[:, 1]
    across_B, down_B = scale_B * angle_B.cos(), scale_B * angle_B.sin()
    move_B2 = 2 * shift * random_B4[:, 2:]  # grid_sample measures the side as 2
    theta_B23 = torch.stack([across_B, -down_B, move_B2[:, 0], down_B, across_B, move_B2[:, 1]], dim=1).view(-1, 2, 3)
    grid_BHW2 = F.affine_grid(theta_B23, list(image_B3HW.shape), align_corners=False)
    return F.grid_sample(image_B3HW, grid_BHW2, padding_mode="border", align_corners=False)


@torch.no_grad()
def accuracy(network: ClassifierNetwork, shards: Sequence[str]) -> dict[str, float]:
    """Share of pictures whose subject, style and category are named right; a subject never learnt counts as wrong.

    Pictures that have no subject (style, category) are not counted there; where none has, there is no share.
    "subject_5": the right subject among the five named first. Leaves the network as it was.
    """
    settings = DataConfig(shards=tuple(shards), resolution=network.config.image_size)
    labels, training = Labels(network.config), network.training
    device = next(network.parameters()).device
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    network.eval()
    for batch in Pipeline(settings, batch_size=128).one_pass():
        logits, truth = network(batch.image_B3HW.to(device)), labels(batch.info)
        for name in SINGLE:
            right[name] += int((logits[name].argmax(dim=1).cpu() == truth[name]).sum())
            total[name] += sum(bool(info.get(name)) for info in batch.info)
        first_B5 = logits["subject"].topk(min(5, logits["subject"].shape[1]), dim=1).indices.cpu()
        right["subject_5"] += int((first_B5 == truth["subject"][:, None]).sum())
    network.train(training)
    total["subject_5"] = total["subject"]
    return {name: right[name] / count for name, count in sorted(total.items()) if count}


def save_classifier(
    path: Path,
    network: ClassifierNetwork,
    card: str = "",
    dtype: torch.dtype = torch.bfloat16,
    phrases: Mapping[str, str] | None = None,
) -> ModelDirectory:
    """Writes the model directory, stored in `dtype`. phrases: how captions call subjects, see `phrases_of`."""
    card = (
        card or "# A judge\n\nA classifier whose pooled features the metrics compare. Trained by `star train judge`.\n"
    )
    side = network.config.image_size
    return write(
        path,
        family=FAMILY,
        config=to_dict(network.config),
        tensors=network.state_dict(),
        card=card,
        about={"resolution": [side, side], PHRASES: dict(phrases or {})},
        dtype=dtype,
    )


def _groups(network: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for kernels and matrices; none for gains and biases."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
