"""What pictures and captions of a CLIP both learn to lie near: points put together from learnt subjects and styles.

In a batch a picture is told from the few captions of others. Here it is told from every phrase in its style, and from
its phrase in every style, as a classifier would tell it (Movshovitz-Attias et al. 2017, section 4); the text tower
learns to say these points, in combinations of words and style of which there are no pictures, too. The points are left
behind when the model is saved.
Shapes: B pictures, N texts, P phrases (captions without their style), Q subjects, S styles, D width.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.clip.captions import CaptionConfig, Claim, PictureText
from star.clip.network import Pair, embed_images, embed_texts
from star.data.errors import InputError
from star.generators.config import check_ranges


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
        self, image_B3HW: Tensor, keep_BP: Tensor | None, ids_NT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """text_ND and image_BD, normalised, the scale of their cosines, at most 100, and the parts of `Points`."""
        image_BD = embed_images(self.model, image_B3HW, keep_BP)
        text_ND = embed_texts(self.model, ids_NT)
        return text_ND, image_BD, self.model.logit_scale.exp().clamp(max=100.0), tuple(self.proxies())


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


def proxy_loss(
    config: ProxyConfig, points: Points, image_BD: Tensor, text_ND: Tensor, scale: Tensor, said: tuple[Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What pictures and texts learn beside telling each other apart; and what is logged.

    Pictures move the points and texts do not: a point is where the pictures are. said: of pictures, and of texts.
    """
    phrases, styles, found = label_loss(config, points, image_BD, scale, said[0])
    fixed = Points(*(part.detach() for part in points))
    text_phrases, text_styles, text_found = label_loss(config, fixed, text_ND, scale.detach(), said[1])
    distance = (1 - (text_ND * fixed.of(said[1])).sum(dim=1)).mean()
    loss = config.phrases * phrases + config.styles * styles
    loss = loss + config.texts * (text_phrases + text_styles) + config.distance * distance
    values = {
        "loss/phrases": phrases,
        "loss/styles": styles,
        "loss/text_phrases": text_phrases,
        "loss/text_styles": text_styles,
        "loss/distance": distance,
        "found/phrases": found,
        "found/text_phrases": text_found,
    }
    return loss, values
