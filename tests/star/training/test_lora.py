"""Adapters and fine-tuning: a few pictures are learnt, and what was learnt is applied, alone, to its own base only."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from star.cli import main
from star.data.errors import InputError
from star.data.loader.batch import Batch
from star.data.synthetic import write
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.pretrained import ModelDirectory
from star.generators.training.run import RunConfig
from star.model.transformer import NextScaleTransformer
from star.tiny import tiny_tokenizer, tiny_transformer
from star.training.finetune import FinetuneConfig, Learnt, finetune, span, spread
from star.training.lora import Adapter, write_base

LAYERS = ("blocks.0.attention.query_key_value", "blocks.1.cross_attention.key_value", "blocks.1.mlp.down")
RANK, ALPHA = 2, 6


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model directory, another one, and a folder of 8 captioned pictures."""
    root = tmp_path_factory.mktemp("house")
    for seed, name in enumerate(("model", "other")):
        generator = StarGenerator(tiny_transformer(seed), tiny_tokenizer(), tiny_text_encoder(max_tokens=64))
        generator.save_pretrained(root / name)
    (root / "pictures").mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8), (30 * number, 255 - 30 * number, 128)).save(root / "pictures" / f"{number}.png")
        (root / "pictures" / f"{number}.txt").write_text(f"colour number {number}\n")
    write(root / "data", count=8, size=8, test=4)
    return root


