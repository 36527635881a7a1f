"""What pictures and captions of a CLIP both learn to lie near: points put together from learnt subjects and styles.

In a batch a picture is told from the few captions of others. Here it is told from every phrase in its style, and from
its phrase in every style, as a classifier would tell it (Movshovitz-Attias et al. 2017, section 4); the text tower
learns to say these points, in combinations of words and style of which there are no pictures, too. The points are no
part of the model: they are written beside it, and a second run can have the text tower alone learn to say them.
Shapes: B pictures, N texts, P phrases (captions without their style), Q subjects, S styles, D width.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from star.clip.captions import CaptionConfig, Claim, PictureText
from star.clip.network import Pair, embed_images, embed_texts
from star.data.errors import InputError
from star.data.files import check_safetensors, described
from star.generators.config import UNLESS_DEFAULT, check_ranges
from star.generators.staging import staged

POINTS = "points.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyConfig:
    """Weights of what is learnt beside the contrastive loss, the smoothing of its labels, and how much is read."""

    phrases: float = 1.0  # a picture's phrase among all phrases in its style
    styles: float = 1.0  # its style among all styles of its phrase
    texts: float = 1.0  # the same two of the texts,
    distance: float = 10.0  # and 1 - cosine of each text to its point
    smoothing: float = 0.1  # of the labels (Szegedy et al. 2016, section 7)
    # A caption variant of this share of a batch's pictures is read, and as many phrases in styles drawn at random.
    share: float = 0.25
    # RUN/points of the run whose model training starts from: the text tower alone learns, to say them.
    points: str = field(default="", metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        weights = dict.fromkeys(("phrases", "styles", "texts", "distance"), (0.0, 1e3))
        check_ranges(self, **weights, smoothing=(0, 0.9), share=(0, 1))


class Drawn(NamedTuple):
    """The texts of a step, and what they say: captions of the first pictures, then as many made up."""

    texts: list[str]
    claims: tuple[Claim, ...]  # of the captions
    said_N2: Tensor  # phrase and style of the texts


class Points(NamedTuple):
    """The parts that points are put together from."""

    phrase_PD: Tensor
    style_SD: Tensor  # the last one is at 0: no style
    norm_PS: Tensor  # of their sums

    def of(self, said_N2: Tensor) -> Tensor:
        """Normalised points (N, D)."""
        phrase_N, style_N = said_N2.unbind(dim=1)
        return F.normalize(self.phrase_PD[phrase_N] + self.style_SD[style_N], dim=-1)

    def phrase_cosines(self, one_ND: Tensor, style_N: Tensor) -> Tensor:
        """Of each vector with all phrases in its style; (N, P)."""
        told_NP = one_ND @ self.phrase_PD.T + (one_ND * self.style_SD[style_N]).sum(dim=1, keepdim=True)
        return told_NP / self.norm_PS.T[style_N]

    def style_cosines(self, one_ND: Tensor, phrase_N: Tensor) -> Tensor:
        """Of each vector with its phrase in all styles; (N, S)."""
        told_NS = one_ND @ self.style_SD.T + (one_ND * self.phrase_PD[phrase_N]).sum(dim=1, keepdim=True)
        return told_NS / self.norm_PS[phrase_N]


class Proxies(nn.Module):
    """Learnt subjects, phrases and styles, and which of them a picture has.

    A phrase lies near its subject: it is the subject and a step of its own, which starts at 0. A picture whose record
    names no style has its first caption as phrase.
    """

    def __init__(self, pictures: Iterable[PictureText], width: int) -> None:
        """width: D. Draws from torch's own generator. Raises InputError without any pictures."""
        super().__init__()
        subjects: dict[str, int] = {}
        self.phrases: dict[str, int] = {}  # and their rows
        self.styles: dict[str, int] = {}
        subject_P = []
        for picture in pictures:
            phrase, style = picture.parts
            if phrase not in self.phrases:
                self.phrases[phrase] = len(self.phrases)
                subject_P.append(subjects.setdefault(picture.subject, len(subjects)))
            if style:
                self.styles.setdefault(style, len(self.styles))
        if not self.phrases:
            raise InputError("there are no pictures to learn from, expected some with captions: give other shards")
        self.register_buffer("subject_P", torch.tensor(subject_P), persistent=False)
        self.subject_QD = nn.Parameter(torch.randn(len(subjects), width) * width**-0.5)
        self.phrase_PD = nn.Parameter(torch.zeros(len(self.phrases), width))
        self.style_SD = nn.Parameter(torch.randn(len(self.styles), width) * width**-0.5)

    def forward(self) -> Points:
        """As they are now."""
        phrase_PD = self.subject_QD[self.subject_P] + self.phrase_PD  # type: ignore[index]
        style_SD = F.pad(self.style_SD, (0, 0, 0, 1))
        squared_PS = phrase_PD.square().sum(dim=1)[:, None] + style_SD.square().sum(dim=1)
        squared_PS = squared_PS + 2 * phrase_PD @ style_SD.T
        return Points(phrase_PD, style_SD, squared_PS.clamp(min=1e-12).sqrt())

    @torch.no_grad()
    def write(self, folder: Path) -> None:
        """As they are now, with their names. Raises InputError if the disk refuses."""
        points = self()
        names = {"phrases": json.dumps(list(self.phrases)), "styles": json.dumps(list(self.styles))}
        parts = {"phrase_PD": points.phrase_PD, "style_SD": points.style_SD[:-1]}
        with staged(folder) as staging:
            save_file({name: part.contiguous().cpu() for name, part in parts.items()}, staging / POINTS, names)

    @torch.no_grad()
    def read(self, folder: Path) -> None:
        """Those of a folder, by their names, and frozen. Raises InputError where one is missing, or it is damaged."""
        file, place = folder / POINTS, "give RUN/points as a run with proxies wrote it, for these shards"
        if not file.is_file():
            raise InputError(f"{file} is missing, expected the points of an earlier run: {place}")
        check_safetensors(file)
        with described(file, place), safe_open(file, framework="pt") as stored:
            names = stored.metadata() or {}
            for kind, own, table in (("phrases", self.phrases, "phrase_PD"), ("styles", self.styles, "style_SD")):
                rows = {name: row for row, name in enumerate(json.loads(names[kind]))}
                if lacking := [name for name in own if name not in rows]:
                    raise InputError(
                        f"{file} has no point for {lacking[0]!r} and {len(lacking) - 1} more of the {kind} of these "
                        f"shards, expected all: {place}"
                    )
                tensor = stored.get_tensor(table)
                target: Tensor = getattr(self, table)
                if tensor.shape[1:] != target.shape[1:] or len(tensor) != len(rows):
                    raise InputError(f"{file} has {table} {tuple(tensor.shape)}, not {tuple(target.shape)}: {place}")
                target.copy_(tensor[[rows[name] for name in own]])
        self.subject_QD.zero_()  # is in the phrases
        self.requires_grad_(False)

    def of(self, pictures: Sequence[PictureText]) -> Tensor:
        """said_B2 int64: the rows of phrase and style of each picture."""
        parts = [picture.parts for picture in pictures]
        bare = len(self.styles)
        return torch.tensor([[self.phrases[phrase], self.styles.get(style, bare)] for phrase, style in parts])

    def draw(self, pictures: Sequence[PictureText], config: CaptionConfig, rng: random.Random) -> Drawn:
        """A caption variant of each of these pictures, then as many phrases, evenly, in styles or in none, evenly."""
        phrases, styles = list(self.phrases), [*self.styles, ""]
        texts, claims, said = [], [], []
        for picture, (phrase, style) in zip(pictures, self.of(pictures).tolist(), strict=True):
            text, claim = picture.draw(config, rng)
            texts.append(text)
            claims.append(claim)
            said.append((phrase, len(self.styles) if claim == ("text", picture.phrase) else style))
        for _ in pictures:
            phrase, style = rng.randrange(len(phrases)), rng.randrange(len(styles))
            texts.append(", ".join(filter(None, (phrases[phrase], styles[style]))))
            said.append((phrase, style))
        return Drawn(texts, tuple(claims), torch.tensor(said))


