"""What a training of a tokenizer is made of: one dataclass, whose presets are in `presets.py`."""

from dataclasses import dataclass, field
from typing import Literal

from star.generators.gan.augment.diffaugment import operations
from star.generators.training.data_feed import CachedFeedConfig
from star.tokenizer.bitwise import BitsConfig
from star.tokenizer.codebook import CodebookConfig
from star.tokenizer.quantizers import QUANTIZERS, TRAINERS
from star.tokenizer.tokenizer import TokenizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTrainConfig(CachedFeedConfig):
    """A whole training of a tokenizer; shards and folder are given beside it."""

    network: TokenizerConfig = field(default_factory=TokenizerConfig)
    codebook: CodebookConfig | BitsConfig = field(default_factory=CodebookConfig)  # what the quantizer learns by
    lr: float = 1e-3
    lr_steps: int = 0  # length of the schedule; 0: the run's steps
    lr_floor: float = 0.02  # share of lr at the last step
    warmup: int = 100  # steps
    weight_decay: float = 1e-4
    beta2: float = 0.99
    ema: float = 0.995  # decay of the averaged weights, which are what is kept
    beta: float = 0.25  # weight of the commitment
    commit_to: str = "last"  # or "all", as released
    relative: bool = True  # quantisation loss in units of the latent's mean square
    reconstruction: float = 4.0  # weight of the reconstruction loss
    l1: float = 0.25  # weight of the absolute error beside the squared one
    log_error: bool = False  # the logarithm of each picture's squared error, as in its PSNR
    cut: float = 0.0  # share of steps in which the picture is decoded from a random number of scales only
    perceptual: str = "none"  # or lpips:FOLDER, or a folder or hub id of a transformers vision model; see losses.py
    perceptual_weight: float = 1.0
    adversary_weight: float = 0.0  # times the adaptive weight
    adversary_start: int = 0  # steps
    adversary: Literal["patch", "stylegan2"] = "patch"  # the discriminator
    augment: str = ""  # what it sees of real and decoded pictures alike, as "color,translation,cutout" (DiffAug)
    init_from: str = ""  # a tokenizer's model directory to start from
    align_to: str = ""  # a tokenizer's model directory whose coarse codes are to keep their meaning, see align.py
    align_weight: float = 0.5
    freeze_encoder: bool = False  # only quantizer and decoder learn
    freeze_codes: bool = False  # encoder and quantizer stay, only the decoder learns: the codes keep their meaning
    jitter: bool = False  # mirrored and shifted pictures
    dtype: str = "bfloat16"  # of the stored weights

    def __post_init__(self) -> None:
        if not 0 <= self.cut < 1:
            raise ValueError(f"cut is {self.cut}, expected a share of at least 0 and below 1")
        if self.commit_to not in ("last", "all"):
            raise ValueError(f"commit_to is {self.commit_to!r}, expected 'last' or 'all'")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")
        expected = TRAINERS[QUANTIZERS[type(self.network.quantizer)]][0]
        if type(self.codebook) is not expected:
            raise ValueError(
                f"codebook is a {type(self.codebook).__name__}, a {type(self.network.quantizer).__name__} needs a "
                f"{expected.__name__}"
            )
        operations(self.augment)  # raises InputError for an unknown one
