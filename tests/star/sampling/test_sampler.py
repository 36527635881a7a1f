"""Laws of drawing: guidance, filters, and randomness that belongs to the picture."""

from typing import Any

import pytest
import torch
from torch import Tensor

from star.data.text import TextFeatures
from star.data.tiny import tiny_text_encoder
from star.generators.protocol import SampleOptions
from star.model.heads import filter_logits, pick
from star.sampling.sampler import (
    SampleRng,
    choose,
    draw_codes,
    draw_pass,
    guidance_at,
    guide,
    join,
    temperature_at,
    uniforms,
)
from star.tiny import CODE_WIDTH, VOCABULARY, tiny_tokenizer, tiny_transformer
from star.tokenizer.quantizer import Quantizer, QuantizerConfig

INF = float("inf")
PROMPTS = ["a red circle", "a blue square", "a cat", "", "five", "six words are here for you", "seven"]


@pytest.fixture(scope="module")
def text() -> TextFeatures:
    return tiny_text_encoder().encode(PROMPTS)


@pytest.fixture(scope="module")
def null_text() -> TextFeatures:
    return tiny_text_encoder().encode([""])


def draw(text: TextFeatures, null_text: TextFeatures, seeds: Any, **changes: Any) -> list[Tensor]:
    settings = {"options": SampleOptions(guidance_scale=4.0)} | changes
    return draw_codes(tiny_transformer(), tiny_tokenizer().quantizer, text, null_text, seeds=seeds, **settings)[0]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_guidance_rises_over_the_scales() -> None:
    assert [guidance_at(k, 5, 4.0) for k in range(5)] == [0, 1, 2, 3, 4]
    assert [guidance_at(k, 5, 4.0, unguided_last=2) for k in range(5)] == [0, 1, 2, 0, 0]
    assert [guidance_at(k, 5, 4.0, ramp=0.5) for k in range(5)] == [2, 2.5, 3, 3.5, 4]
    assert [guidance_at(k, 5, 4.0, unguided_last=1, ramp=0.0) for k in range(5)] == [4, 4, 4, 4, 0]
    assert guidance_at(0, 1, 4.0) == 0
    conditional, unconditional = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    both = torch.cat((conditional, unconditional))
    assert torch.equal(guide(both, 0.0), conditional)
    assert torch.equal(guide(both, 3.0), 4 * conditional - 3 * unconditional)


def test_top_k_keeps_ties() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0, 2.0, 0.0]]])
    assert filter_logits(logits, top_k=2).tolist() == [[[3.0, -INF, 2.0, 2.0, -INF]]]
    for off in (0, 5, 99):
        assert torch.equal(filter_logits(logits, top_k=off), logits)


def test_top_p_is_off_at_0_and_1_and_always_keeps_the_likeliest() -> None:
    logits = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]]).log()
    for off in (0.0, 1.0):
        assert torch.equal(filter_logits(logits, top_p=off), logits)
    kept = [int(filter_logits(logits, top_p=p).isfinite().sum()) for p in (0.01, 0.39, 0.5, 0.75, 0.95)]
    assert kept == [1, 1, 2, 3, 4]


def test_top_p_acts_on_what_top_k_left() -> None:
    """0.4 and 0.3 of four are 0.57 and 0.43 of two: p = 0.5 then keeps one, where p = 0.5 of all four keeps two."""
    logits = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]]).log()
    assert int(filter_logits(logits, top_p=0.5).isfinite().sum()) == 2
    assert int(filter_logits(logits, top_k=2, top_p=0.5).isfinite().sum()) == 1


def test_filters_keep_a_set_that_only_grows() -> None:
    logits = torch.randn(4, 3, 50)
    for smaller, larger in (((3, 0.0), (9, 0.0)), ((0, 0.3), (0, 0.8)), ((9, 0.3), (9, 0.9))):
        few, many = (filter_logits(logits, *both).isfinite() for both in (smaller, larger))
        assert bool((~few | many).all())
        assert few.sum() < many.sum()


