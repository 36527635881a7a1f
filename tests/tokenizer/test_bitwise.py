"""The quantizer without a codebook: what its bits say, how its steps learn, and what is logged of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.generators.config import from_dict, to_dict
from star.generators.training.run import Run, RunConfig
from star.tokenizer.align import AlignmentTeacher
from star.tokenizer.bitwise import BitsConfig, BitsTrainer, BitwiseConfig, BitwiseQuantizer
from star.tokenizer.codebook import CodebookConfig
from star.tokenizer.presets import PRESETS
from star.tokenizer.quantizer import QuantizerConfig
from star.tokenizer.tokenizer import MultiScaleTokenizer, TokenizerConfig
from star.tokenizer.tokens import Bits, Codes, where, zeros
from star.tokenizer.train import train

CONFIG = BitwiseConfig(bits=6, sizes=(1, 2, 3, 5))


def quantizer_of(config: BitwiseConfig = CONFIG, seed: int = 0) -> BitwiseQuantizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BitwiseQuantizer(config)


def latents(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, 5, 5, generator=torch.Generator().manual_seed(seed))


def test_a_token_is_the_signs_of_a_vector_times_the_step_of_its_scale() -> None:
    quantizer = quantizer_of()
    vectors = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    codes = quantizer.nearest(vectors)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes.bool(), vectors > 0)
    quantizer.step_K.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(quantizer.vectors(codes, 2), 3.0 * vectors.sign())


def test_the_signs_are_the_nearest_corner() -> None:
    quantizer = quantizer_of()
    every = ((torch.arange(64)[:, None] >> torch.arange(6)) & 1).to(torch.uint8)
    corners = quantizer.vectors(every, 0)
    vectors = torch.randn(1, 50, 6, generator=torch.Generator().manual_seed(1))
    best = torch.cdist(vectors[0], corners).argmin(dim=1)
    assert torch.equal(quantizer.nearest(vectors)[0], every[best])


def test_the_pyramid_is_that_of_the_codebook() -> None:
    """Decoding, scale-by-scale accumulation and teacher forcing agree, and each scale leaves less over."""
    quantizer = quantizer_of()
    trainer = BitsTrainer(quantizer, BitsConfig(decay=0.5))
    for step in range(30):
        trainer.update(quantizer, quantizer.encode(latents(16, step)))
    pyramid = quantizer.encode(latents())
    assert [tuple(codes.shape) for codes in pyramid.codes] == [(4, 1, 6), (4, 4, 6), (4, 9, 6), (4, 25, 6)]
    torch.testing.assert_close(quantizer.decode(pyramid.codes), pyramid.latents[-1])
    running, inputs = quantizer.empty_latent(4), []
    for k, codes in enumerate(pyramid.codes):
        running, next_input = quantizer.accumulate(running, codes, k)
        inputs.append(next_input)
    assert torch.equal(quantizer.teacher_input(pyramid.codes), torch.cat([i for i in inputs if i is not None], dim=1))
    prescribed = quantizer.encode(latents(), [None, 1 - pyramid.codes[1]])
    assert not torch.equal(prescribed.codes[2], pyramid.codes[2])


def test_the_step_of_a_scale_is_the_mean_magnitude_of_what_it_describes() -> None:
    quantizer = quantizer_of()
    trainer = BitsTrainer(quantizer, BitsConfig(decay=0.75))
    pyramid = quantizer.encode(latents())
    assert trainer.update(quantizer, pyramid) is None
    first_K = torch.stack([target.abs().mean() for target in pyramid.targets])
    torch.testing.assert_close(quantizer.step_K, first_K)  # the first batch decides
    again = quantizer.encode(latents(seed=1))
    trainer.update(quantizer, again)
    second_K = torch.stack([target.abs().mean() for target in again.targets])
    torch.testing.assert_close(quantizer.step_K, first_K + 0.9 * (second_K - first_K))  # 1 - 1 / 10 of the second
    known = BitsTrainer(quantizer, BitsConfig(decay=0.75), known=True)
    before_K = quantizer.step_K.clone()
    known.update(quantizer, pyramid)
    torch.testing.assert_close(quantizer.step_K, 0.75 * before_K + 0.25 * first_K)


def test_no_step_is_better_for_given_signs() -> None:
    vectors = torch.randn(1, 400, 6, generator=torch.Generator().manual_seed(2))
    best = float(vectors.abs().mean())

    def error(step: float) -> float:
        return float((step * vectors.sign() - vectors).square().mean())

    assert error(best) < min(error(0.9 * best), error(1.1 * best))


def test_flips_come_at_the_rate_of_each_picture() -> None:
    quantizer = quantizer_of()
    codes = quantizer.nearest(torch.randn(2, 5000, 6, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    flipped = quantizer.mistakes()(codes, torch.tensor([[0.0], [0.3]])) != codes
    assert not flipped[0].any()
    assert flipped[1].float().mean().item() == pytest.approx(0.3, abs=0.01)
    with pytest.raises(ValueError, match="3 neighbours of a row of bits"):
        quantizer.mistakes(3)


def test_the_entropy_loss_wakes_a_bit_that_never_changes() -> None:
    quantizer = quantizer_of()
    trainer = BitsTrainer(quantizer, BitsConfig(entropy=1.0))
    free = latents(32).requires_grad_()
    with torch.no_grad():
        free[:, 0] += 3.0  # its sign is always the same
    before = quantizer.encode(free.detach()).codes[0][:, 0, 0].float().mean()
    optimizer = torch.optim.Adam([free], lr=0.1)
    for _ in range(80):
        pyramid = quantizer.encode(free.detach())
        trainer.update(quantizer, pyramid)
        loss = trainer.regulariser(quantizer, free, pyramid)
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = quantizer.encode(free.detach()).codes[0][:, 0, 0].float().mean()
    assert before == 1.0
    assert 0.2 < after < 0.8
    assert BitsTrainer(quantizer, BitsConfig(entropy=0.0)).regulariser(quantizer, free, pyramid) is None


def test_a_bit_is_alive_where_both_its_values_occur() -> None:
    kind, tokens = Bits(3), torch.zeros(1, 200, 3, dtype=torch.uint8)
    tokens[0, :100, 0] = 1
    tokens[0, :1, 1] = 1
    usage = kind.usage(kind.counts([tokens, 1 - tokens[:, :100]]))
    assert usage.alive == [1, 1]
    assert usage.entropy[0] == pytest.approx(1 + -(0.005 * math.log2(0.005) + 0.995 * math.log2(0.995)))
    assert usage.summary() == "2 of 6 bits of all scales alive"
    assert set(usage.log()) == set(Bits.panels)
    # both: what the counts of two batches say is what they say together
    parts = kind.counts([tokens[:, :50]]) + kind.counts([tokens[:, 50:]])
    assert torch.equal(parts, kind.counts([tokens]))


def test_frequencies_of_bits_cost_their_entropy() -> None:
    kind = Bits(2)
    tokens = (torch.rand(1, 20000, 2, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.5, 0.1])).byte()
    counts = kind.counts([tokens])
    expected = (math.log(2) - 0.1 * math.log(0.1) - 0.9 * math.log(0.9)) / 2
    assert kind.unigram_nats(counts, counts).item() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 20])
def test_bits_survive_the_shard(bits: int) -> None:
    kind = Bits(bits)
    tokens = torch.randint(2, (3, 5, bits), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    stored = kind.store(tokens)
    assert stored.shape == (3, 5, -(-bits // 8))
    assert torch.equal(kind.restore(stored), tokens)
    kind.check(stored[0], 5)
    for wrong in (stored[0, :4], stored[0].int(), torch.full_like(stored[0], 255)):
        if bits % 8 == 0 and wrong.dtype == torch.uint8 and len(wrong) == 5:
            continue  # every byte is a token
        with pytest.raises(ValueError, match="codes_L"):
            kind.check(wrong, 5)


def test_whole_tokens_are_chosen_by_a_mask() -> None:
    mask = torch.tensor([[True, False]])
    ones, none = torch.ones(1, 2, 3, dtype=torch.uint8), zeros(Bits(3), 1, 2)
    assert where(mask, ones, none).tolist() == [[[1, 1, 1], [0, 0, 0]]]
    codes = zeros(Codes(9), 1, 2)
    assert codes.dtype == torch.int64
    assert where(mask, codes + 5, codes).tolist() == [[5, 0]]


def test_configs_are_told_apart_by_their_fields() -> None:
    ordinary = to_dict(PRESETS["test"].network)
    assert set(ordinary["quantizer"]) == {"vocabulary", "code_width", "sizes", "phi_count", "phi_ratio", "cosine"}
    for name in ("test", "bits-test"):
        network = PRESETS[name].network
        assert from_dict(TokenizerConfig, to_dict(network)) == network
    with pytest.raises(InputError, match="bits is 0, expected at least 1"):
        from_dict(TokenizerConfig, to_dict(PRESETS["bits-test"].network) | {"quantizer": {"bits": 0}})
    with pytest.raises(InputError, match="vocabulary is 0, expected at least 1"):
        from_dict(TokenizerConfig, ordinary | {"quantizer": {"vocabulary": 0}})
    with pytest.raises(ValueError, match="a BitwiseConfig needs a BitsConfig"):
        replace(PRESETS["bits-test"], codebook=CodebookConfig())


def test_training_resumes_to_the_bit_and_says_what_is_alive(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunConfig(steps=6, batch_size=4, log_every=1, sample_every=3, checkpoint_every=3, trackers=())
    options, data = replace(PRESETS["bits-test"], run=run, cut=0.3), [str(shards / "train"), str(shards / "test")]
    whole = train(options, data=data, out=tmp_path / "whole", resume=False)
    real = Run._finish_step

    def dies(self: Run) -> None:
        if self.step == 4:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_finish_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(options, data=data, out=tmp_path / "halves", resume=False)
    halves = train(options, data=data, out=tmp_path / "halves", resume=True)
    one, other = (MultiScaleTokenizer.from_directory(place) for place in (whole, halves))
    assert one.digest == other.digest
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert one.bits == 8
    line = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"usage_bits_alive/2", "usage_bits_entropy/0", "loss_entropy"} <= set(line)
    assert "restarted_codes" not in line
    assert "8 bits a token" in (whole / "README.md").read_text()
    scores = json.loads((tmp_path / "whole" / "scores.json").read_text())
    assert len(scores["usage"]["alive"]) == 3
    assert (tmp_path / "whole" / "pictures" / "usage.png").is_file()


def test_a_codebook_cannot_be_aligned_to_bits(tmp_path: Path) -> None:
    MultiScaleTokenizer(PRESETS["test"].network).save(tmp_path / "old", card="# old\n")
    with pytest.raises(InputError, match="a token is a row of bits, expected codebooks"):
        AlignmentTeacher(str(tmp_path / "old"), PRESETS["bits-test"].network, torch.device("cpu"), keep=False)


def test_the_defaults_have_the_released_pyramid() -> None:
    ours, theirs = BitwiseConfig(), QuantizerConfig()
    assert (ours.sizes, ours.phi_count, ours.phi_ratio) == (theirs.sizes, theirs.phi_count, theirs.phi_ratio)
