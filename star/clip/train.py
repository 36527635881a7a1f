"""Training of clip-emoji and guide-emoji: captioned shards to a directory in transformers' CLIP format.

    star train clip --preset emoji-cpu --data SHARDS --out RUN      # writes RUN/model
    star.data.text.TextEncoder.from_pretrained("RUN/model")              # its text tower, as STAR is fed by it

Every step: a batch of pictures, one caption variant of each (`star.clip.captions`), a symmetric contrastive loss in
which pairs that happen to be true do not count. With several processes each contrasts within its own part of a batch.

    star train clip --preset emoji-image-tower --data SHARDS --out RUN  # a new image tower for guide-emoji's text tower

With `locked` the text tower is kept as loaded, and a picture is told from all captions: `star.clip.locked_text`.

    star train clip --preset emoji-proxies --init-from=RUN/model --data SHARDS --out SECOND
    star train clip --preset emoji-proxies --init-from=SECOND/model --proxies.points=SECOND/points --proxies.share=1 ...

With `proxies` both towers learn, a picture as a classifier's does, and captions to lie where their pictures are; then
the text tower alone: `star.clip.proxies`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTokenizer

from star.clip.captions import CaptionConfig, PictureText, false_negatives
from star.clip.locked_text import (
    FORMS,
    IMAGE_SIDE,
    CaptionClasses,
    LockedPair,
    LockedTextConfig,
    load_locked,
    load_pair,
    locked_loss,
)
from star.clip.metrics import retrieval
from star.clip.network import (
    ClipConfig,
    ClipPair,
    ConvTowerConfig,
    Pair,
    augment,
    build_clip,
    contrastive_loss,
    drop_patches,
    image_processor,
    parameter_groups,
)
from star.clip.proxies import Points, Proxies, ProxyConfig, ProxyPair, image_loss, text_loss
from star.data.clip_tokenizer import learn_tokenizer
from star.data.errors import InputError
from star.data.loader.batch import to_device
from star.data.loader.capacity import decide
from star.data.loader.pipeline import Batch, DataConfig, Pipeline
from star.data.pretrained import SAFE, as_saved, check_files, loading
from star.data.shards.splits import held_out_shards, training_sources
from star.generators.config import UNLESS_DEFAULT, check_ranges, to_dict
from star.generators.staging import staged
from star.generators.training.data_feed import CachedFeedConfig, Feed
from star.generators.training.run import Run, RunConfig
from star.generators.training.schedule import lr_at, set_lr


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTrainConfig(CachedFeedConfig):
    """A whole training of a CLIP; the shards to learn from and the folder are given beside it."""

    network: ClipConfig = field(default_factory=ClipConfig)
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    learning_rate: float = 1e-3
    warmup: int = 50  # steps
    weight_decay: float = 0.1
    beta2: float = 0.98
    kept_patches: float = 0.5  # share of the patches a picture is seen through,
    whole_pictures: float = 0.1  # until this last share of the steps, which see all of them
    shift: float = 0.06  # of the side
    zoom: float = 0.1
    validation: tuple[str, ...] = ()  # shards to measure on; if none, those of the data that are named as held out
    locked: LockedTextConfig | None = field(default=None, metadata=UNLESS_DEFAULT)  # train all but the text tower
    # A CLIP in transformers' format to start from: its text tower and tokenizer, and its image tower if that fits.
    init_from: str = field(default="", metadata=UNLESS_DEFAULT)
    text_rate: float = field(default=1.0, metadata=UNLESS_DEFAULT)  # of the text tower, as a multiple of learning_rate
    # Learn from all phrases and styles as classes, too.
    proxies: ProxyConfig | None = field(default=None, metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        if self.locked and (self.proxies or self.init_from or self.text_rate != 1):
            raise InputError(
                "locked was given with proxies, init_from or text_rate, which are for a text tower that learns: give "
                "locked alone, or those"
            )
        if self.proxies and self.proxies.points and not self.init_from:
            raise InputError(
                "proxies.points was given without init_from, expected the model of the run that wrote them: give both"
            )
        check_ranges(self, text_rate=(0, 1e3))
        for name in ("kept_patches", "whole_pictures", "shift", "zoom"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a share between 0 and 1.")
        if self.run.batch_size // self.run.accumulate < 2:
            raise InputError("A contrastive batch needs at least 2 pictures; give a larger batch_size.")


CLIP_PRESETS: dict[str, ClipTrainConfig] = {
    "emoji-cpu": ClipTrainConfig(
        run=RunConfig(
            steps=1200, batch_size=256, precision="bf16", log_every=20, sample_every=400, checkpoint_every=100
        )
    ),
    "emoji-image-tower": ClipTrainConfig(
        run=RunConfig(
            steps=5000, batch_size=128, precision="bf16", log_every=20, sample_every=1000, checkpoint_every=100
        ),
        network=ClipConfig(conv=ConvTowerConfig()),
        locked=LockedTextConfig(init_from="guide-emoji"),
        learning_rate=2e-3,
        warmup=100,
        shift=0.08,
        zoom=0.12,
    ),
    "emoji-proxies": ClipTrainConfig(
        run=RunConfig(
            steps=6000, batch_size=128, precision="bf16", log_every=20, sample_every=1000, checkpoint_every=100
        ),
        network=ClipConfig(conv=ConvTowerConfig()),
        init_from="guide-emoji",  # or a run of emoji-image-tower, whose image tower is kept then
        proxies=ProxyConfig(),
        learning_rate=2e-3,
        text_rate=0.5,
        warmup=200,
        weight_decay=0.05,
        shift=0.08,
        zoom=0.12,
    ),
    "emoji": ClipTrainConfig(
        run=RunConfig(steps=3000, batch_size=1024, precision="bf16", sample_every=500),
        network=ClipConfig(image_size=128, patch_size=16, vision_width=256, vision_layers=6, vision_mlp=512),
        warmup=100,
        workers=8,
    ),
    "test": ClipTrainConfig(
        run=RunConfig(steps=8, batch_size=8, log_every=1, sample_every=4, checkpoint_every=4),
        network=ClipConfig(
            image_size=16,
            vision_width=32,
            vision_layers=1,
            vision_mlp=32,
            text_width=32,
            text_layers=1,
            text_mlp=32,
            vocabulary=600,
            projection=16,
            head_width=16,
        ),
        warmup=2,
    ),
}


def train(config: ClipTrainConfig, *, data: Sequence[str], out: str | Path, resume: bool = False) -> Path:
    """Trains on the training shards among `data` and returns the model's directory, `out/model`.

    What is held out is measured every `run.sample_every` steps, and never learnt from. Raises InputError for shards
    without usable pictures or an unusable folder, and Stopped where a signal ended the run early.
    """
    out = Path(out)
    feed = Feed(
        config, training_sources(data, config.weights), out, resume=resume, resolution=config.network.image_size
    )
    config = feed.config
    run = Run(out, config.run, to_dict(config) | feed.names, resume)
    pipeline = feed.pipeline(run)
    measured = _measured(config.validation or held_out_shards(data), config)
    model, tokenizer = _model(config, pipeline, run, resume)
    classes = _classes(config, pipeline, model, tokenizer, run)
    proxies = _proxies(config, pipeline, model)
    pair = run.prepare(LockedPair(model) if classes else ProxyPair(model, proxies) if proxies else ClipPair(model))
    optimizer = torch.optim.AdamW(
        parameter_groups(pair, config.weight_decay, config.text_rate), betas=(0.9, config.beta2), eps=1e-6, fused=True
    )
    run.track(pair=pair, optimizer=optimizer)
    run.restore()
    batches = feed.batches(run, pipeline)
    for step in run.steps():
        rate = lr_at(step, peak=config.learning_rate, steps=run.total_steps, warmup=config.warmup)
        set_lr(optimizer, rate)
        for _ in run.micro_steps(pair):
            batch = next(batches)
            if classes:
                loss, values = _locked_loss(pair, batch, classes, config, run, step)
            elif proxies:
                loss, values = _proxy_loss(pair, batch, proxies, tokenizer, config, run, step)
            else:
                loss, values = _loss(pair, batch, tokenizer, config, run, step)
            run.backward(loss)
            run.log(values, images=run.micro_batch_size)
        run.log({"grad_norm": run.clip(pair.parameters()), "lr": rate})
        optimizer.step()
        optimizer.zero_grad()
        if measured is not None and run.sample_due(step):
            with run.autocast():
                scores = retrieval(run.unwrap(pair).model, tokenizer, measured)
            run.log({f"validation/{name}": value for name, value in scores.items()})
    if run.is_main:
        save_clip(out / "model", run.unwrap(pair).model, tokenizer, config.network)
        if config.proxies and not config.proxies.points:
            run.unwrap(pair).proxies.write(out / "points")
        run.say(f"wrote {out / 'model'}")
    return out / "model"


def _loss(
    pair: torch.nn.Module, batch: Batch, tokenizer: CLIPTokenizer, config: ClipTrainConfig, run: Run, step: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rng = random.Random(random.getrandbits(64))  # seeded by the run in every step
    pictures = [PictureText(*both) for both in zip(batch.captions, batch.info, strict=True)]
    texts, claims = zip(*(picture.draw(config.captions, rng) for picture in pictures), strict=True)
    excluded_BB = false_negatives(claims, pictures).to(run.device)
    ids_BT = token_ids(tokenizer, texts, config.network.max_tokens).to(run.device)

    image_B3HW, keep_BP = _seen(batch, config, run, step)
    with run.autocast():
        text_BD, image_BD, scale = pair(image_B3HW, keep_BP, ids_BT)
    loss, found = contrastive_loss(text_BD, image_BD, scale, excluded_BB)
    return loss, {"loss": loss, "found": found, "scale": scale}


def _locked_loss(
    pair: torch.nn.Module, batch: Batch, classes: CaptionClasses, config: ClipTrainConfig, run: Run, step: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    assert config.locked is not None
    rng = random.Random(random.getrandbits(64))
    form = classes.draw(config.locked.first_captions, rng)
    pictures = [PictureText(*both) for both in zip(batch.captions, batch.info, strict=True)]
    image_B3HW, keep_BP = _seen(batch, config, run, step)
    states = [classes.states_MD[form], classes.states_MD[FORMS]]
    if config.locked.styles:
        states.append(classes.in_styles(pictures).flatten(0, 1))
    with run.autocast():
        embedded = pair(image_B3HW, keep_BP, states)
    return locked_loss(config.locked, classes, pictures, form, embedded)


def _proxy_loss(
    pair: torch.nn.Module,
    batch: Batch,
    proxies: Proxies,
    tokenizer: CLIPTokenizer,
    config: ClipTrainConfig,
    run: Run,
    step: int,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    assert config.proxies is not None
    rng = random.Random(random.getrandbits(64))
    pictures = [PictureText(*both) for both in zip(batch.captions, batch.info, strict=True)]
    read = pictures[: max(2, round(len(pictures) * config.proxies.share))]
    drawn = proxies.draw(read, config.captions, rng)
    excluded_RR = false_negatives(drawn.claims, read).to(run.device)
    ids_NT = token_ids(tokenizer, drawn.texts, config.network.max_tokens).to(run.device)
    seen = (None, None) if config.proxies.points else _seen(batch, config, run, step)
    with run.autocast():
        text_ND, image_BD, scale, parts = pair(*seen, ids_NT)
    points = Points(*parts)
    loss, values = text_loss(config.proxies, points, text_ND, scale, drawn.said_N2.to(run.device))
    if image_BD is not None:
        matching, found = contrastive_loss(text_ND[: len(read)], image_BD[: len(read)], scale, excluded_RR)
        labelled, told = image_loss(config.proxies, points, image_BD, scale, proxies.of(pictures).to(run.device))
        loss = loss + matching + labelled
        values |= {"found": found, "loss/matching": matching, **told}
    return loss, {"loss": loss, "scale": scale, **values}


def _seen(batch: Batch, config: ClipTrainConfig, run: Run, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """image_B3HW, shifted and scaled, and keep_BP, the patches that are seen; None for all of them."""
    patches = config.network.patches
    whole = step >= run.total_steps * (1 - config.whole_pictures) or config.network.conv is not None
    kept = patches if whole else max(1, round(patches * config.kept_patches))
    keep_BP = None if kept == patches else drop_patches(len(batch), patches, kept).to(run.device)
    return augment(to_device(batch.image_B3HW, run.device), config.shift, config.zoom), keep_BP


def _model(config: ClipTrainConfig, pipeline: Pipeline, run: Run, resume: bool) -> tuple[Pair, CLIPTokenizer]:
    """Fresh, with a tokenizer of its own, or around the text tower of another; with the attention that is quickest."""
    if config.locked:
        model, tokenizer = load_locked(config.locked, config.network)
    elif config.init_from:
        model, tokenizer = load_pair(config.init_from, config.network)
    else:
        tokenizer = _tokenizer(run.out / "tokenizer", pipeline, config.network, run, resume)
        model = build_clip(config.network, tokenizer)
    if config.network.conv:  # as embed_images lays out the pictures
        model.vision_model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    # At these lengths SDPA's backward pass on the CPU is several times slower than plain products.
    attending = model if isinstance(model, CLIPModel) else model.text_model
    attending.set_attn_implementation("eager" if run.device.type == "cpu" else "sdpa")
    return model, tokenizer


def _classes(
    config: ClipTrainConfig, pipeline: Pipeline, model: Pair, tokenizer: CLIPTokenizer, run: Run
) -> CaptionClasses | None:
    """Of a locked text tower, all captions that there are to be told apart."""
    if not config.locked:
        return None
    pictures = (PictureText(*both) for both in pipeline.records())
    styles = config.locked.styles > 0
    return CaptionClasses(pictures, model.to(run.device), tokenizer, styles=styles)  # type: ignore[arg-type]


def _proxies(config: ClipTrainConfig, pipeline: Pipeline, model: Pair) -> Proxies | None:
    """Of all pictures: fresh ones, drawn from torch's own generator, or those of a file, for the text tower alone."""
    if not config.proxies:
        return None
    pictures = (PictureText(*both) for both in pipeline.records())
    proxies = Proxies(pictures, model.text_projection.out_features)
    if config.proxies.points:
        proxies.read(Path(config.proxies.points))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(IMAGE_SIDE))
    return proxies


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str], max_tokens: int) -> torch.Tensor:
    """ids_BT int64 as long as the longest text, padded with EOS, cut at max_tokens."""
    return tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt").input_ids


