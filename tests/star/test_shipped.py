"""The weights that ship: they load, draw the same picture in any company, stay small, and carry their attribution."""

from pathlib import Path

import pytest
import torch

import star
from star.generators.registry import build, recommended

WEIGHTS = Path(star.__path__[0]) / "weights"
RIVALS = ("stylegan-t-emoji", "stylenat-emoji", "styleformer-emoji")
HOLDERS = ("Google", "C1710", "Twitter", "EmojiTwo", "Mozilla", "Microsoft", "Streamline", "emojibase")


@pytest.mark.parametrize("name", ["star-emoji", *RIVALS])
def test_it_draws_the_same_alone_and_in_a_batch_of_seven_in_another_order(name: str) -> None:
    generator = build(name)
    options = recommended(name)
    prompts = [f"a {colour} heart, noto emoji style" for colour in ("red", "blue", "green", "white", "black")] + [
        "",
        "a cat",
    ]
    together = generator.generate(prompts[::-1], seeds=list(range(7))[::-1], options=options).flip(0)
    for index in (0, 4, 5):
        alone = generator.generate([prompts[index]], seeds=[index], options=options)
        assert torch.equal(alone[0], together[index])
    assert together.shape == (7, 3, *generator.resolution)
    assert len({picture.numpy().tobytes() for picture in together}) == 7


def test_a_red_and_a_blue_heart_differ_in_the_colour_asked_for() -> None:
    generator = build("star-emoji")
    pixels = generator.generate(
        ["a red heart, noto emoji style", "a blue heart, noto emoji style"] * 2,
        seeds=[0, 0, 1, 1],
        options=recommended("star-emoji"),
    ).double()
    redness = pixels[:, 0].mean((1, 2)) - pixels[:, 2].mean((1, 2))
    assert redness[0::2].mean() > redness[1::2].mean() + 20


@pytest.mark.parametrize("name", RIVALS)
def test_a_moved_seed_moves_the_picture_and_a_moved_prompt_its_colours(name: str) -> None:
    generator, options = build(name), recommended(name)
    prompts = ["a red heart, noto emoji style"] * 8 + ["a dog, drawn as a black silhouette icon"] * 8
    pixels = generator.generate(prompts, seeds=[*range(8)] * 2, options=options).double()
    assert len({picture.numpy().tobytes() for picture in pixels}) == 16
    redness = (pixels[:, 0] - pixels[:, 1:].mean(dim=1)).clamp(min=0).mean((1, 2))
    assert redness[:8].mean() > redness[8:].mean() + 10


def test_weights_stay_small_and_their_cards_name_whose_art_they_learnt_from() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 120e6
    folders = sorted(path for path in WEIGHTS.iterdir() if path.is_dir())
    assert folders
    for folder in folders:
        card = (folder / "README.md").read_text()
        missing = [holder for holder in HOLDERS if holder not in card]
        assert not missing, f"{folder.name}: {missing}"
