"""The pictures of some shards that a STAR model knows least, for it to be trained on further.

Hard example mining (Shrivastava et al. 2016, section 4, there within a batch): all pictures are measured once, those
of the highest loss are kept. Counted are the coarse scales, which decide what a picture shows; what the fine ones cost
says more of how busy it is.

    star data hardest SHARDS --model star-emoji --count 1600 --together subject style --out HARDEST
    star finetune star-emoji --data HARDEST --lora 24 --completion

B batch, l tokens of one scale, k scales counted.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from star.completion import stretches
from star.data.disk import write_text
from star.data.errors import InputError
from star.data.loader.batch import Batch
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.loader.report import SkipReport
from star.data.progress import Progress
from star.data.shards.listing import list_shards
from star.data.shards.tar import read_shard
from star.data.shards.write import ShardWriter, check_room
from star.generator import StarGenerator
from star.generators import registry
from star.training.inputs import Encoder, each_caption_unmentioned
from star.training.targets import per_scale

PREFIX = "hardest-train"  # of the shards
LOSSES = "losses.jsonl"  # beside them
AT_ONCE = 32  # pictures


@dataclass(frozen=True, slots=True)
class Known:
    """A picture, and how well it was known: mean nats per token (or bit), every counted scale alike."""

    key: str
    caption: str
    loss: float
    group: tuple[str, ...]  # what it is kept or left together with


@dataclass(frozen=True, kw_only=True, slots=True)
class HardestReport:
    """Which pictures were written where, hardest first, of how many, and the mean loss of these and of all."""

    out: Path
    kept: list[Known]
    measured: int
    scales: int
    loss: float
    skipped: SkipReport

    def text(self) -> str:
        """For people."""
        mean = sum(one.loss for one in self.kept) / len(self.kept)
        return (
            f"{len(self.kept)} of {self.measured} pictures in {self.out}: {mean:.3f} nats per token in the mean over "
            f"the coarsest {self.scales} scales, {self.loss:.3f} over all pictures; each one's in {self.out / LOSSES}\n"
            f"{self.skipped.text()}"
        )


def hardest(
    shards: Sequence[str],
    model: str,
    out: str | Path,
    *,
    count: int,
    scales: int | None = None,
    together: Sequence[str] = (),
    without_style: bool = False,
    half: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = False,
) -> HardestReport:
    """Measures every picture under its first caption and writes the `count` worst known ones, bytes as they are, to
    shards in `out`, with an index; and keys, captions and losses of all, hardest first, as `out`/losses.jsonl.

    model: name, folder or hub id; what it draws a caption with is measured (see star.completion). scales: the coarsest
    so many are counted; None is half of them, rounded up. together: keys of the records; pictures that agree in all of
    them are kept or left together, by their mean loss, so that a few more than `count` may be kept. without_style:
    pictures alone that a prompt without a style means, by the model's wordings. half: under bfloat16 autocast. Equal
    losses are ordered by key. Raises InputError for unusable shards, two pictures of one key, more pictures or scales
    than there are, a folder that is not empty unless `overwrite`, or a model of another family.
    """
    generator = StarGenerator.from_directory(registry.locate(model), device=device)
    schedule = generator.transformer.schedule
    scales = -(-schedule.count // 2) if scales is None else scales
    if not 0 < scales <= schedule.count:
        raise InputError(f"--scales is {scales}, expected 1 to {schedule.count}, as many as {model} has")
    if not overwrite:
        check_room(out, PREFIX)  # before all is measured
    if count < 1:
        raise InputError(f"--count is {count}, expected 1 or more")
    listed = tuple(list_shards(shards))
    settings = DataConfig(shards=listed, resolution=generator.resolution[0], shuffle=False)
    pipeline = Pipeline(settings, batch_size=AT_ONCE)
    encoder = Encoder(generator.tokenizer, generator.text_encoder, torch.device(device), half=half)
    found: dict[str, Known] = {}
    with each_caption_unmentioned(), Progress(None, unit="images", title="measure", enabled=progress) as bar:
        for batch in pipeline.one_pass():
            loss_B = losses(generator, encoder, batch, scales, half).tolist()
            for key, caption, info, loss in zip(batch.keys, batch.prompts, batch.info, loss_B, strict=True):
                if key in found:
                    raise InputError(f"two samples of the shards have the key '{key}', expected it once")
                group = tuple(str(info.get(name)) for name in together) or (key,)
                found[key] = Known(key, caption, loss, group)
            bar.update(len(batch))
    ordered = sorted(found.values(), key=lambda one: (-one.loss, one.key))
    asked = meant(ordered, generator) if without_style else ordered
    if count > len(asked):
        raise InputError(f"--count is {count} and there are {len(asked)} usable pictures, expected no more than these")
    kept = worst(asked, count)
    keys = {one.key for one in kept}
    with ShardWriter(out, prefix=PREFIX, overwrite=overwrite) as writer:
        for shard in listed:
            for sample in read_shard(shard, []):
                if sample.key in keys:
                    members = {name: content for name, content in sample.members.items() if isinstance(content, bytes)}
                    writer.add(sample.key, members)
    lines = (json.dumps({"key": one.key, "caption": one.caption, "loss": round(one.loss, 5)}) for one in ordered)
    write_text(Path(out) / LOSSES, "".join(f"{line}\n" for line in lines))
    mean = sum(one.loss for one in ordered) / len(ordered)
    return HardestReport(
        out=Path(out), kept=kept, measured=len(ordered), scales=scales, loss=mean, skipped=pipeline.report
    )


def meant(ordered: Sequence[Known], generator: StarGenerator) -> list[Known]:
    """What is drawn where a prompt says no style, with all that belongs to it. Raises InputError without wordings."""
    if generator.expansion is None:
        raise InputError("pictures of prompts without a style were asked of a model without wordings: leave that out")
    usual = {f"{subject.caption}, {subject.style}" for subject in generator.expansion.subjects.values()}
    groups = {one.group for one in ordered if one.caption in usual}
    return [one for one in ordered if one.group in groups]


def worst(ordered: Sequence[Known], count: int) -> list[Known]:
    """Whole groups in the order of their mean losses, highest first, until there are `count` pictures or more."""
    groups: dict[tuple[str, ...], list[Known]] = {}
    for one in ordered:
        groups.setdefault(one.group, []).append(one)
    kept: list[Known] = []
    for several in sorted(groups.values(), key=lambda several: -sum(one.loss for one in several) / len(several)):
        if len(kept) >= count:
            break
        kept += several
    return kept


@torch.inference_mode()
def losses(generator: StarGenerator, encoder: Encoder, batch: Batch, scales: int, half: bool) -> Tensor:
    """Of each picture (B,) float32: nats per token or bit under its prompt, the mean of the coarsest scales' means."""
    targets, text = encoder.targets(batch, scales=scales), encoder.batch_text(batch, batch.prompts)
    lengths = targets.schedule.lengths[:scales]
    parts = []
    for transformer, part in stretches([generator.transformer_for(caption) for caption in batch.prompts]):
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=half):
            loss_BL = transformer(
                targets.teacher_input_BlE[part], text[part], codes_BL=targets.codes_BL[part], schedule=targets.schedule
            )
        parts += [per_scale(loss_L[None], lengths).float().mean() for loss_L in loss_BL]
    return torch.stack(parts)