class ProxyPair(nn.Module):
    """Both towers and the proxies behind one forward pass, which is what several processes need."""

    def __init__(self, model: Pair, proxies: Proxies) -> None:
        super().__init__()
        self.model, self.proxies = model, proxies

    def forward(
        self, image_B3HW: Tensor | None, keep_BP: Tensor | None, ids_NT: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, ...]]:
        """text_ND and image_BD, normalised, the scale of their cosines, at most 100, and the parts of `Points`.

        image_B3HW: None where the text tower alone learns; image_BD is None then, too.
        """
        image_BD = None if image_B3HW is None else embed_images(self.model, image_B3HW, keep_BP)
        text_ND = embed_by_length(self.model, ids_NT)
        return text_ND, image_BD, self.model.logit_scale.exp().clamp(max=100.0), tuple(self.proxies())


def embed_by_length(model: Pair, ids_NT: Tensor, chunks: int = 4) -> Tensor:
    """Normalised embeddings (N, D) as of `embed_texts`; texts of a length go together, which is cheap."""
    tower: Any = model.text_model
    end_N = (ids_NT == tower.eos_token_id).int().argmax(dim=1)
    order_N = end_N.argsort(stable=True)
    parts = [embed_texts(model, ids_NT[rows, : int(end_N[rows[-1]]) + 1]) for rows in order_N.chunk(chunks)]
    return torch.cat(parts)[order_N.argsort()]


