"""Snapshots of StyleGAN-T's code: converted without running anything, with the text tower that they hold.

The files are written here as that code writes them: networks pickled as they are, by the names of their classes.
"""

import functools
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from star.cli import main
from star.data.errors import InputError
from star.data.text import TextEncoder
from star.data.tiny import tiny_text_encoder
from star.generators.pretrained import ModelDirectory
from star.generators.registry import build
from star.generators.stylegan_t.convert import convert_stylegan_t
from star.generators.stylegan_t.model import StyleGanT, StyleGanTConfig, StyleGanTGenerator
from star.generators.stylegan_t.names import rename_generator
from tests.golden.generator_cases import GanCase, gan_cases

LATENT, TEXT, WIDTH, GROUPS = 6, 5, 8, 4  # TEXT: numbers that the projection leaves of the tower's 32
CONFIG = StyleGanTConfig(
    resolution=16,
    condition_width=TEXT,
    latent_width=LATENT,
    channel_base=16 * WIDTH,
    channel_max=WIDTH,
    residual_blocks=1,
    groups=GROUPS,
)


def released_state(text: int = TEXT) -> dict[str, Tensor]:
    """The tensors of a small generator as the released code names them, without its text tower."""
    style, generator = LATENT + text, torch.Generator().manual_seed(0)

    def affine(name: str, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, style), f"{name}.bias": (outputs,)}

    shapes: dict[str, tuple[int, ...]] = {"mapping.x_avg": (LATENT,)}
    for i in range(2):
        shapes |= {f"mapping.mlp.fc{i}.weight": (LATENT, LATENT), f"mapping.mlp.fc{i}.bias": (LATENT,)}
    first = "synthesis.b8.input"
    shapes |= {f"{first}.weight": (WIDTH, WIDTH), f"{first}.freqs": (WIDTH, 2), f"{first}.phases": (WIDTH,)}
    shapes |= {f"{first}.transform": (3, 3), **affine(f"{first}.affine", 4)}
    layers = [(8, "convs1.0"), (8, "convs1.1"), (16, "conv0"), (16, "convs1.0"), (16, "convs1.1")]
    for side, layer in layers:
        name = f"synthesis.b{side}.{layer}"
        shapes |= {f"{name}.weight": (WIDTH, WIDTH, 3, 3), f"{name}.bias": (WIDTH,), f"{name}.noise_strength": ()}
        shapes |= {f"{name}.noise_const": (side, side), **affine(f"{name}.affine.proj", 3 * WIDTH)}
        if layer == "convs1.1":
            shapes |= {
                f"{name}.norm.weight": (WIDTH,),
                f"{name}.norm.bias": (WIDTH,),
                f"{name}.gamma": (1, WIDTH, 1, 1),
            }
    for side in (8, 16):
        name = f"synthesis.b{side}.torgb"
        shapes |= {f"{name}.weight": (3, WIDTH, 1, 1), f"{name}.bias": (3,), **affine(f"{name}.affine.proj", 3 * WIDTH)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    for name in [f"synthesis.b{side}.{layer}" for side, layer in layers] + ["synthesis.b8", "synthesis.b16"]:
        state[f"{name}.resample_filter"] = torch.outer(row, row) / 64
    return state


def as_open_clip(encoder: TextEncoder, projection_PD: Tensor) -> dict[str, Tensor]:
    """A text tower of one layer by open_clip's names."""
    theirs, layer = encoder.tower.state_dict(), "transformer.resblocks.0"
    state = {
        "token_embedding.weight": theirs["embeddings.token_embedding.weight"],
        "positional_embedding": theirs["embeddings.position_embedding.weight"],
        "text_projection": projection_PD.T,
        "logit_scale": torch.tensor(4.6),
    }
    for kind in ("weight", "bias"):
        own = "encoder.layers.0"
        together = [theirs[f"{own}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
        state |= {
            f"{layer}.attn.in_proj_{kind}": torch.cat(together),
            f"{layer}.attn.out_proj.{kind}": theirs[f"{own}.self_attn.out_proj.{kind}"],
            f"{layer}.ln_1.{kind}": theirs[f"{own}.layer_norm1.{kind}"],
            f"{layer}.ln_2.{kind}": theirs[f"{own}.layer_norm2.{kind}"],
            f"{layer}.mlp.c_fc.{kind}": theirs[f"{own}.mlp.fc1.{kind}"],
            f"{layer}.mlp.c_proj.{kind}": theirs[f"{own}.mlp.fc2.{kind}"],
            f"ln_final.{kind}": theirs[f"final_layer_norm.{kind}"],
        }
    return {f"mapping.clip.model.{name}": tensor for name, tensor in state.items()}


class Layer(nn.Module):
    """Any class of that program: it is pickled by name alone."""


class GroupNorm32(nn.GroupNorm):
    pass


def create_function(*_: Any) -> Any:
    raise AssertionError("a function of the file was made")


@pytest.fixture(autouse=True)
def _their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules to be named in pickles, not to be called."""
    members: dict[str, list[Any]] = {"networks.generator": [Layer, GroupNorm32], "dill._dill": [create_function]}
    for name, things in members.items():
        module = ModuleType(name)
        for thing in things:
            monkeypatch.setattr(thing, "__module__", name)
            setattr(module, thing.__name__, thing)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], ModuleType(name.partition(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def network(state: dict[str, Tensor], groups: int = GROUPS, clamp: float | None = 256) -> nn.Module:
    """Tensors by dotted names as nested networks."""
    inner: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        inner.setdefault(first, {})[rest] = tensor
    made: nn.Module = Layer()
    for name, part in inner.items():
        if name == "norm":
            made.add_module(name, GroupNorm32(groups, len(part["weight"])))
            made.get_submodule(name).load_state_dict(part)
        elif "" not in part:
            made.add_module(name, network(part, groups, clamp))
        elif name in ("x_avg", "freqs", "phases", "transform", "noise_const", "resample_filter"):
            made.register_buffer(name, part[""])
        else:
            made.register_parameter(name, nn.Parameter(part[""]))
    if {"affine", "bias"} <= inner.keys():  # a convolution, or the RGB layer
        made.conv_clamp, made.activation = clamp, "lrelu"  # type: ignore[assignment]
    made.size, made.gain = np.broadcast_to(np.asarray(8), [2]), np.sqrt(2)  # type: ignore[assignment]
    made.act = functools.partial(torch.nn.functional.leaky_relu, negative_slope=0.2)  # type: ignore[assignment]
    return made


def write(path: Path, state: dict[str, Tensor], groups: int = GROUPS, clamp: float | None = 256, **more: Any) -> Path:
    judge = Layer()
    # Closures and their attributes, as dill writes them.
    judge.hook = Calls(create_function, b"code", {"activations": {}})  # type: ignore[assignment]
    judge.attributes = [Calls(getattr, Layer, "forward"), Calls(setattr, Layer, "spoilt", 1)]  # type: ignore[assignment]
    made = network(state, groups, clamp)
    content = {"G": made, "D": judge, "G_ema": made, "training_set_kwargs": {"class_name": "data"}, **more}
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def parts() -> tuple[TextEncoder, Tensor]:
    """The text tower that is inside a file, after training, and the projection."""
    return tiny_text_encoder(seed=7), torch.randn(TEXT, 32, generator=torch.Generator().manual_seed(1))


def test_a_snapshot_draws_what_its_tensors_draw(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state, (encoder, projection_PD) = released_state(), parts()
    file = write(tmp_path / "network-snapshot-000100.pkl", state | as_open_clip(encoder, projection_PD))
    tiny_text_encoder().save_pretrained(tmp_path / "clip")
    arguments = ["convert", "stylegan-t", str(file), str(tmp_path / "model"), "--text-encoder", str(tmp_path / "clip")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    expected = StyleGanTGenerator(StyleGanT(CONFIG), encoder, projection_PD)
    expected.network.load_state_dict(rename_generator(state))
    found = build(tmp_path / "model")
    assert isinstance(found, StyleGanTGenerator)
    assert found.network.config == CONFIG
    prompts, seeds = ["a red circle", "a blue square", ""], [1, 2, 3]
    pixels_B3HW = found.generate(prompts, seeds=seeds)
    assert torch.equal(pixels_B3HW, expected.generate(prompts, seeds=seeds))
    assert pixels_B3HW.float().std() > 10
    untrained = StyleGanTGenerator(expected.network, tiny_text_encoder(), projection_PD)
    assert not torch.equal(pixels_B3HW, untrained.generate(prompts, seeds=seeds))
    assert ModelDirectory.read(tmp_path / "model").about["conditioning"] == "text"
    assert not hasattr(Layer, "spoilt")


@pytest.mark.parametrize("path", gan_cases("StyleGAN-T generator"))
def test_golden_weights_survive_the_way_through_a_file(path: Path, tmp_path: Path) -> None:
    """With a text tower of the case's width beside them, where the case has text."""
    case = GanCase(path)
    state, width, source = case.state(), case.json["c_dim"], None
    if width:
        tiny_text_encoder().save_pretrained(tmp_path / "clip")
        state |= as_open_clip(tiny_text_encoder(), torch.randn(width, 32))
        source = str(tmp_path / "clip")
    told = case.json["synthesis_kwargs"]
    file = write(tmp_path / "snapshot.pkl", state, told.get("gn_groups", 32), told.get("conv_clamp", 256))
    convert_stylegan_t(file, tmp_path / "model", source)
    found = build(tmp_path / "model")
    assert isinstance(found, StyleGanTGenerator)
    with torch.no_grad():
        w_BSW = found.network.styles(case["in.z"], case.tensors.get("in.c"))
        case.compare(found.network.synthesis(w_BSW, case.json["noise_mode"]), "out.image")


def test_one_without_text(tmp_path: Path) -> None:
    state, out = released_state(text=0), tmp_path / "model"
    file = write(tmp_path / "snapshot.pkl", state)
    with pytest.raises(InputError, match="conditioning none, and as text encoder clip was given"):
        convert_stylegan_t(file, out, "clip")
    convert_stylegan_t(file, out)
    assert build(out).generate([""], seeds=[0]).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("clamp", [0.5, 3, None])
def test_the_clamp_is_that_of_the_layers(tmp_path: Path, clamp: float | None) -> None:
    state = released_state(text=0)
    convert_stylegan_t(write(tmp_path / "snapshot.pkl", state, clamp=clamp), tmp_path / "model")
    found = build(tmp_path / "model")
    assert isinstance(found, StyleGanTGenerator)
    assert found.network.config == replace(CONFIG, conditioning="none", condition_width=0, clamp=clamp)
    expected = StyleGanT(found.network.config).eval()
    expected.load_state_dict(rename_generator(state))
    with torch.no_grad():
        w_BSW = expected.styles(torch.ones(1, LATENT))
        assert torch.equal(found.network.synthesis(w_BSW, "const"), expected.synthesis(w_BSW, "const"))


def test_layers_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    for name, value, message in (
        ("conv_clamp", 3.5, r"layers with conv_clamp 256, 3\.5, expected the same in all"),
        ("activation", "relu", "layers of activation 'relu', expected 'lrelu' or 'linear'"),
        ("use_noise", False, "layers of use_noise False, expected True"),
    ):
        made = network(released_state(text=0))
        setattr(made.get_submodule("synthesis.b16.convs1.0"), name, value)
        (tmp_path / "snapshot.pkl").write_bytes(pickle.dumps({"G_ema": made}, protocol=4))
        with pytest.raises(InputError, match=message):
            convert_stylegan_t(tmp_path / "snapshot.pkl", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_does_not_belong_to_that_program_is_refused_by_name(tmp_path: Path) -> None:
    marker, state = tmp_path / "marker", released_state(text=0)
    for name, harm in (
        (r"posix\.system", Calls(os.system, f"touch {marker}")),
        (r"builtins\.eval", Calls(eval, f"open({str(marker)!r}, 'w')")),
        (r"torch\.serialization\.load", Calls(torch.load, str(marker))),
        (r"\w*builtin\w*\.eval", Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(eval, "1"), protocol=2))),
    ):
        file = write(tmp_path / "snapshot.pkl", state, extra=harm)
        with pytest.raises(InputError, match=rf"would run {name} on loading"):
            convert_stylegan_t(file, tmp_path / "model")
    assert not marker.exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("synthesis.b16.convs1.1.gamma"), r"lacks blocks\.16\.layers\.1\.layer_scale_1C11"),
        (lambda state: state.pop("mapping.x_avg"), r"lacks mapping\.x_avg"),
        (
            lambda state: state.update({"synthesis.b8.skip.weight": torch.ones(1)}),
            r"'synthesis\.b8\.skip\.weight' is not",
        ),
        (lambda state: state.update({"synthesis.b8.resample_filter": torch.ones(4, 4)}), "another filter"),
        (lambda state: state.update({"synthesis.b16.torgb.bias": torch.ones(4)}), r"another shape for .*torgb\.bias"),
        (lambda state: state.pop("mapping.clip.model.text_projection"), r"lacks mapping\.clip\.model\.text_projection"),
        (lambda state: state.pop("mapping.clip.model.ln_final.bias"), "is another CLIP than that of"),
        (lambda state: state.update({"mapping.clip.model.text.pos": torch.ones(1)}), r"clip\.model\.text\.pos' is not"),
    ],
)
def test_what_does_not_fit_writes_nothing(tmp_path: Path, spoil: Any, message: str) -> None:
    state = released_state() | as_open_clip(*parts())
    spoil(state)
    tiny_text_encoder().save_pretrained(tmp_path / "clip")
    with pytest.raises(InputError, match=message):
        convert_stylegan_t(write(tmp_path / "snapshot.pkl", state), tmp_path / "model", str(tmp_path / "clip"))
    assert not (tmp_path / "model").exists()


def test_files_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, out = tmp_path / "snapshot.pkl", tmp_path / "model"
    for content, message in ((pickle.dumps({"G": 1}), "has no network G_ema"), (b"PK", "cannot be read as a pickle")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            convert_stylegan_t(file, out)
    plain = network({"mapping.x_avg": torch.ones(2)})
    file.write_bytes(pickle.dumps({"G_ema": plain}, protocol=4))
    with pytest.raises(InputError, match="does not tell the groups of its norms"):
        convert_stylegan_t(file, out)
    write(file, released_state() | as_open_clip(*parts()))
    with pytest.raises(InputError, match="conditioning text, and as text encoder None was given"):
        convert_stylegan_t(file, out)
    assert main(["convert", "stylegan-t", str(file), str(out), "--preset", "full-64"]) == 2
    assert "--preset full-64 was given for a stylegan-t" in capsys.readouterr().err
    assert not out.exists()
