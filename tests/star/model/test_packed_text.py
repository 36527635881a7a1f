"""Words of all prompts one behind the other: read as under a mask, by every kernel, also compiled."""

import inspect
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn

from star.attention_maps import attention
from star.data.text import TextFeatures
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.model.attention_backends import additive, attend
from star.model.kernels import choice, flash
from star.model.kernels.choice import choose
from star.model.packed_text import GROUPED, PackedText, pack
from star.sampling.graphs import Called, Graphs
from star.tiny import CODE_WIDTH, tiny_tokenizer, tiny_transformer
from tests.star.model.flash_double import FlashDouble
from tests.star.model.test_attention_backends import SCHEDULE, targets

CPU = torch.device("cpu")
LENGTHS = [3, 1, 7, 3, 7]  # words of each row, of at most 7


def prompts(mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """queries (B, N, l, d), keys and values (B, N, T, d) padded with large numbers, bool mask (B, T)."""
    generator = torch.Generator().manual_seed(0)
    rows, most = len(LENGTHS), max(LENGTHS)
    if mask_BT is None:
        mask_BT = torch.arange(most) < torch.tensor(LENGTHS)[:, None]
    queries = torch.randn(rows, 2, 5, 16, generator=generator)
    keys, values = (torch.randn(rows, 2, most, 16, generator=generator) for _ in range(2))
    padding = ~mask_BT[:, None, :, None]
    return queries, keys + 50 * padding, values + 50 * padding, mask_BT


def read_packed(queries: Tensor, keys: Tensor, values: Tensor, mask_BT: Tensor, kernel: str) -> Tensor:
    """Through `pack`, which moves tokens before keys are made of them."""
    moved = []
    for tensor in (keys, values):
        tokens_BTD, text = pack(tensor.transpose(1, 2).flatten(2), mask_BT, kernel)
        moved.append(tokens_BTD.unflatten(2, (queries.shape[1], -1)).transpose(1, 2))
    return text.attend(queries, moved[0], moved[1], 0.3)


def read_masked(queries: Tensor, keys: Tensor, values: Tensor, mask_BT: Tensor) -> Tensor:
    return attend(queries, keys, values, additive(mask_BT[:, None, None], queries.dtype), 0.3, "eager")


@pytest.mark.parametrize("kernel", [GROUPED, "flash-attn", "torch-flash"])
@pytest.mark.parametrize("scattered", [False, True])
def test_packed_words_are_read_as_under_a_mask(
    double: FlashDouble, allowed: pytest.MonkeyPatch, kernel: str, scattered: bool
) -> None:
    """With gradients, and none of what is padding, whatever the kernel leaves there."""
    allowed.setattr("torch.nn.attention.varlen.varlen_attn", double.varlen_attn)
    if kernel == "torch-flash":
        allowed.setitem(sys.modules, "flash_attn", None)
    assert choose("text", "flash", CPU, torch.float32, 16).kernel == (kernel if kernel != GROUPED else "flash-attn")
    mask_BT = None
    if scattered:  # words with gaps between them
        mask_BT = torch.rand(len(LENGTHS), 7, generator=torch.Generator().manual_seed(1)) < 0.5
        mask_BT[:, 2] = True
    results = []
    for packed in (False, True):
        queries, keys, values, words_BT = prompts(mask_BT)
        q, k, v = leaves = [tensor.requires_grad_() for tensor in (queries, keys, values)]
        output = read_packed(q, k, v, words_BT, kernel) if packed else read_masked(q, k, v, words_BT)
        output.square().sum().backward()
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        results.append([output, *gradients])
        assert not any(gradient[~words_BT[:, None].expand(-1, 2, -1)].any() for gradient in gradients[1:])
    torch.testing.assert_close(*results)
    assert ("flash_attn_varlen_func", 0.3) in double.calls or kernel == GROUPED


def test_the_first_rows_stay_where_they_are() -> None:
    queries, keys, _, mask_BT = prompts()
    tokens, text = pack(keys.transpose(1, 2).flatten(2), mask_BT, GROUPED)
    packed_BNTd = tokens.unflatten(2, (2, 16)).transpose(1, 2)
    few = text.first(3).attend(queries[:3], packed_BNTd[:3], packed_BNTd[:3], 0.3)
    torch.testing.assert_close(few, read_masked(queries, keys, keys, mask_BT)[:3])
    assert torch.equal(text.first_mask_111T(7)[0, 0, 0], additive(mask_BT[0], torch.float32))


@torch.no_grad()
def test_rows_of_a_packed_state_continue_alone(double: FlashDouble) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs_BlE = torch.randn(2, SCHEDULE.length - 1, CODE_WIDTH, generator=generator)
    mask_BT = torch.arange(6) < torch.tensor([[4], [6], [1], [2]])
    text = TextFeatures(torch.randn(4, 6, 32, generator=generator), mask_BT, torch.randn(4, 32, generator=generator))
    states = {name: tiny_transformer(attention=name) for name in ("flash", "sdpa")}
    results = []
    for model in states.values():
        state = model.begin(text)
        assert (model.config.attention == "flash") == isinstance(state.text and state.text.mask_B11T, PackedText)
        model.step(None, 0, state)
        state = state.first(2)
        results.append(model.step(inputs_BlE[:, : SCHEDULE.lengths[1]], 1, state))
    torch.testing.assert_close(*results)


def test_what_a_place_reads_is_told_of_packed_words_too(double: FlashDouble) -> None:
    maps = []
    for name in ("flash", "sdpa"):
        generator = StarGenerator(
            tiny_transformer(attention=name), tiny_tokenizer(), StarGenerator.for_test().text_encoder
        )
        options = SampleOptions(guidance_scale=2.0, top_k=1)
        maps.append(attention(generator, "a red dot, a blue", seed=3, options=options))
    for found, expected in zip(maps[0].weights, maps[1].weights, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_compiled_layers_read_the_choice_once(double: FlashDouble) -> None:
    """In one graph, while drawing and while training, forward and backward."""
    network = tiny_transformer(attention="flash")
    layer, x_BLC = network.get_submodule("blocks.0.attention"), torch.randn(2, SCHEDULE.length, 32)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for mask in (None, network.causality(x_BLC)):
        gradients = []
        for module in (compiled, layer):
            leaf = x_BLC.clone().requires_grad_()
            output = module(leaf, mask=mask)
            gradients.append([output, *torch.autograd.grad(output.square().sum(), leaf)])
        torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


def test_recorded_passes_take_other_prompts(double: FlashDouble) -> None:
    """Starts and order come from the prompts of the run, not from those that were recorded."""
    pictures = []
    for name in ("flash", "sdpa"):
        generator = StarGenerator(
            tiny_transformer(attention=name), tiny_tokenizer(), StarGenerator.for_test().text_encoder
        )
        if name == "flash":
            generator._recorded = Graphs(Called(), after=0)
        options = SampleOptions(guidance_scale=2.0, top_k=5)
        for prompts in (["a red dot", "blue"], ["a blue", "a red dot, a red dot"]):
            pictures.append(generator.generate(prompts, seeds=[1, 2], options=options))
        assert len(generator._recorded or ()) == (2 if name == "flash" else 0)  # of drawing, and of decoding
    assert torch.equal(torch.stack(pictures[:2]), torch.stack(pictures[2:]))
    assert "flash_attn_varlen_func" in {name for name, _ in double.calls}


def dense_packed(
    queries: Tensor, keys: Tensor, values: Tensor, query_starts: Tensor, key_starts: Tensor, *limits_and_scale: Any
) -> Tensor:
    """A packed kernel that can be compiled: all pairs, hidden where they are of different rows."""
    own_Q, own_P = (
        torch.bucketize(torch.arange(len(tensor)), starts[1:], right=True)
        for tensor, starts in ((queries, query_starts), (keys, key_starts))
    )
    mask_QP = additive(own_Q[:, None] == own_P, queries.dtype)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (queries, keys, values))
    return attend(q, k, v, mask_QP, limits_and_scale[-1], "eager")[0].transpose(0, 1)


@pytest.mark.slow
def test_compiled_blocks_read_packed_words(double: FlashDouble) -> None:
    """In one graph, for prompts of other lengths as well."""
    network = tiny_transformer(attention="flash")
    choice.choices("flash", CPU, torch.float32, 16)
    flash.PACKED_ROWS["flash-attn"] = dense_packed  # neither counts its calls, as the double does
    flash.WHOLE_ROWS["flash-attn"] = lambda q, k, v, scale: attend(q, k, v, None, scale, "eager")
    block, x_BlC = network.get_submodule("blocks.0"), torch.randn(2, 9, 32)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True)
    for lengths in ([[4], [6]], [[1], [3]]):
        text = replace(targets()[1], mask_BT=torch.arange(6) < torch.tensor(lengths))
        words = network.encode_text(text, beforehand=False)
        assert words is not None
        gradients = []
        for module in (compiled, block):
            leaf = x_BlC.clone().requires_grad_()
            output = module(leaf, text=words.of_block(0))
            gradients.append([output, *torch.autograd.grad(output.square().sum(), leaf)])
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_torch_varlen_takes_what_it_is_given() -> None:
    """By torch's own shape functions, on CUDA tensors without memory; the stand-in has its signature."""
    packed = flash._packed(*flash.VARLEN["torch-flash"])
    with FakeTensorMode(), torch.no_grad():
        queries, keys = (torch.empty(count, 2, 16, dtype=torch.bfloat16, device="cuda") for count in (10, 14))
        starts = torch.zeros(3, dtype=torch.int32, device="cuda")
        assert packed(queries, keys, keys, starts, starts, 5, 7, 0.3).shape == (10, 2, 16)
    real, ours = (inspect.signature(function).parameters for function in (varlen_attn, FlashDouble().varlen_attn))
    assert [(name, one.kind, one.default) for name, one in real.items()] == [
        (name, one.kind, one.default) for name, one in ours.items()
    ]


