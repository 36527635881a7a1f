"""From features to estimates: what is needed, what is left out, intervals, and that damage is noticed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from star.data.errors import InputError
from star.eval.metrics import distances
from star.eval.metrics.distances import Gaussian, frechet
from star.eval.metrics.manifold import precision_recall_density_coverage
from star.eval.metrics.registry import METRICS, Plan, alignment, metric, plan_of, score
from star.eval.metrics.resampling import counts, frechet_resamples

SETS = ("fd", "fd_infinity", "kid", "cmmd", "precision", "recall", "density", "coverage")
WANTED = tuple(f"{kind}/net" for kind in SETS)


def rows(count: int, width: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def overall(reference: Tensor, drawn: Tensor, bootstrap: int = 0) -> dict[str, float]:
    found = score(
        {"net": reference},
        {"net": drawn},
        ["a"] * len(drawn),
        WANTED,
        reference_categories=["a"] * len(reference),
        bootstrap=bootstrap,
        seed=0,
    )
    return {name.removesuffix("/net"): known.value for name, known in found["overall"].items()}


# --- names ---


def test_a_name_tells_kind_and_network() -> None:
    assert metric("clip_score/clip:some/model") is METRICS["clip_score"]
    with pytest.raises(InputError, match="did you mean fd"):
        metric("fdd/judge-emoji")
    with pytest.raises(InputError, match="names no network"):
        metric("fd")


def test_what_has_to_be_computed() -> None:
    wanted = ["fd/a", "clip_score/clip:x/y", "kid/a", "cmmd/clip:x/y", "prompt_rank_20/clip:z", "image_reward/x/y"]
    wanted += ["subject_1/judge:b", "subject_5/judge:b"]
    assert plan_of(wanted) == Plan(
        generated=("a", "clip:x/y", "clip:z", "judge:b"),
        references=("a", "clip:x/y"),
        texts=("clip:x/y", "clip:z"),
        labels=("judge:b",),
        rewards=("x/y",),
    )
    assert plan_of(["fid/inception-pytorch-fid"]).generated == ("inception-pytorch-fid",)


@pytest.mark.parametrize("name", ["fid/judge-emoji", "pick_score/clip:a", "hps_v2/pick:a"])
def test_a_number_of_another_network_has_another_name(name: str) -> None:
    with pytest.raises(InputError, match="number of another network"):
        plan_of([name])


# --- single pictures ---


def test_scores_of_single_pictures() -> None:
    prompts = [f"prompt {number}" for number in range(25)]
    images, texts = normalize(rows(25, 30)), normalize(rows(25, 30, seed=1))
    wanted = ["clip_score/a", "fd/a", "clip_score_100/a", "prompt_rank_20/a", "image_reward/r", "pick_score/pick:p"]
    values = alignment(
        wanted,
        prompts,
        {"a": images, "pick:p": images},
        {"a": texts, "pick:p": 90 * texts},
        {"r": rows(25, 1)[:, 0]},
        seed=0,
    )
    cosine = torch.nn.functional.cosine_similarity(images, texts)
    assert list(values) == [name for name in wanted if name != "fd/a"]
    torch.testing.assert_close(values["clip_score/a"], cosine)
    torch.testing.assert_close(values["clip_score_100/a"], 100 * cosine)
    torch.testing.assert_close(values["pick_score/pick:p"], 90 * cosine)
    torch.testing.assert_close(values["image_reward/r"], rows(25, 1)[:, 0])
    assert set(values["prompt_rank_20/a"].tolist()) <= {0.0, 1.0}
    own = alignment(["prompt_rank_20/a"], prompts, {"a": texts}, {"a": texts}, {}, seed=0)
    assert own["prompt_rank_20/a"].tolist() == [1.0] * 25


def test_fewer_than_20_prompts_have_no_rank() -> None:
    images = normalize(rows(19, 30))
    prompts = [f"prompt {number}" for number in range(19)]
    assert list(alignment(["prompt_rank_20/a", "clip_score/a"], prompts, {"a": images}, {"a": images}, {}, seed=0)) == [
        "clip_score/a"
    ]


def test_damage_is_noticed_by_the_metric_that_should() -> None:
    """Shuffled prompts leave the set as it is, so alignment alone falls; noise moves the set."""
    prompts = [f"prompt {number}" for number in range(60)]
    texts = normalize(rows(60, 8))
    good = normalize(texts + 0.2 * rows(60, 8, seed=1))
    other = normalize(texts + 0.2 * rows(60, 8, seed=2))
    shuffled, noisy = good.roll(1, dims=0), normalize(good + rows(60, 8, seed=3))
    wanted = ["fd/a", "clip_score/a", "prompt_rank_20/a"]
    found = {}
    for name, drawn in (("other", other), ("shuffled", shuffled), ("noisy", noisy)):
        values = alignment(wanted, prompts, {"a": drawn}, {"a": texts}, {}, seed=0)
        found[name] = score({"a": good}, {"a": drawn}, ["x"] * 60, wanted, values=values, bootstrap=0, seed=0)[
            "overall"
        ]
    assert found["shuffled"]["fd/a"].value == pytest.approx(0, abs=1e-9)
    for name in ("clip_score/a", "prompt_rank_20/a"):
        assert found["shuffled"][name].value < found["noisy"][name].value < found["other"][name].value
    assert found["noisy"]["fd/a"].value > 3 * found["other"]["fd/a"].value


# --- sets ---


def test_groups_are_scored_apart_and_without_numbers_for_too_few() -> None:
    drawn, reference = rows(40), rows(40, seed=1)
    categories = ["food"] * 25 + ["art"] * 14 + ["logo"]
    values = {"clip_score/c": torch.arange(40.0)}
    found = score(
        {"net": reference}, {"net": drawn}, categories, (*WANTED, "clip_score/c"), values=values, bootstrap=0, seed=0
    )
    assert list(found) == ["overall", "art", "food", "logo"]
    assert list(found["overall"]) == [*WANTED, "clip_score/c"]
    assert found["food"]["fd/net"].value == frechet(Gaussian.of(drawn[:25]), Gaussian.of(reference[:25]))
    assert found["art"]["clip_score/c"].value == pytest.approx(31.5)
    assert [found[group]["clip_score/c"].pictures for group in found] == [40, 14, 25, 1]
    assert list(found["logo"]) == ["clip_score/c"]  # one picture has no covariance and no neighbours
    assert "fd_infinity/net" in found["art"]
    small = score({"net": rows(8, seed=1)}, {"net": rows(8)}, ["a"] * 8, WANTED, bootstrap=0, seed=0)["overall"]
    assert "fd_infinity/net" not in small
    assert small.keys() == {name for name in WANTED if name != "fd_infinity/net"}


def test_references_may_be_others() -> None:
    drawn, reference = rows(30), rows(50, seed=1)
    others = ["b"] * 20 + ["a"] * 30
    found = score(
        {"net": reference}, {"net": drawn}, ["a"] * 30, ["fd/net"], reference_categories=others, bootstrap=0, seed=0
    )
    assert found["a"]["fd/net"].value == frechet(Gaussian.of(drawn), Gaussian.of(reference[20:]))
    with pytest.raises(ValueError, match="50 rows for 30 pictures"):
        score({"net": reference}, {"net": drawn}, ["a"] * 30, ["fd/net"], bootstrap=0, seed=0)


def test_precision_and_recall_are_not_swapped() -> None:
    """The drawn are a narrow part of the real, so precise; the first argument is the reference."""
    reference, drawn = rows(100), rows(100, seed=1) * 0.3
    found = overall(reference, drawn)
    assert found["precision"] > 0.95
    assert found["recall"] < 0.5
    manifold = precision_recall_density_coverage(reference, drawn)
    assert found["recall"] == float(manifold.recall_M.mean())


def test_all_metrics_agree_on_which_set_is_nearer() -> None:
    reference = rows(120)
    near, far = overall(reference, rows(120, seed=1)), overall(reference, rows(120, seed=1) + 1.5)
    for kind in SETS:
        assert (near[kind] < far[kind]) == (METRICS[kind].direction == "lower"), kind


def test_features_may_lie_in_files(tmp_path: Path) -> None:
    drawn, reference = rows(40), rows(40, seed=1)
    for name, features in (("drawn", drawn), ("reference", reference)):
        np.save(tmp_path / f"{name}.npy", features.numpy())
    mapped = {
        name: torch.from_numpy(np.load(tmp_path / f"{name}.npy", mmap_mode="c")) for name in ("drawn", "reference")
    }
    assert overall(mapped["reference"], mapped["drawn"], bootstrap=8) == overall(reference, drawn, bootstrap=8)


# --- intervals ---


def test_an_interval_surrounds_its_number_and_is_the_same_again() -> None:
    drawn, reference = rows(60), rows(60, seed=1) + 0.5
    values = {"clip_score/c": rows(60, 1)[:, 0]}
    wanted = (*WANTED, "clip_score/c")

    def run(bootstrap: int) -> dict:
        return score(
            {"net": reference}, {"net": drawn}, ["a"] * 60, wanted, values=values, bootstrap=bootstrap, seed=3
        )["overall"]

    found, plain = run(20), run(0)
    assert found == run(20)
    for name, known in found.items():
        assert known.low is not None
        assert known.high is not None
        assert known.low < known.value < known.high, name
        assert (plain[name].low, plain[name].high) == (None, None)


def test_resamples_of_frechet_are_those_of_the_rows_themselves() -> None:
    drawn, reference = rows(30), rows(50, seed=1)
    for width in (4, 2):  # the reference may be singular
        reference[:, width:] = 0
        gaussian = Gaussian.of(reference)
        weights_NR = counts(30, 11, seed=5)
        assert (weights_NR.sum(dim=0) == 30).all()
        expected = [
            frechet(Gaussian.of(drawn.repeat_interleave(weights_NR[:, r].long(), dim=0)), gaussian) for r in range(11)
        ]
        assert frechet_resamples(drawn, gaussian, 11, seed=5).tolist() == pytest.approx(expected, rel=1e-6)


def test_resamples_of_few_wide_rows_are_the_same() -> None:
    """The eigenvalues of the products of rows are those of the product of their columns."""
    drawn, reference = rows(30, 64), Gaussian.of(rows(90, 64, seed=1) + 0.3)
    found, weights_NR = frechet_resamples(drawn, reference, 9, seed=5), counts(30, 9, seed=5)
    expected = [
        frechet(Gaussian.of(drawn.repeat_interleave(weights_NR[:, r].long(), dim=0)), reference) for r in range(9)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-7)


def test_kernel_distances_of_a_sample_and_its_resamples_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "ROWS", 7)  # several blocks, the last one short
    drawn, reference = rows(24), rows(17, seed=1) + 0.2
    weights_NR = torch.cat([torch.ones(24, 1, dtype=torch.uint8), counts(24, 5, seed=2)], dim=1)
    found = distances.mmd(drawn, reference, distances.cubic, weights_NR)
    for r in range(6):
        one = drawn.repeat_interleave(weights_NR[:, r].long(), dim=0).double()
        other, own = reference.double(), distances.cubic(one, one)
        within = own.sum() - own.diagonal().sum()
        among = distances.cubic(other, other)
        expected = within / (24 * 23) + (among.sum() - among.diagonal().sum()) / (17 * 16)
        expected -= 2 * distances.cubic(one, other).mean()
        assert float(found[r]) == pytest.approx(float(expected), rel=1e-10)


def test_intervals_hold_what_other_samples_of_the_model_give() -> None:
    """95 % intervals of FD around the FD that a model has on average at this number of pictures."""
    reference = rows(400, seed=999)
    estimates = []
    for seed in range(20):
        drawn = rows(120, seed=seed) + 0.4
        found = score(
            {"net": reference},
            {"net": drawn},
            ["a"] * 120,
            ["fd/net", "kid/net"],
            reference_categories=["a"] * 400,
            bootstrap=40,
            seed=seed,
        )
        estimates.append(found["overall"])
    for name in ("fd/net", "kid/net"):
        usual = float(np.mean([known[name].value for known in estimates]))
        held = [(known[name].low or 0) <= usual <= (known[name].high or 0) for known in estimates]
        assert sum(held) >= 17, name
        middles = [((known[name].low or 0) + (known[name].high or 0)) / 2 - known[name].value for known in estimates]
        widths = [(known[name].high or 0) - (known[name].low or 0) for known in estimates]
        assert abs(np.mean(middles)) < 0.15 * np.mean(widths), name
