"""What a training needs before it is begun: parameters, memory of a device, arithmetic, days and stored bytes.

    plan(PRESETS["star-d30-512"], shapes, gpus=64, gpu="h100", images=100_000_000)

Nothing is allocated or read. Pictures are taken to be encoded beforehand (`star data encode`), so that no tokenizer and
no text encoder computes beside the training.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from star.data.errors import InputError
from star.generators.config import from_dict
from star.generators.pretrained import ModelDirectory
from star.generators.registry import place_of
from star.model.transformer import TransformerConfig
from star.planning.flops import Work, mean, refiner_work
from star.planning.flops import work as work_of
from star.planning.memory import Memory, Parameters, looking, memory, refiner_memory, refiner_parameters
from star.tokenizer.autoencoder import AutoencoderConfig
from star.tokenizer.portions import at_once, map_bytes
from star.tokenizer.tokenizer import TokenizerConfig
from star.training.config import TrainConfig
from star.training.presets import CURRICULUM_SIZES

GB = 10**9
USABLE = 0.9  # of a device's memory; the rest goes to the driver, communication and the allocator's waste
TEXT_TOKENS = 77


class TooLargeError(InputError):
    """A step that a device has not the memory for; `what` tells how large it is, propose.py what would fit."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}: {advice}")
        self.what = what


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """Of one device: memory in bytes, and the highest FLOP/s that its maker states, without sparsity."""

    memory: int
    half: float  # bfloat16
    full: float  # TF32, in which training multiplies float32 (generators/precision.py)


