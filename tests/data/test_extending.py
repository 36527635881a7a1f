"""The worked example of a text encoder in docs/extending.md, installed as a package of its own: it trains a model."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from star.cli import main
from star.data.errors import InputError
from star.data.synthetic import write
from star.data.text import TextEncoder
from star.data.text_towers import GROUP, TextTower, kinds, tower_of
from star.generator import StarGenerator
from star.tiny import tiny_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## A text encoder", 1)[1].split("\n## ", 1)[0]
LENGTH = 20


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """their_package and its metadata on the path, as pip leaves them."""
    code, info = tmp_path / "site" / "their_package", tmp_path / "site" / "their_package-1.0.dist-info"
    code.mkdir(parents=True)
    info.mkdir()
    (code / "__init__.py").touch()
    (code / "bert.py").write_text(block("python"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_package\nVersion: 1.0\n")
    points = block("toml").replace(f'[project.entry-points."{GROUP}"]', f"[{GROUP}]").replace('"', "")
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    for name in [name for name in sys.modules if name.startswith("their_package")]:
        del sys.modules[name]


def bert(folder: Path) -> Path:
    """A BERT of one layer over single letters, with its tokenizer."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = {token: i for i, token in enumerate([*special, *letters, *(f"##{letter}" for letter in letters)])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LENGTH,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_example_is_short() -> None:
    assert len(block("python").splitlines()) < 60


@pytest.mark.usefixtures("package")
def test_a_text_encoder_of_another_package_trains_a_model_that_draws(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    encoder = TextEncoder.from_pretrained(folder)
    assert encoder.max_tokens == LENGTH
    text = encoder.encode(["a red circle", "", "a blue square"])
    assert torch.equal(text.pooled_BD, text.tokens_BTD[:, 0])
    write(tmp_path / "shards", count=12, size=8, test=0)
    tiny_tokenizer().save(tmp_path / "tokenizer", card="")
    assert not main(
        [
            "train",
            "star",
            "--preset",
            "test",
            "--data",
            str(tmp_path / "shards" / "train"),
            "--out",
            str(tmp_path / "run"),
        ]
        + [f"--tokenizer={tmp_path / 'tokenizer'}", f"--text_encoder={folder}", "--run.steps=2"]
    )
    generator = StarGenerator.from_directory(tmp_path / "run" / "model")
    assert generator.text_encoder.digest == encoder.digest
    assert generator.generate(["a red circle"], seeds=[1]).shape == (1, 3, 8, 8)


@pytest.mark.usefixtures("package")
def test_another_pooling_is_another_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bert(tmp_path / "bert")
    mean = TextTower(model="transformers:BertModel", pool=lambda output, tokens, mask: tokens.mean(dim=1))
    digest = TextEncoder.from_pretrained(folder).digest
    monkeypatch.setattr("star.data.text.tower_of", lambda kind: mean)
    assert TextEncoder.from_pretrained(folder).digest != digest


def test_without_the_package_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="is of a 'bert' model, expected one of clip, clip_text_model, vision-text-dual-encoder, t5"
    ):
        TextEncoder.from_pretrained(bert(tmp_path / "bert"))
    with pytest.raises(InputError, match="'bert' is no kind of text encoder, expected one of clip"):
        tower_of("bert")
    assert "bert" not in kinds()


def test_what_is_no_tower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="odd", load=lambda: 3)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group, name="": [point])
    assert "odd" in kinds()
    with pytest.raises(InputError, match=r"the entry point odd of star\.text_encoders is a int"):
        tower_of("odd")
