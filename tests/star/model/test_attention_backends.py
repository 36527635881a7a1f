"""Attention that is causal over scales: every backend gives the same numbers and gradients, also of a part."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from star.data.errors import InputError
from star.data.text import TextFeatures
from star.model.attention_backends import ScaleCausality, attend
from star.model.kernels.choice import BACKENDS
from star.model.losses import token_losses
from star.model.transformer import NextScaleTransformer
from star.tiny import CODE_WIDTH, SIZES, VOCABULARY, tiny_transformer
from star.tokenizer.scales import ScaleSchedule
from star.training.targets import draw_kept

SCHEDULE = ScaleSchedule(SIZES)
SCALE = 0.7  # of the scores
CPU = torch.device("cpu")
TRAINABLE = [backend for backend in BACKENDS if backend != "flex"]


def heads(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, SCHEDULE.length, 8)
    queries, keys, values = (torch.randn(shape, generator=generator) for _ in range(3))
    return queries, keys, values


def seen(backend: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return ScaleCausality(SCHEDULE.lengths, backend, torch.float32, CPU).attend(queries, keys, values, SCALE)


def targets(batch: int = 2) -> tuple[Tensor, TextFeatures, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs_BlE = torch.randn(batch, SCHEDULE.length - 1, CODE_WIDTH, generator=generator)
    mask_BT = torch.arange(6) < torch.tensor([[4], [6]])
    tokens_BTD = torch.randn(batch, 6, 32, generator=generator) * mask_BT[..., None]
    text = TextFeatures(tokens_BTD, mask_BT, torch.randn(batch, 32, generator=generator))
    return inputs_BlE, text, torch.randint(VOCABULARY, (batch, SCHEDULE.length), generator=generator)


def learn(model: NextScaleTransformer, kept_L: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of the tokens that take part, and what the mean of them does to every parameter."""
    inputs_BlE, text, codes_BL = targets()
    codes_BL = codes_BL if kept_L is None else codes_BL[:, kept_L]
    loss_BL = token_losses(model.train()(inputs_BlE, text, kept_L=kept_L), codes_BL)
    loss_BL.mean().backward()
    return loss_BL.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def written_out(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Token by token."""
    rows = []
    for token, level in enumerate(SCHEDULE.level_ids_L().tolist()):
        stop = SCHEDULE.offsets[level + 1]
        scores = (queries[:, :, token, None] * keys[:, :, :stop]).sum(-1) * SCALE
        rows.append((scores.softmax(-1)[..., None] * values[:, :, :stop]).sum(2))
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("backend", TRAINABLE)
def test_a_token_reads_its_scale_and_coarser_ones(backend: str) -> None:
    torch.testing.assert_close(seen(backend, *heads()), written_out(*heads()))


@pytest.mark.parametrize("backend", TRAINABLE)
def test_gradients_are_those_of_the_formula(backend: str) -> None:
    gradients = []
    for function in (partial(seen, backend), written_out):
        tensors = [tensor.requires_grad_() for tensor in heads()]
        function(*tensors).square().sum().backward()
        gradients.append([tensor.grad for tensor in tensors])
    torch.testing.assert_close(*gradients)


def test_gradients_of_beginnings_are_those_of_slices_to_the_bit() -> None:
    """In training by scales each scale reads the first keys, and so does each finer one."""
    sight, gradients = ScaleCausality(SCHEDULE.lengths, "scalewise", torch.float32, CPU), []
    for sliced in (False, True):
        leaves = queries, keys, values = [tensor.requires_grad_() for tensor in heads()]
        if sliced:
            stops = SCHEDULE.offsets[1:]
            parts = zip(queries.split(SCHEDULE.lengths, dim=2), stops, strict=True)
            seen = [attend(part, keys[:, :, :stop], values[:, :, :stop], None, SCALE, "sdpa") for part, stop in parts]
            output = torch.cat(seen, dim=2)
        else:
            output = sight.attend(queries, keys, values, SCALE)
        gradients.append(torch.autograd.grad(output.square().sum(), leaves))
    assert all(torch.equal(own, wanted) for own, wanted in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore::DeprecationWarning")
def test_flex_reads_the_same() -> None:
    """Forward only, all that there is on a CPU; slow for what it imports."""
    torch.testing.assert_close(seen("flex", *heads()), written_out(*heads()))


@pytest.mark.gpu
def test_flex_learns_the_same_on_a_gpu() -> None:
    gradients = []
    for backend in ("flex", "sdpa"):
        tensors = [tensor.cuda().requires_grad_() for tensor in heads()]
        sight = ScaleCausality(SCHEDULE.lengths, backend, torch.float32, tensors[0].device)
        query, key, value = tensors
        sight.attend(query, key, value, scale=SCALE).square().sum().backward()
        gradients.append([tensor.grad for tensor in tensors])
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-2)


def test_flex_does_not_learn_on_a_cpu() -> None:
    queries, keys, values = heads()
    with pytest.raises(InputError, match="attention is flex, which has no gradient on a CPU"):
        seen("flex", queries.requires_grad_(), keys, values)


@pytest.mark.parametrize("changes", [{"attention": "scalewise"}, {"attention": "eager"}, {"checkpointing": True}])
@pytest.mark.parametrize("keep_last", [1.0, 0.5])
def test_a_network_learns_the_same(changes: dict[str, Any], keep_last: float) -> None:
    torch.manual_seed(0)
    kept_L = draw_kept(SCHEDULE, keep_last)
    expected_BL, expected = learn(tiny_transformer(attention="sdpa"), kept_L)
    loss_BL, gradients = learn(tiny_transformer(**changes), kept_L)
    torch.testing.assert_close(loss_BL, expected_BL)
    torch.testing.assert_close(gradients, expected)


def test_recomputed_blocks_drop_what_they_dropped() -> None:
    """Stochastic depth and dropout fall on the same branches in the second computation."""
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        results.append(learn(tiny_transformer(drop_path=0.5, dropout=0.3, checkpointing=checkpointing)))
    torch.testing.assert_close(*results)


def test_what_takes_part_is_all_but_some_of_the_finest_scale() -> None:
    torch.manual_seed(0)
    start = SCHEDULE.offsets[-2]
    draws = [draw_kept(SCHEDULE, 0.5) for _ in range(50)]
    for kept_L in draws:
        assert kept_L is not None
        assert torch.equal(kept_L[:start], torch.arange(start))
        assert len(kept_L) == start + 8
        assert (kept_L.diff() > 0).all()
        assert kept_L[-1] < SCHEDULE.length
    finest = torch.cat([kept_L[start:] for kept_L in draws if kept_L is not None])
    assert len(finest.unique()) == 16  # no position is left out for ever
    assert draw_kept(SCHEDULE, 1.0) is None
    released = draw_kept(ScaleSchedule((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)), 3445 / 4096)
    assert released is not None
    assert len(released) == 8800


@pytest.mark.parametrize("backend", TRAINABLE)
def test_all_tokens_given_are_all_tokens(backend: str) -> None:
    every_L = torch.arange(SCHEDULE.length)
    inputs_BlE, text, _ = targets()
    model = tiny_transformer(attention=backend)
    assert torch.equal(model(inputs_BlE, text, kept_L=every_L), model(inputs_BlE, text))


@torch.no_grad()
def test_losses_of_those_left_are_a_full_pass_in_which_nobody_sees_the_others() -> None:
    torch.manual_seed(0)
    kept_L = draw_kept(SCHEDULE, 0.5)
    assert kept_L is not None
    inputs_BlE, text, _ = targets()
    model = tiny_transformer()
    part, full = model(inputs_BlE, text, kept_L=kept_L), model(inputs_BlE, text)
    start = SCHEDULE.offsets[-2]
    torch.testing.assert_close(part[:, :start], full[:, :start])
    assert not torch.allclose(part[:, start:], full[:, kept_L[start:]], atol=1e-3)  # the approximation is one
    missing_L = torch.ones(SCHEDULE.length, dtype=torch.bool)
    missing_L[kept_L] = False
    sight = model.causality(full)
    assert sight._mask_LL is not None
    sight._mask_LL[:, missing_L] = float("-inf")
    torch.testing.assert_close(part, model(inputs_BlE, text)[:, kept_L])


def test_tokens_left_out_get_no_gradient() -> None:
    torch.manual_seed(0)
    kept_L = draw_kept(SCHEDULE, 0.25)
    assert kept_L is not None
    inputs_BlE, text, _ = targets()
    inputs_BlE.requires_grad_()
    logits_BLV = tiny_transformer(attention="scalewise")(inputs_BlE, text, kept_L=kept_L)
    assert logits_BLV.shape == (2, len(kept_L), VOCABULARY)
    logits_BLV.square().sum().backward()
    assert inputs_BlE.grad is not None
    reached = inputs_BlE.grad.abs().sum(dim=(0, 2)) > 0
    assert torch.equal(reached.nonzero().flatten() + 1, kept_L[1:])
