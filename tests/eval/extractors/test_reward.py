"""ImageReward on a tiny BLIP, stored under the names of the released file, which are spelt out here."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from star.data.errors import InputError
from star.eval.extractors.reward import ImageReward, reward

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "heart", "star")
PIXELS = torch.randint(0, 256, (5, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PROMPTS = ["a red heart", "a blue star", "a", "red star red star", "a blue heart"]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def vision_name(name: str) -> str:
    """From transformers to the released file."""
    for ours, theirs in (
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("encoder.layers", "blocks"),
        ("layer_norm", "norm"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn.qkv", "attn.qkv"),
        ("post_layernorm", "norm"),
    ):
        name = name.replace(ours, theirs)
    return "blip.visual_encoder." + name


@pytest.fixture(scope="module")
def towers() -> tuple[BlipVisionModel, BlipTextModel, dict[str, Tensor]]:
    """Two towers of transformers, of 2 layers and 64 and 128 wide, and the head's matrices."""
    torch.manual_seed(0)
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=32,
            patch_size=16,
            layer_norm_eps=1e-6,
        )
    ).eval()
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=len(WORDS),
            hidden_size=128,
            encoder_hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=40,
            bos_token_id=None,
            eos_token_id=None,
            sep_token_id=None,
        ),
        add_pooling_layer=False,
    ).eval()
    for name, parameter in (*vision.named_parameters(), *text.named_parameters()):
        spread = 1.0 if "embedding" in name and "patch" not in name else 0.1
        parameter.data.copy_(torch.randn_like(parameter) * spread + ("orm" in name and "weight" in name))
    head = {}
    for place, (before, after) in zip((0, 2, 4, 6, 7), ((128, 32), (32, 16), (16, 8), (8, 4), (4, 1)), strict=True):
        head[f"{place}.weight"] = torch.randn(after, before) / before**0.5
        head[f"{place}.bias"] = torch.randn(after)
    return vision, text, head


@pytest.fixture(scope="module")
def released(
    tmp_path_factory: pytest.TempPathFactory, towers: tuple[BlipVisionModel, BlipTextModel, dict[str, Tensor]]
) -> Path:
    """A folder as the authors publish it, with BERT's tokenizer beside."""
    vision, text, head = towers
    folder = tmp_path_factory.mktemp("reward")
    tensors = {vision_name(name): tensor for name, tensor in vision.state_dict().items()}
    tensors |= {f"blip.text_encoder.{name}": tensor for name, tensor in text.state_dict().items()}
    tensors |= {f"mlp.layers.{name}": tensor for name, tensor in head.items()}
    tensors |= {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}
    tensors |= {"blip.vision_proj.weight": torch.zeros(4, 64), "blip.text_proj.bias": torch.zeros(4)}
    torch.save(tensors, folder / "ImageReward.pt")
    BertTokenizer(vocab=dict(zip(WORDS, range(len(WORDS)), strict=True))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(released: Path) -> ImageReward:
    return reward(str(released))


@torch.no_grad()
def expected(
    towers: tuple[BlipVisionModel, BlipTextModel, dict[str, Tensor]], pixels_3HW: Tensor, ids: list[int]
) -> float:
    """One prompt without padding; words see all words, and the picture."""
    vision, text, head = towers
    image_13HW = ((pixels_3HW / 255 - MEAN) / STD)[None]
    patches = vision(pixel_values=image_13HW).last_hidden_state
    state = text(input_ids=torch.tensor([ids]), encoder_hidden_states=patches, use_cache=False).last_hidden_state[0, 0]
    for place in (0, 2, 4, 6, 7):
        state = head[f"{place}.weight"] @ state + head[f"{place}.bias"]
    return (float(state) - 0.16717362830052426) / 1.0333394966054072


def test_the_released_names_give_the_network_of_transformers(
    classifier: ImageReward, towers: tuple[BlipVisionModel, BlipTextModel, dict[str, Tensor]]
) -> None:
    pixels = PIXELS[:2, :, :32, :32]  # the tower's own size: nothing is resized
    found = classifier(pixels, ["a red heart", "a blue star"])
    assert found.tolist() == pytest.approx(
        [expected(towers, pixels[0], [2, 5, 6, 8, 3]), expected(towers, pixels[1], [2, 5, 7, 9, 3])], abs=1e-4
    )
    assert abs(found[0] - found[1]) > 0.1  # more than the tolerance, so that names that are swapped would show


def test_a_score_belongs_to_a_picture_and_its_prompt(classifier: ImageReward) -> None:
    together = classifier(PIXELS, PROMPTS)
    assert together.shape == (5,)
    torch.testing.assert_close(classifier(PIXELS[2:4], PROMPTS[2:4]), together[2:4], atol=1e-4, rtol=0)
    torch.testing.assert_close(classifier(PIXELS, PROMPTS, chunk=2), together, atol=1e-4, rtol=0)
    assert (classifier(PIXELS, PROMPTS[::-1])[:2] - together[:2]).abs().min() > 1e-2
    assert (classifier(PIXELS.flip(0), PROMPTS)[:2] - together[:2]).abs().min() > 1e-2


def test_words_behind_the_35th_token_do_not_count(classifier: ImageReward) -> None:
    long = "red " * 33  # 35 with the first and the last token
    torch.testing.assert_close(classifier(PIXELS[:1], [long]), classifier(PIXELS[:1], [long + "blue star"]))


def test_as_many_prompts_as_pictures(classifier: ImageReward) -> None:
    with pytest.raises(ValueError, match="5 pictures and 4 prompts"):
        classifier(PIXELS, PROMPTS[:4])


def test_what_is_no_image_reward_is_named(released: Path, tmp_path: Path) -> None:
    tensors = torch.load(released / "ImageReward.pt")
    with pytest.raises(InputError, match=r"ImageReward\.pt"):
        reward(str(tmp_path))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "ImageReward.pt")
    with pytest.raises(InputError, match="does not hold an ImageReward"):
        reward(str(tmp_path))
    del tensors["blip.visual_encoder.blocks.1.attn.qkv.bias"]
    torch.save(tensors, tmp_path / "ImageReward.pt")
    with pytest.raises(InputError, match=re.escape("vision.encoder.layers.1.self_attn.qkv.bias")):
        reward(str(tmp_path))


def test_a_place_that_is_nowhere() -> None:
    with pytest.raises(InputError, match="no folder here"):
        reward("nobody/has-this-reward")


def test_the_digest_is_of_the_weights(classifier: ImageReward, released: Path, tmp_path: Path) -> None:
    tensors = torch.load(released / "ImageReward.pt")
    tensors["mlp.layers.7.bias"] += 1
    torch.save(tensors, tmp_path / "ImageReward.pt")
    for file in released.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    other = reward(str(tmp_path))
    assert other.digest != classifier.digest
    torch.testing.assert_close(
        other(PIXELS, PROMPTS), classifier(PIXELS, PROMPTS) + 1 / 1.0333394966, atol=1e-4, rtol=0
    )
