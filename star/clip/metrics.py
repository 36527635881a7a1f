"""How well a CLIP of ours names pictures and understands words: retrieval, styles, synonyms.

    python -m star.clip.metrics MODEL SHARDS... [--names SHARDS...]   # prints JSON; measures, never trains

A caption shared by several pictures counts as right for each of them. Shapes: B pictures, M texts, D width, 3HW image.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from star.clip.network import Pair, embed_images, embed_texts
from star.data.clip_pair import read_pair
from star.data.loader.pipeline import DataConfig, Pipeline
from star.data.pretrained import SAFE, loading

CANDIDATES = 20  # prompts among which the issue asks for the true one to rank first
REPEATS = 10  # draws of the candidates, for a steadier mean


@torch.no_grad()
def embed_prompts(model: Pair, tokenizer: CLIPTokenizer, prompts: Sequence[str], chunk: int = 256) -> Tensor:
    """text_MD, normalised float32."""
    parts = []
    for first in range(0, len(prompts), chunk):
        ids_BT = tokenizer(
            list(prompts[first : first + chunk]),
            padding=True,
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        parts.append(embed_texts(model, ids_BT.to(model.device)))
    return torch.cat(parts)


@torch.no_grad()
def embed_pictures(model: Pair, pipeline: Pipeline) -> tuple[Tensor, list[str], list[dict[str, Any]]]:
    """image_BD of every sample of the pipeline, with its first caption and its record."""
    images, captions, records = [], [], []
    for batch in pipeline.one_pass():
        images.append(embed_images(model, batch.image_B3HW.to(model.device)))
        captions += [several[0] for several in batch.captions]
        records += batch.info
    return torch.cat(images), captions, records


def retrieval(model: Pair, tokenizer: CLIPTokenizer, pipeline: Pipeline) -> dict[str, float]:
    """Recall at 1 in both directions, among all pictures and among 20 drawn prompts, and style accuracy."""
    training = model.training
    model.eval()  # whose norms a convolutional tower would take from the batch otherwise
    image_BD, captions, records = embed_pictures(model, pipeline)
    model.train(training)
    text_BD = embed_prompts(model, tokenizer, captions)
    scores = recalls(text_BD @ image_BD.T, captions)
    return scores | style_accuracy(model, tokenizer, image_BD, captions, records)


def recalls(cosine_BB: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Rows texts, columns pictures. With fewer than 20 different captions the scores among 20 are left out."""
    index = {caption: row for row, caption in enumerate(captions)}
    caption_B = torch.tensor([index[caption] for caption in captions], device=cosine_BB.device)
    scores = {
        "text_to_image": (caption_B[cosine_BB.argmax(dim=1)] == caption_B).float().mean().item(),
        "image_to_text": (caption_B[cosine_BB.argmax(dim=0)] == caption_B).float().mean().item(),
    }
    if len(index) < CANDIDATES:
        return scores
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(len(captions))
    first = {"text_to_image_20": 0.0, "image_to_text_20": 0.0}
    for _ in range(REPEATS):
        for row in rows.tolist():
            order = torch.randperm(len(captions), generator=generator)[: 3 * CANDIDATES].to(caption_B.device)
            others = order[caption_B[order] != caption_B[row]][: CANDIDATES - 1]
            own = cosine_BB[row, row]
            first["text_to_image_20"] += float((own > cosine_BB[row, others]).all())
            first["image_to_text_20"] += float((own > cosine_BB[others, row]).all())
    return scores | {name: total / (REPEATS * len(captions)) for name, total in first.items()}


def style_accuracy(
    model: Pair, tokenizer: CLIPTokenizer, image_BD: Tensor, captions: Sequence[str], records: Sequence[dict]
) -> dict[str, float]:
    """How often a picture prefers the caption in its own style to the same words in every other style.

    Empty without a `style` in the records, or where captions do not end in ", <style words>".
    """
    if not all("style" in record and ", " in caption for record, caption in zip(records, captions, strict=True)):
        return {}
    parts = [caption.rsplit(", ", 1) for caption in captions]
    styles = sorted({style for _, style in parts})
    text_MD = embed_prompts(model, tokenizer, [f"{phrase}, {style}" for phrase, _ in parts for style in styles])
    chosen_B = torch.einsum("bd,bsd->bs", image_BD, text_MD.view(len(parts), len(styles), -1)).argmax(dim=1)
    right = [styles[choice] == style for choice, (_, style) in zip(chosen_B.tolist(), parts, strict=True)]
    return {"style": sum(right) / len(right)}


class Names:
    """The subjects of some shards, as places in the embedding space of texts."""

    def __init__(self, model: Pair, tokenizer: CLIPTokenizer, records: Iterable[dict[str, Any]]) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.tags: dict[str, set[str]] = {}
        for record in records:
            if "subject" in record:
                self.tags.setdefault(record["subject"], set()).update(record.get("tags", ()))
        self.names = sorted(self.tags)
        self.text_MD = self._embed(self.names)

    def _embed(self, words: Sequence[str]) -> Tensor:
        """Each word in two styles and without one, averaged: what is left is the subject."""
        forms = ["{}", "{}, noto emoji style", "{}, twemoji style"]
        text_MD = embed_prompts(self.model, self.tokenizer, [form.format(word) for word in words for form in forms])
        return F.normalize(text_MD.view(len(words), len(forms), -1).mean(dim=1), dim=-1)

    def nearest(self, words: Sequence[str], count: int = 3) -> list[list[str]]:
        """The names nearest to each word."""
        order = (self._embed(words) @ self.text_MD.T).topk(count, dim=1).indices.tolist()
        return [[self.names[index] for index in row] for row in order]

    def synonyms(self) -> dict[str, float]:
        """Over all tags that are no part of any name: how often one of the nearest names carries the tag."""
        known = set(" ".join(self.names).lower().split())
        tags = {tag for several in self.tags.values() for tag in several}
        words = sorted(tag for tag in tags if not known & set(tag.lower().split()))
        hits = {1: 0, 5: 0}
        for word, names in zip(words, self.nearest(words, 5), strict=True):
            for count in hits:
                hits[count] += any(word in self.tags[name] for name in names[:count])
        return {"synonyms": len(words)} | {f"synonym_at_{count}": hit / len(words) for count, hit in hits.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--names", nargs="*", default=[], help="shards whose names and tags are compared")
    parser.add_argument("--words", nargs="*", default=[], help="words to place among the names")
    options = parser.parse_args(arguments)
    with loading(options.model, "a CLIP"):
        model = read_pair(options.model)
        tokenizer = CLIPTokenizer.from_pretrained(options.model, **SAFE)
    size = model.config.vision_config.image_size
    shards = DataConfig(shards=tuple(options.shards), resolution=size, cache=True)
    result: dict[str, Any] = {"scores": retrieval(model, tokenizer, Pipeline(shards, batch_size=256))}
    if options.names:
        named = Pipeline(DataConfig(shards=tuple(options.names), resolution=size, cache=True), batch_size=256)
        names = Names(model, tokenizer, named.cached().info)
        result["scores"] |= names.synonyms()
        result["nearest"] = dict(zip(options.words, names.nearest(options.words), strict=True)) if options.words else {}
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
