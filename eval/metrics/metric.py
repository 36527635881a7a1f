"""What a metric is: its name, how tables show it, what it needs, and the function that computes it.

    def nearest_real(inputs: Inputs) -> Tensor:
        return torch.cdist(inputs.generated[:], inputs.references[:]).amin(dim=1)

    NEAREST_REAL = Metric(name="nearest_real", title="distance to the nearest real one", direction="lower", digits=3,
                          needs=("generated", "references"), per_picture=True, function=nearest_real)

Shapes: N generated pictures, M reference pictures, D feature width.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from star.eval.metrics.features import Features
from star.eval.metrics.resampling import Interval

Need = Literal["generated", "references", "texts", "labels", "rewards"]
Measure = tuple[float, Interval | None]  # a number and its 95 % interval, None where there is none
Shared = TypeVar("Shared")

NONE = torch.empty(0, 0)
NAME = re.compile(r"[a-z][a-z0-9_]*")


@runtime_checkable
class LabelExtractor(Protocol):
    """What an extractor of a classifier has beside its features: labels, told from those features alone, so that
    nothing is computed again from pictures. head: what the labels are of, e.g. "subject".
    """

    def labels(self, head: str) -> Sequence[str]:
        """Of a head, in the order of its logits; none if there is no such head."""
        ...

    def label_logits(self, features_BD: Tensor, head: str) -> Tensor:
        """Features as the extractor gives them -> logits float32 on the CPU, (B, labels of the head)."""
        ...

    def labels_meant(self, prompts: Sequence[str], head: str) -> Sequence[str]:
        """The label that each prompt asks for, as far as the classifier learnt from captions to tell; "" if not."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a metric's function is given: of one network, those of its features that the metric needs."""

    generated: Features = NONE  # (N, D)
    references: Features = NONE  # (M, D); for a metric per picture M is N, and rows belong to the same prompts
    texts: Features = NONE  # (N, D), of the prompts
    rewards: Tensor = NONE  # (N,), of a network that sees a picture together with its prompt
    labels: LabelExtractor | None = None  # the network itself, for a metric that needs labels
    prompts: Sequence[str] = ()  # N, for metrics per picture; so are the next two
    subjects: Sequence[str] = ()  # what the benchmark says that pictures show, "" where it does not
    styles: Sequence[str] = ()
    bootstrap: int = 0  # resamples behind the interval of a metric of a set
    seed: int = 0
    cache: dict[Callable[..., Any], Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # sentences of the function for the record: why None, what it took

    def once(self, compute: "Callable[[Inputs], Shared]") -> Shared:
        """`compute(self)`, which several metrics share: computed once for these inputs."""
        if compute not in self.cache:
            self.cache[compute] = compute(self)
        return self.cache[compute]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric. Raises ValueError for a name, needs or digits that no metric can have.

    function: of a metric per picture, `Inputs` -> values float (N,), NaN for a picture that has none; of a metric of a
    set, `Inputs` -> `Measure`. None where there are too few pictures, or for a reason that a function of a metric per
    picture adds to `Inputs.notes`: the metric is then left out of the record, which says why.
    """

    name: str  # before the slash of "fd/judge-emoji"
    title: str  # in tables
    direction: Literal["lower", "higher"]  # which is better
    digits: int  # after the point, in tables
    needs: tuple[Need, ...]
    per_picture: bool  # a mean over generated pictures, each of which has its own value
    function: Callable[[Inputs], Tensor | Measure | None]
    binary: bool = False  # values per picture are 0 or 1, so that their mean is a share
    network: str = ""  # how the name of its network must begin, where a number is defined by one network

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"a metric is named {self.name!r}, expected small letters, digits and underscores")
        if not self.needs or ("rewards" in self.needs and len(self.needs) > 1):
            raise ValueError(f"{self.name} needs {self.needs}, expected features, or rewards alone")
        if "labels" in self.needs and "generated" not in self.needs:
            raise ValueError(
                f"{self.name} needs {self.needs}, expected generated beside labels, which are told from it"
            )
        if not self.per_picture and not {"generated", "references"} >= set(self.needs):
            raise ValueError(f"{self.name} needs {self.needs}, expected generated and references for a set of pictures")
        if self.direction not in ("lower", "higher") or self.digits < 0:
            raise ValueError(f"{self.name} has direction {self.direction!r} and {self.digits} digits")