def test_picking_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25]).log().expand(1, 8, 5)
    levels = torch.tensor([[0.0, 0.1, 0.2499, 0.2501, 0.6, 0.7499, 0.7501, 1 - 2**-53]], dtype=torch.float64)
    assert pick(logits, levels).tolist() == [[1, 1, 1, 2, 2, 2, 4, 4]]


def test_picked_frequencies_are_the_probabilities() -> None:
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    codes = pick(shares.log().expand(1, 40000, 4), uniforms([3], 0, 40000))
    frequencies = torch.bincount(codes.flatten(), minlength=4) / 40000
    assert torch.allclose(frequencies, shares, atol=0.01)


def test_uniforms_belong_to_seed_and_scale() -> None:
    pair = uniforms([5, 2**63 - 1], 3, 16)
    assert torch.equal(pair[1:], uniforms([2**63 - 1], 3, 16))
    assert torch.equal(pair.flip(0), uniforms([2**63 - 1, 5], 3, 16))
    others = [uniforms([5], 2, 16), uniforms([6], 3, 16), uniforms([4], 3, 16)]
    assert not any(torch.equal(pair[:1], other) for other in others)
    assert pair.min() >= 0
    assert pair.max() < 1


def test_top_k_of_1_is_greedy_and_low_temperature_nearly_so() -> None:
    logits = torch.randn(2, 9, 20) * 3
    options = SampleOptions(top_k=1)
    assert torch.equal(choose(logits, [0, 1], 0, options), logits.argmax(dim=-1))
    assert torch.equal(choose(logits, [0, 1], 0, SampleOptions(temperature=1e-4)), logits.argmax(dim=-1))
    assert not torch.equal(choose(logits, [0, 1], 0, SampleOptions(temperature=9.0)), logits.argmax(dim=-1))


def test_temperature_decay_makes_finer_scales_likelier_and_leaves_the_coarsest(
    text: TextFeatures, null_text: TextFeatures
) -> None:
    assert [temperature_at(depth, 2.0, 0.5) for depth in (0.0, 0.5, 1.0)] == [2.0, 1.5, 1.0]
    logits, rng = torch.randn(2, 9, 20) * 3, SampleRng([0, 1], SampleOptions(temperature=2.0, temperature_decay=0.75))
    assert torch.equal(rng.keep(logits), logits / 2)
    assert torch.equal(rng.keep(logits, 1.0), logits / 0.5)

    ranks: list[list[float]] = []
    for decay in (0.0, 0.999999):
        seen: list[float] = []

        def watch(k: int, logits_BlV: Tensor, codes_Bl: Tensor, seen: list[float] = seen) -> None:
            best = logits_BlV.argmax(dim=-1) == codes_Bl
            seen.append(float(best.float().mean()))

        draw(
            text,
            null_text,
            range(len(text)),
            options=SampleOptions(guidance_scale=3.0, temperature_decay=decay),
            watch=watch,
        )
        ranks.append(seen)
    plain, cooled = ranks
    assert cooled[0] == plain[0]
    assert cooled[-1] == 1 > plain[-1]


@pytest.mark.parametrize("mode", ["per-sample", "released"])
def test_a_picture_is_its_own_whatever_the_batch(text: TextFeatures, null_text: TextFeatures, mode: Any) -> None:
    seeds, order = [0, 1, 2, 3, 3, 1, 9], [4, 2, 6, 0, 5, 1, 3]
    together = draw(text, null_text, seeds, cross_attention=mode)
    shuffled = draw(text[order], null_text, [seeds[i] for i in order], cross_attention=mode)
    assert same([codes[order] for codes in together], shuffled)
    assert same([codes[2:3] for codes in together], draw(text[2:3], null_text, [2], cross_attention=mode))


def test_modes_differ_and_the_null_text_matters_in_one_only(text: TextFeatures, null_text: TextFeatures) -> None:
    """Released: unconditional rows read the prompt's words, so the states of "" are never looked at."""
    seeds = range(7)
    noise = TextFeatures(null_text.tokens_BTD + 5, null_text.mask_BT, null_text.pooled_BD)
    released = draw(text, null_text, seeds, cross_attention="released")
    assert same(released, draw(text, noise, seeds, cross_attention="released"))
    own = draw(text, null_text, seeds)
    assert not same(own, draw(text, noise, seeds))
    assert not same(own, released)
    with pytest.raises(ValueError, match="mode 'both' is unknown"):
        draw(text, null_text, seeds, cross_attention="both")


