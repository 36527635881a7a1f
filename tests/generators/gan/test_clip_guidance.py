"""What StyleGAN-T learns from: hinge losses, CLIP's guidance, the blur; values, and gradients in float64."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from star.data.errors import InputError
from star.data.images import pixels_to_pil
from star.generators.gan.clip_guidance import ClipGuidance, blur, blur_sigma, squared_angles
from star.generators.gan.losses import hinge_discriminator, hinge_fake, hinge_generator, hinge_real

GUIDE_EMOJI = Path(__file__).parents[3] / "star" / "weights" / "guide-emoji"
SIDES = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 16}
MEAN, DEVIATION = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one layer each with random weights, saved with its preprocessing."""
    folder = tmp_path_factory.mktemp("clip")
    shared = {"num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**shared, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 20},
            vision_config={**shared, **SIDES},
            projection_dim=6,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():  # transformers starts near zero, where all pictures look alike
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": DEVIATION}))
    return folder


def texts(batch: int) -> Tensor:
    drawn_BP = torch.randn(batch, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return F.normalize(drawn_BP, dim=1)


# ---- hinge


def test_hinge_losses() -> None:
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-3.0, 0.0], [1.0, -0.5]])
    assert float(hinge_real(real)) == (0 + 0.5 + 2 + 0) / 4
    assert float(hinge_fake(fake)) == (0 + 1 + 2 + 0.5) / 4
    assert float(hinge_discriminator(real, fake)) == float(hinge_real(real) + hinge_fake(fake))
    assert float(hinge_generator(fake)) == -(-3 + 0 + 1 - 0.5) / 4
    for loss in (lambda n: hinge_discriminator(real, fake, n), lambda n: hinge_generator(fake, n)):
        assert float(loss(8)) == float(loss(1)) / 8


def test_hinge_gradients() -> None:
    torch.manual_seed(0)
    real, fake = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda real, fake: hinge_discriminator(real, fake, 3), (real, fake))
    assert torch.autograd.gradcheck(hinge_generator, fake)
    settled = torch.tensor([1.5, -1.5], requires_grad=True)
    hinge_discriminator(settled[:1], settled[1:]).backward()
    assert settled.grad is not None
    assert not settled.grad.any()  # what is told apart with a margin teaches nothing


# ---- angles and CLIP


