"""Nothing inside a picture waits for a device or copies to it; and how many operators a scale calls."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from star.data.text import TextFeatures
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.model import heads, rope
from star.model.rope import scale_rotation, unit_by_rms
from star.sampling.baseline import baseline_codes
from star.sampling.chance import GivenCodes
from star.sampling.sampler import draw_codes
from star.sampling.scale_pass import ScalePass, aligned
from star.tiny import tiny_tokenizer, tiny_transformer
from tests.generators.waits import Waits

OPTIONS = SampleOptions(guidance_scale=4.0, top_k=9, top_p=0.9)
META = torch.device("meta")  # a device whose numbers nobody can read, and that is no CPU
OPTION_SETS = [
    OPTIONS,
    SampleOptions(guidance_scale=1.0, top_p=0.5),
    SampleOptions(top_k=1),
    SampleOptions(top_k=9, temperature=0.5),
]


class Copies(TorchDispatchMode):
    """Counts operators, and those that go from the CPU to another device, while the context lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.across: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.calls[str(function)] += 1
        given = {one.device.type for one in (*args, result) if isinstance(one, Tensor)}
        if len(given) > 1:
            self.across[str(function)] += 1
        return result


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast does not know the device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="": False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **named: nullcontext())


@contextmanager
def inside_scales(monkeypatch: pytest.MonkeyPatch, mode: TorchDispatchMode) -> Iterator[None]:
    """The mode counts from the first scale's beginning to the last one's end."""

    def counted(name: str) -> None:
        work = getattr(ScalePass, name)

        def inside(*args: Any) -> Any:
            with mode:
                return work(*args)

        monkeypatch.setattr(ScalePass, name, inside)

    for name in ("predict", "draw", "take"):
        counted(name)
    yield