@pytest.fixture
def adapter(house: Path, tmp_path: Path) -> Path:
    """Written as peft would, with random factors, for `house / "model"`."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    network, generator = tiny_transformer(), torch.Generator().manual_seed(0)
    tensors = {}
    for name in LAYERS:
        rows, columns = network.get_parameter(f"{name}.weight").shape
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}))
    write_base(folder, model="the-model", directory=ModelDirectory.read(house / "model"), card="")
    return folder


def run(steps: int) -> RunConfig:
    return RunConfig(steps=steps, batch_size=4, sample_every=0, checkpoint_every=steps, log_every=1, trackers=())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_what_is_added_is_the_product(adapter: Path) -> None:
    before, network = tiny_transformer(), tiny_transformer()
    Adapter.read(adapter).merge_into(network)
    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = dict(before.named_parameters())
    for name, weight in network.named_parameters():
        layer = name.removesuffix(".weight")
        expected: Tensor = changed[name]
        if layer in LAYERS:
            down, up = (tensors[f"base_model.model.{layer}.lora_{letter}.weight"] for letter in "AB")
            expected = expected + ALPHA / RANK * up @ down
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(
    ("settings", "scale"), [({"use_rslora": True}, ALPHA / RANK**0.5), ({"lora_alpha": 3.0}, 3.0 / RANK)]
)
def test_the_scale_is_as_peft_has_it(adapter: Path, settings: dict[str, Any], scale: float) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | settings))
    assert Adapter.read(adapter).scale == pytest.approx(scale)


def test_another_base_is_refused(house: Path, adapter: Path) -> None:
    read = Adapter.read(adapter)
    read.check_base(ModelDirectory.read(house / "model"))
    with pytest.raises(InputError, match="was trained on the-model, whose files differ"):
        read.check_base(ModelDirectory.read(house / "other"))


def test_a_network_without_the_layers_is_refused_and_left_alone(adapter: Path) -> None:
    network = tiny_transformer(depth=1)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    with pytest.raises(InputError, match=r"changes blocks\.1\."):
        Adapter.read(adapter).merge_into(network)
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())


def _drop_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _dora(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "use_dora": True}))


def _ia3(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))


def _exchange(folder: Path) -> None:
    save_file({"weight": torch.zeros(1)}, folder / "adapter_model.safetensors")


def _no_rank(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 0, "lora_alpha": 1}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_drop_config, "is no adapter, it has no adapter_config.json"),
        (_dora, "adapter of use_dora, expected plain LoRA"),
        (_ia3, "adapter of IA3"),
        (_exchange, "is not what base.json names by its sha256"),
        (_no_rank, "is damaged"),
    ],
)
def test_damage_is_named(adapter: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(adapter)
    with pytest.raises(InputError, match=message):
        Adapter.read(adapter)


def test_sampling_with_an_adapter(house: Path, adapter: Path, tmp_path: Path) -> None:
    asked = ["sample", "a red circle", "--model", str(house / "model"), "--device", "cpu"]
    assert main([*asked, "--out", str(tmp_path / "without")]) == 0
    assert main([*asked, "--adapter", str(adapter), "--out", str(tmp_path / "with")]) == 0
    (without,), (changed,) = (list((tmp_path / name).glob("*.png")) for name in ("without", "with"))
    with Image.open(changed) as picture, Image.open(without) as plain:
        told = picture.text  # type: ignore[attr-defined]
        assert (told["model"], told["adapter"]) == (str(house / "model"), str(adapter))
        assert picture.tobytes() != plain.tobytes()


def test_all_weights_learn_the_pictures_of_a_folder(house: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(run=run(25), lr=3e-3, warmup=2, code_noise=0.0)
    held_out = [str(house / "data" / "test")]
    result = finetune(str(house / "model"), config, data=[str(house / "pictures")], out=tmp_path, validation=held_out)
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert (losses["trained"]["pictures"], losses["held out"]["pictures"]) == (8, 4)
    assert mean(losses["trained"]["after"]) < 0.6 * mean(losses["trained"]["before"])
    with Image.open(tmp_path / "before-after.png") as sheet:
        assert sheet.size == (8 * 10 - 2, 3 * 10 - 2)
    assert StarGenerator.from_directory(result).generate(["colour number 3"], seeds=[0]).shape == (1, 3, 8, 8)
    assert "| trained | 8 |" in (result / "README.md").read_text()


def test_steps_may_compute_coarse_scales_alone_or_few_tokens_of_the_finest(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [str(house / "pictures")]
    whole = FinetuneConfig(run=run(12), lr=3e-3, warmup=2, code_noise=0.0)
    seen: list[int] = []
    forward = NextScaleTransformer.forward

    def watched(self: NextScaleTransformer, *args: Any, **given: Any) -> Tensor:
        loss_BL = forward(self, *args, **given)
        if self.training:
            seen.append(loss_BL.shape[1])
        return loss_BL

    monkeypatch.setattr(NextScaleTransformer, "forward", watched)
    lengths = tiny_transformer().schedule.lengths
    coarse, wide = sum(lengths[:2]), sum(lengths[:-1]) + round(0.25 * lengths[-1])
    both = replace(whole, coarse_scales=2, coarse_steps=0.5, keep_last_scale=0.25)
    for name, config, expected in (
        ("coarse", replace(whole, coarse_scales=2, coarse_steps=1.0), [coarse] * 12),
        ("both", both, [coarse, wide] * 6),
    ):
        seen.clear()
        finetune(str(house / "model"), config, data=data, out=tmp_path / name)
        assert seen[-12:] == expected
        losses = json.loads((tmp_path / name / "losses.json").read_text())["trained"]
        assert mean(losses["after"][:2]) < mean(losses["before"][:2]) - 0.1
    for wrong, told in (
        ({"coarse_scales": 2}, "both positive"),
        ({"keep_last_scale": 0.0}, "keep_last_scale"),
        ({"coarse_steps": 1.5, "coarse_scales": 2}, "coarse_steps"),
    ):
        with pytest.raises(InputError, match=told):
            replace(whole, **wrong)
    with pytest.raises(InputError, match="give fewer"):
        finetune(str(house / "model"), replace(whole, coarse_scales=9, coarse_steps=0.5), data=data, out=tmp_path / "w")


def test_several_places_are_packed_and_its_time_is_told_before(
    house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [str(house / "pictures"), str(house / "data" / "train")]
    finetune(str(house / "model"), FinetuneConfig(run=run(2)), data=data, out=tmp_path)
    told = capsys.readouterr().err
    assert json.loads((tmp_path / "losses.json").read_text())["trained"]["pictures"] == 16
    place = re.search(r"2 steps of [\d.]+ s take about [\d.]+ s here, besides [\d.]+ s to measure", told)
    assert place is not None
    assert place.start() < told.index("2 steps and 8 images in")


def test_minutes_end_it(house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["finetune", str(house / "model"), "--data", str(house / "pictures"), "--minutes", "0.02", "--batch", "4"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert "training ends after 1.2 s, in about" in told
    steps = int(re.findall(r"(\d+) steps and \d+ images in", told)[-1])
    assert 1 <= steps < 5000
    assert sorted((tmp_path / "checkpoints").iterdir())[-1].name == f"step-{steps:08d}"


def test_of_many_pictures_some_are_measured() -> None:
    def of(keys: range) -> Batch:
        names = list(map(str, keys))
        nothing: list[dict[str, Any]] = [{} for _ in keys]
        captions: list[tuple[str, ...]] = [(name,) for name in names]
        pixels = torch.tensor(list(keys)).float().view(-1, 1, 1, 1)
        return Batch(
            image_B3HW=pixels, prompts=names, keys=names, captions=captions, info=nothing, epochs=[0] * len(keys)
        )

    batches = [of(range(4)), of(range(4, 5)), of(range(5, 10))]
    assert [batch.keys for batch in spread(batches, 5)] == [["0", "2"], ["4"], ["6", "8"]]
    assert [batch.image_B3HW.flatten().tolist() for batch in spread(batches, 2)] == [[0.0], [5.0]]
    assert [batch.keys for batch in spread(batches, 99)] == [batch.keys for batch in batches]
    assert not list(spread([]))


@pytest.mark.parametrize(("seconds", "told"), [(0.123, "0.12 s"), (42.4, "42 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_are_told_in_a_unit_that_fits(seconds: float, told: str) -> None:
    assert span(seconds) == told


def test_a_state_of_other_tensors_is_refused() -> None:
    learnt = Learnt(tiny_transformer())
    with pytest.raises(RuntimeError, match="0 trained tensors are stored"):
        learnt.load_state_dict({})


@pytest.mark.slow
def test_lora_learns_and_its_adapter_draws_what_was_drawn(house: Path, tmp_path: Path) -> None:
    """Slow for what peft imports. The wrapped network and the merged weights give the same logits."""
    config = FinetuneConfig(run=run(40), lora=4, lr=2e-2, warmup=2, code_noise=0.0)
    result = finetune(str(house / "model"), config, data=[str(house / "pictures")], out=tmp_path / "whole")
    assert {path.name for path in result.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "README.md",
    }
    losses = json.loads((tmp_path / "whole" / "losses.json").read_text())["trained"]
    assert mean(losses["after"]) < 0.8 * mean(losses["before"])
    adapter = Adapter.read(result)
    assert len(adapter.factors) == 2 * 7
    assert all(bool(up.any()) for _, up in adapter.factors.values())  # every layer got a gradient

    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    wrapped, merged = tiny_transformer(), tiny_transformer()
    inject_adapter_in_model(LoraConfig.from_pretrained(str(result)), wrapped)
    stored = load_file(result / "adapter_model.safetensors")
    set_peft_model_state_dict(wrapped, {name.removeprefix("base_model.model."): t for name, t in stored.items()})
    adapter.merge_into(merged)
    text = tiny_text_encoder().encode(["colour number 3"])
    input_BlE = torch.randn(1, 29, 4)
    torch.testing.assert_close(wrapped(input_BlE, text), merged(input_BlE, text), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(input_BlE, text), tiny_transformer()(input_BlE, text), atol=1e-2)
