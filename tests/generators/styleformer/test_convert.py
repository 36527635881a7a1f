"""Released Styleformer pickles: converted without running what they bring along, or refused by name.

The files are written here as the StyleGAN line writes them: plain pickles of classes that bring their source along.
"""

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from star.cli import main
from star.data.errors import InputError
from star.generators.gan.snapshot_pickles import Saved, read_pickle
from star.generators.pretrained import ModelDirectory
from star.generators.registry import build
from star.generators.styleformer.convert import config_of, convert_styleformer
from star.generators.styleformer.model import Styleformer, StyleformerConfig, StyleformerGenerator
from star.generators.styleformer.names import discriminator_keys, generator_keys, rename
from tests.golden.generator_cases import GanCase, gan_cases

WIDTHS, LAYERS, START, STYLE, LATENT, PROJECTED = (32, 16), (1, 2), 4, 24, 20, 8
ARGUMENTS = {
    "z_dim": LATENT,
    "c_dim": 0,
    "w_dim": STYLE,
    "img_resolution": 8,
    "mapping_kwargs": {"num_layers": 2},
    "synthesis_kwargs": {"depth": 8, "minimum_head": 1, "num_layers": list(LAYERS), "conv_clamp": 256},
}


def released_state(seed: int = 0, classes: int = 0, projected: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a small generator as the released code names them; `projected`: resolutions with Linformer."""
    shapes: dict[str, tuple[int, ...]] = {"mapping.w_avg": (STYLE,)}
    if classes:
        shapes |= {"mapping.embed.weight": (STYLE, classes), "mapping.embed.bias": (STYLE,)}
    for i, read in enumerate((LATENT + (STYLE if classes else 0), STYLE)):
        shapes |= {f"mapping.fc{i}.weight": (STYLE, read), f"mapping.fc{i}.bias": (STYLE,)}
    for level, width in enumerate(WIDTHS):
        side, after = START << level, (*WIDTHS[1:], WIDTHS[-1])[level]
        for j in range(LAYERS[level]):
            name, last = f"synthesis.b{side}_{j}", j == LAYERS[level] - 1
            out = after if last else width
            if j == 0:
                shapes[f"{name}.pos_embedding"] = (1, side**2, width)
            if j == level == 0:
                shapes[f"{name}.const"] = (side**2, width)
            shapes |= {f"{name}.enc.{letter}_weight": (width, width) for letter in "qkv"}
            shapes |= {f"{name}.enc.{letter}_weight": (out, width) for letter in "wu"}
            shapes |= {
                f"{name}.enc.bias": (out,),
                f"{name}.enc.noise_strength": (),
                f"{name}.enc.noise_const": (side**2, 1),
            }
            shapes |= {f"{name}.enc.affine1.weight": (2 * width, STYLE), f"{name}.enc.affine1.bias": (2 * width,)}
            if side in projected:
                shapes[f"{name}.proj_weight"] = (PROJECTED, side**2)
            if last:
                shapes |= {f"{name}.torgb.weight": (3, out), f"{name}.torgb.bias": (3,)}
                shapes |= {f"{name}.torgb.affine.weight": (out, STYLE), f"{name}.torgb.affine.bias": (out,)}
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    for level, count in enumerate(LAYERS):
        for j in range(count):
            name = f"synthesis.b{START << level}_{j}"
            state[f"{name}.resample_filter"] = torch.outer(row, row) / 64
            if f"{name}.proj_weight" in state:
                state[f"{name}.enc.proj_weight"] = state[f"{name}.proj_weight"]
    return state


class Network:
    """What a persistent class of the StyleGAN line is when it is pickled."""

    def __init__(self, state: dict[str, Any], source: str = "") -> None:
        self.state, self.source = state, source

    def __reduce__(self) -> Any:
        rebuild = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": "Layer", "state": self.state}
        return rebuild, (meta,)


@pytest.fixture(autouse=True)
def _their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch_utils.persistence and dnnlib.util, to be written into pickles, not to be called."""

    def rebuild(meta: dict[str, Any]) -> None:
        raise AssertionError("the file's own code was called")

    class EasyDict(dict[str, Any]):
        pass

    rebuild.__name__ = rebuild.__qualname__ = "_reconstruct_persistent_obj"
    EasyDict.__qualname__ = "EasyDict"
    for name, member in (("torch_utils.persistence", rebuild), ("dnnlib.util", EasyDict)):
        module = ModuleType(name)
        member.__module__ = name
        setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], ModuleType(name.partition(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)


def plain(value: Any) -> Any:
    """Dictionaries as those of dnnlib."""
    easy = sys.modules["dnnlib.util"].EasyDict
    return easy({key: plain(item) for key, item in value.items()}) if isinstance(value, dict) else value


def network(state: dict[str, Tensor], arguments: dict[str, Any] | None = None, source: str = "") -> Network:
    """Tensors by dotted names as nested networks; what is called weight or bias is a parameter, the rest buffers."""
    own: dict[str, Any] = {"training": False, "_parameters": OrderedDict(), "_buffers": OrderedDict()}
    own |= {"_modules": OrderedDict(), "_non_persistent_buffers_set": set(), "gain": np.sqrt(2), "padding": np.int64(1)}
    inner: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = tensor
        elif first in ("w_avg", "resample_filter", "noise_const"):
            own["_buffers"][first] = tensor
        else:
            own["_parameters"][first] = nn.Parameter(tensor)
    own["_modules"].update({name: network(part, source=source) for name, part in inner.items()})
    if arguments is not None:
        own |= {"_init_args": (), "_init_kwargs": plain(arguments)}
        own["_modules"]["softmax"] = nn.Softmax(dim=-1)
        own["_buffers"]["scratch"] = torch.zeros(3)
        own["_non_persistent_buffers_set"].add("scratch")
    return Network(own, source)


def write(path: Path, state: dict[str, Tensor], arguments: Any = ARGUMENTS, source: str = "", **more: Any) -> Path:
    made = network(state, arguments, source)
    about = plain({"path": "cifar10.zip", "use_labels": False})
    content = {"G": None, "D": None, "G_ema": made, "augment_pipe": None, "training_set_kwargs": about, **more}
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def drawn(state: dict[str, Tensor], **config: Any) -> tuple[Tensor, Tensor]:
    """latent and raw picture of the same tensors, without the code under test."""
    settings = StyleformerConfig(
        start=START, widths=WIDTHS, layers=LAYERS, depth=8, style_width=STYLE, latent_width=LATENT, **config
    )
    expected = Styleformer(settings)
    expected.load_state_dict(rename(state), strict=True)
    latent = torch.randn(2, LATENT, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        condition = None if not config.get("condition_width") else torch.eye(config["condition_width"])[:2]
        return latent, expected.synthesis(expected.styles(latent, condition), "const")


def test_a_released_file_draws_what_its_tensors_draw(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = released_state()
    file = write(tmp_path / "released.pkl", state)
    assert main(["convert", "styleformer", str(file), str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    generator = build(tmp_path / "model")
    assert isinstance(generator, StyleformerGenerator)
    latent, expected = drawn(state)
    with torch.no_grad():
        actual = generator.network.synthesis(generator.network.styles(latent), "const")
    assert torch.equal(actual, expected)
    assert float(expected.std()) > 0.1
    directory = ModelDirectory.read(tmp_path / "model")
    assert directory.about["conditioning"] == "none"
    assert "no licence" in (tmp_path / "model/README.md").read_text()


def test_classes_and_projection_are_read_off_shapes(tmp_path: Path) -> None:
    state = released_state(classes=3, projected=(8,))
    convert_styleformer(write(tmp_path / "released.pkl", state), tmp_path / "model")
    generator = build(tmp_path / "model")
    assert isinstance(generator, StyleformerGenerator)
    config = generator.network.config
    assert (config.condition_width, config.linformer_from, config.projection) == (3, 8, PROJECTED)
    classes = {"conditioning": "class", "condition_width": 3, "linformer_from": 8, "projection": PROJECTED}
    latent, expected = drawn(state, **classes)
    with torch.no_grad():
        w_BSW = generator.network.styles(latent, torch.eye(3)[:2])
        assert torch.equal(generator.network.synthesis(w_BSW, "const"), expected)
    assert generator.generate(["2"], seeds=[0]).shape == (1, 3, 8, 8)


def test_another_depth_makes_other_heads() -> None:
    """The number of heads is in no shape."""
    shapes = {key: tuple(tensor.shape) for key, tensor in released_state().items()}
    for depth, heads in ((8, 4), (32, 1)):
        config = config_of(shapes, {"synthesis_kwargs": {"depth": depth}})
        assert config.heads(32) == heads


@pytest.mark.parametrize("path", gan_cases("Styleformer generator"))
def test_golden_weights_survive_the_way_through_a_file(path: Path, tmp_path: Path) -> None:
    case = GanCase(path)
    state = case.state()
    state |= {name: state[other] for name, other in case.json["aliased_state_dict_keys"].items()}
    arguments = {"synthesis_kwargs": case.json["synthesis_kwargs"]}
    convert_styleformer(write(tmp_path / "released.pkl", state, arguments), tmp_path / "model")
    drawing = build(tmp_path / "model")
    assert isinstance(drawing, StyleformerGenerator)
    with torch.no_grad():
        w_BSW = drawing.network.styles(case["in.z"], case.tensors.get("in.c"))
        case.compare(drawing.network.synthesis(w_BSW, "const"), "out.image")


def test_the_source_in_a_file_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    source = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Layer: pass\n"
    file = write(tmp_path / "released.pkl", released_state(), source=source)
    assert source.encode() in file.read_bytes()
    content = read_pickle(file)
    assert isinstance(content["G_ema"], Saved)
    assert not marker.exists()


def test_networks_become_names_and_tensors(tmp_path: Path) -> None:
    state = released_state(projected=(8,))
    saved = read_pickle(write(tmp_path / "released.pkl", state))["G_ema"]
    tensors = saved.tensors()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert saved.arguments["synthesis_kwargs"]["depth"] == 8
    assert saved.state["gain"] == 2**0.5
    assert saved.state["padding"] == 1


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def inner(value: Any) -> Calls:
    """Hidden in the bytes of a tensor's storage, which is a pickle of its own."""
    return Calls(torch.storage._load_from_bytes, pickle.dumps(value, protocol=2))


def dangerous(marker: Path) -> dict[str, Any]:
    import os
    import shutil

    touch = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    return {
        r"posix\.system": Calls(os.system, f"touch {marker}"),
        r"builtins\.eval": Calls(eval, touch),
        r"builtins\.exec": Calls(exec, touch),
        r"builtins\.getattr": Calls(getattr, dict, "fromkeys"),
        r"shutil\.rmtree": Calls(shutil.rmtree, str(marker)),
        r"importlib\.import_module": Calls(__import__("importlib").import_module, "antigravity"),
        r"torch\.serialization\.load": Calls(torch.load, str(marker)),
        r"pathlib\.\w+": marker,
        r"\w*builtin\w*\.eval": inner(Calls(eval, touch)),
        r"torch\.storage\._load_from_bytes": inner(inner(1)),
    }


@pytest.mark.parametrize("name", dangerous(Path("x")).keys())
def test_whatever_could_do_anything_is_refused_by_name(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    harm = dangerous(marker)[name]
    state = released_state()
    for place in ({"augment_pipe": harm}, {"training_set_kwargs": {"path": [harm]}}):
        file = write(tmp_path / "released.pkl", state, **place)
        with pytest.raises(InputError, match=rf"would run {name} on loading"):
            convert_styleformer(file, tmp_path / "model")
    broken = network(state, ARGUMENTS)
    broken.state["hook"] = harm
    file = write(tmp_path / "released.pkl", state, G_ema=broken)
    with pytest.raises(InputError, match=rf"would run {name} on loading"):
        convert_styleformer(file, tmp_path / "model")
    assert not marker.exists()
    assert not (tmp_path / "model").exists()


def test_a_file_cannot_change_the_reader(tmp_path: Path) -> None:
    """A state that a pickle sets on what stands for a class or a function is gone with that file."""
    build = b"N}\x8c\x0c__defaults__N\x8c\x01a\x86ds\x86b."  # sets attributes on what was looked up
    opcodes = b"\x80\x04ctorch._utils\n_rebuild_parameter\n" + build
    (tmp_path / "attack.pkl").write_bytes(opcodes)
    with pytest.raises(InputError, match="cannot be read as a pickle"):
        read_pickle(tmp_path / "attack.pkl")
    state = released_state()
    assert read_pickle(write(tmp_path / "released.pkl", state))["G_ema"].tensors().keys() == state.keys()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda state: state.pop("synthesis.b8_1.enc.q_weight"),
            r"lacks synthesis\.b8_1\.enc\.q_weight|lacks blocks\.2",
        ),
        (lambda state: state.pop("synthesis.b4_0.const"), r"lacks synthesis\.b4_0\.const"),
        (lambda state: state.update({"synthesis.b8_1.mlp.weight": torch.ones(1)}), r"b8_1\.mlp\.weight"),
        (lambda state: state.update({"synthesis.b8_1.enc.bias": torch.ones(7)}), r"another shape for .*enc\.bias"),
        (lambda state: state.update({"synthesis.b8_1.resample_filter": torch.ones(4, 4)}), "another filter"),
        (lambda state: state.update({"synthesis.b8_0.enc.proj_weight": torch.ones(8, 64)}), "other copy"),
        (lambda state: [state.pop(key) for key in [*state] if "synthesis" in key], "no blocks of synthesis"),
    ],
)
def test_what_does_not_fit_writes_nothing(tmp_path: Path, spoil: Any, message: str) -> None:
    state = released_state(projected=(8,))
    spoil(state)
    with pytest.raises(InputError, match=message):
        convert_styleformer(write(tmp_path / "released.pkl", state), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_files_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state, out = released_state(), tmp_path / "model"
    for content, message in (
        (b"", "is empty, expected a pickle"),
        (write(tmp_path / "whole.pkl", state).read_bytes()[:-50], "cannot be read as a pickle"),
        (pickle.dumps({"G": 1}), "has no network G_ema"),
        (pickle.dumps([1, 2]), "has no network G_ema"),
        (b"PK\x03\x04", "is an archive as torch.save writes it, expected a pickle"),
    ):
        (tmp_path / "file.pkl").write_bytes(content)
        with pytest.raises(InputError, match=message):
            convert_styleformer(tmp_path / "file.pkl", out)
    with pytest.raises(InputError, match=r"No such file|cannot be read"):
        convert_styleformer(tmp_path / "missing.pkl", out)
    odd: list[dict[str, Any]] = [
        {},
        {"synthesis_kwargs": {}},
        {"synthesis_kwargs": {"depth": True}},
        {"synthesis_kwargs": [8]},
    ]
    for arguments in odd:
        with pytest.raises(InputError, match="does not tell the depth"):
            convert_styleformer(write(tmp_path / "file.pkl", state, arguments), out)
    file = str(write(tmp_path / "file.pkl", state))
    assert main(["convert", "styleformer", file, str(out), "--preset", "large"]) == 2
    assert "--preset large was given for a styleformer" in capsys.readouterr().err
    assert not out.exists()


def test_names_are_read_strictly() -> None:
    for name in ("synthesis.b8_0.enc.q_bias", "mapping.fc.weight", "b8_0.const", "synthesis.b8_1.const"):
        with pytest.raises(ValueError, match="is not a tensor of a released Styleformer"):
            generator_keys(["synthesis.b8_0.const", name])
    with pytest.raises(ValueError, match=r"'b8\.conv0\.strength'"):
        discriminator_keys(["b8.conv0.weight", "b8.conv0.strength"])