GPUS = {
    "a100-40": Gpu(memory=40 * GB, half=312e12, full=156e12),
    "a100": Gpu(memory=80 * GB, half=312e12, full=156e12),
    "h100": Gpu(memory=80 * GB, half=989e12, full=494e12),
    "h200": Gpu(memory=141 * GB, half=989e12, full=494e12),
    "l40s": Gpu(memory=48 * GB, half=362e12, full=183e12),
    "rtx4090": Gpu(memory=24 * GB, half=165e12, full=82.6e12),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """What the frozen networks prescribe to a transformer."""

    sizes: tuple[int, ...]
    vocabulary: int = 4096
    code_width: int = 32
    text_width: int = 1024
    bits: int = 0
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text_tokens: int = TEXT_TOKENS  # of the text encoder; plans count with those of a CLIP whatever it has

    @classmethod
    def of(cls, config: TrainConfig) -> "Shapes":
        """As the preset's directories say; the curriculum's need not be here. Raises InputError for others missing."""
        if config.tokenizer in CURRICULUM_SIZES and not Path(config.tokenizer).is_dir():
            return cls(sizes=CURRICULUM_SIZES[config.tokenizer])
        from star.data.text import TextEncoder

        tokenizer = from_dict(TokenizerConfig, ModelDirectory.read(place_of(config.tokenizer)).config)
        text_encoder = TextEncoder.from_pretrained(place_of(config.text_encoder))
        return cls(
            sizes=tokenizer.quantizer.sizes,
            vocabulary=tokenizer.quantizer.vocabulary,
            code_width=tokenizer.quantizer.code_width,
            bits=tokenizer.quantizer.bits,
            autoencoder=tokenizer.autoencoder,
            text_width=text_encoder.width,
            text_tokens=text_encoder.max_tokens,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What was asked, and what it comes to."""

    precision: str  # run.precision: no or bf16
    in_half: float  # images per second that bf16 would reach
    network: TransformerConfig
    parameters: int
    tokens: int  # of a picture that take part in a step, at most
    gpus: int
    gpu: str
    per_device: int  # pictures at once
    images: int
    utilisation: float
    memory: Memory
    work: Work
    images_per_second: float
    checkpoint_bytes: int
    kept_checkpoints: int
    model_bytes: int
    encoded_bytes: int  # of one picture, at most
    looked: tuple[int, int]  # held-out pictures at once on a device, and the bytes that their losses take
    mapped: tuple[int, int]  # pictures that `star data encode` computes at once, and the bytes of their maps

    @property
    def days(self) -> float:
        """Of computing, without loading, pictures to look at, and failures."""
        return self.images / self.images_per_second / 86400

    def _precision(self) -> str:
        if self.precision == "bf16":
            return "bf16: products in bfloat16, weights and sums in float32 (run.precision)"
        days = self.images / self.in_half / 86400
        return f"no: float32, whose products are TF32; --run.precision=bf16 would take {days:,.2f} days"

    def text(self) -> str:
        """For people."""
        work = self.work
        kinds = "".join(f"  {name:<12}{size_of(count):>10}\n" for name, count in self.memory.kinds().items())
        usable = size_of(GPUS[self.gpu].memory * USABLE)
        stored = self.kept_checkpoints * self.checkpoint_bytes + self.model_bytes
        return (
            f"parameters      {self.parameters:,}\n"
            f"precision       {self._precision()}\n"
            f"tokens          {self.tokens} of a picture in a step, scales {' '.join(map(str, self.network.sizes))}\n"
            f"devices         {self.gpus} x {self.gpu}, {self.per_device} pictures at once on each\n"
            f"memory          {size_of(self.memory.peak)} at the peak, of {usable} usable on a device\n{kinds}"
            f"held out        {self.looked[0]} pictures at once on each, {size_of(self.looked[1])} beside what is "
            "kept\n"
            f"encoding        {self.mapped[0]} pictures at once on each, {size_of(self.mapped[1])} of maps beforehand\n"
            f"work            {work.total / 1e12:.3f} TFLOP for a picture: {work.forward / 1e12:.3f} forward, "
            f"{work.backward / 1e12:.3f} backward, {work.again / 1e12:.3f} computed again\n"
            f"speed           {self.images_per_second:,.1f} images/s at {self.utilisation:.0%} of the stated FLOP/s\n"
            f"time            {self.days:,.2f} days for {self.images:,} images\n"
            f"stored          {size_of(stored)}: {self.kept_checkpoints} checkpoints of "
            f"{size_of(self.checkpoint_bytes)}, a model of {size_of(self.model_bytes)}; and up to "
            f"{size_of(self.encoded_bytes)} for each encoded picture"
        )


def plan(
    config: TrainConfig, shapes: Shapes, *, gpus: int, gpu: str, images: int = 0, utilisation: float = 0.4
) -> Plan:
    """What training comes to on so many devices. images: seen in all; 0: as many as the preset's steps.

    Raises InputError for what cannot be: an unknown device, a batch that does not divide; TooLargeError for a step that
    needs more memory than there is.
    """
    _check(config, gpus, gpu, images, utilisation)
    device = GPUS[gpu]
    network, lengths, shares = shape_of(config, shapes)
    per_device = config.run.batch_size // (gpus * config.run.accumulate)
    half, pieces = config.run.precision == "bf16", _pieces(config, gpus)
    needed, looked = needs(config, network, lengths, per_device, gpus)
    if needed.peak > device.memory * USABLE:
        raise _too_much(config, needed, gpu, per_device, pieces)
    maps = map_bytes(shapes.autoencoder, max(shapes.sizes) * shapes.autoencoder.downsampling)
    if at_once(maps) * maps > device.memory * USABLE:
        raise InputError(
            f"encoding one picture takes {size_of(maps)} of maps, expected at most "
            f"{size_of(device.memory * USABLE)} on a {gpu}: take a larger device"
        )
    done, count, learnt = work_done(config, network, shares), Parameters.of(network).total, 0
    if config.refiner is not None:
        learnt = refiner_parameters(network, config.refiner.network(network.schedule))
        count += learnt
    return Plan(
        precision=config.run.precision,
        in_half=gpus * utilisation * device.half / done.total,
        network=network,
        parameters=count,
        tokens=sum(lengths),
        gpus=gpus,
        gpu=gpu,
        per_device=per_device,
        images=images or config.run.steps * config.run.batch_size,
        utilisation=utilisation,
        memory=needed,
        work=done,
        images_per_second=gpus * utilisation * (device.half if half else device.full) / done.total,
        checkpoint_bytes=16 * (learnt or count),  # weights, two moments and the average, float32
        kept_checkpoints=config.run.keep,
        model_bytes=count * (2 if config.dtype == "bfloat16" else 4),
        looked=looked,
        mapped=(at_once(maps), at_once(maps) * maps),
        encoded_bytes=2 * network.schedule.length + 2 * (TEXT_TOKENS + 1) * shapes.text_width,
    )


def shape_of(
    config: TrainConfig, shapes: Shapes
) -> tuple[TransformerConfig, tuple[int, ...], dict[tuple[int, ...], float]]:
    """The network, the lengths of its scales in the largest steps, and those of all kinds of steps with their share."""
    network = config.fresh_network(
        sizes=shapes.sizes,
        vocabulary=shapes.vocabulary,
        code_width=shapes.code_width,
        text_width=shapes.text_width,
        bits=shapes.bits,
    )
    shares: dict[tuple[int, ...], float] = {}
    for part, share in config.curriculum(network.schedule).shares().items():
        shares[part.lengths] = shares.get(part.lengths, 0.0) + share
    return network, max(shares, key=sum), shares


def work_done(config: TrainConfig, network: TransformerConfig, shares: dict[tuple[int, ...], float]) -> Work:
    """What a picture costs; shares: of the kinds of steps, see `shape_of`."""
    if config.refiner is not None:
        return refiner_work(network, config.refiner.network(network.schedule), TEXT_TOKENS, config.refiner.masks)
    return mean((work_of(network, part, TEXT_TOKENS), share) for part, share in shares.items())


def needs(
    config: TrainConfig, network: TransformerConfig, lengths: tuple[int, ...], per_device: int, gpus: int
) -> tuple[Memory, tuple[int, int]]:
    """Memory of a step of so many pictures on a device, held-out ones included; and these, see `Plan.looked`."""
    half, pieces = config.run.precision == "bf16", _pieces(config, gpus)
    if config.refiner is not None:
        refiner, batch = config.refiner.network(network.schedule), per_device * config.refiner.masks
        needed = refiner_memory(network, refiner, batch=batch, half=half, pieces=pieces)
    else:
        needed = memory(network, lengths, TEXT_TOKENS, batch=per_device, half=half, pieces=pieces)
    looked = looking(network, half=half, pieces=pieces)
    kept = needed.weights + needed.moments + needed.averaged
    return replace(needed, peak=max(needed.peak, kept + looked[1])), looked


def _pieces(config: TrainConfig, gpus: int) -> int:
    return gpus if config.run.sharding == "fsdp2" else 1


def _check(config: TrainConfig, gpus: int, gpu: str, images: int, utilisation: float) -> None:
    if gpu not in GPUS:
        raise InputError(f"there is no GPU {gpu!r} in the table, expected one of {', '.join(GPUS)}: choose the nearest")
    if gpus < 1 or images < 0:
        raise InputError(f"{gpus} devices and {images} images were given, expected at least 1 of each: correct them")
    if not 0 < utilisation <= 1:
        raise InputError(f"utilisation is {utilisation}, expected a share above 0 and up to 1: 0.4 is usual")
    parts = gpus * config.run.accumulate
    if config.run.batch_size % parts:
        raise InputError(
            f"run.batch_size is {config.run.batch_size}, expected a multiple of {parts} ({gpus} devices x "
            f"{config.run.accumulate} accumulated micro-batches): change one of them"
        )


def _too_much(config: TrainConfig, needed: Memory, gpu: str, per_device: int, pieces: int) -> TooLargeError:
    """Why it does not fit, and what would help most."""
    kinds = needed.kinds()
    largest = max(kinds, key=lambda name: kinds[name])
    advice = "take larger or more devices"
    if largest in ("activations", "logits"):
        if not config.checkpointing and largest == "activations":
            advice = "set --checkpointing=true"
        elif per_device > 1:
            advice = f"set --run.accumulate={config.run.accumulate * per_device}, for fewer pictures at once"
    elif pieces == 1:
        advice = "set --run.sharding=fsdp2 and take more devices"
    return TooLargeError(
        f"a step with {per_device} pictures at once needs {size_of(needed.peak)} of a {gpu}, expected at most "
        f"{size_of(GPUS[gpu].memory * USABLE)}, most of it {largest} ({size_of(kinds[largest])})",
        advice,
    )


def size_of(count: float) -> str:
    """Bytes for people."""
    for unit, size in (("TB", 10**12), ("GB", GB), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1000:.1f} kB"