def test_neutral_guidance_is_one_unguided_pass(text: TextFeatures, null_text: TextFeatures) -> None:
    options = SampleOptions(guidance_scale=1.0)
    rows = []
    transformer = tiny_transformer()
    transformer.blocks[0].register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))
    codes, latent = draw_codes(transformer, tiny_tokenizer().quantizer, text[:1], null_text, seeds=[4], options=options)
    assert set(rows) == {1}
    expected, expected_latent = draw_pass(
        tiny_transformer(), tiny_tokenizer().quantizer, text[:1], SampleRng([4], options)
    )
    assert same(codes, expected)
    assert torch.equal(latent, expected_latent)
    # The same within rounding as carrying unconditional rows along with no weight.
    both, _ = draw_pass(
        tiny_transformer(), tiny_tokenizer().quantizer, join(text[:1], null_text), SampleRng([4], options)
    )
    assert same(codes, both)


def test_guidance_can_begin_at_the_coarsest_scale(text: TextFeatures, null_text: TextFeatures) -> None:
    """Each scale's logits are then further from the plain ones, the coarsest's too."""

    def coarsest(**options: Any) -> Tensor:
        seen: list[Tensor] = []
        asked = SampleOptions(top_k=1, **options)
        draw(text[:1], null_text, [0], options=asked, watch=lambda k, logits, codes: seen.append(logits))
        return seen[0]

    plain = coarsest(guidance_scale=1.0)
    torch.testing.assert_close(coarsest(guidance_scale=4.0), plain)
    half, full = (coarsest(guidance_scale=4.0, guidance_ramp=ramp) - plain for ramp in (0.5, 0.0))
    torch.testing.assert_close(full, 2 * half)
    assert full.abs().max() > 0.1


def test_guidance_can_end_early(text: TextFeatures, null_text: TextFeatures) -> None:
    """Guidance off for the last scales: the coarse codes stay, and finer scales carry half of the rows."""
    rows: list[int] = []
    transformer, quantizer = tiny_transformer(), tiny_tokenizer().quantizer
    transformer.blocks[0].register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))
    options = SampleOptions(guidance_scale=7.0, top_k=1)
    early, _ = draw_codes(transformer, quantizer, text[:1], null_text, seeds=[0], options=options, unguided_last=2)
    assert rows == [2, 2, 1, 1]
    assert same(early[:2], draw(text[:1], null_text, [0], options=options)[:2])
    unguided = draw(text, null_text, range(7), options=SampleOptions(guidance_scale=1.0))
    assert same(draw(text, null_text, range(7), unguided_last=9), unguided)


def test_numbers_of_prompts_and_seeds_must_agree(text: TextFeatures, null_text: TextFeatures) -> None:
    with pytest.raises(ValueError, match="7 prompts and 2 seeds"):
        draw(text, null_text, [1, 2])


def test_guiding_pairs_each_row_with_its_twin() -> None:
    rows = torch.arange(6.0).view(6, 1, 1)
    assert guide(rows, 2.0).flatten().tolist() == [-6.0, -5.0, -4.0]  # 3 (0, 1, 2) - 2 (3, 4, 5)


