"""What decides an adversarial training: networks, losses, regularisers, rates. The program is in `train.py`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from torch import nn

from star.data.errors import InputError
from star.generators.config import UNLESS_DEFAULT
from star.generators.gan.generator import GanGenerator, Phase
from star.generators.protocol import Conditioning, SampleOptions
from star.generators.training.data_feed import CachedFeedConfig


class NetworkConfig(Protocol):
    """What the trainer reads of the config that a generator network is built from, a frozen dataclass."""

    @property
    def resolution(self) -> int:
        """Side of a picture in pixels."""
        ...

    @property
    def conditioning(self) -> Conditioning: ...


class DiscriminatorConfig(Protocol):
    """The config of a discriminator, a frozen dataclass."""

    def build(self) -> nn.Module:
        """A discriminator with fresh weights: raw_B3HW and condition_BP (or None) to logits (B,) or (B, N).

        What of it does not require a gradient stays as it is.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Lazy:
    """A regulariser applied every so many steps, its weight raised by as much (Karras et al. 2020, §B)."""

    weight: float = 0.0  # 0: off
    every: int = 16  # steps

    @property
    def interval(self) -> int:
        """Steps between two applications, 0 where it is off."""
        return self.every if self.weight else 0

    def due(self, step: int) -> bool:
        """Whether it is applied in this step."""
        return bool(self.weight) and step % self.every == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Blur:
    """Both sides of the discriminator's input are blurred at first (Sauer et al. 2023). Sigma falls to 0 linearly."""

    sigma: float = 0.0  # pixels, at the start; 0: off
    pictures: int = 1_000_000  # until it is gone


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """Averaged weights of the generator: what is kept. Half-life in pictures, shorter at first."""

    half_life: float = 10_000.0
    rampup: float = 0.05  # half-life is at most this share of the pictures seen; 0: no ramp

    def decay(self, batch: int, images: int) -> float:
        """beta = 0.5^(batch / half-life), after Karras et al. 2020 (ADA), Appendix."""
        half_life = min(self.half_life, self.rampup * images) if self.rampup else self.half_life
        return 0.5 ** (batch / max(half_life, 1e-8))


@dataclass(frozen=True, kw_only=True, slots=True)
class GanTrainConfig(CachedFeedConfig):
    """A whole adversarial training; shards and folder are given beside it.

    A family derives its own, with `family`, and with the types of its two configs, from which the command line and the
    reading of a stored recipe know their fields.
    """

    family: ClassVar[type[GanGenerator]]  # the class that draws with what is learnt

    network: NetworkConfig
    discriminator: DiscriminatorConfig
    clip: str = ""  # CLIP directory or hub id: text conditions, and where asked for guidance; "" without text
    labels: tuple[str, ...] = ()  # names of the classes
    phase: Phase = "all"  # what of a StyleGAN-T learns
    init_from: str = ""  # a model directory of the same family to start from, of the same or of half the size
    loss: Literal["hinge", "logistic"] = "logistic"
    loss_per_picture: bool = False  # StyleGAN-T's code divides the hinge losses by the micro-batch once more
    r1: Lazy = field(default_factory=Lazy)  # weight: gamma
    path_length: Lazy = field(default_factory=lambda: Lazy(every=4))
    style_mixing: float = 0.0  # probability per step
    noise: Literal["random", "none"] = "random"  # between the generator's layers, in training
    consistency: float = 0.0  # weight of bCR
    mismatch: float = 0.0  # weight of real pictures under another's caption, as fakes (Reed et al. 2016)
    guidance: float = 0.0  # weight of the CLIP loss
    blur: Blur = field(default_factory=Blur)
    augment: tuple[str, ...] = ()  # operations of ADA; none: off
    augment_target: float = 0.6
    augment_pictures: int = 500_000  # in which the probability can go from 0 to 1
    augment_limit: float = 1.0
    flips: bool = False  # of real pictures
    lr: float = 2.5e-3  # of the generator
    lr_discriminator: float = 2.5e-3
    lr_projection: float = 1.0  # times lr, for a Styleformer's projections: one step moves thousands of tokens together
    lr_decay_from: int = 0  # step from which both rates fall to 0 linearly; 0: never
    betas: tuple[float, float] = (0.0, 0.99)
    clip_discriminator: float = 0.0  # largest norm of the discriminator's adversarial gradient; 0: any
    average: Average = field(default_factory=Average)
    caption_dropout: float = 0.0
    forms: Literal["exact", "fast"] = field(default="exact", metadata=UNLESS_DEFAULT)  # fast: see forms.py, for CPUs
    towers: Literal["float32", "bfloat16"] = field(default="float32", metadata=UNLESS_DEFAULT)  # frozen image towers
    paired: float = field(default=0.0, metadata=UNLESS_DEFAULT)  # weight of the distance to the caption's own picture
    paired_alone: int = field(default=0, metadata=UNLESS_DEFAULT)  # steps at first in which only that counts
    one_draw: bool = field(default=False, metadata=UNLESS_DEFAULT)  # both networks learn from the same drawn pictures
    saturated_after: int = 2000  # steps in a row without one mistake of the discriminator that end the run; 0: never
    sample_prompts: tuple[str, ...] = ()
    sample_options: SampleOptions = field(default_factory=SampleOptions)  # recommended by the model directory
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the stored weights
    bring_along: bool = True  # False: the model directory refers to the text encoder where it lies
    licence: str = ""

    def __post_init__(self) -> None:
        conditioning = self.network.conditioning
        problems = {
            "clip is empty, but the network reads text: name a CLIP": conditioning == "text" and not self.clip,
            "guidance and mismatch need a network that reads text: set them to 0": conditioning != "text"
            and bool(self.guidance or self.mismatch),
            "paired and paired_alone must not be negative, and paired is needed alone": min(
                self.paired, self.paired_alone
            )
            < 0
            or bool(self.paired_alone and not self.paired),
            "lr and lr_discriminator must be positive: correct them": min(self.lr, self.lr_discriminator) <= 0,
            "phase text_encoder needs a network that reads text": self.phase == "text_encoder"
            and conditioning != "text",
        }
        for problem, is_there in problems.items():
            if is_there:
                raise InputError(problem)
