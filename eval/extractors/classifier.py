"""The network of judge-emoji: a small residual classifier, whose pooled last layer gives the metrics their features.

Labels where clip-emoji and guide-emoji have captions, and a network of its own: what it finds alike owes nothing to
the teachers of the models that it scores. It is never used in a training loss. Pictures are image_B3HW in [-1, 1].
Shapes: B pictures, C channels, D features, H W pixels, 3 RGB.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.config import check_ranges, check_stages, from_dict
from star.generators.pretrained import ModelDirectory, load_into

FAMILY = "judge"  # on disk
PHRASES = "phrases"  # in what a model directory says about itself: how the training captions call each subject


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """Sizes, and the labels that the heads distinguish."""

    image_size: int = 64
    widths: tuple[int, ...] = (32, 64, 128, 256)  # channels of each stage; the last is the width of the features
    blocks: tuple[int, ...] = (1, 1, 2, 1)  # residual blocks of each stage
    subjects: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # of which a picture may have several

    def __post_init__(self) -> None:
        check_ranges(self, image_size=(1, 2**12), widths=(-math.inf, 2**13), blocks=(-math.inf, 128))
        check_stages(self.widths, self.blocks)
        if self.image_size < 2 ** len(self.widths):
            raise InputError(
                f"A picture of {self.image_size} pixels cannot be halved {len(self.widths)} times; give a larger one."
            )

    @property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """Labels by the name of their head."""
        return {"subject": self.subjects, "style": self.styles, "category": self.categories, "tags": self.tags}


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a way around them (He et al. 2016); `stride` 2 halves the sides."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        # Averages before it projects: a strided 1 x 1 convolution would read a quarter of the pixels only.
        self.around = (
            nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
            if (before, stride) != (after, 1)
            else nn.Identity()
        )

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        inner_BCHW = F.relu(self.first_norm(self.first(hidden_BCHW)))
        return F.relu(self.second_norm(self.second(inner_BCHW)) + self.around(hidden_BCHW))


class ClassifierNetwork(nn.Module):
    """Stem, stages at half the size each, mean over the places; one linear head per kind of label."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(3, config.widths[0], 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(config.widths[0])
        layers: list[nn.Module] = []
        before = config.widths[0]
        for stage, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            for block in range(blocks):
                layers.append(ResidualBlock(before, width, 2 if stage > 0 and block == 0 else 1))
                before = width
        self.stages = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(before, len(labels)) for name, labels in config.heads.items()})
        self.init_weights()

    def init_weights(self) -> None:
        """Convolutions N(0, 2 / fan out); blocks start as the way around them, heads near zero, tags as seldom true."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.second_norm.weight)
        nn.init.constant_(self.heads["tags"].bias, -5.0)  # type: ignore[arg-type]

    def features(self, image_B3HW: Tensor) -> Tensor:
        """features_BD, not negative."""
        hidden_BCHW = F.relu(self.stem_norm(self.stem(image_B3HW.contiguous(memory_format=torch.channels_last))))
        return self.stages(hidden_BCHW).mean(dim=(2, 3))

    def forward(self, image_B3HW: Tensor) -> dict[str, Tensor]:
        """Logits by head: subject, style, category (B, labels), and one for every tag."""
        features_BD = self.features(image_B3HW)
        return {name: head(features_BD) for name, head in self.heads.items()}


def phrases_of(told: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Phrase -> subject, of (caption, subject) pairs; a phrase is a caption without its style, what is behind the last
    comma. Phrases of two subjects are left out."""
    found: dict[str, set[str]] = {}
    for caption, subject in told:
        found.setdefault(caption.rpartition(",")[0].strip() or caption.strip(), set()).add(subject)
    return {phrase: next(iter(subjects)) for phrase, subjects in sorted(found.items()) if len(subjects) == 1}


def subject_meant(prompt: str, phrases: Mapping[str, str]) -> str:
    """The subject of the longest phrase that a prompt is, or begins with up to a comma; "" if there is none.

    So "a man, dark skin tone, noto emoji style" is "a man" where that tone was in no caption.
    """
    while prompt and prompt not in phrases:
        prompt = prompt.rpartition(",")[0].strip()
    return phrases.get(prompt, "")


def read_phrases(directory: ModelDirectory, subjects: Iterable[str]) -> dict[str, str]:
    """Phrase -> subject of a model directory; none where it was written without. Raises InputError if they are damaged,
    or lead to other subjects than the network's."""
    phrases, known = directory.about.get(PHRASES, {}), set(subjects)
    if not isinstance(phrases, dict) or not all(isinstance(to, str) and to in known for to in phrases.values()):
        raise InputError(
            f"{directory.path} has phrases that lead to no subject of its network, expected phrase -> subject: get the "
            "model directory again"
        )
    return phrases


def read_classifier(path: str | Path) -> tuple[ClassifierNetwork, ModelDirectory]:
    """A frozen float32 network and the directory it came from. Raises InputError if that is none, or is damaged."""
    directory = ModelDirectory.read(path, FAMILY)
    config = from_dict(ClassifierConfig, directory.config, str(path))
    directory.check_fits(lambda: ClassifierNetwork(config))
    network = ClassifierNetwork(config)
    tensors = {
        name: value.float() if value.is_floating_point() else value for name, value in directory.tensors().items()
    }
    load_into(network, tensors, path)
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False), directory  # type: ignore[call-overload]
