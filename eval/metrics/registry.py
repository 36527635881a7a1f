"""Which metrics there are, and the one way from features to estimates of them all.

A metric's name is "<kind>/<extractor>": "fd/judge-emoji", "clip_score/clip-emoji", "kid/clip:some/model". In order:

    plan = needs(wanted)                             # which networks, and what each of them has to see
    for name in plan.features:                       # drawn and reference pictures -> (N, D), rows in order of items
        network = extractor(name); rows = network(pixels_B3HW)
    for name in plan.texts:                          # the prompts -> (N, D), for kinds that compare with the prompt
        rows = extractor(name).texts(prompts)
    for name in plan.rewards:                        # (drawn picture, prompt) -> (N,), e.g. ImageReward
        rows = star.eval.extractors.reward.reward(name)(pixels_B3HW, prompts)
    values = alignment(wanted, prompts, drawn, texts, rewards, seed=0)           # one number per picture: (N,)
    metrics = score(reference, drawn, categories, wanted, values=values, bootstrap=200, seed=0)

Features are float32 tensors, or lie in files and are read in chunks: star.eval.metrics.feature_table.FileRows(path).
A metric is left out of a group with too few pictures for it, never set to a made-up number; an interval likewise.
N pictures, D feature width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from star.data.errors import InputError
from star.eval.metrics.alignment import products, prompt_ranks
from star.eval.metrics.estimates import estimate, estimates, mean
from star.eval.metrics.feature_table import Table, pick
from star.eval.metrics.retrieval import FIRST, retrieval_ranks, rivals
from star.eval.run.record import OVERALL, Estimate
from star.generators.registry import near


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What a kind of metric is called and which way is up."""

    title: str
    better: Literal["lower", "higher"]
    per_picture: bool  # a mean over pictures, each of which has its own score
    digits: int  # behind the point, in tables


METRICS: dict[str, Metric] = {
    "fid": Metric(title="FID", better="lower", per_picture=False, digits=2),
    "fd": Metric(title="FD", better="lower", per_picture=False, digits=2),
    "fd_infinity": Metric(title="FD∞", better="lower", per_picture=False, digits=2),
    "kid": Metric(title="KID × 1000", better="lower", per_picture=False, digits=2),
    "cmmd": Metric(title="CMMD", better="lower", per_picture=False, digits=3),
    "precision": Metric(title="precision", better="higher", per_picture=False, digits=3),
    "recall": Metric(title="recall", better="higher", per_picture=False, digits=3),
    "density": Metric(title="density", better="higher", per_picture=False, digits=3),
    "coverage": Metric(title="coverage", better="higher", per_picture=False, digits=3),
    "clip_score": Metric(title="CLIP score", better="higher", per_picture=True, digits=4),
    "clip_score_100": Metric(title="CLIP score × 100", better="higher", per_picture=True, digits=2),
    "prompt_rank_20": Metric(title="true prompt first of 20", better="higher", per_picture=True, digits=3),
    "retrieval_1": Metric(title="nearest to its own real one", better="higher", per_picture=True, digits=3),
    "retrieval_5": Metric(title="among its nearest five", better="higher", per_picture=True, digits=3),
    "image_reward": Metric(title="ImageReward", better="higher", per_picture=True, digits=3),
    "pick_score": Metric(title="PickScore", better="higher", per_picture=True, digits=2),
    "hps_v2": Metric(title="HPS v2", better="higher", per_picture=True, digits=4),
}

