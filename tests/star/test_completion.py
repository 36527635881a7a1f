"""A completion is heard for what was completed, and changes nothing else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from star.attention_maps import attention
from star.cli import main
from star.clip.wordings import Expansion, Subject
from star.completion import Completion, stretches
from star.data.errors import InputError
from star.data.loader.batch import Batch
from star.generator import StarGenerator
from star.generators.pretrained import ModelDirectory, sha256
from star.generators.protocol import SampleOptions
from star.pipeline import Pipeline
from star.sampling.sampler import SampleRng
from star.tiny import tiny_transformer
from star.training.completing import heard_prompts

OPTIONS = SampleOptions(
    guidance_scale=2.0, temperature=0.8, expand_prompt=True, related_captions=2, layout_scales=2, layout_weight=0.7
)
STYLES = ("colour style", "black style", "third style")
LAYERS = ("blocks.0.attention.query_key_value", "blocks.1.cross_attention.key_value", "blocks.1.mlp.down")
EXPANSION = Expansion(
    STYLES,
    {
        "apple": Subject(caption="an apple", style=STYLES[0], names={"apple": 30.0}, styles=STYLES[:1]),
        "pear": Subject(caption="a pear", style=STYLES[0], names={"pear": 30.0}, styles=STYLES[::2]),
    },
    nearest={STYLES[1]: STYLES[::2]},
)
COMPLETED, KNOWN, RELATED = "an apple, black style", "an apple, colour style", "a pear, black style"


def random_factors(rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    generator, network = torch.Generator().manual_seed(0), tiny_transformer()
    factors = {}
    for name in LAYERS:
        rows, columns = network.get_parameter(f"{name}.weight").shape
        factors[name] = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
    return factors


def made(*, completed: bool) -> StarGenerator:
    star = StarGenerator.for_test()
    with torch.no_grad():  # so that what is drawn depends on the words
        star.transformer.head.weight.mul_(50)
        star.transformer.text_projection.weight.mul_(30)
    star.expansion = EXPANSION.with_completed([COMPLETED]) if completed else EXPANSION
    if completed:
        star.completion = Completion(random_factors())
    return star


def test_wordings_say_what_was_completed(tmp_path: Path) -> None:
    learnt = "a pear, third style"
    several = [COMPLETED, "An Apple, third style", learnt, KNOWN, "an unknown thing, black style", "an apple, no style"]
    completed = EXPANSION.with_completed(caption for caption in several if caption != KNOWN)
    assert completed.subjects["apple"].completed == STYLES[1:]
    assert completed.subjects["pear"].completed == STYLES[2:]
    assert completed.subjects["pear"].styles == EXPANSION.subjects["pear"].styles
    assert [caption for caption in several if completed.completes(caption)] == several[:3]
    # The colours of skin are the subject's own; the words of captions may name them, the list never does.
    assert EXPANSION.with_completed(["an apple, dark skin tone, black style"]) == EXPANSION
    assert completed.completes("an apple, dark skin tone, black style")
    assert not any(map(EXPANSION.completes, several))
    assert completed.with_completed(["a pear, black style"]).subjects["apple"].completed == STYLES[1:]
    alone = completed.with_completed([RELATED], alone=True)
    assert [alone.subjects[name].completed for name in ("apple", "pear")] == [(), STYLES[1:2]]
    # A completed caption needs no related ones; others still do.
    assert EXPANSION.related(COMPLETED, 2) == [KNOWN]
    assert completed.related(COMPLETED, 2) == []
    assert completed.related(RELATED, 1) == ["a pear, colour style"]
    completed.save(tmp_path / "wordings.json")
    assert Expansion.read(tmp_path / "wordings.json") == completed


def test_the_completed_transformer_is_the_sum_and_shares_the_rest() -> None:
    network, completion = tiny_transformer(), Completion(random_factors())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    completed = completion.complete(network)
    own, base = dict(completed.named_parameters()), dict(network.named_parameters())
    for name, (down, up) in random_factors().items():
        assert torch.equal(own[f"{name}.weight"], before[f"{name}.weight"] + up @ down)
    changed = {f"{name}.weight" for name in LAYERS}
    assert {name for name in base if own[name] is not base[name]} == changed
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert completion.complete(network) is completed
    with torch.no_grad():
        base[f"{LAYERS[0]}.weight"].mul_(2)  # as an adapter or a training does
    again = completion.complete(network)
    down, up = random_factors()[LAYERS[0]]
    assert torch.equal(again.get_parameter(f"{LAYERS[0]}.weight"), 2 * before[f"{LAYERS[0]}.weight"] + up @ down)
    assert completion.complete(network.double()).get_parameter(f"{LAYERS[0]}.weight").dtype == torch.float64


def test_it_is_heard_for_completed_captions_alone() -> None:
    star, plain = made(completed=True), made(completed=False)
    prompts, seeds = [KNOWN, COMPLETED, COMPLETED, RELATED, "something else"], range(5)
    drawn, as_before = (one.generate(prompts, seeds=seeds, options=OPTIONS) for one in (star, plain))
    assert [bool(torch.equal(*both)) for both in zip(drawn, as_before, strict=True)] == [True, False, False, True, True]
    added = StarGenerator.for_test()
    added.transformer = star.completion.complete(star.transformer) if star.completion else added.transformer
    assert torch.equal(added.generate(prompts[1:3], seeds=[1, 2], options=OPTIONS), drawn[1:3])
    assert star.remark(prompts, OPTIONS) == "2 of 5 prompts ask for what its completion learnt"
    assert star.remark([KNOWN], OPTIONS) == plain.remark(prompts, OPTIONS) == ""
    negative = ["a pear", "", "an apple", "", "x"]
    led = star.generate(prompts, seeds=seeds, options=OPTIONS, negative_prompts=negative)
    assert torch.equal(led[2:3], star.generate([COMPLETED], seeds=[2], options=OPTIONS, negative_prompts=["an apple"]))


def test_whoever_looks_into_a_picture_sees_the_one_that_is_drawn() -> None:
    star = made(completed=True)
    pipe = Pipeline(star, OPTIONS)
    for prompt in (COMPLETED, RELATED):
        drawn = star.generate([prompt], seeds=[4], options=OPTIONS)
        text = star.text_encoder.encode([prompt])
        assert torch.equal(star.draw_one(text, SampleRng([4], OPTIONS), caption=prompt), drawn)
        assert torch.equal(attention(star, prompt, seed=4, options=OPTIONS).pixels[-1], drawn[0])
        assert pipe.grow(prompt, seed=4)[-1] == pipe(prompt, seed=4).images[0]
        assert pipe.morph([prompt, "a pear"], seeds=4, frames=2)[0] == pipe(prompt, seed=4).images[0]


def test_runs_of_the_same_transformer() -> None:
    one, other = tiny_transformer(), tiny_transformer()
    found = stretches([one, one, other, one])
    assert [(made is one, part) for made, part in found] == [
        (True, slice(0, 2)),
        (False, slice(2, 3)),
        (True, slice(3, 4)),
    ]


def test_it_is_learnt_under_captions_that_hear_it() -> None:
    def batch(prompt: str, *captions: str) -> Batch:
        return Batch(
            image_B3HW=torch.zeros(1, 3, 8, 8), prompts=[prompt], keys=["a"], captions=[captions], info=[{}], epochs=[0]
        )

    completed = EXPANSION.with_completed([COMPLETED])
    tags = "apple, fruit, black style"
    assert heard_prompts(batch(tags, COMPLETED, tags), completed) == [COMPLETED]
    assert heard_prompts(batch(tags, KNOWN, COMPLETED, tags), completed) == [COMPLETED]
    assert heard_prompts(batch(COMPLETED, "an apple", COMPLETED), completed) == [COMPLETED]
    assert heard_prompts(batch(tags, KNOWN, tags), completed) == [tags]
    assert heard_prompts(batch(tags, COMPLETED, tags), None) == [tags]


def test_no_step_of_its_training_says_another_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from star.training import finetune

    made(completed=False).save_pretrained(tmp_path / "m")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8), (200, 30, 0)).save(tmp_path / "pictures" / "0.png")
    (tmp_path / "table.jsonl").write_text(
        json.dumps({"image": "pictures/0.png", "caption": [COMPLETED, "apple, fruit", "a thing of one colour"]}) + "\n"
    )
    said: list[str] = []

    def drop(prompts: list[str], share: float) -> list[str]:
        said.extend(prompts)
        return prompts

    monkeypatch.setattr(finetune, "drop_captions", drop)
    command = ["finetune", str(tmp_path / "m"), "--data", str(tmp_path / "table.jsonl"), "--batch", "1", "--lora", "2"]
    assert main([*command, "--steps", "12", "--out", str(tmp_path / "plain")]) == 0
    assert len(set(said)) == 3
    said.clear()
    assert main([*command, "--steps", "12", "--out", str(tmp_path / "completion"), "--completion"]) == 0
    forecast = 2  # its two steps take a batch as it comes
    assert set(said[forecast:]) == {COMPLETED}
    assert len(said) == 12 + forecast


def test_it_travels_with_the_model(tmp_path: Path) -> None:
    star = made(completed=True)
    star.save_pretrained(tmp_path / "m")
    again = StarGenerator.from_directory(tmp_path / "m")
    assert again.completion is not None
    assert again.completion.rank == 2
    drawn = [one.generate([COMPLETED, KNOWN], seeds=[0, 1], options=OPTIONS) for one in (star, again)]
    assert torch.equal(*drawn)
    plain = made(completed=False)
    plain.save_pretrained(tmp_path / "plain")
    assert "completion" not in ModelDirectory.read(tmp_path / "plain").config


def _rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    file = folder / "model.safetensors"
    old = sha256(file)
    save_file(tensors, file)
    config = folder / "config.json"
    config.write_text(config.read_text().replace(old, sha256(file)))


@pytest.mark.parametrize("harm", ["one is missing", "none is left", "shape", "layer", "nan"])
def test_damage_is_named(tmp_path: Path, harm: str) -> None:
    made(completed=True).save_pretrained(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    name = f"completion.{LAYERS[0]}.down"
    if harm == "one is missing":
        del tensors[name]
    elif harm == "none is left":
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("completion.")}
    elif harm == "shape":
        tensors[name] = tensors[name][:, 1:].contiguous()
    elif harm == "layer":
        for end in ("down", "up"):
            tensors[f"completion.blocks.9.mlp.up.{end}"] = tensors.pop(f"completion.{LAYERS[0]}.{end}")
    else:
        tensors[name][0, 0] = float("nan")
    _rewrite(tmp_path / "m", tensors)
    with pytest.raises(InputError, match=r"damaged|infinite or not a number"):
        StarGenerator.from_directory(tmp_path / "m")


def test_factors_must_go_together() -> None:
    factors = random_factors()
    down, up = factors[LAYERS[0]]
    for wrong in ({}, {LAYERS[0]: (down, up[:, :1])}, factors | {LAYERS[0]: (down[:1], up[:, :1])}):
        with pytest.raises(ValueError, match="completion"):
            Completion(wrong)
    with pytest.raises(ValueError, match=r"blocks\.9"):
        StarGenerator(
            *(getattr(StarGenerator.for_test(), name) for name in ("transformer", "tokenizer", "text_encoder")),
            completion=Completion({"blocks.9.mlp.up": (down, up)}),
        )


def test_the_command_line_trains_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    star = made(completed=False)
    star.save_pretrained(tmp_path / "m")
    (tmp_path / "pictures").mkdir()
    for number, caption in enumerate([COMPLETED, "an apple, third style"]):
        Image.new("RGB", (8, 8), (200 * number, 30, 0)).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text(caption)
    command = ["finetune", str(tmp_path / "m"), "--data", str(tmp_path / "pictures"), "--steps", "3", "--batch", "2"]
    command += ["--completion", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "lora" in capsys.readouterr().err
    assert main([*command, "--lora", "2", "--lr", "0.5"]) == 0
    result = Path(capsys.readouterr().out.strip())
    trained = StarGenerator.from_directory(result)
    assert trained.expansion is not None
    assert trained.expansion.subjects["apple"].completed == STYLES[1:]
    prompts = [COMPLETED, KNOWN, RELATED]
    drawn, as_before = (one.generate(prompts, seeds=range(3), options=OPTIONS) for one in (trained, star))
    assert [bool(torch.equal(*both)) for both in zip(drawn, as_before, strict=True)] == [False, True, True]
    # What a model has is trained on, with other pictures for these alone, and in its own rank.
    (tmp_path / "pictures" / "1.txt").write_text(RELATED)
    assert ModelDirectory.read(result).images_seen == 0  # of its base nobody wrote it down
    again = ["finetune", str(result), *command[2:-1], str(tmp_path / "again"), "--lr", "1e-9"]
    assert main([*again, "--lora", "2"]) == 0
    more = StarGenerator.from_directory(Path(capsys.readouterr().out.strip()))
    assert more.expansion is not None
    assert [more.expansion.subjects[name].completed for name in ("apple", "pear")] == [STYLES[1:2], STYLES[1:2]]
    assert more.completion is not None
    assert trained.completion is not None
    for name, factors in more.completion.factors.items():
        for one, before in zip(factors, trained.completion.factors[name], strict=True):
            torch.testing.assert_close(one, before, rtol=0, atol=1e-6)
    # Before and after are both with it, and it is heard once: at no rate at all nothing changes.
    losses = json.loads((tmp_path / "again" / "losses.json").read_text())["trained"]
    assert losses["after"] == pytest.approx(losses["before"], rel=1e-4)
    with Image.open(tmp_path / "again" / "before-after.png") as sheet:
        first = [sheet.crop((0, 10 * row, 8, 10 * row + 8)).tobytes() for row in range(3)]
    assert first[1] == first[2]
    assert main([*again[:-3], str(tmp_path / "rank"), "--lora", "3"]) == 2
    assert "rank" in capsys.readouterr().err
    # Nothing is to be heard where the wordings know none of the pictures, or there are none.
    (tmp_path / "pictures" / "0.txt").write_text("a house, black style")
    (tmp_path / "pictures" / "1.txt").write_text("an apple")
    assert main([*command[:-1], str(tmp_path / "other"), "--lora", "2"]) == 2
    assert "wordings know" in capsys.readouterr().err
    star.expansion = None
    star.save_pretrained(tmp_path / "m")
    assert main([*command[:-1], str(tmp_path / "third"), "--lora", "2"]) == 2
    assert "without wordings" in capsys.readouterr().err