def save_clip(path: Path, model: Pair, tokenizer: CLIPTokenizer, config: ClipConfig) -> None:
    """Writes weights (bfloat16), tokenizer and image processor in transformers' format; leaves the model as it is.

    Raises InputError if the disk refuses.
    """
    half = build_clip(config, tokenizer)
    half.load_state_dict(model.state_dict())
    with staged(path) as staging:
        half.to(torch.bfloat16).save_pretrained(staging)  # type: ignore[arg-type]
        tokenizer.save_pretrained(staging)
        image_processor(config).save_pretrained(staging)


def _tokenizer(path: Path, pipeline: Pipeline, config: ClipConfig, run: Run, resume: bool) -> CLIPTokenizer:
    """Learned from the training captions, every process alike; a continued run reads what it wrote."""
    if resume and (path / "tokenizer.json").is_file():
        check_files(path)
        with loading(path, "the tokenizer of a CLIP"):
            return as_saved(CLIPTokenizer.from_pretrained(path, **SAFE))
    captions = [caption for several, _ in pipeline.records() for caption in several]
    tokenizer = learn_tokenizer(captions, config.vocabulary, config.max_tokens)
    if run.is_main:
        with staged(path) as staging:
            tokenizer.save_pretrained(staging)
    return tokenizer


def _measured(shards: Sequence[str], config: ClipTrainConfig) -> Pipeline | None:
    if not shards:
        return None
    settings = DataConfig(shards=tuple(shards), resolution=config.network.image_size, crop=config.crop)
    settings = replace(settings, cache=decide(shards, 3 * config.network.image_size**2).keep)
    return Pipeline(settings, batch_size=256)
