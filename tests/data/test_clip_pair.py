"""Pairs of towers: a CLIPModel and dual encoders give the library's own vectors, convolutional ones included."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    ConvNextConfig,
    ResNetConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from star.data.clip_pair import image_vectors, pair_class, text_vectors
from star.data.errors import InputError
from star.data.text import TextEncoder, text_projection
from star.eval.metrics.alignment import ClipScorer
from star.generators.gan.backbones import round_towers
from star.generators.gan.clip_guidance import ClipGuidance
from star.generators.pretrained import digest
from tests.data.test_text import PROMPTS, clip_encoder, clip_tokenizer, clip_tower, text_config

IDS_BT = torch.tensor([[0, 4, 9, 6, 1], [0, 7, 1, 1, 1]])
MASK_BT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def resnet() -> dict[str, Any]:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    return config.to_dict() | {"hidden_size": 8, "image_size": 16}


def convnext() -> dict[str, Any]:
    """Its pooled state is flat, so that the library projects it itself."""
    config = ConvNextConfig(num_stages=2, hidden_sizes=[4, 8], depths=[1, 1], patch_size=2, image_size=16)
    return config.to_dict() | {"hidden_size": 8}


def dual(vision: dict[str, Any], text: dict[str, Any] | None = None) -> VisionTextDualEncoderModel:
    torch.manual_seed(0)
    towers: dict[str, Any] = {"vision_config": vision, "text_config": text or text_config().to_dict()}
    model = VisionTextDualEncoderModel(VisionTextDualEncoderConfig(projection_dim=6, **towers)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # the library starts near zero, where all pictures look alike
            parameter.mul_(5 if "projection" in name else 1)
    return model


def save(folder: Path, model: VisionTextDualEncoderModel) -> Path:
    """As `star train clip` writes a pair: towers, tokenizer, image processor."""
    model.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    sides: dict[str, Any] = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, **sides).save_pretrained(folder)
    return folder


def pictures(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_vectors_are_the_library_s_own() -> None:
    sides = {"image_size": 8, "patch_size": 4, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    whole = CLIPModel(CLIPConfig(text_config=text_config().to_dict(), vision_config=sides, projection_dim=6)).eval()
    for model, side in ((whole, 8), (dual(convnext()), 16)):
        image_B3HW = torch.randn(2, 3, side, side)
        expected_BD = model.get_image_features(pixel_values=image_B3HW).pooler_output
        torch.testing.assert_close(image_vectors(model, image_B3HW), expected_BD)
        expected_BD = model.get_text_features(input_ids=IDS_BT, attention_mask=MASK_BT).pooler_output
        torch.testing.assert_close(text_vectors(model, IDS_BT, MASK_BT), expected_BD)


@torch.no_grad()
def test_what_the_library_cannot_project_is_projected() -> None:
    """A residual network pools to (B, C, 1, 1)."""
    model, image_B3HW = dual(resnet()), torch.randn(2, 3, 16, 16)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.get_image_features(pixel_values=image_B3HW)
    pooled_BC = model.vision_model(image_B3HW).last_hidden_state.mean(dim=(2, 3))
    torch.testing.assert_close(image_vectors(model, image_B3HW), pooled_BC @ model.visual_projection.weight.T)


@pytest.mark.parametrize("vision", [resnet, convnext])
def test_a_dual_encoder_scores_guides_and_encodes(vision: Any, tmp_path: Path) -> None:
    model = dual(vision())
    model.text_model.load_state_dict(clip_tower().state_dict())
    scorer = ClipScorer(save(tmp_path, model))
    expected_BD = F.normalize(image_vectors(model, pictures() / 127.5 - 1).detach(), dim=-1)
    torch.testing.assert_close(scorer.images(pictures()), expected_BD, atol=1e-5, rtol=0)
    assert scorer.width == 6
    assert scorer.texts(PROMPTS).shape == (len(PROMPTS), 6)
    assert scorer.digest != digest({}, model.state_dict())

    guidance = ClipGuidance(tmp_path)
    image_B3HW = (pictures() / 127.5 - 1).requires_grad_()
    loss = guidance(image_B3HW, scorer.texts(PROMPTS[:1]).expand(3, 6))
    cosine_B = expected_BD @ scorer.texts(PROMPTS[:1])[0]
    torch.testing.assert_close(loss, cosine_B.acos().square().mean(), atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(loss, image_B3HW)
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0
    round_towers(guidance)
    rounded = guidance(image_B3HW, scorer.texts(PROMPTS[:1]).expand(3, 6))
    torch.testing.assert_close(rounded, loss, atol=0.05, rtol=0)

    encoder = TextEncoder.from_pretrained(tmp_path)
    assert encoder.digest == clip_encoder().digest
    assert torch.equal(encoder.encode(PROMPTS).pooled_BD, clip_encoder().encode(PROMPTS).pooled_BD)
    projection_PD = text_projection(tmp_path)
    assert projection_PD is not None
    assert torch.equal(projection_PD, model.text_projection.weight)


def test_another_text_tower_than_clip_s_scores_but_conditions_nothing(tmp_path: Path) -> None:
    bert = BertConfig(
        vocab_size=len(clip_tokenizer()),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    folder = save(tmp_path, dual(convnext(), bert.to_dict()))
    assert ClipScorer(folder).texts(PROMPTS).isfinite().all()
    with pytest.raises(InputError, match="pairs pictures with another text tower than CLIP's"):
        TextEncoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("vision_config", {"model_type": "detr"}),
        ("vision_config", None),
        ("text_config", {"model_type": "llama"}),
        ("text_config", {}),
    ],
)
def test_towers_of_unknown_kinds_are_refused(part: str, value: object, tmp_path: Path) -> None:
    folder = save(tmp_path, dual(resnet()))
    values = json.loads((folder / "config.json").read_text())
    values[part] = value
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"has a {part} of a .* model, expected one of"):
        pair_class(folder)
    with pytest.raises(InputError, match=f"has a {part} of a "):
        ClipScorer(folder)


def test_a_dual_encoder_may_not_bring_code(tmp_path: Path) -> None:
    folder = save(tmp_path, dual(resnet()))
    values = json.loads((folder / "config.json").read_text())
    values["vision_config"]["auto_map"] = {"AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="auto_map"):
        pair_class(folder)
    values["vision_config"] = resnet() | {"depths": [1, 10**9]}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="depths"):
        pair_class(folder)


def test_a_text_side_is_described_as_in_a_clip(tmp_path: Path) -> None:
    """The sizes of a dual encoder's text tower are read from text_config, not from the top."""
    wide = CLIPTextConfig(**(text_config().to_dict() | {"max_position_embeddings": 7}))
    folder = save(tmp_path, dual(resnet(), wide.to_dict()))
    assert TextEncoder.from_pretrained(folder).max_tokens == 7
