"""A virtual worker of the pipeline: from positions to decoded samples, endless or once, starting anywhere.

Its order is made of references, drawn from the sources by weight; only those it hands out are read and decoded. A
position whose sample turns out unusable when decoded is given to the virtual worker's next usable sample, so what
stands at any other position never depends on what was broken before it. Pictures that go to buckets by their aspect
are chunked in `aspect_batches`.

Shapes: B batch, H W pixels, 3 RGB.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from star.data.captions import REPAIRED_TEXT, captions_of, text_repaired
from star.data.decoding import upright_size
from star.data.errors import InputError
from star.data.images import Crop, decode, pil_to_pixels, resize
from star.data.loader.aspect import nearest
from star.data.loader.order import choose
from star.data.loader.positions import Order, Ref
from star.data.loader.weighted_sampling import WeightedSampling
from star.data.shards.faults import Fault, SampleError
from star.data.shards.tar import Group, fetch, image_bytes, index_shard, is_seekable, read_shard

# Makes named tensors of a sample's members, given which of its captions was chosen. Raises SampleError. Picklable.
# Among them may be "pixels", of which only samples of one shape are stacked; without it a sample has no pixels.
Reader = Callable[[Mapping[str, bytes], int], dict[str, Tensor]]


@runtime_checkable
class SizedReader(Protocol):
    """A `Reader` of samples of several sizes, which buckets need."""

    def size(self, members: Mapping[str, bytes]) -> tuple[int, int]:
        """(H, W) in pixels, of a sample's header alone. Raises SampleError if it has none."""
        ...


class Source(NamedTuple):
    """Shards that are shuffled together, and how often their samples come beside those of other sources."""

    shards: tuple[str, ...]
    weight: float


class Settings(NamedTuple):
    """What a virtual worker needs to know of the data config."""

    sources: tuple[Source, ...]
    size: tuple[int, int]
    buckets: tuple[tuple[int, int], ...]
    crop: Crop
    random_caption: bool
    shuffle: bool
    buffer: int
    seed: int
    lanes: int
    per_lane: int
    reader: Reader | None


class Sample(NamedTuple):
    pixels_3HW: Tensor
    prompt: str
    key: str
    captions: tuple[str, ...]
    info: dict[str, Any]
    epoch: int
    extra: dict[str, Tensor]


class Chunk(NamedTuple):
    """Samples of one size, stacked for travel between processes, and the faults met on the way to them."""

    pixels_B3HW: Tensor
    prompts: list[str]
    keys: list[str]
    captions: list[tuple[str, ...]]
    info: list[dict[str, Any]]
    epochs: list[int]
    extra: dict[str, Tensor]
    faults: list[Fault]


def pack_chunk(samples: Sequence[Sample], faults: list[Fault], size: tuple[int, int]) -> Chunk:
    pixels = [sample.pixels_3HW for sample in samples]
    names = samples[0].extra if samples else ()
    return Chunk(
        torch.stack(pixels) if pixels else torch.empty((0, 3, *size), dtype=torch.uint8),
        [sample.prompt for sample in samples],
        [sample.key for sample in samples],
        [sample.captions for sample in samples],
        [sample.info for sample in samples],
        [sample.epoch for sample in samples],
        {name: torch.stack([sample.extra[name] for sample in samples]) for name in names},
        faults,
    )