def test_dice_keep_one_code_where_drawing_is_greedy_and_know_step_and_scale() -> None:
    logits = torch.randn(1, 9, 20, generator=torch.Generator().manual_seed(0))
    kept = SampleRng([3], SampleOptions(top_k=1)).keep(logits, 0.5)
    assert torch.equal(kept.isfinite().sum(-1), torch.ones(1, 9, dtype=torch.long))
    assert torch.equal(SampleRng([3], SampleOptions(top_k=1)).pick(kept, 0), logits.argmax(-1))
    rng = SampleRng([3], SampleOptions())
    assert torch.equal(rng.pick(logits, 2), pick(logits, uniforms([3], 2, 9)))
    assert torch.equal(rng.pick(logits, 2, 1), pick(logits, uniforms([3], "2/1", 9)))
    assert torch.equal(rng.pick(logits, 2, 0), pick(logits, uniforms([3], "2/0", 9)))
    assert torch.equal(rng.order(2, 1, 9), uniforms([3], "2/1/order", 9))
    torch.testing.assert_close(
        SampleRng([3], SampleOptions(temperature=2.0, top_k=5, top_p=0.7)).keep(logits),
        filter_logits(logits / 2, 5, 0.7),
    )


def test_text_and_labels_are_not_joined(text: TextFeatures, null_text: TextFeatures) -> None:
    labels = torch.tensor([3, 5])
    assert join(labels, torch.tensor([9])).tolist() == [3, 5, 9, 9]  # type: ignore[union-attr]
    for one, other in ((text[:2], torch.tensor([9])), (labels, null_text)):
        with pytest.raises(ValueError, match="must both be text or both be class labels"):
            join(one, other)
    joined = join(text[:2], null_text)
    assert isinstance(joined, TextFeatures)
    assert torch.equal(joined.pooled_BD[2:], null_text.pooled_BD.expand(2, -1))
    assert torch.equal(joined.mask_BT[2:], null_text.mask_BT.expand(2, -1))
    assert torch.equal(joined.tokens_BTD[:2], text[:2].tokens_BTD)


def test_a_guidance_of_one_is_guidance(text: TextFeatures, null_text: TextFeatures) -> None:
    """Rows of every block: both twins at every scale, by either way in."""
    rows: list[int] = []
    transformer, quantizer = tiny_transformer(), tiny_tokenizer().quantizer
    transformer.blocks[0].register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))
    options = SampleOptions(guidance_scale=2.0)
    codes, _ = draw_codes(transformer, quantizer, text[:1], null_text, seeds=[0], options=options)
    joined = join(text[:1], null_text)
    again, _ = draw_pass(transformer, quantizer, joined, SampleRng([0], options))
    assert rows == [2] * 8
    assert same(codes, again)
    two, _ = draw_codes(transformer, quantizer, text[:3], null_text, seeds=[0, 1, 2], options=options, batch=3)
    assert rows[8:] == [6] * 4
    assert [len(scale) for scale in two] == [3] * 4


def test_the_finest_scale_is_the_coldest_whatever_their_number(text: TextFeatures) -> None:
    class Watching(SampleRng):
        def keep(self, logits_BlV: Tensor, depth: float = 0.0) -> Tensor:
            depths.append(depth)
            return super().keep(logits_BlV, depth)

    for sizes, expected in (((4,), [0.0]), ((1, 4), [0.0, 1.0]), ((1, 2, 4), [0.0, 0.5, 1.0])):
        depths: list[float] = []
        tokenizer = Quantizer(QuantizerConfig(vocabulary=VOCABULARY, code_width=CODE_WIDTH, sizes=sizes))
        options = SampleOptions(guidance_scale=1.0)
        transformer = tiny_transformer(sizes=sizes)
        draw_pass(transformer, tokenizer, text[:1], Watching([0], options))
        assert depths == expected
    assert [guidance_at(k, 2, 4.0) for k in range(2)] == [0, 4]


def test_only_as_many_pictures_as_fit_are_drawn_at_once(text: TextFeatures, null_text: TextFeatures) -> None:
    rows: list[int] = []
    transformer, quantizer = tiny_transformer(), tiny_tokenizer().quantizer
    transformer.blocks[0].register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))
    options = SampleOptions(guidance_scale=1.0)
    for batch, expected in ((None, [1, 1, 1]), (2, [2, 1]), (3, [3])):
        rows.clear()
        codes, latent = draw_codes(
            transformer, quantizer, text[:3], null_text, seeds=[0, 1, 2], options=options, batch=batch
        )
        assert rows[::4] == expected
        assert len(latent) == len(codes[0]) == 3