SHARES = ("prompt_rank_20", *FIRST)  # kinds whose scores are 0 or 1
CANDIDATES = 20  # prompts of a rank
REWARDS = ("image_reward",)  # kinds whose network sees picture and prompt together
ONLY = {"fid": "inception", "pick_score": "pick:", "hps_v2": "hps:"}  # how the name of a kind's network begins


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Names of the networks that metrics are computed with: each once, in the order first asked for."""

    features: tuple[str, ...]  # extractors that see the drawn pictures
    references: tuple[str, ...]  # those of them that see the reference pictures too
    texts: tuple[str, ...]  # those of them that see the prompts too
    rewards: tuple[str, ...]  # networks that see a drawn picture together with its prompt


def metric(name: str) -> Metric:
    """Of "<kind>/<extractor>". Raises InputError for an unknown kind, naming near misses, or a missing extractor."""
    kind, _, by = name.partition("/")
    if kind not in METRICS:
        raise InputError(f"there is no metric {name!r}, expected <kind>/<extractor>{near(kind, METRICS)}")
    if not by:
        raise InputError(f"the metric {name!r} names no network, expected {kind}/<extractor>: add one")
    return METRICS[kind]


def needs(wanted: Sequence[str]) -> Needs:
    """What has to be computed before `alignment` and `score` can run. Raises InputError as `metric` does.

    A number is only called what its name says: also raises InputError for PickScore, HPS v2 and FID of other networks.
    """
    features: dict[str, None] = {}  # dicts, to keep the order
    references: dict[str, None] = {}
    texts: dict[str, None] = {}
    rewards: dict[str, None] = {}
    for name in wanted:
        metric(name)
        kind, _, by = name.partition("/")
        if not by.startswith(ONLY.get(kind, "")):
            raise InputError(
                f"the metric {name!r} is the number of another network, expected {kind}/{ONLY[kind]}...: name that "
                "network, or another metric"
            )
        if kind in REWARDS:
            rewards[by] = None
            continue
        features[by] = None
        (texts if METRICS[kind].per_picture and kind not in FIRST else references)[by] = None
    return Needs(features=tuple(features), references=tuple(references), texts=tuple(texts), rewards=tuple(rewards))


def alignment(
    wanted: Sequence[str],
    prompts: Sequence[str],
    drawn: Mapping[str, Table],
    texts: Mapping[str, Table],
    rewards: Mapping[str, Tensor],
    *,
    real: Mapping[str, Table] | None = None,
    seed: int,
) -> dict[str, Tensor]:
    """metric name -> values_N float32 for every wanted metric that has a score per picture; others are passed over.

    drawn, texts: extractor name -> (N, D). rewards: network name -> (N,). seed: of the prompts that compete in a rank.
    real: the reference pictures of the same items, (N, D), which retrieval needs.
    "prompt_rank_20" is 1 where the picture's own prompt is the first of 20, else 0; fewer prompts have no such number.
    "retrieval_5" is 1 where the own real picture is among the five nearest of its style, else 0; NaN, which counts
    nowhere, where the style has no more than five.
    """
    values: dict[str, Tensor] = {}
    ranks: dict[str, Tensor] = {}
    for name in wanted:
        kind, _, by = name.partition("/")
        if not metric(name).per_picture:
            continue
        if kind in REWARDS:
            values[name] = rewards[by].float()
        elif kind in FIRST:
            if by not in ranks:
                ranks[by] = retrieval_ranks(drawn[by], (real or {})[by], prompts)
            told = rivals(prompts) >= FIRST[kind]  # among five of five is everything
            if bool(told.any()):
                values[name] = (ranks[by] < FIRST[kind]).float().where(told, torch.nan)
        elif kind != "prompt_rank_20":
            values[name] = products(drawn[by], texts[by]) * (100 if kind == "clip_score_100" else 1)
        elif len(set(prompts)) >= CANDIDATES:
            values[name] = (prompt_ranks(drawn[by], texts[by], prompts, CANDIDATES, seed) == 0).float()
    return values


def score(
    reference: Mapping[str, Table],
    drawn: Mapping[str, Table],
    categories: Sequence[str],
    wanted: Sequence[str],
    *,
    values: Mapping[str, Tensor] | None = None,
    reference_categories: Sequence[str] | None = None,
    bootstrap: int,
    seed: int,
) -> dict[str, dict[str, Estimate]]:
    """group ("overall", then each category in order of name) -> metric name, in the order wanted -> estimate.

    reference, drawn: extractor name -> (M, D) and (N, D). categories: of the N drawn pictures; reference_categories:
    of the M references, if they are not the same. values: from `alignment`. bootstrap: resamples behind each interval,
    0 for none. Raises ValueError if rows and categories differ in number.
    """
    others = categories if reference_categories is None else reference_categories
    for rows, of in ((drawn, categories), (values or {}, categories), (reference, others)):
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
                shares = name.partition("/")[0] in SHARES
                found[name] = estimate(mean(own, bootstrap, seed, shares=shares), len(own))
        for by, kinds in _kinds(wanted).items():
            mine, real = _members(drawn[by], places), _members(reference[by], real_places)
            told = estimates(kinds, mine, real, bootstrap=bootstrap, seed=seed)
            found |= {f"{kind}/{by}": known for kind, known in told.items()}
        groups[group] = {name: found[name] for name in wanted if name in found}
    return groups


def _kinds(wanted: Sequence[str]) -> dict[str, list[str]]:
    """Extractor -> kinds that compare it with the references."""
    kinds: dict[str, list[str]] = {}
    for name in wanted:
        kind, _, by = name.partition("/")
        if not metric(name).per_picture:
            kinds.setdefault(by, []).append(kind)
    return kinds


def _places(categories: Sequence[str], group: str) -> NDArray[np.int64] | None:
    """Which rows are of a group; None: all of them."""
    if group == OVERALL:
        return None
    return np.array([row for row, name in enumerate(categories) if name == group], dtype=np.int64)


def _members(rows: Table, places: NDArray[np.int64] | None) -> Table:
    """Rows of a group, not copied, since they may lie in a file."""
    return rows if places is None else pick(rows, places)
