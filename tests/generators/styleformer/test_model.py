"""Styleformer's generator: attention against loops, its variants, conditions, truncation, derivatives of two orders."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.gan.losses import path_lengths
from star.generators.protocol import SampleOptions
from star.generators.styleformer.layers import StyleAttention
from star.generators.styleformer.model import CONFIGS, Styleformer, StyleformerConfig, StyleformerGenerator

TINY = StyleformerConfig(
    conditioning="text",
    condition_width=5,
    start=4,
    widths=(12, 8),
    layers=(1, 2),
    depth=4,
    latent_width=6,
    style_width=7,
)
VARIANTS = {
    "plain": replace(TINY, conditioning="none", condition_width=0),
    "classes": replace(TINY, conditioning="class", condition_width=3),
    "text": TINY,
    "linformer": replace(TINY, linformer_from=8, projection=5),
    "one head": replace(TINY, depth=100),
    "two heads at least": replace(TINY, depth=100, minimum_head=2),
    "rising widths": replace(TINY, widths=(8, 12)),
    "three resolutions from 3": replace(TINY, start=3, widths=(8, 12, 4), layers=(2, 1, 1)),
}


def build(config: StyleformerConfig = TINY, seed: int = 0) -> Styleformer:
    """Fresh, but for positions, biases and noise, which would otherwise be 0 and count for nothing."""
    torch.manual_seed(seed)
    network = Styleformer(config)
    with torch.no_grad():
        for parameter in network.blocks.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return network


def inputs(config: StyleformerConfig, batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(1)
    latent_BZ = torch.randn(batch, config.latent_width, dtype=dtype)
    if config.conditioning == "none":
        return latent_BZ, None
    if config.conditioning == "class":
        return latent_BZ, torch.eye(config.condition_width, dtype=dtype)[torch.arange(batch) % config.condition_width]
    return latent_BZ, nn.functional.normalize(torch.randn(batch, config.condition_width, dtype=dtype), dim=1)


# ---- the attention layer


def by_loops(layer: StyleAttention, x_nC: Tensor, w_W: Tensor, heads: int, noise_n: Tensor) -> Tensor:
    """One picture through the layer, one number after the other (Park and Kim 2022, §3)."""
    tokens, width = x_nC.shape
    affine = zip(*layer.affine.parameters(), strict=True)
    styles = [float(row_W @ w_W) / math.sqrt(len(w_W)) + float(bias) for row_W, bias in affine]
    read, write = styles[:width], styles[width:]

    def weigh(x_C: list[float], weight_OC: Tensor, style: list[float]) -> list[float]:
        out = []
        for row in weight_OC.tolist():
            length = math.sqrt(sum((w * s) ** 2 for w, s in zip(row, style, strict=True)) + 1e-8)
            out.append(sum(w * x for w, x in zip(row, x_C, strict=True)) / length)
        return out

    queries, keys, values = [], [], []
    for token in x_nC.tolist():
        scaled = [x * s for x, s in zip(token, read, strict=True)]
        mean = sum(scaled) / width
        deviation = math.sqrt(sum((x - mean) ** 2 for x in scaled) / width + 1e-5)
        normed = [(x - mean) / deviation for x in scaled]
        queries.append(weigh(normed, layer.query, read))
        keys.append(weigh(normed, layer.key, read))
        values.append([v * s for v, s in zip(weigh(normed, layer.value, read), write, strict=True)])
    skipped = values
    if layer.projection is not None:
        mixes = layer.projection.tolist()
        keys, values = (
            [[sum(p * row[c] for p, row in zip(mix, rows, strict=True)) for c in range(width)] for mix in mixes]
            for rows in (keys, values)
        )
    size, out = width // heads, []
    for i in range(tokens):
        mixed: list[float] = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = [
                math.exp(sum(q * k for q, k in zip(queries[i][part], key[part], strict=True)) / math.sqrt(size))
                for key in keys
            ]
            for c in range(size):
                total = sum(score * value[part][c] for score, value in zip(scores, values, strict=True))
                mixed.append(total / sum(scores))
        written, passed = weigh(mixed, layer.output, write), weigh(skipped[i], layer.skip, write)
        sums = zip(written, passed, layer.bias.tolist(), strict=True)
        own = [a + b + bias + float(layer.noise_strength) * float(noise_n[i]) for a, b, bias in sums]
        out.append([min(max(y if y > 0 else 0.2 * y, -layer.clamp), layer.clamp) for y in own])
    return torch.tensor(out, dtype=x_nC.dtype)


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("projection", [0, 3])
def test_attention_equals_loops(heads: int, projection: int) -> None:
    torch.manual_seed(0)
    layer = StyleAttention(6, 4, 5, tokens=9, heads=heads, projection=projection, clamp=1.5).double()
    for parameter in layer.parameters():
        parameter.normal_()
    layer.noise_n1.normal_()
    x_BnC, w_BW = torch.randn(2, 9, 6, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    found = layer(x_BnC, w_BW, "const")
    for row in range(2):
        expected = by_loops(layer, x_BnC[row], w_BW[row], heads, layer.noise_n1[:, 0])
        torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-9)
    assert found.max() == 1.5  # some were clamped, not all
    assert found.abs().min() < 1


def test_more_heads_where_there_are_more_channels() -> None:
    config = StyleformerConfig(widths=(256, 64, 16), layers=(1, 2, 2), depth=32)
    assert [config.heads(width) for width in config.widths] == [8, 2, 1]
    assert [replace(config, minimum_head=4).heads(width) for width in config.widths] == [8, 4, 4]
    network = build()
    assert [layer.heads for layer in network.modules() if isinstance(layer, StyleAttention)] == [3, 2, 2]
    few, many = (draw(build(replace(TINY, depth=depth))) for depth in (100, 4))
    assert not torch.allclose(few, many, atol=1e-3)


def test_the_projection_stands_where_tokens_are_many() -> None:
    """One matrix for a layer, none where tokens are fewer: attention at 8 pixels is 64 x 5 then, not 64 x 64."""
    network = build(VARIANTS["linformer"])
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters() if name.endswith("projection")}
    assert shapes == {f"blocks.{i}.attention.projection": (5, 64) for i in (1, 2)}
    assert not torch.allclose(draw(network), draw(build(TINY)), atol=1e-3)


# ---- the network


def draw(network: Styleformer, batch: int = 2) -> Tensor:
    with torch.no_grad():
        return network(*inputs(network.config, batch), "const")[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    """Size, gradient of every parameter, and pictures that know nothing of each other, in float64."""
    config = VARIANTS[name]
    network, (latent_BZ, condition_BP) = build(config).double(), inputs(config, 3, torch.float64)
    raw_B3HW, w_BSW = network(latent_BZ, condition_BP, "const")
    side = config.start * 2 ** (len(config.widths) - 1)
    assert network.resolution == (side, side)
    assert raw_B3HW.shape == (3, 3, side, side)
    assert w_BSW.shape == (3, sum(config.layers) + len(config.widths), 7) == (3, network.slots, 7)
    raw_B3HW.square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    for row in range(3):
        part = None if condition_BP is None else condition_BP[row : row + 1]
        alone, _ = network(latent_BZ[row : row + 1], part, "const")
        torch.testing.assert_close(alone[0], raw_B3HW[row], rtol=1e-10, atol=1e-10)


# Measured on the released code: parameters of the whole generator and of synthesis alone, in millions.
@pytest.mark.parametrize(("name", "whole", "synthesis"), [("readme", 1.33, 0.81), ("default", 1.44, 0.91)])
def test_sizes_of_the_released_configurations(name: str, whole: float, synthesis: float) -> None:
    with torch.device("meta"):
        network = Styleformer(CONFIGS[name])
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert round(millions, 2) == whole
    assert round(millions - sum(p.numel() for p in network.mapping.parameters()) / 1e6, 2) == synthesis


def test_every_configuration_can_be_built() -> None:
    sides = {"cifar10": 32, "stl10-48": 48, "celeba-64": 64, "lsun-church-128": 128, "emoji-64": 64}
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            network = Styleformer(config)
        assert network.resolution[0] == sides.get(name, config.resolution)
        assert network.slots == sum(config.layers) + len(config.widths)


def test_layers_share_slots_with_the_layer_to_rgb_before_them() -> None:
    """Layer i reads slot i; what makes the picture of a resolution reads the next one; the last is never read."""
    network = build()
    w_BSW = torch.randn(1, network.slots, 7, requires_grad=True)
    network.synthesis(w_BSW, "const").square().sum().backward()
    assert w_BSW.grad is not None
    assert (w_BSW.grad.abs().sum(dim=(0, 2)) > 0).tolist() == [True, True, True, True, False]
    with torch.no_grad():
        for block in network.blocks[1:]:
            for parameter in block.parameters():
                parameter.zero_()
        first = network.synthesis(w_BSW, "const")
        same = []
        for slot in range(5):
            other_BSW = w_BSW.clone()
            other_BSW[:, slot] *= -1
            same.append(torch.allclose(first, network.synthesis(other_BSW, "const")))
    assert same == [False, False, True, True, True]


def test_positions_tell_tokens_apart() -> None:
    """Without positions, constant and noise all tokens are one, and the picture is flat inside its border."""
    network = build(replace(TINY, start=8))
    with torch.no_grad():
        network.constant_nC.copy_(network.constant_nC[:1].expand_as(network.constant_nC))
        network.get_parameter("blocks.0.position_1nC").zero_()
        network.get_parameter("blocks.1.position_1nC").zero_()
        inner = network(*inputs(TINY, 1), "none")[0][..., 4:-4, 4:-4]
        torch.testing.assert_close(inner, inner[..., :1, :1].expand_as(inner), rtol=1e-3, atol=1e-4)
        network.get_parameter("blocks.0.position_1nC").normal_()
        assert network(*inputs(TINY, 1), "none")[0][..., 4:-4, 4:-4].std(dim=(2, 3)).min() > 1e-3


def test_noise() -> None:
    network, w_BSW = build(), torch.randn(2, 5, 7)
    with torch.no_grad():
        still, fixed = (network.synthesis(w_BSW, noise) for noise in ("none", "const"))
        assert torch.equal(fixed, network.synthesis(w_BSW, "const"))
        assert not torch.allclose(fixed, still, atol=1e-3)
        torch.manual_seed(3)
        one, other = (network.synthesis(w_BSW, "random") for _ in range(2))
        assert not torch.allclose(one, other, atol=1e-3)
        torch.manual_seed(3)
        assert torch.equal(one, network.synthesis(w_BSW, "random"))


# ---- conditions and truncation


def test_classes_decide_with_the_latent() -> None:
    network = build(VARIANTS["classes"])
    latent_BZ, _ = inputs(network.config, 1)
    pictures = [network(latent_BZ, torch.eye(3)[k : k + 1], "const")[0] for k in range(3)]
    assert not torch.allclose(pictures[0], pictures[1], atol=1e-2)
    assert not torch.allclose(pictures[1], pictures[2], atol=1e-2)
    for call in (
        lambda: network.styles(latent_BZ),
        lambda: build(VARIANTS["plain"]).styles(latent_BZ, torch.eye(3)[:1]),
    ):
        with pytest.raises(ValueError, match="needs a condition"):
            call()


def test_a_condition_is_embedded_beside_the_latent() -> None:
    """As the released code embeds classes: linear, brought to unit second moment, behind z."""
    network, (latent_BZ, condition_BP) = build().double(), inputs(TINY, 2, torch.float64)
    mapping: Any = network.mapping
    assert condition_BP is not None
    embedded_BW = condition_BP @ mapping.embedding.weight.T / math.sqrt(5) + mapping.embedding.bias
    parts = [x / (x.square().mean(dim=1, keepdim=True) + 1e-8).sqrt() for x in (latent_BZ, embedded_BW)]
    x = torch.cat(parts, dim=1)
    for layer in mapping.layers:
        x = nn.functional.leaky_relu(x @ (0.01 * layer.weight.T) / math.sqrt(x.shape[1]) + 0.01 * layer.bias, 0.2)
        x = x * math.sqrt(2)
    torch.testing.assert_close(network.styles(latent_BZ, condition_BP), x[:, None].expand(-1, 5, -1))


def test_truncation_of_text_is_towards_the_mean_of_the_text() -> None:
    network, (latent_BZ, condition_BP) = build(), inputs(TINY, 2)
    assert condition_BP is not None
    network.mapping.average_W.fill_(100.0)  # the mean over everything, which text must not be drawn to
    same_BP = condition_BP[:1].expand(2, -1)
    mean_BSW = network.styles(latent_BZ, same_BP, truncation=0.0)
    torch.testing.assert_close(mean_BSW[0], mean_BSW[1])
    torch.manual_seed(5)
    many_BSW = network.styles(torch.randn(20_000, 6), condition_BP[:1].expand(20_000, -1))
    gap = (mean_BSW[0, 0] - many_BSW[:, 0].mean(dim=0)).abs() / many_BSW[:, 0].std(dim=0)
    assert gap.max() < 4 / math.sqrt(256)
    assert not torch.allclose(mean_BSW, network.styles(latent_BZ, condition_BP[1:].expand(2, -1), truncation=0.0))
    whole, half = (network.styles(latent_BZ, same_BP, truncation=psi) for psi in (1.0, 0.5))
    torch.testing.assert_close(half, (whole + mean_BSW) / 2)
    partly = network.styles(latent_BZ, same_BP, truncation=0.5, cutoff=2)
    assert torch.equal(partly[:, :2], half[:, :2])
    assert torch.equal(partly[:, 2:], whole[:, 2:])


@pytest.mark.parametrize("name", ["plain", "classes"])
def test_truncation_without_text_is_towards_the_running_mean(name: str) -> None:
    network = build(VARIANTS[name])
    network.mapping.average_W.normal_()
    styles_BSW = network.styles(*inputs(network.config, 2), truncation=0.0)
    torch.testing.assert_close(styles_BSW, network.mapping.average_W.expand(2, 5, -1))


def test_a_truncated_picture_follows_its_prompt_alone() -> None:
    generator = StyleformerGenerator.for_test()
    prompts, options = ["a red circle", "a red circle", "a blue square"], SampleOptions(truncation=0.0)
    pixels_B3HW = generator.generate(prompts, seeds=[1, 2, 2], options=options)
    assert torch.equal(pixels_B3HW[0], pixels_B3HW[1])
    assert not torch.equal(pixels_B3HW[1], pixels_B3HW[2])
    free_B3HW = generator.generate(prompts, seeds=[1, 2, 2])
    assert not torch.equal(free_B3HW[0], free_B3HW[1])


def test_only_training_moves_the_running_mean() -> None:
    network, (latent_BZ, condition_BP) = build(), inputs(TINY, 3)
    network.eval()(latent_BZ, condition_BP)
    assert not network.mapping.average_W.any()
    network.train()(latent_BZ, condition_BP, mix=(latent_BZ.flip(0), 2))
    mean_W = network.mapping(latent_BZ, condition_BP).mean(dim=0).detach()
    torch.testing.assert_close(network.mapping.average_W, 0.005 * mean_W)


# ---- derivatives


@pytest.mark.parametrize("name", ["plain", "linformer"])
def test_derivatives_of_first_and_second_order(name: str) -> None:
    """Against finite differences in float64: of the picture, and of path lengths, which differentiate twice."""
    network = build(VARIANTS[name]).double()
    torch.manual_seed(2)
    w_BSW = torch.randn(1, network.slots, 7, dtype=torch.float64, requires_grad=True)
    noise_B3HW = torch.randn(1, 3, 8, 8, dtype=torch.float64)

    def picture(w_BSW: Tensor) -> Tensor:
        return network.synthesis(w_BSW, "const")

    assert torch.autograd.gradcheck(picture, w_BSW, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda w_BSW: path_lengths(picture(w_BSW), w_BSW, noise_B3HW), w_BSW, fast_mode=True
    )


# ---- what cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (12,)}, "1 widths are given for 2 resolutions of layers"),
        ({"widths": (), "layers": ()}, "0 widths are given for 0 resolutions"),
        ({"layers": (1, 0)}, "layers is 0, expected at least 1"),
        ({"start": 0}, "start is 0, expected at least 1"),
        ({"depth": 0}, "depth is 0, expected at least 1"),
        ({"minimum_head": 0}, "minimum_head is 0, expected at least 1"),
        ({"projection": 0}, "projection is 0, expected at least 1"),
        ({"mapping_layers": 0}, "mapping_layers is 0, expected at least 1"),
        ({"condition_width": 0}, "condition_width is 0 with conditioning text"),
        ({"conditioning": "none"}, "condition_width is 5 with conditioning none"),
        ({"widths": (12, 0)}, "widths has 0, expected a multiple of its 1 heads"),
        ({"minimum_head": 5}, "widths has 12, expected a multiple of its 5 heads"),
        ({"widths": (14, 8)}, "widths has 14, expected a multiple of its 3 heads"),
    ],
)
def test_impossible_configs(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TINY, **changes)
