"""Laws of the next-scale transformer, on tiny networks of every kind."""

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import star.model.transformer
from star.data.text import TextFeatures
from star.model.block import Block, draw_paths
from star.model.losses import token_losses, tokens_at_once
from star.model.tables import tables_of
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.tiny import CODE_WIDTH, SIZES, VOCABULARY, tiny_transformer
from star.tokenizer.scales import ScaleSchedule

SCHEDULE = ScaleSchedule(SIZES)
CLASS = {"conditioning": "class", "cross_attention": False, "classes": 5}
KINDS: dict[str, dict[str, Any]] = {
    "star": {},
    "eager": {"attention": "eager"},
    "scalewise": {"attention": "scalewise"},
    "plain attention": {"qk_norm": False, "logit_norm": False},
    "no cross-attention": {"cross_attention": False},
    "var": {**CLASS, "modulation": "adaln", "positions": "absolute"},
    "var, shared": {**CLASS, "modulation": "shared-adaln", "positions": "absolute"},
}


def network(kind: str, **changes: Any) -> NextScaleTransformer:
    return tiny_transformer(**KINDS[kind] | changes)


def condition(model: NextScaleTransformer, batch: int = 2, seed: int = 0) -> TextFeatures | Tensor:
    generator = torch.Generator().manual_seed(seed)
    if model.config.conditioning == "class":
        return torch.arange(batch) % 5
    mask_BT = torch.arange(6) < torch.tensor([[4], [6], [2]])[torch.arange(batch) % 3]
    tokens_BTD = torch.randn(batch, 6, 32, generator=generator) * mask_BT[..., None]
    return TextFeatures(tokens_BTD, mask_BT, torch.randn(batch, 32, generator=generator))


def inputs(batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SCHEDULE.length - 1, CODE_WIDTH, generator=generator)


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> NextScaleTransformer:
    return network(request.param)


def test_every_scale_sees_coarser_inputs_only(model: NextScaleTransformer) -> None:
    """The input at scale k is made of codes of scales < k: changing those of k and finer must not reach scale k - 1."""
    text, before = condition(model), inputs()
    logits_BLV = model(before, text)
    assert logits_BLV.shape == (2, SCHEDULE.length, VOCABULARY)
    assert logits_BLV.dtype == torch.float32
    for k in range(1, SCHEDULE.count):
        start = SCHEDULE.offsets[k]
        after = before.clone()
        after[:, start - 1 :] += torch.randn_like(after[:, start - 1 :])
        changed = model(after, text)
        assert torch.equal(changed[:, :start], logits_BLV[:, :start])
        assert not torch.equal(changed[:, start:], logits_BLV[:, start:])


def test_no_gradient_from_finer_inputs(model: NextScaleTransformer) -> None:
    text = condition(model)
    for k in range(SCHEDULE.count):
        teacher_input = inputs().requires_grad_()
        model(teacher_input, text)[:, SCHEDULE.slices[k]].square().sum().backward()
        assert teacher_input.grad is not None
        last = SCHEDULE.offsets[k + 1] - 1
        assert teacher_input.grad[:, last:].abs().max() == 0 if k + 1 < SCHEDULE.count else True
        assert k == 0 or teacher_input.grad[:, SCHEDULE.offsets[k] - 1 : last].abs().min() > 0


@torch.no_grad()
def test_drawing_with_a_cache_equals_teacher_forcing(model: NextScaleTransformer) -> None:
    text, teacher_input = condition(model), inputs()
    expected = SCHEDULE.split(model(teacher_input, text))
    state = model.begin(text)
    for k, part in enumerate(SCHEDULE.slices):
        scale_input = None if k == 0 else teacher_input[:, part.start - 1 : part.stop - 1]
        logits_BlV = model.logits(model.step(scale_input, k, state), state.condition_BC)
        assert torch.allclose(logits_BlV, expected[k], atol=2e-4), f"scale {k}"


