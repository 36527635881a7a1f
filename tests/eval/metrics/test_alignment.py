"""CLIP scores through the clip that ships: conventions, PNG, PickScore's temperature, HPS v2's preparation."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from star.data.errors import InputError
from star.data.images import pil_to_pixels, pixels_to_pil, read_png, save_png
from star.eval.extractors.extractor import Extractor, TextExtractor, extractor, shipped
from star.eval.metrics.alignment import ClipScorer, products

PROMPTS = ["a red heart, noto emoji style", "a blue car, twemoji style", "a green apple, blob emoji style"]


def pictures(height: int, width: int, count: int = 3) -> Tensor:
    """Smooth colours, so that a resize does not average all to grey."""
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def clip() -> ClipScorer:
    return ClipScorer(shipped("clip-emoji"))


def test_a_score_is_the_product_of_unit_rows(clip: ClipScorer) -> None:
    image, text = clip.images(pictures(64, 64)), clip.texts(PROMPTS)
    assert image.shape == text.shape == (3, clip.width)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(products(image, text), torch.nn.functional.cosine_similarity(image, text))


def test_a_tensor_and_the_png_of_it_score_the_same(clip: ClipScorer, tmp_path: Path) -> None:
    pixels = pictures(50, 80)
    for index, picture in enumerate(pixels):
        save_png(picture, tmp_path / f"{index}.png")
    back = torch.stack([read_png(tmp_path / f"{index}.png") for index in range(len(pixels))])
    assert torch.equal(clip.images(back), clip.images(pixels))


def test_rows_are_those_of_the_model_itself(clip: ClipScorer) -> None:
    """Prepared by hand: 64 x 64, [-1, 1]; tokens without padding."""
    pixels = pictures(64, 64)
    with torch.no_grad():
        state = clip.model.vision_model(pixel_values=pixels / 127.5 - 1).pooler_output.flatten(1)
        image = clip.model.visual_projection(state)
        ids = clip.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
        text = clip.model.text_projection(clip.model.text_model(input_ids=ids).pooler_output)
    torch.testing.assert_close(clip.images(pixels), torch.nn.functional.normalize(image), atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.texts(PROMPTS[:1]), torch.nn.functional.normalize(text), atol=1e-5, rtol=0)


def test_pick_score_carries_the_temperature(clip: ClipScorer) -> None:
    subset = extractor(f"pick:{shipped('clip-emoji')}")
    assert isinstance(subset, TextExtractor)
    scale = float(clip.model.logit_scale.exp())
    assert scale > 1.5
    pixels = pictures(64, 64)
    torch.testing.assert_close(
        products(subset(pixels), subset.texts(PROMPTS)), scale * products(clip.images(pixels), clip.texts(PROMPTS))
    )
    assert subset.digest != clip.digest


def test_hps_sees_all_of_a_wide_picture_and_reads_what_entities_mean(clip: ClipScorer) -> None:
    hps = extractor(f"hps:{shipped('clip-emoji')}")
    assert isinstance(hps, TextExtractor)
    wide = pictures(32, 64, count=1)
    padded = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    padded[:, :, 16:48] = wide
    torch.testing.assert_close(hps(wide), clip.images(padded), atol=1e-5, rtol=0)
    assert (hps(wide) - clip.images(wide)).abs().max() > 1e-2  # which cuts
    square = pictures(64, 64)
    torch.testing.assert_close(hps(square), clip.images(square))
    torch.testing.assert_close(hps.texts(["salt &amp;amp; pepper "]), clip.texts(["salt & pepper"]))
    assert (clip.texts(["salt &amp;amp; pepper"]) - clip.texts(["salt & pepper"])).abs().max() > 1e-2
    assert hps.digest != clip.digest


def test_the_shorter_side_is_resized_with_antialiasing_and_the_middle_taken(clip: ClipScorer) -> None:
    tall = pictures(192, 128, count=1)
    box = (0, 32, 128, 160)
    cut = pixels_to_pil(tall[0]).resize((64, 64), Image.Resampling.LANCZOS, box=box)
    torch.testing.assert_close(clip.images(tall), clip.images(pil_to_pixels(cut)[None]), atol=3e-2, rtol=0)


def test_stripes_become_grey(clip: ClipScorer) -> None:
    """The mistake: torch's interpolate without antialias, through which fine stripes become coarse ones."""
    stripes = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    stripes[..., ::3] = 255
    grey = clip.images(torch.full((1, 3, 64, 64), 85, dtype=torch.uint8))
    aliased = torch.nn.functional.interpolate(stripes.float(), (64, 64), mode="bilinear").to(torch.uint8)
    assert products(clip.images(stripes), grey) > 0.98
    assert products(clip.images(aliased), grey) < 0.96


def test_an_extractor_knows_its_name_and_width(clip: ClipScorer) -> None:
    named: Extractor = extractor("clip-emoji")
    assert (named.name, named.width, named.digest) == ("clip-emoji", clip.width, clip.digest)
    assert named.resize == "lanczos-antialias 64x64 cut"


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        extractor(f"clip:{tmp_path}")
