"""Shards of pictures to shards of codes and text features, so that training needs neither network any more.

Each shard becomes one of the same name, written whole or not at all; a call that was interrupted goes on where it
stopped when it is repeated, and several processes share the shards. `encoding.py` says what is in them.

B batch, L tokens of all scales, E code width, h w finest latent grid, N captions, T text tokens, D text width.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor

from star.data.disk import writing
from star.data.errors import InputError
from star.data.images import Crop
from star.data.loader.pipeline import Batch, DataConfig, Pipeline
from star.data.loader.report import SkipReport
from star.data.progress import Progress
from star.data.shards.listing import list_shards
from star.data.shards.tar import index_shard, read_shard
from star.data.shards.write import entry_of, read_index, write_index, write_shard
from star.data.tensor_cache import TensorCache
from star.data.text import TextEncoder
from star.generators.registry import place_of
from star.generators.training.folder_lock import Claim
from star.precomputed.format import NAME, TEXT_DTYPES, Encoding, states_of
from star.tokenizer.portions import loaded_at_once
from star.tokenizer.tokenizer import MultiScaleTokenizer
from star.training.inputs import Encoder, each_caption_unmentioned

KEPT = 2**30  # bytes of captions' features in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeReport:
    """What one process did.

    cut: captions of those written that are longer than the text encoder reads. finished: all shards are there, of this
    and of all other processes.
    """

    out: Path
    samples: int
    written: int
    kept: int
    cut: int
    finished: bool
    skipped: SkipReport

    def text(self) -> str:
        kept = f", {self.kept} were there already" if self.kept else ""
        missing = "" if self.finished else "; other shards are still missing"
        lines = [f"{self.samples} samples in {self.written} shards written to {self.out}{kept}{missing}"]
        if self.cut:
            lines.append(f"{self.cut} captions are longer than the text encoder reads and lost their end")
        return "\n".join([*lines, self.skipped.text()])


def encode(
    data: Sequence[str],
    out: str | Path,
    *,
    tokenizer: str | Path,
    text_encoder: str | Path,
    crop: Crop = "center",
    latents: bool = False,
    aspects: Sequence[str] = (),
    text: Literal["features", "captions"] = "features",
    batch_size: int = 64,
    workers: int = 0,
    half: bool = False,
    progress: bool = False,
) -> EncodeReport:
    """Encodes every shard, held-out ones included, into `out`.

    tokenizer, text_encoder: as in a training. latents: also what the tokenizer makes of a picture before quantisation,
    which training with code noise needs. aspects: width:height as "3:2"; a picture is brought to the nearest of
    them, or to the square; samples of a shape then lie together in a shard. text: captions are kept as they are in
    place of their features, and shards are compressed; the training then computes the features. half: the tokenizer
    computes under bfloat16 autocast. batch_size: pictures at once, fewer where they are large (tokenizer/portions.py).
    Raises InputError if nothing is there, two shards would get one name, `out` cannot be written, or it holds shards of
    another encoding.
    """
    shards = _named(list_shards(data), ".tar.gz" if text == "captions" else ".tar")
    state = Accelerator()
    encoder = MultiScaleTokenizer.from_directory(place_of(tokenizer), device=state.device)
    texts, side = TextEncoder.from_pretrained(place_of(text_encoder), device=state.device), encoder.resolution
    encoding = Encoding.by(encoder, texts, crop=crop, latents=latents, aspects=tuple(aspects), text=text)
    writer = _Writer(Encoder(encoder, texts, state.device, half=half), encoding)
    buckets, out, report = _sizes(encoder, aspects), Path(out), SkipReport()
    mine = list(shards.items())[state.process_index :: state.num_processes]
    samples = written = 0
    with writing(out), Progress(len(mine), unit="shards", rate_unit="images", title="encode", enabled=progress) as bar:
        out.mkdir(parents=True, exist_ok=True)
        claim = Claim.of(out) if state.process_index == 0 else None  # for all processes of this call
        _prepare(out, writer.encoding)
        for name, shard in mine:
            if (out / name).is_file():
                bar.update(done=0)
                continue
            settings = DataConfig(shards=(shard,), resolution=side, buckets=buckets, crop=crop, shuffle=False)
            settings = replace(settings, workers=workers)
            pipeline = Pipeline(settings, batch_size=loaded_at_once(side, most=batch_size))
            count = _write(out / name, writer.samples(_usable(pipeline)))
            report.add(pipeline.report.named)
            samples, written = samples + count, written + 1
            bar.update(done=count)
        finished = _finish(out, tuple(shards))
        del claim
    return EncodeReport(
        out=out,
        samples=samples,
        written=written,
        kept=len(mine) - written,
        cut=writer.cut,
        finished=finished,
        skipped=report,
    )


class _Writer:
    """Makes members of samples; a caption of a shard is encoded once, unless `KEPT` bytes of others came between."""

    def __init__(self, encoder: Encoder, encoding: Encoding) -> None:
        self.encoder, self.encoding = encoder, encoding
        self.cut = 0
        self.tokens = encoder.tokenizer.tokens

    def samples(self, batches: Iterator[Batch]) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        """Key and members of every sample."""
        kept = TensorCache(KEPT)  # of each caption its states without padding, and the pooled one
        for batch in batches:
            words = [caption for several in batch.captions for caption in several]
            known = kept.of(words, self._text if self.encoding.config.text == "features" else self._only_measured)
            latent_BEhw = self.encoder.latents(batch)
            codes_BL = torch.cat(self.encoder.tokenizer.quantizer.encode(latent_BEhw).codes, dim=1)
            codes_BL, latent_BEhw = self.tokens.store(codes_BL).cpu(), latent_BEhw.cpu().contiguous()
            mark = {"encoding": self.encoding.config.mark}
            if self.encoding.config.aspects:
                mark["grid"] = "{}x{}".format(*latent_BEhw.shape[2:])
            for row, key in enumerate(batch.keys):
                captions = batch.captions[row]
                tensors = {"codes_L": codes_BL[row].clone()}
                if self.encoding.config.text == "features":
                    tensors |= {
                        "tokens_nD": torch.cat([known[caption][0] for caption in captions]),
                        "lengths_N": torch.tensor([len(known[caption][0]) for caption in captions], dtype=torch.int32),
                        "pooled_ND": torch.stack([known[caption][1] for caption in captions]),
                    }
                if self.encoding.config.latents:
                    tensors["latent_Ehw"] = latent_BEhw[row].clone()
                record = {**batch.info[row], "caption": captions[0], "captions": list(captions)}
                yield (
                    key,
                    {
                        "json": json.dumps(record, ensure_ascii=False).encode(),
                        "safetensors": save(tensors, mark),
                    },
                )

    def _only_measured(self, captions: list[str]) -> list[tuple[Tensor, ...]]:
        self.cut += sum(lost > 0 for lost in self.encoder.text_encoder.truncated(captions))
        return [()] * len(captions)

    def _text(self, captions: list[str]) -> list[tuple[Tensor, ...]]:
        self._only_measured(captions)
        with each_caption_unmentioned():
            text = self.encoder.text(captions)
        return states_of(text, TEXT_DTYPES[self.encoding.config.text_dtype])


def _sizes(tokenizer: MultiScaleTokenizer, aspects: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(H, W) in pixels of each aspect."""
    cell = tokenizer.config.autoencoder.downsampling
    grids = [tokenizer.schedule.of_aspect(aspect).grid for aspect in aspects]
    return tuple((h * cell, w * cell) for h, w in grids)