@torch.no_grad()
def test_rows_do_not_reach_each_other(model: NextScaleTransformer) -> None:
    text, teacher_input = condition(model, 3), inputs(3)
    together = model(teacher_input, text)
    for row in range(3):
        assert torch.allclose(model(teacher_input[row : row + 1], text[row : row + 1])[0], together[row], atol=1e-4)


@torch.no_grad()
def test_padding_is_not_read() -> None:
    model, text = network("star"), condition(network("star"))
    assert isinstance(text, TextFeatures)
    noise = torch.randn_like(text.tokens_BTD)
    noisy = TextFeatures(torch.where(text.mask_BT[..., None], text.tokens_BTD, noise * 9), text.mask_BT, text.pooled_BD)
    assert torch.equal(model(inputs(), noisy), model(inputs(), text))
    other = TextFeatures(text.tokens_BTD + noise, text.mask_BT, text.pooled_BD)
    assert not torch.allclose(model(inputs(), other), model(inputs(), text), atol=1e-3)


@torch.no_grad()
def test_both_attention_backends_agree() -> None:
    text = condition(network("star"))
    assert torch.allclose(network("star")(inputs(), text), network("eager")(inputs(), text), atol=1e-4)


@torch.no_grad()
def test_rows_of_a_state_continue_alone() -> None:
    """Dropping the unconditional rows half-way changes nothing for the others."""
    model, teacher_input = network("star"), inputs(4)
    text = condition(model, 4)
    whole, part = model.begin(text), model.begin(text)
    for k, span in enumerate(SCHEDULE.slices):
        scale_input = None if k == 0 else teacher_input[:, span.start - 1 : span.stop - 1]
        if k == 2:
            part = part.first(2)
        few = None if scale_input is None else scale_input[: len(part.start_BlC)]
        expected = model.step(scale_input, k, whole)[: len(part.start_BlC)]
        assert torch.allclose(model.step(few, k, part), expected, atol=1e-5)


@torch.no_grad()
def test_in_the_released_mode_unconditional_rows_get_what_the_conditional_ones_read() -> None:
    model = network("star")
    text = condition(model, 4)
    own, released = (model.step(None, 0, model.begin(text, released=released)) for released in (False, True))
    assert torch.equal(released[:2], own[:2])
    assert not torch.allclose(released[2:], own[2:], atol=1e-3)
    alone = model.step(None, 0, model.begin(text, released=True).first(2))
    torch.testing.assert_close(alone, own[:2])
    for block in model.blocks:
        assert isinstance(block, Block)
        assert block.cross_attention is not None
        block.cross_attention.register_forward_hook(lambda _module, _given, read_BlC: read_BlC[[0, 1, 0, 1]])
    assert torch.equal(model.step(None, 0, model.begin(text)), released)


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    model = network("star", dropout=0.3, drop_path=0.5)
    text = condition(model)
    assert torch.equal(model(inputs(), text), network("star")(inputs(), text))
    model.train()
    assert not torch.equal(model(inputs(), text), model(inputs(), text))


def test_paths_are_dropped_as_often_as_asked_and_keep_their_mean() -> None:
    torch.manual_seed(0)
    paths_D2B11 = draw_paths(5, 0.4, 4000, torch.device("cpu"))
    assert paths_D2B11.shape == (5, 2, 4000, 1, 1)
    assert (paths_D2B11[0] == 1).all()  # the first block never drops
    for block, paths in enumerate(paths_D2B11):
        keep = 1 - 0.4 * block / 4
        values = paths.unique().tolist()
        assert values == pytest.approx([1 / keep] if keep == 1 else [0, 1 / keep])
        assert (paths != 0).float().mean().item() == pytest.approx(keep, abs=0.02)
    assert not torch.equal(paths_D2B11[4, 0], paths_D2B11[4, 1])  # each branch by itself