def label_loss(
    config: ProxyConfig, points: Points, one_ND: Tensor, scale: Tensor, said_N2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies over phrases and over styles, and the share of the vectors whose phrase is the nearest.

    The loss over styles leaves out what has none, and is 0 where there are fewer than 2.
    """
    phrase_N, style_N = said_N2.unbind(dim=1)
    cosine_NP = points.phrase_cosines(one_ND, style_N)
    phrases = F.cross_entropy(scale * cosine_NP, phrase_N, label_smoothing=config.smoothing)
    found = (cosine_NP.argmax(dim=1) == phrase_N).float().mean()
    styles, bare = scale * points.style_cosines(one_ND, phrase_N)[:, :-1], len(points.style_SD) - 1
    if bare < 2:
        return phrases, phrases.new_zeros(()), found
    target_N = style_N.masked_fill(style_N == bare, -100)
    summed = F.cross_entropy(styles, target_N, label_smoothing=config.smoothing, reduction="sum")
    return phrases, summed / (style_N < bare).sum().clamp(min=1), found


def text_loss(
    config: ProxyConfig, points: Points, text_ND: Tensor, scale: Tensor, said_N2: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """What texts learn from the points, which they do not move: they are where the pictures are. And what is logged."""
    fixed, scale = Points(*(part.detach() for part in points)), scale.detach()
    phrases, styles, found = label_loss(config, fixed, text_ND, scale, said_N2)
    distance = (1 - (text_ND * fixed.of(said_N2)).sum(dim=1)).mean()
    loss = config.texts * (phrases + styles) + config.distance * distance
    values = {"loss/text_phrases": phrases, "loss/text_styles": styles, "loss/distance": distance}
    return loss, {**values, "found/text_phrases": found}


def image_loss(
    config: ProxyConfig, points: Points, image_BD: Tensor, scale: Tensor, said_B2: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """What pictures learn with the points; and what is logged."""
    phrases, styles, found = label_loss(config, points, image_BD, scale, said_B2)
    loss = config.phrases * phrases + config.styles * styles
    return loss, {"loss/phrases": phrases, "loss/styles": styles, "found/phrases": found}
