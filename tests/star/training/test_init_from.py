"""A training that starts from existing weights: another resolution, another text encoder, everything else exact."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from star.data.errors import InputError
from star.data.synthetic import write
from star.data.text import TextEncoder
from star.data.text_towers import mean_of_tokens
from star.data.tiny import tiny_text_encoder
from star.generator import StarGenerator
from star.generators.registry import build
from star.generators.training.run import RunConfig
from star.model.rope import pyramid_rotation
from star.model.transformer import NextScaleTransformer
from star.tiny import SIZES, tiny_tokenizer, tiny_transformer
from star.tokenizer.tokenizer import AlignedTo, MultiScaleTokenizer
from star.training.config import TrainConfig
from star.training.init_from import continued, start_from
from star.training.presets import PRESETS
from star.training.train import train

FINER = (1, 2, 3, 4, 6, 8)
ODD: dict[str, Any] = {"rope_theta": 100.0, "rope_norm": 32.0, "logit_norm": False, "mlp_ratio": 2.0}


def at(tokenizer: MultiScaleTokenizer, sizes: tuple[int, ...]) -> MultiScaleTokenizer:
    """The same weights on another pyramid."""
    other = MultiScaleTokenizer(tokenizer.config.at(sizes))
    other.load_state_dict(tokenizer.state_dict())
    return other.eval()


def t5_encoder() -> TextEncoder:
    """Two small layers over single letters, 16 wide."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    backend = Tokenizer(Unigram([*pieces, *((letter, -2.0) for letter in "abcdeilnrstu")], unk_id=2))
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = T5EncoderModel(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2))
    return TextEncoder(tower, words)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with settings of its own, tokenizers of its resolution and a finer one, two text encoders, shards."""
    root = tmp_path_factory.mktemp("house")
    source = StarGenerator(
        tiny_transformer(**ODD), tiny_tokenizer(), tiny_text_encoder(max_tokens=64), cross_attention="released"
    )
    source.save_pretrained(root / "source")
    tiny_tokenizer().save(root / "same", card="")
    at(tiny_tokenizer(), FINER).save(root / "finer", card="")
    at(tiny_tokenizer(), SIZES[:-1]).save(root / "coarser", card="")
    at(tiny_tokenizer(seed=1), FINER).save(root / "foreign", card="")
    encoder = t5_encoder()
    encoder.tower.save_pretrained(root / "t5")
    encoder.tokenizer.save_pretrained(root / "t5")
    write(root / "data", count=12, size=16, test=3)
    return root


def config(house: Path, **changes: Any) -> TrainConfig:
    run = RunConfig(steps=2, batch_size=4, sample_every=0, checkpoint_every=2, trackers=())
    given: dict[str, Any] = {"run": run, "tokenizer": str(house / "finer"), "init_from": str(house / "source")}
    given |= {"text_encoder": str(house / "source/text_encoder"), "held_out": 0.0, "validate_every": 2}
    return replace(PRESETS["test"], **given | changes)


def started(house: Path, name: str = "finer", text_width: int = 32) -> tuple[NextScaleTransformer, str]:
    tokenizer = MultiScaleTokenizer.from_directory(house / name)
    fresh = tiny_transformer(sizes=tokenizer.schedule.sizes, text_width=text_width, dropout=0.1).config
    torch.manual_seed(0)
    model = NextScaleTransformer(continued(house / "source", fresh))
    return model, start_from(model, house / "source", tokenizer)


def test_a_finer_pyramid_grows_the_level_embedding_and_nothing_else(house: Path) -> None:
    model, told = started(house)
    assert "new are rows 4 to 5 of level_embedding.weight" in told
    assert model.config.sizes == FINER
    assert {name: getattr(model.config, name) for name in ODD} == ODD
    assert model.config.dropout == 0.1
    source = tiny_transformer(**ODD).state_dict()
    for name, tensor in model.state_dict().items():
        if name == "level_embedding.weight":
            assert torch.equal(tensor[:4], source[name])
            assert 0 < float(tensor[4:].std()) < 3 * 32**-0.5
        else:
            assert torch.equal(tensor, source[name]), name
    rotation = pyramid_rotation(FINER, 16, theta=100.0, norm=32.0)
    assert model.tables.cos_LP is not None
    assert torch.equal(model.tables.cos_LP, rotation.cos_lP)


def test_coarse_scales_give_the_logits_they_gave(house: Path) -> None:
    """Tokens of the first four scales see nothing of the new ones."""
    model, _ = started(house)
    text = tiny_text_encoder().encode(["a red circle"])
    inputs = torch.randn(1, sum(size**2 for size in FINER) - 1, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fine = model.eval()(inputs, text)[:, :30]
        coarse = tiny_transformer(**ODD)(inputs[:, :29], text)
    torch.testing.assert_close(fine, coarse, rtol=1e-4, atol=1e-4)


def test_the_same_pyramid_is_taken_over_whole(house: Path) -> None:
    model, told = started(house, "same")
    assert told == f"starting from {house / 'source'}"
    source = tiny_transformer(**ODD).state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())


def test_another_text_encoder_renews_what_reads_it(house: Path) -> None:
    model, told = started(house, "same", text_width=16)
    assert "text_projection.weight" in told
    source, own = tiny_transformer(**ODD).state_dict(), model.state_dict()
    renewed = {name for name in own if not torch.equal(own[name], source[name])}
    assert renewed == {"text_projection.weight", *(f"blocks.{i}.cross_attention.key_value.weight" for i in (0, 1))}


@pytest.mark.parametrize(
    ("name", "message"),
    [("foreign", "is not the one that .* was trained with"), ("coarser", "has 4 scales, the tokenizer 3")],
)
def test_a_tokenizer_that_does_not_continue_is_refused(house: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        started(house, name)


def test_another_codebook_and_another_family_are_refused(house: Path) -> None:
    with pytest.raises(InputError, match="speaks 32 codes of width 4, the tokenizer has 64 of width 4"):
        continued(house / "source", tiny_transformer(vocabulary=64).config)
    with pytest.raises(InputError, match="holds a multi-scale-tokenizer, expected a star"):
        continued(house / "same", tiny_transformer().config)


def test_training_goes_on_at_the_finer_resolution(house: Path, tmp_path: Path) -> None:
    model = train(config(house), data=[str(house / "data/train")], out=tmp_path / "run")
    generator = build(model)
    assert isinstance(generator, StarGenerator)
    assert generator.resolution == (16, 16)
    assert (generator.transformer.config.width, generator.transformer.config.rope_theta) == (32, 100.0)
    assert generator.cross_attention == "per-sample"
    moved = generator.transformer.state_dict()["blocks.0.mlp.up.weight"]
    source = tiny_transformer(**ODD).state_dict()["blocks.0.mlp.up.weight"]
    assert 0 < float((moved - source).abs().max()) < 0.1


def test_a_t5_reads_the_prompts_by_configuration(house: Path, tmp_path: Path) -> None:
    settings = config(house, text_encoder=str(house / "t5"), init_from="", tokenizer=str(house / "same"))
    model = train(settings, data=[str(house / "data/train")], out=tmp_path / "run")
    generator = build(model)
    assert isinstance(generator, StarGenerator)
    assert generator.text_encoder.kind.pool is mean_of_tokens
    assert generator.transformer.config.text_width == 16
    pictures = [generator.generate([prompt] * 3, seeds=[1, 2, 3]) for prompt in ("a red circle", "a blue star")]
    assert not torch.equal(*pictures)


def test_an_aligned_tokenizer_is_accepted_and_its_scale_made_up_for(house: Path, tmp_path: Path) -> None:
    other = at(tiny_tokenizer(seed=1), FINER)
    other.aligned_to = AlignedTo(digest=tiny_tokenizer().digest, scale=8.0)
    other.save(tmp_path / "aligned", card="")
    model, _ = started(house, str(tmp_path / "aligned"))
    name, source = "input_projection.weight", tiny_transformer(**ODD).state_dict()
    torch.testing.assert_close(model.state_dict()[name], 8 * source[name])
    assert torch.equal(model.state_dict()["head.weight"], source["head.weight"])

    other.aligned_to = AlignedTo(digest="another", scale=8.0)
    other.save(tmp_path / "foreign", card="")
    with pytest.raises(InputError, match="--align-to="):
        started(house, str(tmp_path / "foreign"))