class VirtualWorker:
    """Reads the part of the data that falls to number `index` of so many virtual workers, in whichever process."""

    def __init__(self, settings: Settings, virtual_workers: int, index: int) -> None:
        self.settings = settings
        self.faults: list[Fault] = []
        self.sampling = WeightedSampling([source.weight for source in settings.sources], f"{settings.seed}/{index}")
        self.orders = [
            Order(
                source.shards,
                virtual_workers,
                index,
                seed=settings.seed,
                shuffle=settings.shuffle,
                buffer=settings.buffer,
                faults=self.faults,
                on_empty_epoch=lambda source=source: self.stop_if_nothing_usable((source,)),  # type: ignore[misc]
            )
            for source in settings.sources
        ]
        self._refs = [order.refs() for order in self.orders]
        self._position = 0  # of the next reference
        self._ahead: deque[Sample | None] = deque()  # decoded, but not asked for yet: the positions just before that
        # (the last of them is usable, so that each of the others has one to stand in for it)

    def samples(self, first: int, number: int) -> list[Sample]:
        """Those at positions first, first + 1, ...; no later call may ask for any of them again.

        Positions that nobody asks for are passed over. Raises InputError if not one sample can be used.
        """
        ahead = self._ahead
        while ahead and self._position - len(ahead) < first:
            ahead.popleft()
        if not ahead:
            self._pass_over(first - self._position)
        bad_since: int | None = None  # the epoch in which the present run of unusable samples began
        while len(ahead) < number or ahead[-1] is None:
            ref = self.next_ref()
            sample = self.decode(ref)
            ahead.append(sample)
            if sample is not None:
                bad_since = None
            elif bad_since is None:
                bad_since = ref.epoch
            elif ref.epoch >= bad_since + 2:
                self.stop_if_nothing_usable()
                bad_since = ref.epoch
        found: list[Sample] = []
        for sample in reversed(ahead):
            found.append(found[-1] if sample is None else sample)
        found.reverse()
        for _ in range(number):
            ahead.popleft()
        return found[:number]

    def once(self, batch_size: int, worker: int, workers: int) -> Iterator[Chunk]:
        """Every sample once, in shard order; of each `workers` windows the one that falls to `worker`.

        Chunks lack their unusable samples, and a window has a chunk for every size in it; the last one may be empty,
        only there to bring the last faults.
        """
        refs = (ref for order in self.orders for ref in order.once())
        for number in count():
            window = list(islice(refs, batch_size))
            if number % workers == worker:
                by_size: dict[torch.Size, list[Sample]] = {}
                for sample in map(self.decode, window):
                    if sample is not None:
                        by_size.setdefault(sample.pixels_3HW.shape, []).append(sample)
                for samples in by_size.values() or ([],):  # a chunk in any case: the workers take turns
                    yield pack_chunk(samples, self.take_faults(), self.settings.size)
            if not window:
                break
        yield pack_chunk([], self.take_faults(), self.settings.size)

    def next_ref(self) -> Ref:
        """The next one of the endless order: the sources by weight."""
        source = self.sampling.source(self._position)
        self._position += 1
        return next(self._refs[source])

    def _pass_over(self, positions: int) -> None:
        before, after = (self.sampling.before(place) for place in (self._position, self._position + positions))
        for order, begun, passed in zip(self.orders, before, after, strict=True):
            order.pass_over(passed - begun)
        self._position += positions

    def decode(self, ref: Ref) -> Sample | None:
        """The sample, or None if it cannot be used, which is added to the faults."""
        try:
            group = ref.read()
            sample = decode_group(group, self.settings, ref.epoch)
            if text_repaired(group.members):
                self.faults.append(Fault(ref.shard, "repaired text", group.key, REPAIRED_TEXT))
            return sample
        except SampleError as error:
            self.faults.append(Fault(ref.shard, error.reason, ref.name, error.detail))
            return None

    def take_faults(self) -> list[Fault]:
        """What went wrong since the last call."""
        faults = self.faults.copy()
        self.faults.clear()  # the orders add theirs to the same list
        return faults

    def stop_if_nothing_usable(self, sources: Sequence[Source] = ()) -> None:
        """Raises InputError if not one sample of the sources (all if none is named) can be used."""
        shards = [shard for source in sources or self.settings.sources for shard in source.shards]
        for shard in shards:
            for group in index_shard(shard, []) if is_seekable(shard) else read_shard(shard, []):
                try:
                    decode_group(fetch(shard, group), self.settings, 0)
                except SampleError:
                    continue
                return
        raise nothing_usable(shards, self.faults)


def nothing_usable(shards: Sequence[str], faults: Sequence[Fault]) -> InputError:
    first = f"; the first fault is {faults[0].reason} in {faults[0].shard}" if faults else ""
    return InputError(
        f"Not one sample of the {len(shards)} shards ({shards[0]}, ...) can be used{first}; "
        "run `star data check` on them."
    )


def decode_group(group: Group, settings: Settings, epoch: int) -> Sample:
    """Bytes -> Sample. Raises SampleError with the reason if the sample cannot be used."""
    captions, info = captions_of(group.members)
    prompt = choose(captions, settings.seed, epoch, group.key) if settings.random_caption else captions[0]
    extra: dict[str, Tensor] = {}
    if settings.reader is None:
        pixels_3HW = _pixels(group, settings)
    else:
        pixels_3HW = torch.empty((3, 0, 0), dtype=torch.uint8)
        extra = settings.reader(group.members, captions.index(prompt))  # type: ignore[arg-type]  # places were read
        pixels_3HW = extra.pop("pixels", pixels_3HW)
    return Sample(pixels_3HW, prompt, group.key, captions, info, epoch, extra)


def _pixels(group: Group, settings: Settings) -> Tensor:
    _, data = image_bytes(group.members)
    try:
        size = settings.buckets[nearest(upright_size(data), settings.buckets)] if settings.buckets else settings.size
        return pil_to_pixels(resize(decode(data), size, settings.crop))
    except InputError as error:
        raise SampleError("broken picture", str(error)) from error
