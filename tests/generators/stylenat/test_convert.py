"""Released StyleNAT files, of both namings: converted exactly, or refused by name.

The files are written here as the released code writes them, with small networks in them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from star.cli import main
from star.data.errors import InputError
from star.generators.pretrained import ModelDirectory
from star.generators.registry import build
from star.generators.stylenat.convert import AVERAGE, config_of, convert_stylenat
from star.generators.stylenat.model import StyleNatConfig, StyleNatGenerator, StyleNatNetwork
from star.generators.stylenat.names import discriminator_keys, generator_keys, rename
from tests.golden.generator_cases import GanCase, gan_cases

WIDTHS, HEADS, STYLE = (16, 16, 8), 4, 12
ROW = torch.tensor([1.0, 3.0, 3.0, 1.0])


def released_state(legacy: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a small generator of 16 pixels as the released code names them."""
    shapes: dict[str, tuple[int, ...]] = {"input.input": (1, WIDTHS[0], 4, 4)}
    for i in (1, 2):
        shapes |= {f"style.{i}.weight": (STYLE, STYLE), f"style.{i}.bias": (STYLE,)}
    for i, width in enumerate(WIDTHS):
        groups = 1 if i == 0 else 2 if legacy or i > 1 else 1
        for j in range(2):
            block = f"layers.{i}.blocks.{j}"
            for norm in ("norm1", "norm2"):
                shapes |= {
                    f"{block}.{norm}.style.weight": (2 * width, STYLE),
                    f"{block}.{norm}.style.bias": (2 * width,),
                }
            shapes |= {f"{block}.attn.qkv.weight": (3 * width, width), f"{block}.attn.qkv.bias": (3 * width,)}
            shapes |= {f"{block}.attn.proj.weight": (width, width), f"{block}.attn.proj.bias": (width,)}
            shapes |= {f"{block}.mlp.fc1.weight": (4 * width, width), f"{block}.mlp.fc1.bias": (4 * width,)}
            shapes |= {f"{block}.mlp.fc2.weight": (width, 4 * width), f"{block}.mlp.fc2.bias": (width,)}
            if i == 0:
                shapes |= {f"{block}.attn.rpb": (HEADS, 7, 7), f"{block}.attn.relative_position_index": (16, 16)}
            else:
                dot = "" if legacy else "."
                shapes |= {f"{block}.attn.rpb{dot}{g}": (HEADS // groups, 13, 13) for g in range(groups)}
        last = i + 1 == len(WIDTHS)
        after = width if last else WIDTHS[i + 1]
        shapes |= {f"to_rgbs.{i}.conv.weight": (3, after, 1, 1), f"to_rgbs.{i}.conv.bias": (3,)}
        shapes |= {f"to_rgbs.{i}.bias": (1, 3, 1, 1)}
        if not last:
            step = f"layers.{i}.upsample"
            shapes |= {f"{step}.alpha": (1,), f"{step}.norm.weight": (width,), f"{step}.norm.bias": (width,)}
            shapes |= {f"{step}.reduction.weight": (after, width), f"{step}.sin_pos_embed._float_tensor": (1,)}
            shapes |= {f"to_rgbs.{i}.upsample.kernel": (4, 4)}
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if name.endswith("kernel"):
            state[name] = torch.outer(ROW, ROW) / 16
    return state


def write(path: Path, state: dict[str, Tensor], legacy: bool = False, **more: Any) -> Path:
    """As the older or the newer released code saves a training."""
    networks = {"g": released_state(seed=5), "d": {"dwt.ll": torch.ones(2, 2)}, "g_ema": state}
    optimiser = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 5e-5, "params": [0]}]}
    if legacy:
        torch.save({**networks, "g_optim": optimiser, **more}, path)
    else:
        torch.save({"state_dicts": networks, "optim_dicts": {"g": optimiser}, "args": {"size": 16}, **more}, path)
    return path


