"""The model as a function: what a call gives, what it refuses, and what it does with a picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import star
from star.data.errors import InputError
from star.editing import encode_picture, given_coarse, given_outside, scales_of, to_pixels
from star.generator import StarGenerator
from star.generators.protocol import SampleOptions
from star.generators.registry import build
from star.pipeline import Pipeline

OPTIONS = SampleOptions(guidance_scale=2.0, top_p=0.9)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(StarGenerator.for_test(), OPTIONS)


@pytest.fixture(scope="module")
def picture(pipe: Pipeline) -> torch.Tensor:
    return pipe("a dog", seed=7).pixels[0]


def test_a_call_draws_what_the_generator_draws(pipe: Pipeline) -> None:
    drawn = pipe(["a dog", "a cat"], num_images_per_prompt=2, seed=3)
    assert (drawn.prompts, drawn.seeds) == (["a dog", "a dog", "a cat", "a cat"], [3, 4, 3, 4])
    wanted = pipe.generator.generate(drawn.prompts, seeds=drawn.seeds, options=OPTIONS)
    assert torch.equal(drawn.pixels, wanted)
    assert [image.size for image in drawn.images] == [pipe.resolution[::-1]] * 4
    assert np.array_equal(np.asarray(drawn.images[2]), wanted[2].permute(1, 2, 0).numpy())
    assert torch.equal(pipe(["a dog", "a cat"], seed=[3, 9], batch_size=1).pixels[0], wanted[0])


def test_seeds_come_from_a_generator_or_afresh_and_are_told(pipe: Pipeline) -> None:
    first, again = (pipe("a dog", generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.seeds == again.seeds
    assert torch.equal(first.pixels, again.pixels)
    fresh = pipe("a dog")
    assert torch.equal(pipe("a dog", seed=fresh.seeds[0]).pixels, fresh.pixels)


def test_outputs_are_in_the_usual_ranges(pipe: Pipeline) -> None:
    pt, array = pipe("a dog", seed=1, output_type="pt").images, pipe("a dog", seed=1, output_type="np").images
    assert (pt.dtype, array.dtype) == (torch.float32, np.float32)
    assert 0 <= float(pt.min()) <= float(pt.max()) <= 1
    assert np.allclose(array[0], pt[0].permute(1, 2, 0).numpy())


def test_guidance_scale_is_the_usual_one(pipe: Pipeline) -> None:
    assert pipe("a dog", seed=1, guidance_scale=1).options.guidance_scale == 1
    strong = pipe("a dog", seed=1, guidance_scale=4.0)
    assert strong.options.guidance_scale == 4.0
    assert torch.equal(
        strong.pixels,
        pipe.generator.generate(["a dog"], seeds=[1], options=SampleOptions(guidance_scale=4.0, top_p=0.9)),
    )


def test_a_negative_prompt_leads_away_and_an_empty_one_changes_nothing(pipe: Pipeline) -> None:
    plain = pipe("a dog", seed=1, guidance_scale=5.0).pixels
    assert torch.equal(pipe("a dog", seed=1, guidance_scale=5.0, negative_prompt="").pixels, plain)
    away = pipe(["a dog", "a cat"], seed=1, guidance_scale=5.0, negative_prompt=["blue sky", ""]).pixels
    assert not torch.equal(away[0], plain[0])
    assert torch.equal(away[1], pipe("a cat", seed=1, guidance_scale=5.0).pixels[0])
    with pytest.raises(InputError, match="negative prompt needs guidance"):
        pipe("a dog", seed=1, guidance_scale=1, negative_prompt="a cat")


def test_the_callback_sees_the_picture_grow_to_what_is_drawn(pipe: Pipeline) -> None:
    seen: list[tuple[int, Image.Image]] = []
    drawn = pipe("a dog", seed=1, callback_on_scale=lambda k, image: seen.append((k, image)))
    assert [k for k, _ in seen] == list(range(pipe.generator.tokenizer.schedule.count))  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(seen[-1][1]), np.asarray(drawn.images[0]))
    assert torch.equal(drawn.pixels, pipe("a dog", seed=1).pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "expected a string or a list"),
        ({"prompt": [3]}, "expected a string or a list"),
        ({"truncation": 0.5}, "truncation was given to a model that has no use for it"),
        ({"temprature": 0.5}, "temprature is no option of drawing; did you mean temperature"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5, expected a number of at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"height": 4096}, "expected 8 x 8"),
        ({"output_type": "latent"}, "expected pil, pt or np"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 pictures"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1, "generator": torch.Generator()}, "both given"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts were given for 1"),
    ],
)
def test_a_wrong_argument_gets_a_sentence(pipe: Pipeline, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe(**({"prompt": "a dog"} | arguments))


def test_variations_keep_the_coarse_codes(pipe: Pipeline, picture: torch.Tensor) -> None:
    assert isinstance(pipe.generator, StarGenerator)
    count = 2
    codes = encode_picture(pipe.generator, picture)
    seen: list[torch.Tensor] = []
    pipe.generator.generate(
        ["a cat"],
        seeds=[5],
        options=OPTIONS,
        given=given_coarse(codes, count, 1),
        watch=lambda k, logits, chosen: seen.append(chosen),
    )
    assert all(torch.equal(own, kept) for own, kept in zip(seen[:count], codes[:count], strict=True))
    assert any(not torch.equal(own, kept) for own, kept in zip(seen[count:], codes[count:], strict=True))


def test_to_keep_all_is_the_tokenizers_picture_and_to_keep_none_is_a_new_one(
    pipe: Pipeline, picture: torch.Tensor
) -> None:
    assert isinstance(pipe.generator, StarGenerator)
    tokenizer = pipe.generator.tokenizer
    kept = pipe.vary(picture, "a cat", strength=0.0, seed=1).pixels
    codes = encode_picture(pipe.generator, picture)
    assert torch.equal(kept, tokenizer.latent_to_pixels(tokenizer.quantizer.decode(codes)))
    assert torch.equal(pipe.vary(picture, "a cat", keep=0, seed=1).pixels, pipe("a cat", seed=1).pixels)
    several = pipe.vary(picture, "a cat", keep=1, num_images=3, seed=1)
    assert several.seeds == [1, 2, 3]
    assert torch.equal(several.pixels[1], pipe.vary(picture, "a cat", keep=1, seed=2).pixels[0])


def test_inpainting_changes_no_pixel_outside_the_mask(pipe: Pipeline, picture: torch.Tensor) -> None:
    assert isinstance(pipe.generator, StarGenerator)
    H, W = pipe.resolution
    mask = torch.zeros(3, H, W, dtype=torch.uint8)
    mask[:, : H // 2, : W // 2] = 255
    drawn = pipe.inpaint(picture, mask, "a cat", seed=3).pixels[0]
    assert torch.equal(drawn[:, H // 2 :], picture[:, H // 2 :])
    assert torch.equal(drawn[:, :, W // 2 :], picture[:, :, W // 2 :])
    assert not torch.equal(drawn, picture)
    given = given_outside(
        encode_picture(pipe.generator, picture), pipe.generator.tokenizer.schedule, mask[0] > 0, pictures=1
    )
    finest = given.known[-1].view(pipe.generator.tokenizer.schedule.finest, -1)
    half = len(finest) // 2
    assert not finest[:half, :half].any()
    assert finest[half:].all()
    assert finest[:, half:].all()
    with pytest.raises(InputError, match="covers nothing"):
        pipe.inpaint(picture, mask * 0, "a cat")


def test_outpainting_keeps_the_picture_in_the_middle(pipe: Pipeline, picture: torch.Tensor) -> None:
    drawn = pipe.outpaint(picture, "a cat", margin=0.25, seed=3).pixels[0]
    H, W = pipe.resolution
    small = to_pixels(picture, (H // 2, W // 2))
    assert torch.equal(drawn[:, H // 4 : H - H // 4, W // 4 : W - W // 4], small)
    with pytest.raises(InputError, match=r"margin is 0\.5"):
        pipe.outpaint(picture, "a cat", margin=0.5)


@pytest.mark.parametrize(
    ("keep", "strength", "message"),
    [
        ("5x4", None, "expected a grid of this model"),
        (99, None, "keep is 99"),
        (1, 0.5, "both given"),
        (None, 1.5, "strength"),
    ],
)
def test_what_stays_is_checked(pipe: Pipeline, keep: int | str | None, strength: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scales_of(pipe.generator.tokenizer.schedule, keep, strength)  # type: ignore[attr-defined]


def test_other_families_say_that_they_cannot(picture: torch.Tensor) -> None:
    gan = Pipeline(build("styleformer-test"))
    with pytest.raises(InputError, match="no next-scale model"):
        gan.vary(picture)
    with pytest.raises(InputError, match="temperature was given to a model that has no use for it"):
        gan("", temperature=0.5)
    with pytest.raises(InputError, match="no next-scale model"):
        gan("a", callback_on_scale=lambda k, image: None)


def test_a_saved_pipeline_draws_the_same(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    again = star.load(str(tmp_path / "model"))
    assert again.options == pipe.options
    assert torch.equal(again("a dog", seed=2).pixels, pipe("a dog", seed=2).pixels)
    assert again.to("cpu", torch.float32)("a dog", seed=2).images[0].size == pipe.resolution[::-1]
    with pytest.raises(InputError, match="there is no model"):
        star.load("star-emojy")


# ---- other shapes than the square


def test_rectangles_are_drawn_by_size_by_aspect_and_in_any_batch(pipe: Pipeline) -> None:
    drawn = pipe(["a dog", "a cat"], seed=3, size="3:2")
    assert drawn.pixels.shape == (2, 3, 6, 10)
    assert [image.size for image in drawn.images] == [(10, 6)] * 2
    assert torch.equal(pipe("a cat", seed=3, height=6, width=10).pixels[0], drawn.pixels[1])
    assert torch.equal(pipe("a cat", seed=3, size="6x10", negative_prompt="").pixels[0], drawn.pixels[1])
    assert torch.equal(pipe("a cat", seed=3, height=8, width=8).pixels, pipe("a cat", seed=3).pixels)
    seen: list[Image.Image] = []
    pipe("a cat", seed=3, size="3:2", callback_on_scale=lambda k, image: seen.append(image))
    assert np.array_equal(np.asarray(seen[-1]), np.asarray(drawn.images[1]))
    for wrong, message in (
        ({"size": "3/2"}, "expected 56x84 or 3:2"),
        ({"size": "9:1"}, "expected 4 x 4, or a rectangle up to 4:1"),
        ({"height": 7}, "multiples of 2"),
        ({"size": "3:2", "width": 10}, "both given"),
    ):
        with pytest.raises(InputError, match=message):
            pipe("a dog", **wrong)


def test_a_model_of_squares_says_that_it_is_one(caplog: pytest.LogCaptureFixture) -> None:
    pipe = Pipeline(StarGenerator.for_test(), OPTIONS)
    pipe("a dog", seed=1)
    assert not caplog.records
    pipe("a dog", seed=1, size="2:1", num_images_per_prompt=2, batch_size=1)
    assert [record.getMessage() for record in caplog.records] == [
        "6 x 12 pixels are asked of a model trained on 8 x 8; it may not compose them well."
    ]


def test_rectangles_are_varied_and_inpainted(pipe: Pipeline) -> None:
    assert isinstance(pipe.generator, StarGenerator)
    wide = pipe("a dog", seed=3, size="3:2").pixels[0]
    tokenizer, size = pipe.generator.tokenizer, (6, 10)
    codes = encode_picture(pipe.generator, wide, size)
    kept = pipe.vary(wide, "a cat", strength=0.0, seed=1, size="3:2").pixels
    schedule = tokenizer.config.schedule_of(*size)
    assert torch.equal(kept, tokenizer.latent_to_pixels(tokenizer.quantizer.decode(codes, schedule=schedule)))
    none = pipe.vary(wide, "a cat", keep=0, seed=1, height=6, width=10).pixels
    assert torch.equal(none, pipe("a cat", seed=1, size="3:2").pixels)
    mask = torch.zeros(3, *size, dtype=torch.uint8)
    mask[:, :, 5:] = 255
    drawn = pipe.inpaint(wide, mask, "a cat", seed=3, size="3:2").pixels[0]
    assert torch.equal(drawn[:, :, :5], wide[:, :, :5])
    assert not torch.equal(drawn, wide)


def test_a_picture_is_extended_to_a_wider_canvas(pipe: Pipeline, picture: torch.Tensor) -> None:
    drawn = pipe.outpaint(picture, "a cat", seed=3, width=16).pixels[0]
    assert drawn.shape == (3, 8, 16)
    assert torch.equal(drawn[:, :, 4:12], picture)
    small = pipe.outpaint(picture, "a cat", seed=3, width=12, margin=0.25).pixels[0]
    assert torch.equal(small[:, 2:6, 3:9], to_pixels(picture, (4, 6)))


def test_a_type_is_said_by_its_name_too(tmp_path: Path) -> None:
    StarGenerator.for_test().save_pretrained(tmp_path / "m")
    by_name = Pipeline.from_pretrained(tmp_path / "m", dtype="bfloat16")
    assert torch.equal(
        by_name("a cup", seed=1).pixels,
        Pipeline.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)("a cup", seed=1).pixels,
    )
    assert torch.equal(
        by_name.to(dtype="float32")("a cup", seed=1).pixels,
        Pipeline.from_pretrained(tmp_path / "m", dtype="auto")("a cup", seed=1).pixels,
    )
    with pytest.raises(InputError, match=r"expected a torch\.dtype"):
        Pipeline.from_pretrained(tmp_path / "m", dtype="float16")