def test_squared_angles() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    other = torch.tensor([[0.0, 2.0], [1.0, math.sqrt(3)], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([math.pi / 2, math.pi / 3, 0.0, math.pi], dtype=torch.float64).square()
    torch.testing.assert_close(squared_angles(one, other), expected, rtol=1e-6, atol=1e-6)


def test_angles_have_gradients() -> None:
    torch.manual_seed(0)
    one, other = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(squared_angles, (one, other))
    for sign in (1, -1):  # where the arc cosine itself has none
        same = torch.randn(5, 4, requires_grad=True)
        squared_angles(same, sign * same.detach()).sum().backward()
        assert same.grad is not None
        assert same.grad.isfinite().all()


def test_guidance_is_the_angle_that_clip_sees(clip: Path) -> None:
    model = CLIPModel.from_pretrained(clip).double()
    torch.manual_seed(0)
    image_B3HW = torch.rand(4, 3, 8, 8, dtype=torch.float64) * 2 - 1
    mean, deviation = (torch.tensor(numbers).double()[:, None, None] for numbers in (MEAN, DEVIATION))
    normed = (image_B3HW * 0.5 + 0.5 - mean) / deviation
    vectors_BP = model.visual_projection(model.vision_model(normed).pooler_output)
    cosine_B = F.cosine_similarity(vectors_BP, texts(4))
    guidance = ClipGuidance(clip).double()
    torch.testing.assert_close(guidance(image_B3HW, texts(4)), cosine_B.acos().square().mean(), rtol=1e-6, atol=1e-6)


def test_guidance_of_larger_pictures(clip: Path) -> None:
    """Up to 64 pixels they are averaged down whole; of larger ones a random square of 64 is."""
    guidance = ClipGuidance(clip).double()
    torch.manual_seed(0)
    small = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    large = small.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    torch.testing.assert_close(guidance(large, texts(2)), guidance(small, texts(2)))
    tiled = F.pad(large, (16, 16, 16, 16))
    seen = [float(guidance(tiled, texts(2))) for _ in range(8)]
    assert len(set(seen)) > 1
    torch.manual_seed(4)
    once = guidance(tiled, texts(2))
    torch.manual_seed(4)
    top, left = (int(torch.randint(33, ())) for _ in range(2))
    torch.testing.assert_close(once, guidance(tiled[:, :, top : top + 64, left : left + 64], texts(2)))


def test_guidance_gradients(clip: Path) -> None:
    guidance = ClipGuidance(clip).double()
    torch.manual_seed(0)
    image_B3HW = (torch.rand(1, 3, 8, 8, dtype=torch.float64) * 2 - 1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda image_B3HW: guidance(image_B3HW, texts(1)), image_B3HW)


def test_descending_brings_a_picture_nearer_to_its_text(clip: Path) -> None:
    guidance = ClipGuidance(clip)
    torch.manual_seed(0)
    image_B3HW = (torch.rand(2, 3, 8, 8) * 2 - 1).requires_grad_(True)
    optimizer = torch.optim.Adam([image_B3HW], lr=0.05)
    losses = []
    for _ in range(30):
        loss = guidance(image_B3HW, texts(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_clip_stays_frozen(clip: Path) -> None:
    guidance = ClipGuidance(clip).train()
    assert not guidance.training
    assert not any(parameter.requires_grad for parameter in guidance.parameters())


def test_a_missing_or_incomplete_clip_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere/none is neither a folder here nor a hub repository within reach"):
        ClipGuidance("nowhere/none")
    shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
    tensors = load_file(clip / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights of its image backbone, visual_projection\.weight first of 1"):
        ClipGuidance(tmp_path)
    save_file(tensors | {"visual_projection.weight": torch.zeros(5, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="could not be loaded as an image backbone"):
        ClipGuidance(tmp_path)
    shutil.copy(clip / "model.safetensors", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"preprocessor_config\.json does not tell image_mean and image_std"):
        ClipGuidance(tmp_path)


def test_guide_emoji_sees_what_its_processor_shows_it() -> None:
    guidance = ClipGuidance(GUIDE_EMOJI)
    torch.manual_seed(0)
    pixels_B3HW = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    processor = CLIPImageProcessorPil.from_pretrained(GUIDE_EMOJI)
    expected = processor([pixels_to_pil(pixels) for pixels in pixels_B3HW], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(guidance.preprocessing(pixels_B3HW / 127.5 - 1), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        model = CLIPModel.from_pretrained(GUIDE_EMOJI, dtype=torch.float32)
        same_BP = model.visual_projection(model.vision_model(expected).pooler_output)
        assert float(guidance(pixels_B3HW / 127.5 - 1, same_BP)) < 1e-4


# ---- blur


def test_the_blur_fades() -> None:
    assert [blur_sigma(n, 32.0, 1_000_000) for n in (0, 250_000, 1_000_000, 2_000_000)] == [32.0, 24.0, 0.0, 0.0]
    assert blur_sigma(0, 32.0, 1000) == 0.0
    image_B3HW = torch.randn(1, 3, 4, 4)
    assert blur(image_B3HW, 0.0) is image_B3HW
    assert blur(image_B3HW, 0.33) is image_B3HW


@pytest.mark.parametrize("sigma", [0.4, 1.7, 9.0])
def test_blur_is_a_convolution(sigma: float) -> None:
    torch.manual_seed(0)
    image_B3HW = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    reach = math.floor(3 * sigma)
    taps = torch.tensor([2.0 ** -((i / sigma) ** 2) for i in range(-reach, reach + 1)], dtype=torch.float64)
    taps = taps / taps.sum()
    kernel = torch.outer(taps, taps).expand(3, 1, -1, -1)
    expected = F.conv2d(image_B3HW, kernel, padding=reach, groups=3)
    torch.testing.assert_close(blur(image_B3HW, sigma), expected)


def test_blur_gradients() -> None:
    image_B3HW = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image_B3HW: blur(image_B3HW, 1.3), image_B3HW)