def test_a_dropped_path_leaves_the_stream_as_it_was() -> None:
    block = Block(network("star").config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x_BlC = torch.randn(2, 3, block.mlp.up.in_features)
    kept_2B11 = torch.ones(2, 2, 1, 1)
    kept_2B11[:, 1] = 0
    out_BlC, plain_BlC = (block(x_BlC, paths_2B11=paths) for paths in (kept_2B11, None))
    torch.testing.assert_close(out_BlC[0], plain_BlC[0])
    assert torch.equal(out_BlC[1], x_BlC[1])
    attended_2B11 = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 2, 1, 1)
    attended = block(x_BlC, paths_2B11=attended_2B11)
    torch.testing.assert_close(attended, x_BlC + block.attention(block.norm(x_BlC)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1}, {"checkpointing": True}], ids=str)
def test_blocks_of_every_depth_are_compiled_once(changes: dict[str, Any]) -> None:
    """One graph for twelve blocks: what differs from block to block must reach them as a tensor."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model = network("star", depth=12, drop_path=0.3, **changes).train()
    for block in model.blocks:
        block.compile(backend=counter)
    text = condition(model)
    for _ in range(2):
        model(inputs(), text).sum().backward()
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["star", "var"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_some_tokens_at_a_time_are_those_of_all(
    kind: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes_BL = torch.randint(VOCABULARY, (2, SCHEDULE.length), generator=torch.Generator().manual_seed(2))
    found, seen = [], []
    for tokens in (10**6, 7):
        monkeypatch.setattr(star.model.transformer, "tokens_at_once", lambda _vocabulary, tokens=tokens: tokens)
        model = network(kind)
        model.head.register_forward_hook(lambda _layer, _given, logits: seen.append(logits.shape[:2].numel()))
        loss_BL = model(inputs(), condition(model), codes_BL=codes_BL, label_smoothing=smoothing)
        loss_BL.mean().backward()
        found.append((loss_BL.detach(), [weight.grad for weight in model.parameters() if weight.grad is not None]))
    torch.testing.assert_close(*found)
    assert seen[0] == 2 * SCHEDULE.length
    assert max(seen[1:]) <= 7
    plain_BL = token_losses(network(kind)(inputs(), condition(network(kind))), codes_BL, smoothing)
    torch.testing.assert_close(found[0][0], plain_BL.detach())


def test_logits_at_once_take_a_gibibyte() -> None:
    assert 16 * 4096 * tokens_at_once(4096) == 2**30
    assert tokens_at_once(2**40) == 1


def test_start_of_the_weights() -> None:
    config = TransformerConfig(sizes=SIZES, depth=8, width=256, heads=4, text_width=32, vocabulary=512)
    torch.manual_seed(0)
    model = NextScaleTransformer(config)
    std = (3 * 256) ** -0.5
    expected = {
        "text_projection.weight": std,
        "level_embedding.weight": std,
        "blocks.3.attention.query_key_value.weight": std,
        "blocks.3.attention.output.weight": std / 4,
        "blocks.3.mlp.down.weight": std / 4,
        "blocks.3.cross_attention.output.weight": std,
        "head.weight": std * 0.02,
    }
    weights = dict(model.named_parameters())
    for name, value in expected.items():
        assert weights[name].std().item() == pytest.approx(value, rel=0.1), name
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert weight.abs().max() == 0, name
        if name.endswith("log_scale"):
            assert torch.allclose(weight.exp(), torch.tensor(4.0)), name


def test_tables_survive_a_change_of_type() -> None:
    """Angles in bfloat16 would be off by several degrees at the far corner."""
    model = network("star").to(torch.bfloat16)
    text = condition(model)
    assert isinstance(text, TextFeatures)
    logits = model(inputs().bfloat16(), text.to(dtype=torch.bfloat16))
    assert logits.dtype == torch.float32
    assert model.tables.cos_LP is not None
    assert model.tables.cos_LP.dtype == torch.float32
    expected = tables_of(model.config).cos_LP
    assert expected is not None
    assert torch.equal(model.tables.cos_LP, expected)


def test_tables_are_in_no_state_dict_and_survive_the_meta_device() -> None:
    config = network("star").config
    with torch.device("meta"):
        model = NextScaleTransformer(config)
    model = model.to_empty(device="cpu")
    assert not any(name.startswith("tables.") for name in model.state_dict())
    for name, table in tables_of(config).named_buffers():
        assert torch.equal(model.tables.get_buffer(name), table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "width 32 is not a multiple of heads 3"),
        ({"modulation": "film"}, "modulation is 'film'; choose one of none, adaln"),
        ({"attention": "magic"}, "unknown attention backend 'magic'"),
        ({"conditioning": "class"}, "cross_attention=False"),
        ({"modulation": "adaln"}, "needs conditioning='class'"),
        ({"heads": 16}, "multiple of 4, got 2"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_transformer(**changes)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = network("star")
    with pytest.raises(ValueError, match=r"expected|teacher input is \(B, L - l_0, E\) = \(B, 29, 4\)"):
        model(inputs()[:, 1:], condition(model))
    with pytest.raises(ValueError, match="give TextFeatures"):
        model(inputs(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="scale 0 takes no input"):
        model.step(inputs()[:, :4], 0, model.begin(condition(model)))
    with pytest.raises(ValueError, match="give labels"):
        network("var")(inputs(), condition(model))


@torch.no_grad()
@pytest.mark.parametrize("aspect", ["3:2", "1:3"])
@pytest.mark.parametrize("kind", ["star", "eager", "scalewise", "plain attention"])
def test_rectangles_are_drawn_with_a_cache_as_they_are_taught(kind: str, aspect: str) -> None:
    model, wide = network(kind), SCHEDULE.of_aspect(aspect)
    text = condition(model)
    teacher_input = torch.randn(2, wide.length - 1, CODE_WIDTH, generator=torch.Generator().manual_seed(1))
    logits_BLV = model(teacher_input, text, schedule=wide)
    assert logits_BLV.shape == (2, wide.length, VOCABULARY)
    state = model.begin(text, schedule=wide)
    for k, part in enumerate(wide.slices):
        scale_input = None if k == 0 else teacher_input[:, part.start - 1 : part.stop - 1]
        own_BlV = model.logits(model.step(scale_input, k, state), state.condition_BC)
        assert torch.allclose(own_BlV, logits_BLV[:, part], atol=2e-4), f"scale {k}"
    assert torch.equal(model(teacher_input, text, schedule=wide), logits_BLV)
    turned = model(teacher_input, text, schedule=SCHEDULE.at(*wide.grid[::-1]))
    assert not torch.allclose(turned, logits_BLV, atol=1e-3)  # as many tokens, elsewhere


def test_rectangles_need_rotary_positions_and_the_same_scales() -> None:
    wide = SCHEDULE.of_aspect("3:2")
    model = network("var")
    with pytest.raises(ValueError, match="rectangles need positions='rope'"):
        model.begin(condition(model), schedule=wide)
    model = network("star")
    with pytest.raises(ValueError, match="a schedule of sides"):
        model.begin(condition(model), schedule=ScaleSchedule((1, 2, 4)).of_aspect("3:2"))
    with pytest.raises(ValueError, match=f"L - l_0, E\\) = \\(B, {wide.length - 1}"):
        model(inputs(), condition(model), schedule=wide)


def test_tables_of_rectangles_follow_the_network_and_serve_training() -> None:
    model, wide = network("star"), SCHEDULE.of_aspect("3:2")
    with torch.inference_mode():
        tables = model.tables.of(wide)
    assert tables.cos_LP is not None
    assert not tables.cos_LP.is_inference()
    assert model.tables.of(wide) is tables
    halved = model.half().tables.of(wide).cos_LP
    assert halved is not None
    assert halved.dtype == torch.float32
    assert "tables" not in " ".join(model.state_dict())
