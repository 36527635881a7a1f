"""Which metrics there are, and the one way from features to estimates of them all.

A metric is asked for as "<name>/<extractor>": "fd/judge-emoji", "clip_score/clip-emoji", "kid/clip:some/model":

    plan = plan_of(wanted)                           # which networks, and what each of them has to see
    for name in plan.generated:                      # pictures -> (N, D), rows in order of items; likewise references
        features = extractor(name)(pixels_B3HW)
    for name in plan.texts:                          # the prompts -> (N, D), for metrics that compare with the prompt
        features = extractor(name).texts(prompts)
    for name in plan.rewards:                        # (generated picture, prompt) -> (N,), e.g. ImageReward
        rewards = star.eval.extractors.reward.reward(name)(pixels_B3HW, prompts)
    for name in plan.labels:                         # for metrics that ask what a picture is taken for
        labels = extractor(name)                     # a star.eval.metrics.metric.LabelExtractor
    values = alignment(wanted, prompts, generated, texts, rewards, seed=0)       # one number per picture: (N,)
    metrics = score(reference, generated, categories, wanted, values=values, bootstrap=200, seed=0)

Features are float32 tensors, or lie in files and are read in chunks: star.eval.metrics.features.FileFeatures(path).
A metric is left out of a group with too few pictures for it, never set to a made-up number; an interval likewise.

A package of a third party adds a metric through the entry-point group `star.metrics`, under the metric's name; see "A
metric" in docs/extending.md:

    [project.entry-points."star.metrics"]
    nearest_real = "their_package.metrics:NEAREST_REAL"

N pictures, D feature width.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import EntryPoint
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from star.data.errors import InputError
from star.eval.metrics.alignment import clip_score, clip_score_100, prompt_rank_20, reward
from star.eval.metrics.estimates import (
    clip_mmd,
    estimate,
    frechet_distance,
    frechet_distance_infinity,
    kernel_distance,
    manifold_mean,
    mean,
)
from star.eval.metrics.features import Features, subset
from star.eval.metrics.metric import Inputs, LabelExtractor, Metric, Need
from star.eval.metrics.retrieval import among_nearest
from star.eval.metrics.subjects import named_among
from star.eval.run.record import OVERALL, Estimate
from star.generators.registry import near

GROUP = "star.metrics"

# Metrics of a set compare with the real pictures, most of those per picture with the prompt.
_set = partial(Metric, needs=("generated", "references"), per_picture=False)
_manifold = partial(_set, direction="higher", digits=3)
_picture = partial(Metric, needs=("generated", "texts"), per_picture=True, direction="higher")

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _set(name="fid", title="FID", direction="lower", digits=2, function=frechet_distance, network="inception"),
        _set(name="fd", title="FD", direction="lower", digits=2, function=frechet_distance),
        _set(name="fd_infinity", title="FD∞", direction="lower", digits=2, function=frechet_distance_infinity),
        _set(name="kid", title="KID × 1000", direction="lower", digits=2, function=kernel_distance),
        _set(name="cmmd", title="CMMD", direction="lower", digits=3, function=clip_mmd),
        _manifold(name="precision", title="precision", function=manifold_mean("precision")),
        _manifold(name="recall", title="recall", function=manifold_mean("recall")),
        _manifold(name="density", title="density", function=manifold_mean("density", binary=False)),
        _manifold(name="coverage", title="coverage", function=manifold_mean("coverage")),
        _picture(name="clip_score", title="CLIP score", digits=4, function=clip_score),
        _picture(name="clip_score_100", title="CLIP score × 100", digits=2, function=clip_score_100),
        _picture(
            name="prompt_rank_20", title="true prompt first of 20", digits=3, function=prompt_rank_20, binary=True
        ),
        _picture(
            name="retrieval_1",
            title="nearest to its own real one",
            digits=3,
            needs=("generated", "references"),
            function=among_nearest(1),
            binary=True,
        ),
        _picture(
            name="retrieval_5",
            title="among its nearest five",
            digits=3,
            needs=("generated", "references"),
            function=among_nearest(5),
            binary=True,
        ),
        _picture(
            name="subject_1",
            title="subject named right",
            digits=3,
            needs=("generated", "labels"),
            function=named_among(1),
            binary=True,
        ),
        _picture(
            name="subject_5",
            title="subject among its first five",
            digits=3,
            needs=("generated", "labels"),
            function=named_among(5),
            binary=True,
        ),
        _picture(name="image_reward", title="ImageReward", digits=3, needs=("rewards",), function=reward),
        _picture(name="pick_score", title="PickScore", digits=2, function=clip_score, network="pick:"),
        _picture(name="hps_v2", title="HPS v2", digits=4, function=clip_score, network="hps:"),
    )
}


def names() -> tuple[str, ...]:
    """Of all metrics, in the order of tables; those of other packages are the last, and are not imported for this."""
    return tuple(dict.fromkeys((*METRICS, *entry_points())))


def metric(name: str) -> Metric:
    """Of "<name>/<extractor>". Raises InputError for an unknown name, naming near misses, for a missing extractor, and
    for an entry point that leads to no metric of that name."""
    own, _, by = name.partition("/")
    if own not in METRICS and own not in entry_points():
        raise InputError(f"there is no metric {name!r}, expected <metric>/<extractor>{near(own, names())}")
    if not by:
        raise InputError(f"the metric {name!r} names no network, expected {own}/<extractor>: add one")
    return METRICS[own] if own in METRICS else _of_another_package(entry_points()[own])


@cache
def entry_points() -> dict[str, EntryPoint]:
    """Of other packages' metrics, by name; a name of ours stays ours."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP) if point.name not in METRICS}