def closest(found: list[Tensor], expected: list[Tensor]) -> None:
    """Values and gradients in bfloat16, to the size of each."""
    for one, wanted in zip(found, expected, strict=True):
        assert (one.float() - wanted.float()).norm() / wanted.float().norm() < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("name", flash.NAMES)
def test_kernels_of_a_gpu_give_the_formula(name: str) -> None:
    device, numbers = torch.device("cuda"), (torch.bfloat16, 64)
    for use in ("drawing", "text"):
        if refusal := flash.refusal(name, device, *numbers, packed=use == "text"):
            pytest.skip(refusal)
    generator = torch.Generator(device).manual_seed(0)
    queries, keys, values = (
        torch.randn(3, 4, length, 64, generator=generator, device=device).bfloat16() for length in (130, 77, 77)
    )
    mask_BT = torch.arange(77, device=device) < torch.tensor([[77], [1], [20]], device=device)
    results = []
    for own in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (queries, keys, values)]
        q, k, v = leaves
        if own:
            whole, read = flash.WHOLE_ROWS[name](q, k, v, 0.3), read_packed(q, k, v, mask_BT, name)
        else:
            whole, read = attend(q, k, v, None, 0.3, "eager"), read_masked(q, k, v, mask_BT)
        (whole.float().square().sum() + read.float().square().sum()).backward()
        results.append([whole, read, *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    closest(*results)
