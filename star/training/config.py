"""What a training of the next-scale transformer is made of: one dataclass, whose presets are in `presets.py`."""

from dataclasses import dataclass, field
from typing import Literal

from star.data.errors import InputError
from star.generators.config import UNLESS_DEFAULT
from star.generators.protocol import SampleOptions
from star.generators.training.data_feed import FeedConfig, Keep
from star.model.kernels.choice import Attention
from star.model.transformer import TransformerConfig
from star.tokenizer.scales import ScaleSchedule, ratio
from star.training.frozen_networks import FrozenNetworks
from star.training.init_from import continued
from star.training.refiner_config import RefinerTraining
from star.training.token_dropping import ScaleCurriculum, check_curriculum, curriculum_of


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(FeedConfig):
    """Everything that decides what a run learns. Scales, codebook and text width come with the frozen networks."""

    tokenizer: str  # model directory
    text_encoder: str  # directory or hub id
    init_from: str = ""  # a STAR model directory to start from; width, depth and heads are then its own
    width: int = 512
    depth: int = 8
    heads: int = 8
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    attention: Attention = "sdpa"  # see star/model/kernels/choice.py
    checkpointing: bool = False  # blocks are computed twice, and only their inputs kept in between
    drop_path: float = 0.0
    head_float32: bool = True
    optimizer: Literal["adamw", "muon"] = (
        "adamw"  # muon: for the matrices of the blocks, see generators/training/muon.py
    )
    lr: float = 1e-4
    matrix_lr: float = 1.0  # of lr: the rate of what muon moves
    warmup: int = 100  # steps
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    lr_floor: float = 0.01  # of lr, at the end
    lr_hold: float = 0.0  # share of the steps after the warm-up that stay at lr
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    ema: float = 0.999
    ema_warmup: bool = False  # step n averages with at most (n + 1) / (n + 10), so that the first steps are forgotten
    caption_dropout: float = 0.1  # share of captions replaced by the empty prompt, which guidance needs
    caption_dropout_above: int = 0  # characters: shorter captions are never replaced
    code_noise: float = 0.0  # see targets.make_targets
    noise_neighbours: int = 0
    label_smoothing: float = 0.0
    scale_power: float = 1.0  # see targets.scale_weights
    keep_last_scale: float = 1.0  # share of the finest scale's tokens that a step computes, see targets.draw_kept
    whole_last: float = 0.0  # share of the steps, at the end, that compute all of them
    coarse_scales: int = 0  # so many of the scales are all that most steps before those compute
    coarse_steps: float = 0.0  # the share of the steps that do
    compile: bool = (
        False  # the blocks, by torch.compile: 1.3 times as fast on a CPU, after ten seconds; needs g++ there
    )
    aspects: tuple[str, ...] = ()  # width:height as 3:2; each batch has the one nearest to its pictures; empty: squares
    precompute: Keep = "auto"  # latents and text features once, in memory, or batch by batch; auto: by an estimate
    held_out: float = 0.02  # share of the pictures never trained on, where no validation shards are given
    validation: tuple[str, ...] = ()  # shards; empty: those of the data that are named as held out
    validation_pictures: int = 1024  # at most
    validate_every: int = 500  # steps
    sample_prompts: tuple[str, ...] = ()
    sample_options: SampleOptions = field(default_factory=SampleOptions)  # recommended by the model directory
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the stored weights
    bring_along: bool = True  # False: the model directory refers to tokenizer and text encoder where they lie
    licence: str = ""
    refiner: RefinerTraining | None = field(default=None, metadata=UNLESS_DEFAULT)  # trained alone, behind init_from

    def __post_init__(self) -> None:
        shares = ("dropout", "drop_path", "caption_dropout", "code_noise", "label_smoothing", "held_out", "ema")
        for name in (*shares, "lr_hold"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected a share from 0 to below 1: correct it")
        if not 0 <= self.whole_last <= 1:
            raise InputError(f"whole_last is {self.whole_last}, expected a share from 0 to 1: correct it")
        check_curriculum(self)
        for aspect in self.aspects:
            ratio(aspect)  # raises InputError unless it is one
        if self.aspects and self.precompute is True:
            raise InputError(
                "precompute is true and aspects are given, expected one of them: pictures of one shape alone are kept "
                "in memory; encode them with `star data encode --aspects`, or set --precompute=false"
            )
        if self.optimizer == "muon" and self.run.sharding != "none":
            raise InputError(
                "optimizer is muon, which needs whole matrices, expected adamw where run.sharding is "
                f"{self.run.sharding}: change one of them"
            )
        if self.matrix_lr <= 0:
            raise InputError(f"matrix_lr is {self.matrix_lr}, expected a positive share of lr: correct it")
        if self.lr <= 0 or self.validate_every < 1:
            raise InputError(
                f"lr is {self.lr} and validate_every {self.validate_every}, expected both positive: correct them"
            )

    def curriculum(self, schedule: ScaleSchedule) -> ScaleCurriculum:
        """What each step computes. Raises InputError if there are too few scales for it."""
        return curriculum_of(self, schedule, self.whole_last)

    def schedules(self, schedule: ScaleSchedule) -> tuple[ScaleSchedule, ...]:
        """Those of the aspects, given that of squares. Raises InputError for two that come to the same grids."""
        found = tuple(schedule.of_aspect(aspect) for aspect in self.aspects) or (schedule,)
        if len(set(found)) < len(found):
            raise InputError(
                f"aspects is {', '.join(self.aspects)}, two of which give the same grid of {schedule.finest} cells a "
                "side: drop one"
            )
        return found

    def network(self, frozen: FrozenNetworks) -> TransformerConfig:
        """The transformer that fits the frozen networks."""
        tokenizer = frozen.tokenizer
        if tokenizer.bits and self.noise_neighbours:
            raise InputError(
                f"noise_neighbours is {self.noise_neighbours}, expected 0 with a tokenizer of bits, any of which "
                "may be flipped: set --noise_neighbours=0"
            )
        fresh = self.fresh_network(
            sizes=tokenizer.schedule.sizes,
            vocabulary=tokenizer.vocabulary,
            code_width=tokenizer.code_width,
            text_width=frozen.text_encoder.width,
            bits=tokenizer.bits,
        )
        return continued(self.init_from, fresh) if self.init_from else fresh

    def fresh_network(
        self, *, sizes: tuple[int, ...], vocabulary: int, code_width: int, text_width: int, bits: int = 0
    ) -> TransformerConfig:
        """The transformer for networks of these shapes, wherever its weights start."""
        return TransformerConfig(
            sizes=sizes,
            vocabulary=vocabulary,
            code_width=code_width,
            text_width=text_width,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            drop_path=self.drop_path,
            attention=self.attention,
            checkpointing=self.checkpointing,
            head_float32=self.head_float32,
            bits=bits,
        )