def features(device: torch.device) -> TextFeatures:
    return tiny_text_encoder().encode(["a red circle", "a cat", ""]).to(device)


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("options", OPTION_SETS)
@pytest.mark.parametrize("bits", [False, True])
def test_no_scale_reads_or_copies_anything(options: SampleOptions, bits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On "meta" whatever needs a value raises; here also whatever comes from the CPU is counted."""
    if bits and options.top_k > 1:
        options = SampleOptions(guidance_scale=4.0, top_p=0.9)
    kind: dict[str, Any] = {"bits": 4, "vocabulary": 2} if bits else {}
    transformer, quantizer = tiny_transformer(**kind).to(META), tiny_tokenizer(bits=bits).quantizer.to(META)
    text, copies = features(META), Copies()
    given = None
    if not bits:
        lengths = transformer.schedule.lengths
        given = GivenCodes(
            [torch.zeros(2, length, dtype=torch.int64) for length in lengths],
            [torch.ones(2, length, dtype=torch.bool) for length in lengths],
        )
    with inside_scales(monkeypatch, copies):
        codes, latent = draw_codes(
            transformer, quantizer, text[:2], text[2:], seeds=[0, 1], options=options, unguided_last=1, given=given
        )
    assert sum(copies.calls.values()) > 100
    assert not copies.across
    assert [tuple(scale.shape[:2]) for scale in codes] == [(2, 1), (2, 4), (2, 9), (2, 16)]
    assert latent.device == META


@pytest.mark.usefixtures("no_autocast")
def test_the_counter_sees_a_copy() -> None:
    copies = Copies()
    with copies:
        torch.zeros(2).to(META)
        torch.zeros(2, device=META).copy_(torch.zeros(2))
    assert sum(copies.across.values()) == 2
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros((), device=META).item()


@pytest.mark.parametrize("options", OPTION_SETS)
def test_no_picture_waits(options: SampleOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a CPU, with what computes there; but the check that an image is finite, when all is done."""
    monkeypatch.setattr(heads, "sorts_by_numpy", lambda logits: False)
    generator, waits = StarGenerator.for_test(), Waits()
    text = features(torch.device("cpu"))
    with waits:
        draw_codes(
            generator.transformer,
            generator.tokenizer.quantizer,
            text[:2],
            text[2:],
            seeds=[0, 1],
            options=options,
            batch=2,
        )
    assert not waits.places


def calls_of(work: Any) -> int:
    """Operators that are no views, as torch's dispatcher sees them."""
    counter = Operators()
    with counter:
        work()
    return counter.count


class Operators(TorchDispatchMode):
    """Counts those that compute or copy; a view or a reshaping that needs no copy is none."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, list | tuple) else [result]
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        writes = any(one.alias_info is not None and one.alias_info.is_write for one in function._schema.returns)
        views = all(isinstance(one, Tensor) and one.untyped_storage().data_ptr() in given for one in results)
        self.count += writes or not views
        return result


def operators_of(depth: int) -> tuple[int, int]:
    """Of one picture, in our way and in the released one: guided, with text, top-k and top-p."""
    transformer, quantizer = tiny_transformer(depth=depth), tiny_tokenizer().quantizer
    text = features(torch.device("cpu"))

    def fast() -> None:
        draw_codes(transformer, quantizer, text[:1], text[2:], seeds=[0], options=OPTIONS)

    def released() -> None:
        with torch.inference_mode():
            baseline_codes(transformer, quantizer, text[:1], text[2:], seeds=[0], options=OPTIONS)

    return calls_of(fast), calls_of(released)


def test_a_scale_calls_far_fewer_operators_than_the_released_way() -> None:
    """30 in each block against 45 or 46, of which 3 are of the whole picture, here of 4 scales."""
    few, many = operators_of(2), operators_of(6)
    ours, theirs = ((b - a) / 4 / len(tiny_transformer().schedule.sizes) for a, b in zip(few, many, strict=True))
    assert ours <= 30.25
    assert theirs >= 45
    assert many[0] < 0.75 * many[1]


def test_unit_length_by_the_root_of_mean_squares_is_unit_length() -> None:
    heads_BNld = torch.randn(2, 3, 9, 16) * torch.logspace(-4, 4, 9)[:, None]
    heads_BNld[0, 0, 0] = 0
    rotation = scale_rotation(3, 16).prepared()
    for turn in (None, rotation):
        expected = rope.rotate_to_unit(heads_BNld, turn)
        found = unit_by_rms(heads_BNld, None if turn is None else turn.turn_lP)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(
    ("ramp", "last", "blocks", "heads_of"),
    [
        (1.0, 0, [4, 4, 4, 4], [2, 4, 4, 4]),  # caches of the unconditional rows are read later: their logits never
        (0.5, 0, [4, 4, 4, 4], [4, 4, 4, 4]),
        (1.0, 2, [4, 4, 2, 2], [2, 4, 2, 2]),
        (0.5, 3, [4, 2, 2, 2], [4, 2, 2, 2]),
        (1.0, 3, [2, 2, 2, 2], [2, 2, 2, 2]),
        (1.0, 4, [2, 2, 2, 2], [2, 2, 2, 2]),
    ],
)
def test_rows_that_guidance_has_no_use_for_are_not_computed(
    ramp: float, last: int, blocks: list[int], heads_of: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer, quantizer = tiny_transformer().to(META), tiny_tokenizer().quantizer.to(META)
    text, through, read = features(META), list[int](), list[int]()
    transformer.blocks[0].register_forward_pre_hook(lambda module, given: through.append(len(given[0])))
    logits = transformer.logits

    def counted(hidden_BlC: Tensor, *args: Any, **named: Any) -> Tensor:
        read.append(len(hidden_BlC))
        return logits(hidden_BlC, *args, **named)

    monkeypatch.setattr(transformer, "logits", counted)
    options = SampleOptions(guidance_scale=4.0, guidance_ramp=ramp)
    draw_codes(transformer, quantizer, text[:2], text[2:], seeds=[0, 1], options=options, unguided_last=last)
    assert (through, read) == (blocks, heads_of)


def test_masks_are_aligned_and_say_the_same() -> None:
    mask_B11T = torch.zeros(3, 1, 1, 77)
    mask_B11T[1, ..., 5:] = -torch.inf
    found = aligned(mask_B11T)
    assert torch.equal(found, mask_B11T)
    assert found.stride() == (80, 80, 80, 1)
