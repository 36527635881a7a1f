"""What a training of a CLIP is told, and the recipes by name."""

from dataclasses import dataclass, field

from star.clip.captions import CaptionConfig
from star.clip.locked_text import LockedTextConfig
from star.clip.network import ClipConfig, ConvTowerConfig
from star.clip.proxies import ProxyConfig
from star.data.errors import InputError
from star.generators.config import UNLESS_DEFAULT, check_ranges
from star.generators.training.data_feed import CachedFeedConfig
from star.generators.training.run import RunConfig


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