@cache
def _of_another_package(point: EntryPoint) -> Metric:
    try:
        found = point.load()
    except Exception as error:  # whatever a stranger's module stumbles over
        raise InputError(
            f"the metric {point.name} of another package cannot be imported ({point.value}: {error}): mend or remove "
            "that package"
        ) from error
    if not isinstance(found, Metric) or found.name != point.name:
        raise InputError(
            f"the entry point {point.name} of {GROUP} is {point.value}, expected a Metric of that name: mend that "
            "package"
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Names of the networks that metrics are computed with: each once, in the order first asked for."""

    generated: tuple[str, ...]  # extractors that see the generated pictures
    references: tuple[str, ...]  # those of them that see the reference pictures too
    texts: tuple[str, ...]  # those of them that see the prompts too
    labels: tuple[str, ...]  # those of them that tell labels too
    rewards: tuple[str, ...]  # networks that see a generated picture together with its prompt


def plan_of(wanted: Sequence[str]) -> Plan:
    """What has to be computed before `alignment` and `score` can run. Raises InputError as `metric` does.

    A number is only called what its name says: also raises InputError for PickScore, HPS v2 and FID of other networks.
    """
    networks: dict[str, dict[str, None]] = {need: {} for need in get_args(Need)}
    for name in wanted:
        about, by = metric(name), name.partition("/")[2]
        if not by.startswith(about.network):
            raise InputError(
                f"the metric {name!r} is the number of another network, expected {about.name}/{about.network}...: name "
                "that network, or another metric"
            )
        for need in about.needs:
            networks[need][by] = None  # dicts keep the order
    return Plan(**{need: tuple(names) for need, names in networks.items()})


def alignment(
    wanted: Sequence[str],
    prompts: Sequence[str],
    generated: Mapping[str, Features],
    texts: Mapping[str, Features],
    rewards: Mapping[str, Tensor],
    *,
    real: Mapping[str, Features] | None = None,
    labels: Mapping[str, LabelExtractor] | None = None,
    subjects: Sequence[str] = (),
    styles: Sequence[str] = (),
    notes: dict[str, str] | None = None,
    seed: int,
) -> dict[str, Tensor]:
    """metric name -> values_N float32 for every wanted metric that has a score per picture; others are passed over.

    generated, texts: extractor name -> (N, D). rewards: network name -> (N,). seed: of the prompts that compete in a
    rank. real: the reference pictures of the same items, (N, D), which retrieval needs. labels: extractor name -> the
    classifier's extractor. subjects, styles: what the benchmark says of each picture, where it does. notes: is given a
    sentence for each metric that is left out or has something to say. A value may be NaN, which counts nowhere.
    """
    values: dict[str, Tensor] = {}
    inputs: dict[str, Inputs] = {}
    for name in wanted:
        about, by = metric(name), name.partition("/")[2]
        if not about.per_picture:
            continue
        if by not in inputs:
            given: dict[str, Mapping[str, Any]] = {
                "generated": generated,
                "references": real or {},
                "texts": texts,
                "labels": labels or {},
                "rewards": rewards,
            }
            known = {need: rows[by] for need, rows in given.items() if by in rows}
            inputs[by] = Inputs(**known, prompts=prompts, subjects=subjects, styles=styles, seed=seed)
        own = replace(inputs[by], notes=[])  # of this metric alone; the cache is shared
        found = about.function(own)
        if isinstance(found, Tensor):
            values[name] = found
        if notes is not None and (own.notes or found is None):
            notes[name] = "; ".join(own.notes) if found is not None else left_out(*own.notes)
    return values


def left_out(*reasons: str) -> str:
    """What a record says of a metric that it lacks."""
    return f"left out: {'; '.join(reasons) or 'too few pictures for it'}"


def sentences(notes: Mapping[str, str]) -> list[str]:
    """The notes of a record, metric name -> note, as people read them: metrics of which the same is said together."""
    alike: dict[str, list[str]] = {}
    for name, note in notes.items():
        alike.setdefault(note, []).append(f"{metric(name).title} by {name.partition('/')[2]}")
    return [f"{', '.join(titles)}: {note}" for note, titles in alike.items()]


def score(
    reference: Mapping[str, Features],
    generated: Mapping[str, Features],
    categories: Sequence[str],
    wanted: Sequence[str],
    *,
    values: Mapping[str, Tensor] | None = None,
    reference_categories: Sequence[str] | None = None,
    bootstrap: int,
    seed: int,
) -> dict[str, dict[str, Estimate]]:
    """group ("overall", then each category in order of name) -> metric name, in the order wanted -> estimate.

    reference, generated: extractor name -> (M, D) and (N, D). categories: of the N generated pictures;
    reference_categories: of the M references, if they are not the same. values: from `alignment`. bootstrap: resamples
    behind each interval, 0 for none. Raises ValueError if rows and categories differ in number.
    """
    others = categories if reference_categories is None else reference_categories
    for rows, of in ((generated, categories), (values or {}, categories), (reference, others)):
        for name, tensor in rows.items():
            if len(tensor) != len(of):
                raise ValueError(f"{name} has {len(tensor)} rows for {len(of)} pictures")
    groups: dict[str, dict[str, Estimate]] = {}
    for group in (OVERALL, *sorted(set(categories))):
        found: dict[str, Estimate] = {}
        places, real_places = _places(categories, group), _places(others, group)
        for name, of_all in (values or {}).items():
            own = of_all if places is None else of_all[torch.from_numpy(places)]
            own = own[~own.isnan()]
            if len(own):
                found[name] = estimate(mean(own, bootstrap, seed, binary=metric(name).binary), len(own))
        for by, names in _of_sets(wanted).items():
            mine, real = _members(generated[by], places), _members(reference[by], real_places)
            known = estimates(names, mine, real, bootstrap=bootstrap, seed=seed)
            found |= {f"{name}/{by}": one for name, one in known.items()}
        groups[group] = {name: found[name] for name in wanted if name in found}
    return groups


def estimates(
    names: Sequence[str], generated_ND: Features, references_MD: Features, *, bootstrap: int, seed: int
) -> dict[str, Estimate]:
    """name, without a network -> estimate, of metrics of a set; those with too few rows are left out."""
    inputs = Inputs(generated=generated_ND, references=references_MD, bootstrap=bootstrap, seed=seed)
    found = {name: metric(f"{name}/-").function(inputs) for name in names}
    return {name: estimate(measure, len(generated_ND)) for name, measure in found.items() if isinstance(measure, tuple)}


def _of_sets(wanted: Sequence[str]) -> dict[str, list[str]]:
    """Extractor -> names of the metrics that compare a whole set by it."""
    found: dict[str, list[str]] = {}
    for name in wanted:
        own, _, by = name.partition("/")
        if not metric(name).per_picture:
            found.setdefault(by, []).append(own)
    return found


def _places(categories: Sequence[str], group: str) -> NDArray[np.int64] | None:
    """Which rows are of a group; None: all of them."""
    if group == OVERALL:
        return None
    return np.array([row for row, name in enumerate(categories) if name == group], dtype=np.int64)


def _members(rows: Features, places: NDArray[np.int64] | None) -> Features:
    """Rows of a group, not copied, since they may lie in a file."""
    return rows if places is None else subset(rows, places)
