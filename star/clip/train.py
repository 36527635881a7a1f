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
from dataclasses import replace
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTokenizer

from star.clip.captions import PictureText, false_negatives
from star.clip.config import ClipTrainConfig
from star.clip.locked_text import (
    FORMS,
    IMAGE_SIDE,
    CaptionClasses,
    LockedPair,
    load_locked,
    load_pair,
    locked_loss,
)
from star.clip.metrics import retrieval
from star.clip.network import (
    ClipConfig,
    ClipPair,
    Pair,
    augment,
    build_clip,
    contrastive_loss,
    drop_patches,
    image_processor,
    parameter_groups,
)
from star.clip.proxies import Points, Proxies, ProxyPair, image_loss, text_loss
from star.data.clip_tokenizer import learn_tokenizer
from star.data.loader.batch import to_device
from star.data.loader.capacity import decide
from star.data.loader.pipeline import Batch, DataConfig, Pipeline
from star.data.pretrained import SAFE, as_saved, check_files, loading
from star.data.shards.splits import held_out_shards, training_sources
from star.generators.config import to_dict
from star.generators.staging import staged
from star.generators.training.data_feed import Feed
from star.generators.training.run import Run
from star.generators.training.schedule import lr_at, set_lr


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
    pictures = _texts(batch)
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
    pictures = _texts(batch)
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
    pictures = _texts(batch)
    read = pictures[: max(2, round(len(pictures) * config.proxies.share))]
    drawn = proxies.draw(read, config.captions, rng)
    ids_NT = token_ids(tokenizer, drawn.texts, config.network.max_tokens).to(run.device)
    seen = (None, None) if config.proxies.points else _seen(batch, config, run, step)
    with run.autocast():
        text_ND, image_BD, scale, parts = pair(*seen, ids_NT)
    points = Points(*parts)
    loss, values = text_loss(config.proxies, points, text_ND, scale, drawn.said_N2.to(run.device))
    if image_BD is not None:
        excluded_RR = false_negatives(drawn.claims, read).to(run.device)
        matching, found = contrastive_loss(text_ND[: len(read)], image_BD[: len(read)], scale, excluded_RR)
        labelled, told = image_loss(config.proxies, points, image_BD, scale, proxies.of(pictures).to(run.device))
        loss = loss + matching + labelled
        values |= {"found": found, "loss/matching": matching, **told}
    return loss, {"loss": loss, "scale": scale, **values}


def _texts(batch: Batch) -> list[PictureText]:
    return [PictureText(*both) for both in zip(batch.captions, batch.info, strict=True)]


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
        if config.proxies and config.proxies.points:  # the text tower alone learns
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not name.startswith(IMAGE_SIDE))
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
