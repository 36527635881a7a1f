"""The studio: what it draws is what the models draw, it tells how, and nobody reaches another file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from star.data.errors import InputError
from star.data.images import read_png
from star.demo import studio as studio_module
from star.demo.studio import LONGEST_PROMPT, Studio, Wish
from star.pictures.record import Record
from star.pipeline import Pipeline

WISH = Wish(prompt="a red circle", seed=5, guidance=2.0)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(["star-test", "stylegan-t-test"], tmp_path_factory.mktemp("pictures"))


def test_a_picture_grows_scale_by_scale_into_what_the_model_draws(studio: Studio) -> None:
    frames = list(studio.grow(["star-test"], WISH))
    scales = frames[-1].scales
    assert [frame.scale for frame in frames] == [*range(1, scales + 1), scales]
    assert [bool(frame.key) for frame in frames] == [False] * scales + [True]
    drawn = Pipeline.from_pretrained("star-test")("a red circle", seed=5, guidance_scale=2.0)
    assert torch.equal(read_png(studio.path(frames[-1].key)), drawn.pixels[0])
    assert np.array_equal(np.asarray(frames[-1].image), np.asarray(drawn.images[0]))
    assert not np.array_equal(np.asarray(frames[0].image), np.asarray(drawn.images[0]))
    record = Record.read(studio.path(frames[-1].key))
    assert (record.prompt, record.seed, record.model) == ("a red circle", 5, "star-test")
    assert record.options["guidance_scale"] == 2.0


def test_several_models_draw_one_after_the_other_each_with_what_it_heeds(studio: Studio) -> None:
    wish = Wish(prompt="a dog", seed=1, guidance=3.0, more={"truncation": 0.5})
    frames = [frame for frame in studio.grow(["stylegan-t-test", "star-test"], wish) if frame.key]
    assert [frame.model for frame in frames] == ["stylegan-t-test", "star-test"]
    records = [Record.read(studio.path(frame.key)) for frame in frames]
    assert [record.options["truncation"] for record in records] == [0.5, 1.0]
    with pytest.raises(InputError, match="truncation was given to a model that has no use for it"):
        next(studio.grow(["star-test"], wish))


def test_variations_and_inpainting_keep_what_they_promise(studio: Studio) -> None:
    key = [frame.key for frame in studio.grow(["star-test"], WISH)][-1]
    grids = studio.grids("star-test")
    kept = studio.vary(key, "star-test", WISH, grids[-1], 2)
    again = studio.vary(key, "star-test", WISH, grids[0], 2)
    first, second = (read_png(studio.path(one)) for one in kept)
    assert torch.equal(first, second)  # all of its codes stayed
    assert not torch.equal(*(read_png(studio.path(one)) for one in again))
    assert Record.read(studio.path(again[1])).made_by == "vary"

    before = read_png(studio.path(key))
    mask = Image.new("L", (before.shape[2], before.shape[1]))
    mask.paste(255, (0, 0, 4, 8))
    painted = read_png(studio.path(studio.inpaint(key, "star-test", Wish(prompt="a blue square", seed=9), mask)))
    assert torch.equal(painted[:, :, 4:], before[:, :, 4:])
    assert not torch.equal(painted[:, :, :4], before[:, :, :4])


def test_a_picture_that_comes_back_tells_its_settings(studio: Studio, tmp_path: Path) -> None:
    key = [frame.key for frame in studio.grow(["star-test"], WISH)][-1]
    again, record = studio.take(studio.path(key))
    assert again != key
    assert record == Record.read(studio.path(again))
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="does not say how it was made"):
        studio.take(tmp_path / "plain.png")


@pytest.mark.parametrize(
    "key", ["", "x.png", "../secret.png", "/etc/passwd", "0" * 32 + "/../x.png", "0" * 32 + "/x.png"]
)
def test_no_other_file_is_reached(studio: Studio, key: str) -> None:
    (studio.folder / "secret.png").write_bytes(b"")
    with pytest.raises(InputError, match="no such picture"):
        studio.path(key)


@pytest.mark.parametrize(
    ("models", "wish", "message"),
    [
        (["star-test"], Wish(prompt="a" * (LONGEST_PROMPT + 1)), "501 characters, expected at most 500"),
        (["star-test"], Wish(prompt="a", seed=-1), "seed is -1"),
        (["star-test"], Wish(prompt="a", guidance=0.5), r"guidance_scale is 0\.5"),
        (["star-test"], Wish(prompt="a", more={"colour": 1}), "colour is no option"),
        (["star-test"] * 5, Wish(prompt="a"), "5 models were chosen"),
        ([], Wish(prompt="a"), "0 models were chosen"),
        (["nobody"], Wish(prompt="a"), "the model is 'nobody'"),
    ],
)
def test_what_is_out_of_bounds_is_one_sentence(studio: Studio, models: list[str], wish: Wish, message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(studio.grow(models, wish))


def test_a_gan_does_not_vary(studio: Studio) -> None:
    key = [frame.key for frame in studio.grow(["stylegan-t-test"], Wish(prompt="a", seed=1))][-1]
    assert [studio.varies(model) for model in studio.sources] == [True, False]
    assert studio.grids("stylegan-t-test") == []
    with pytest.raises(InputError, match="is no next-scale model"):
        studio.vary(key, "stylegan-t-test", Wish(prompt="a", seed=1), "1x1", 1)


def test_old_pictures_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio_module, "KEPT", 3)
    own = Studio(["star-test"], tmp_path)
    keys = [[frame.key for frame in own.grow(["star-test"], Wish(seed=seed))][-1] for seed in range(5)]
    assert len(list(tmp_path.rglob("*.png"))) == 3
    assert own.path(keys[-1]).is_file()
    with pytest.raises(InputError, match="any more"):
        own.path(keys[0])


def test_the_seed_of_chance_is_told(studio: Studio) -> None:
    wishes = [Wish(prompt="a").checked() for _ in range(3)]
    assert len({wish.seed for wish in wishes}) > 1
    assert json.loads(json.dumps(wishes[0].seed)) == wishes[0].seed
