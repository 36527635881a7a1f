"""Laws of the refiner and of revealing a scale step by step, on a tiny generator."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.generators.registry import build
from star.model.refiner import RELEASED_PLANS, Refiner, RefinerConfig, ScalePlan
from star.sampling.masked_decoding import MaskedDecoder, PartialScale, unmask_counts
from star.sampling.sampler import SampleRng
from star.tiny import CODE_WIDTH, VOCABULARY, tiny_tokenizer, tiny_transformer
from tests.generators.waits import Waits

PLANS = (ScalePlan(scale=2, steps=4, plain=2, shuffled=1), ScalePlan(scale=3, steps=5, plain=0, shuffled=2))
PROMPTS = ["a red circle", "a blue square", "a cat", "", "five"]


def tiny_refiner(depth: int = 2) -> Refiner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        refiner = Refiner(RefinerConfig(depth=depth, plans=PLANS), tiny_transformer().config)
        with torch.no_grad():
            refiner.head.weight.mul_(50)
    return refiner.eval()


def generator(**settings: Any) -> StarGenerator:
    refiner = tiny_refiner()
    return StarGenerator(tiny_transformer(), tiny_tokenizer(), tiny_text_encoder(), refiner=refiner, **settings)


def test_released_counts() -> None:
    """The numbers of the released schedule, scale by scale."""
    assert unmask_counts(21**2, 8) == (1, 31, 44, 55, 65, 74, 82, 89)
    assert unmask_counts(27**2, 8) == (1, 51, 74, 91, 107, 122, 135, 148)
    assert unmask_counts(36**2, 8) == (1, 91, 131, 162, 190, 216, 241, 264)
    assert unmask_counts(48**2, 8) == (1, 162, 232, 289, 338, 384, 428, 470)
    last = (1, 106, 151, 186, 216, 243, 268, 292, 314, 336, 357, 377, 397, 417, 435)
    assert unmask_counts(64**2, 15) == last
    assert [(plan.scale, plan.steps, plan.plain) for plan in RELEASED_PLANS] == [
        *((k, 8, 5) for k in (9, 10, 11, 12)),
        (13, 15, 0),
    ]


def test_the_last_step_takes_what_is_left_if_anything() -> None:
    assert unmask_counts(1, 8) == (1,) * 7 + (0,)
    assert unmask_counts(8, 4) == (1, 2, 3, 2)  # shares 0, 1.8, 2.7, 3.5: at least 1, and last what is left


@pytest.mark.parametrize("length", [1, 4, 9, 25, 4096])
@pytest.mark.parametrize("steps", [2, 8, 15])
def test_counts_reveal_everything(length: int, steps: int) -> None:
    counts = unmask_counts(length, steps)
    assert len(counts) == steps
    assert sum(counts) >= length
    assert length < steps**2 or sum(counts) == length
    assert min(counts[:-1]) >= 1


def test_a_revealed_code_stays() -> None:
    canvas = PartialScale(torch.zeros(2, 6, dtype=torch.long), torch.full((2, 6), -1))
    worth = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.0, 0.3], [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]])
    canvas.reveal(torch.full((2, 6), 7), worth, 2, step=0)
    assert canvas.codes_Bl.tolist() == [[0, 7, 0, 7, 0, 0], [7, 7, 0, 0, 0, 0]]
    canvas.reveal(torch.full((2, 6), 8), worth, 3, step=1)
    assert canvas.codes_Bl.tolist() == [[0, 7, 0, 7, 0, 8], [7, 7, 8, 0, 0, 0]]
    assert canvas.step_Bl.tolist() == [[-1, 0, -1, 0, -1, 1], [0, 0, 1, -1, -1, -1]]


@pytest.mark.parametrize("k", [2, 3])
def test_no_step_waits_for_the_device(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, waits = MaskedDecoder.reveal, Waits()

    def counted(*given: Any) -> PartialScale:
        with waits:
            return draw(*given)

    monkeypatch.setattr(MaskedDecoder, "reveal", counted)
    assert bool(reveal(k).known_Bl.all())
    assert not waits.places


def reveal(k: int, seed: int = 4) -> PartialScale:
    """Scale k revealed from random hidden states."""
    refiner, text = tiny_refiner(), tiny_text_encoder().encode(["a red circle", ""])
    random = torch.Generator().manual_seed(0)
    length = refiner.schedule.lengths[k]
    hidden = torch.randn(2, length, 32, generator=random)
    logits = torch.randn(1, length, VOCABULARY, generator=random)
    stable = MaskedDecoder(refiner, tiny_tokenizer().quantizer)
    assert stable.covers(k)
    with torch.no_grad():
        return stable.reveal(hidden, logits, k, text, 2.0, SampleRng([seed], SampleOptions()))


def test_every_token_is_revealed_at_its_time() -> None:
    counts = torch.bincount(reveal(3).step_Bl[0])
    assert tuple(counts.tolist()) == unmask_counts(16, 5)
    plain = reveal(2)
    assert bool(plain.known_Bl.all())
    assert int(plain.step_Bl.max()) < 3  # twice as many in a plain step, so done before the last
    assert not torch.equal(reveal(3).codes_Bl, reveal(3, seed=5).codes_Bl)


def test_known_codes_tell_the_others_of_their_scale_only() -> None:
    """Of one block, that is: in later ones the text token, which sees all scales, hands on what it saw, as released."""
    refiner = tiny_refiner(depth=1)
    span = slice(refiner.schedule.offsets[2], None)
    random = torch.Generator().manual_seed(0)
    text = refiner.text_token(torch.randn(1, 32, generator=random))
    codes, hidden = (torch.randn(1, 9 + 16, width, generator=random) for width in (CODE_WIDTH, 32))
    known = torch.rand(1, 25, generator=random) < 0.5

    def logits(codes: Tensor, known: Tensor) -> Tensor:
        with torch.no_grad():
            return refiner(text, codes, known, hidden, span, refiner.mask(span))

    known[0, :2] = torch.tensor([True, False])
    before = logits(codes, known)
    changed = codes.clone()
    changed[0, 0] += 1
    after = logits(changed, known)
    assert bool((before[:, :9] != after[:, :9]).any(dim=-1).all())
    assert torch.equal(before[:, 9:], after[:, 9:])
    changed = codes.clone()
    changed[0, 1] += 1  # hidden
    assert torch.equal(before, logits(changed, known))


def test_both_scales_at_once_equal_one_at_a_time() -> None:
    refiner = tiny_refiner(depth=1)
    start = refiner.schedule.offsets[2]
    random = torch.Generator().manual_seed(0)
    text = refiner.text_token(torch.randn(2, 32, generator=random))
    codes, hidden = (torch.randn(2, 25, width, generator=random) for width in (CODE_WIDTH, 32))
    known = torch.rand(2, 25, generator=random) < 0.5
    with torch.no_grad():
        together = refiner(text, codes, known, hidden, slice(start, None), refiner.mask(slice(start, None)))
        for k, own in ((2, slice(0, 9)), (3, slice(9, 25))):
            alone = refiner(text, codes[:, own], known[:, own], hidden[:, own], refiner.schedule.slices[k])
            torch.testing.assert_close(alone, together[:, own], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["released", "per-sample"])
def test_pictures_are_the_same_alone_and_together(mode: Any) -> None:
    drawn = generator(cross_attention=mode)
    options = SampleOptions(guidance_scale=4.0, top_k=12, top_p=0.95)
    seeds = [3, 1, 4, 1, 5]
    together = drawn.generate(PROMPTS, seeds=seeds, options=options)
    pair = drawn.generate(PROMPTS[1::-1], seeds=seeds[1::-1], options=options)
    assert torch.equal(pair, together[:2].flip(0))
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(drawn.generate([prompt], seeds=[seeds[i]], options=options)[0], together[i])


def test_options_choose_refiner_and_cross_attention() -> None:
    drawn, seeds = generator(), range(5)
    plain = StarGenerator.for_test().generate(PROMPTS, seeds=seeds)
    assert torch.equal(drawn.generate(PROMPTS, seeds=seeds, options=SampleOptions(refine=False)), plain)
    assert not torch.equal(drawn.generate(PROMPTS, seeds=seeds), plain)
    released = drawn.generate(PROMPTS, seeds=seeds, options=SampleOptions(cross_attention="released"))
    assert torch.equal(generator(cross_attention="released").generate(PROMPTS, seeds=seeds), released)
    assert not torch.equal(drawn.generate(PROMPTS, seeds=seeds), released)


@pytest.mark.parametrize(
    "options", [SampleOptions(guidance_scale=1.0), SampleOptions(top_k=1)], ids=["unguided", "greedy"]
)
def test_every_kind_of_drawing(options: SampleOptions) -> None:
    pixels = generator(unguided_last=1).generate(PROMPTS[:2], seeds=[0, 1], options=options)
    assert pixels.float().std() > 0


def test_a_refiner_survives_its_directory(tmp_path: Path) -> None:
    generator(cross_attention="released").save_pretrained(tmp_path / "model")
    loaded = build(tmp_path / "model")
    assert isinstance(loaded, StarGenerator)
    assert loaded.refiner is not None
    assert loaded.refiner.config.plans == PLANS
    expected = generator(cross_attention="released").generate(PROMPTS, seeds=range(5))
    assert torch.equal(loaded.generate(PROMPTS, seeds=range(5)), expected)


def test_half_precision_draws(tmp_path: Path) -> None:
    generator().save_pretrained(tmp_path / "model")
    pixels = build(tmp_path / "model", dtype=torch.bfloat16).generate(PROMPTS[:2], seeds=[0, 1])
    assert pixels.float().std() > 0


@pytest.mark.parametrize("plan", [{"steps": 1}, {"plain": 9}, {"shuffled": -1}])
def test_impossible_plans_are_refused(plan: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="the plan of scale 1 has"):
        ScalePlan(**{"scale": 1, "steps": 8, "plain": 0} | plan)


def test_a_plan_for_a_scale_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="a plan for scale 9 of 4"):
        Refiner(RefinerConfig(), tiny_transformer().config)


@pytest.mark.parametrize(("k", "plain", "shuffled"), [(2, 2, 1), (3, 0, 2)])
@torch.no_grad()
def test_a_plan_tells_which_steps_ask_the_refiner_and_which_are_shuffled(k: int, plain: int, shuffled: int) -> None:
    """Steps before `plain` draw from the transformer's logits; those before `shuffled` reveal at random."""
    depths: list[float] = []
    picked: list[int | None] = []
    ordered: list[int] = []

    class Watching(SampleRng):
        def keep(self, logits_BlV: Tensor, depth: float = 0.0) -> Tensor:
            depths.append(depth)
            return super().keep(logits_BlV, depth)

        def pick(self, kept_BlV: Tensor, k: int, step: int | None = None) -> Tensor:
            picked.append(step)
            return super().pick(kept_BlV, k, step)

        def order(self, k: int, step: int, length: int) -> Tensor:
            ordered.append(step)
            return super().order(k, step, length)

    refiner, calls = tiny_refiner(), []
    refiner.register_forward_hook(lambda _module, _given, out: calls.append(out))
    length = (k + 1) ** 2
    torch.manual_seed(0)
    hidden_RlC, logits_BlV = torch.randn(2, length, 32), torch.randn(1, length, VOCABULARY)
    stable = MaskedDecoder(refiner, tiny_tokenizer().quantizer)
    rows = tiny_text_encoder().encode(PROMPTS[:2])
    canvas = stable.reveal(hidden_RlC, logits_BlV, k, rows, 2.0, Watching([0], SampleOptions()))
    assert bool(canvas.known_Bl.all())
    assert picked == list(range(len(picked)))
    assert set(depths) == {k / 3}
    assert len(calls) == len(picked) - plain
    assert ordered == list(range(shuffled))
    alone = stable.reveal(hidden_RlC[:1], logits_BlV, k, rows, 2.0, SampleRng([0], SampleOptions()))
    unguided = stable.reveal(hidden_RlC, logits_BlV, k, rows, 0.0, SampleRng([0], SampleOptions()))
    assert torch.equal(alone.codes_Bl, unguided.codes_Bl)
    assert not torch.equal(canvas.codes_Bl, unguided.codes_Bl)
    again_Bl = stable.draw(hidden_RlC[:1], logits_BlV, k, rows, 2.0, SampleRng([0], SampleOptions()))
    assert torch.equal(again_Bl, alone.codes_Bl)


def test_rectangles_are_revealed_whole() -> None:
    star = generator()
    options, seen = SampleOptions(guidance_scale=3.0, size="3:2"), []
    pixels = star.generate(["a cat"], seeds=[2], options=options, watch=lambda k, logits, codes: seen.append(codes))
    schedule = star.tokenizer.schedule.of_aspect("3:2")
    assert [codes.shape for codes in seen] == [(1, length) for length in schedule.lengths]
    latent = star.tokenizer.quantizer.decode(seen, schedule=schedule)
    assert torch.equal(pixels, star.tokenizer.latent_to_pixels(latent))
    plain = star.generate(["a cat"], seeds=[2], options=SampleOptions(guidance_scale=3.0, size="3:2", refine=False))
    assert not torch.equal(pixels, plain)
