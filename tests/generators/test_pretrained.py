"""A model directory is whole, verified and refused with a reason."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.text import TextEncoder
from star.generators import pretrained as checkpoint
from star.generators import registry
from star.generators.pretrained import IMAGES_SEEN, ModelDirectory, Reference
from star.generators.renamed import TEXT_TOWERS


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator)
    return {"b.weight": weight, "a.tied": weight, "count": torch.tensor(7), "transposed": torch.randn(5, 2).T}


def write(path: Path, **changes: Any) -> ModelDirectory:
    fields: dict[str, Any] = {"family": "toy", "config": {"width": 4}, "tensors": tensors(), "card": "# Card\n"}
    return checkpoint.write(path, **(fields | changes))


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    values = tensors()
    references = {"tokenizer": Reference(location="../tokenizer", digest="abc")}
    write(tmp_path / "model", tensors=values, about={"licence": "MIT"}, references=references)
    directory = ModelDirectory.read(tmp_path / "model", "toy")
    assert directory.config == {"width": 4}
    assert directory.about == {"licence": "MIT"}
    assert directory.references == references
    assert (directory.path / "README.md").read_text() == "# Card\n"
    found = directory.tensors()
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], values[name]) for name in values)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("told", [0, -3, True, "5", 2.0, None, 2**63, [7]])
def test_images_seen_are_a_count_or_unknown(told: object, tmp_path: Path) -> None:
    assert write(tmp_path / "without").images_seen == 0
    assert write(tmp_path / "with", about={IMAGES_SEEN: 12}).images_seen == 12
    assert write(tmp_path / "odd", about={IMAGES_SEEN: told}).images_seen == 0
    places = {name: str(tmp_path / name) for name in ("without", "with", "odd")}
    after = {name: registry.images_seen_after(5, place) for name, place in places.items()}
    assert after == {"without": 0, "with": 17, "odd": 0}  # of what is not known the sum is not either
    assert registry.images_seen_after(5) == 5
    assert registry.images_seen("stylegan-t-test") == 0


def test_everyone_may_read_what_was_written(tmp_path: Path) -> None:
    """On a shared disk the one who trains is not the one who samples."""
    path = write(tmp_path / "model", parts={"part": lambda folder: folder.mkdir()}).path
    assert (path.stat().st_mode & 0o777) == 0o755
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in path.iterdir())


def test_shards_are_joined(tmp_path: Path) -> None:
    directory = write(tmp_path / "model", shard_size=60)
    assert len(directory.files) > 1
    assert directory.tensors().keys() == tensors().keys()


def test_digest_is_of_content_not_of_form(tmp_path: Path) -> None:
    values = {
        name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor for name, tensor in tensors().items()
    }
    expected = checkpoint.digest({"width": 4}, values)
    for name, changes in (("a", {}), ("b", {"dtype": torch.bfloat16}), ("c", {"shard_size": 60, "card": "other"})):
        assert write(tmp_path / name, tensors=values, **changes).digest == expected
    assert write(tmp_path / "d", tensors=values, config={"width": 5}).digest != expected
    assert write(tmp_path / "e", tensors=values | {"count": torch.tensor(8)}).digest != expected


def test_bfloat16_halves_the_file_and_leaves_integers(tmp_path: Path) -> None:
    directory = write(tmp_path / "model", dtype=torch.bfloat16)
    assert directory.tensors()["b.weight"].dtype == torch.bfloat16
    assert directory.tensors()["count"].dtype == torch.int64


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "outside"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    directory = write(tmp_path / "model")
    file = directory.path / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-8])
    elif damage == "remove":
        file.unlink()
    else:
        file.rename(tmp_path / "model.safetensors")
        text = (directory.path / "config.json").read_text()
        (directory.path / "config.json").write_text(text.replace('"model.safe', '"../model.safe'))
    with pytest.raises(InputError, match=r"sha256|lacks the file"):
        ModelDirectory.read(directory.path).tensors()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no model directory"),
        ("{", "cannot be read"),
        ("[]", "holds no JSON object"),
        ('{"format": 2}', "format 2, expected 1"),
        ('{"format": 1, "family": "toy", "config": {}}', "is damaged"),
    ],
)
def test_wrong_config_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        ModelDirectory.read(tmp_path)


def test_other_family_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    with pytest.raises(InputError, match="holds a toy, expected a star"):
        ModelDirectory.read(tmp_path / "model", "star")


def test_failed_write_leaves_the_old_model(tmp_path: Path) -> None:
    write(tmp_path / "model")

    def fail(path: Path) -> None:
        path.mkdir()
        raise OSError("disk full")

    with pytest.raises(InputError, match="disk full"):
        write(tmp_path / "model", config={"width": 9}, parts={"tokenizer": fail})
    assert ModelDirectory.read(tmp_path / "model").config == {"width": 4}
    assert os.listdir(tmp_path) == ["model"]


def test_replaces_a_model_but_nothing_else(tmp_path: Path) -> None:
    for width in (4, 5):
        write(tmp_path / "model", config={"width": width}, parts={"tokenizer": lambda path: write(path)})
    assert ModelDirectory.read(tmp_path / "model").config == {"width": 5}
    (tmp_path / "model/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt beside the model"):
        write(tmp_path / "model")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/precious").write_text("mine")
    with pytest.raises(InputError, match="is no model directory"):
        write(tmp_path / "folder")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "folder/precious/model")


def test_a_text_tower_that_ships_under_another_name_now_is_found(tmp_path: Path) -> None:
    """Written when clip-emoji had the text tower that guide-emoji has; a copy of the old folder reads the same."""
    (digest,) = TEXT_TOWERS
    references = {
        "text_encoder": Reference(location="../somewhere/star/weights/clip-emoji", digest=digest),
        "tokenizer": Reference(location="../clip-emoji", digest="abc"),
    }
    (tmp_path / "clip-emoji").mkdir()
    directory = write(tmp_path / "model", references=references)
    found = directory.resolve("text_encoder")
    assert found == str(registry.shipped("guide-emoji"))
    assert Path(directory.resolve("tokenizer")) == tmp_path / "clip-emoji"
    assert TextEncoder.from_pretrained(found).digest == digest
    directory.check_reference("text_encoder", TextEncoder.from_pretrained(found).digest)
    for reference in (
        Reference(location="../clip-emoji", digest="abc"),
        Reference(location="../mine", digest=digest),
        Reference(location="../clip-emoji", digest=""),
    ):
        path = tmp_path / reference.location.strip("./")
        path.mkdir(exist_ok=True)
        other = write(tmp_path / f"model-{path.name}-{reference.digest[:3]}", references={"text_encoder": reference})
        assert Path(other.resolve("text_encoder")) == path


def test_references_are_resolved_and_checked(tmp_path: Path) -> None:
    part = write(tmp_path / "tokenizer", family="tokenizer")
    other = write(tmp_path / "other", family="tokenizer", config={"width": 8})
    references = {
        "tokenizer": Reference(location="../tokenizer", digest=part.digest),
        "text_encoder": Reference(location="someone/encoder", digest="abc"),
    }
    directory = write(tmp_path / "model", references=references)
    assert Path(directory.resolve("tokenizer")) == tmp_path / "tokenizer"
    assert directory.resolve("text_encoder") == "someone/encoder"
    directory.check_reference("tokenizer", part.digest)
    with pytest.raises(InputError, match="were not trained together"):
        directory.check_reference("tokenizer", other.digest)
    with pytest.raises(InputError, match="names no decoder"):
        directory.resolve("decoder")


def test_loading_is_strict_and_names_keys(tmp_path: Path) -> None:
    module = nn.Linear(4, 3)
    good = {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
    checkpoint.load_into(module, good, tmp_path)
    assert torch.equal(module.weight, good["weight"])
    with pytest.raises(InputError, match=r"lacks bias; has the unexpected gain"):
        checkpoint.load_into(module, {"weight": good["weight"], "gain": torch.ones(1)}, tmp_path)
    with pytest.raises(InputError, match=r"weight \(4, 3\) instead of \(3, 4\)"):
        checkpoint.load_into(module, good | {"weight": torch.ones(4, 3)}, tmp_path)


def test_config_is_readable_json(tmp_path: Path) -> None:
    write(tmp_path / "model", config={"word": "ö"})
    text = (tmp_path / "model/config.json").read_text()
    assert "ö" in text
    assert list(json.loads(text))[:3] == ["format", "family", "config"]