def drawn(state: dict[str, Tensor], groups: int) -> tuple[Tensor, Tensor]:
    """latent and raw picture of the same tensors, without the code under test but for the names."""
    network = StyleNatNetwork(
        StyleNatConfig(
            widths=WIDTHS,
            heads=(HEADS,) * 3,
            kernels=((4,), (7,) * groups, (7, 7)),
            dilations=((1,), (1,) * groups, (1, 2)),
            latent_width=STYLE,
            style_width=STYLE,
            mapping_layers=2,
        )
    )
    network.load_state_dict(rename(state) | {AVERAGE: torch.zeros(STYLE)}, strict=True)
    latent_BZ = torch.randn(2, STYLE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return latent_BZ, network.synthesis(network.styles(latent_BZ))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_released_file_draws_what_its_tensors_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture, legacy: bool
) -> None:
    state = released_state(legacy)
    file = write(tmp_path / "released.pt", state, legacy)
    assert main(["convert", "stylenat", str(file), str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    generator = build(tmp_path / "model")
    assert isinstance(generator, StyleNatGenerator)
    latent_BZ, expected = drawn(state, groups=2 if legacy else 1)
    network = generator.network
    with torch.no_grad():
        assert torch.equal(network.synthesis(network.styles(latent_BZ)), expected)
        other_BZ = torch.randn(4096, STYLE, generator=torch.Generator().manual_seed(2))
        mean_W = network.styles(other_BZ)[:, 0].mean(dim=0)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(network.state_dict()[AVERAGE], mean_W, atol=0.1 * float(mean_W.abs().max()), rtol=0.2)
    directory = ModelDirectory.read(tmp_path / "model")
    assert directory.about["conditioning"] == "none"
    assert "MIT" in (tmp_path / "model/README.md").read_text()
    assert generator.generate([""], seeds=[0]).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("path", gan_cases("StyleNAT generator"))
def test_golden_weights_survive_the_way_through_a_file(path: Path, tmp_path: Path) -> None:
    case = GanCase(path)
    shapes = {key: tuple(tensor.shape) for key, tensor in case.state().items()}
    told = case.json["generator"]["dilations"]
    if config_of(shapes) != config_of(shapes, told):
        pytest.skip("its dilations are none of the releases")
    convert_stylenat(write(tmp_path / "released.pt", case.state(), case.json["legacy_keys"]), tmp_path / "model")
    drawing = build(tmp_path / "model")
    assert isinstance(drawing, StyleNatGenerator)
    with torch.no_grad():
        case.compare(drawing.network.synthesis(drawing.network.styles(case["in.z"])), "out.image")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("input.input"), r"lacks input\.input"),
        (lambda state: state.pop("layers.2.blocks.1.mlp.fc2.bias"), r"lacks levels\.2\.blocks\.1\.mlp\.2\.bias"),
        (lambda state: state.pop("layers.1.blocks.0.attn.rpb.0"), r"lacks layers\.1\.blocks\.0\.attn\.rpb"),
        (lambda state: state.update({"layers.1.noise.weight": torch.ones(1)}), r"layers\.1\.noise\.weight"),
        (lambda state: state.update({"to_rgbs.1.conv.bias": torch.ones(4)}), r"another shape for to_rgbs\.1\.conv"),
        (lambda state: state.update({"to_rgbs.0.upsample.kernel": torch.ones(4, 4)}), "another filter"),
        (lambda state: state.update({"input.input": torch.ones(1, 16, 8, 8)}), "starts at 8 pixels, expected 4"),
        (
            lambda state: state.update({f"layers.2.blocks.0.attn.rpb.{g}": torch.ones(1, 13, 13) for g in range(4)}),
            "has 4 groups of heads at 16 pixels and does not tell their dilations",
        ),
        (lambda state: [state.pop(key) for key in [*state] if "layers" in key], "has no layers"),
    ],
)
def test_what_does_not_fit_writes_nothing(tmp_path: Path, spoil: Any, message: str) -> None:
    state = released_state()
    spoil(state)
    with pytest.raises(InputError, match=message):
        convert_stylenat(write(tmp_path / "released.pt", state), tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Harm:
    """Unpickling it would run code."""

    def __reduce__(self) -> Any:
        return eval, ("1 + 1",)


def test_files_of_another_kind(tmp_path: Path) -> None:
    for content, message in (
        ({"g": released_state()}, "has no averaged generator g_ema"),
        ({"g_ema": released_state(), "args": Harm()}, r"would run \w+\.eval on loading"),
    ):
        torch.save(content, tmp_path / "file.pt")
        with pytest.raises(InputError, match=message):
            convert_stylenat(tmp_path / "file.pt", tmp_path / "model")
    (tmp_path / "file.pt").write_bytes(write(tmp_path / "whole.pt", released_state()).read_bytes()[:-500])
    with pytest.raises(InputError, match="cut short or damaged"):
        convert_stylenat(tmp_path / "file.pt", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_names_are_read_strictly() -> None:
    for name in ("style.0.weight", "layers.0.blocks.0.attn.bias", "to_rgbs.0.weight", "constant"):
        with pytest.raises(ValueError, match="is not a tensor of a released StyleNAT"):
            generator_keys(["input.input", name])
    for name in ("from_rgbs.0.conv.0.scale", "convs.0.conv3.0.weight", "final_linear.3.bias"):
        with pytest.raises(ValueError, match=f"'{name}' is not a tensor of a released StyleNAT"):
            discriminator_keys(["convs.0.conv1.0.weight", name])
    with pytest.raises(ValueError, match="comes twice"):
        rename({"layers.0.blocks.0.attn.rpb.0": torch.ones(1), "layers.0.blocks.0.attn.rpb0": torch.ones(1)})