def _write(path: Path, samples: Iterator[tuple[str, Mapping[str, bytes]]]) -> int:
    """write_shard, which leaves nothing behind when it is interrupted or the disk is full."""
    try:
        return write_shard(path, samples)
    except BaseException:
        for partial in path.parent.glob(f".{path.name}*.part"):
            partial.unlink(missing_ok=True)
        raise


def _named(shards: Sequence[str], end: str) -> dict[str, str]:
    """Shards by the file names that they are written under. Raises InputError if two have one."""
    names = _names(shards, end)
    found = dict(zip(names, shards, strict=True))
    if len(found) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"Two of the shards would be written as {twice}; encode them into folders of their own.")
    return found


def _names(shards: Sequence[str], end: str) -> list[str]:
    """A file name for each: its own, which tells training from held-out shards; a command has none."""
    return [
        f"shard-{number:05d}{end}"
        if shard.startswith("pipe:")
        else re.sub(r"\.(tar|tgz|tar\.\w+)$", "", shard.partition("?")[0].rpartition("/")[2], flags=re.I) + end
        for number, shard in enumerate(shards)
    ]


def _prepare(out: Path, encoding: Encoding) -> None:
    """Describes the folder; one that is described must be of the same encoding."""
    if (out / NAME).is_file():
        there = Encoding.parse((out / NAME).read_bytes(), str(out / NAME))
        there.check(encoding.config, str(out), "choose another folder, or encode with the networks it was begun with")
        return
    if any(out.iterdir()):
        raise InputError(f"{out} holds files that are no encoded shards; give an empty folder.")
    encoding.write(out)


def _usable(pipeline: Pipeline) -> Iterator[Batch]:
    """All batches of a shard; none, and no error, where it holds nothing usable: that is told in the report."""
    try:
        yield from pipeline.one_pass()
    except InputError:
        if not pipeline.report.named:
            raise


def _finish(out: Path, names: Sequence[str]) -> bool:
    """Writes the index when all shards are there; what it says of shards that did not change is kept."""
    there = {path.name for path in (*out.glob("*.tar"), *out.glob("*.tar.gz"))}
    if not there.issuperset(names):
        return False
    old = read_index(out) or {}
    entries = {}
    for name in sorted(there):
        path = out / name
        same = name in old and old[name]["bytes"] == path.stat().st_size
        entries[name] = old[name] if same else entry_of(path, _count(path))
    write_index(out, entries)
    return True


def _count(path: Path) -> int:
    """Samples of a shard."""
    return len(index_shard(str(path), [])) if path.suffix == ".tar" else sum(1 for _ in read_shard(str(path), []))
