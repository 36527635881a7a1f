"""Retrieval among real pictures of a style: laws of the rank, chance, and the way through the metrics."""

import pytest
import torch

from star.eval.extractors.extractor import extractor
from star.eval.metrics.metric import Inputs
from star.eval.metrics.registry import alignment, plan_of
from star.eval.metrics.retrieval import Thumbnail, retrieval_ranks, style_of, styles_of

STYLES = ["noto" if i % 2 else "blob" for i in range(40)]
PROMPTS = [f"thing {i}, {style} emoji style" for i, style in enumerate(STYLES)]


def pictures(count: int, size: int = 64) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 255).to(torch.uint8)


def test_a_copy_finds_itself_and_noise_on_it_too() -> None:
    real = Thumbnail()(pictures(40))
    assert retrieval_ranks(real, real, STYLES).tolist() == [0] * 40
    assert retrieval_ranks(real + 0.01, real, STYLES).tolist() == [0] * 40


def test_only_pictures_of_the_same_style_compete() -> None:
    real = torch.arange(40.0).unsqueeze(1)
    drawn = real + 1  # exactly the next picture, which is of the other style; 1 away from its own and from i + 2
    assert retrieval_ranks(drawn, real, STYLES).max() == 0  # a tie of two counts half of one, rounded down
    assert retrieval_ranks(drawn, real, ["one for all"] * 40).tolist() == [1] * 39 + [0]


def test_the_rank_counts_those_that_are_nearer() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    drawn = torch.tensor([[9.0], [0.9], [10.0], [-5.0]])
    assert retrieval_ranks(drawn, real, ["a"] * 4).tolist() == [3, 0, 1, 3]


def test_features_that_tell_nothing_reach_chance_only() -> None:
    ranks = retrieval_ranks(torch.zeros(300, 2), torch.zeros(300, 2), ["a"] * 300)
    assert ranks.tolist() == [149] * 300
    ranks = retrieval_ranks(torch.rand(300, 2), torch.rand(300, 2), ["a"] * 300)  # two blocks of drawn pictures
    assert 100 < ranks.float().mean() < 200


def test_the_style_is_behind_the_last_comma() -> None:
    assert style_of("a flag, waving, noto emoji style") == "noto emoji style"
    assert style_of("a flag") == ""


def test_the_style_that_a_benchmark_names_comes_first() -> None:
    own = ["a" if i < 20 else "" for i in range(40)]
    assert styles_of(Inputs(prompts=PROMPTS)) == [f"{style} emoji style" for style in STYLES]
    assert styles_of(Inputs(prompts=PROMPTS, styles=own))[18:22] == ["a", "a", "blob emoji style", "noto emoji style"]
    real = torch.arange(40.0).unsqueeze(1)
    drawn = {"net": real + 1}  # the next picture of all, which is of the other style by the prompts
    for styles, share in ((STYLES, 1.0), (["one"] * 40, 1 / 40)):
        found = alignment(["retrieval_1/net"], PROMPTS, drawn, {}, {}, real={"net": real}, styles=styles, seed=0)
        assert found["retrieval_1/net"].mean() == pytest.approx(share)


def test_thumbnails_tell_colour_and_outline_at_any_size() -> None:
    small, large = Thumbnail()(pictures(4)), Thumbnail()(pictures(4, 128))
    assert small.shape == (4, Thumbnail.width)
    assert (small - large).abs().max() < 0.05
    plain = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    features = Thumbnail()(plain)
    torch.testing.assert_close(features[:, :768], torch.full((1, 768), 200 / 255))
    assert features[:, 768:].abs().max() == 0


def test_metrics_ask_for_references_and_no_prompts() -> None:
    wanted = ["retrieval_1/thumbnail", "retrieval_5/thumbnail"]
    plan = plan_of(wanted)
    assert (plan.generated, plan.references, plan.texts) == (("thumbnail",), ("thumbnail",), ())
    network = extractor("thumbnail")
    real = network(pictures(40))
    drawn = real.roll(2, dims=0)  # each shows another one of its style
    found = alignment(wanted, PROMPTS, {"thumbnail": drawn}, {}, {}, real={"thumbnail": real}, seed=0)
    assert found["retrieval_1/thumbnail"].sum() == 0
    assert found["retrieval_5/thumbnail"].sum() < 30
    same = alignment(wanted, PROMPTS, {"thumbnail": real}, {}, {}, real={"thumbnail": real}, seed=0)
    assert same["retrieval_1/thumbnail"].sum() == 40
