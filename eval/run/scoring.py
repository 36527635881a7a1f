"""From files to estimates: every network of a protocol sees every picture once, and its features stay on the disk.

Features lie in `features/` beside the record, one row for each picture, and are read where they are needed: the run may
be killed and continued, shared by processes, and scored again without a network. N pictures, D feature width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from star.data.errors import InputError
from star.data.files import READ_ERRORS
from star.eval.extractors.extractor import Extractor, TextExtractor, extractor
from star.eval.metrics.features import Features, chunks
from star.eval.metrics.metric import LabelExtractor
from star.eval.metrics.registry import alignment, left_out, metric, plan_of, score
from star.eval.run.feature_cache import CacheJob, FeatureCache, fill, open_cache
from star.eval.run.layout import Item, prompts_digest
from star.eval.run.pictures import read_pixels
from star.eval.run.processes import Processes
from star.eval.run.protocols import Rules, resized
from star.eval.run.record import OVERALL, Estimate

AT_ONCE = 2**25  # pixels that a network is given: a block of 1024 x 1024
ROWS = 2048  # at a time
SEED = 0  # of resampling and of the prompts that compete in a rank

Load = Callable[[str, str], Extractor]
Groups = dict[str, dict[str, Estimate]]


class Networks:
    """All that a protocol's metrics need, loaded before anything is drawn: what cannot be had is reported at once."""

    def __init__(self, wanted: Sequence[str], device: str, load: Load = extractor) -> None:
        """load: the extractor of a name. Raises InputError for unknown metrics and missing weights."""
        self.plan = plan_of(wanted)
        names = dict.fromkeys((*self.plan.generated, *self.plan.references, *self.plan.texts))
        self.extractors: dict[str, Extractor] = {name: load(name, device) for name in names}
        self.rewards: dict[str, Any] = {}
        if self.plan.rewards:
            from star.eval.extractors.reward import reward

            self.rewards = {name: reward(name, device) for name in self.plan.rewards}
        self.labels: dict[str, LabelExtractor] = {}
        for name in self.plan.labels:
            network = self.extractors[name]
            if not isinstance(network, LabelExtractor):
                raise InputError(f"{name} tells no labels, expected a classifier: take judge-emoji or a judge:DIR")
            self.labels[name] = network

    @property
    def digests(self) -> dict[str, str]:
        """name -> digest, of all."""
        return {name: network.digest for name, network in {**self.extractors, **self.rewards}.items()}

    def texts(self, name: str) -> TextExtractor:
        """Raises InputError if an extractor knows nothing of prompts."""
        network = self.extractors[name]
        if not isinstance(network, TextExtractor):
            raise InputError(f"{name} has no rows for prompts, expected a CLIP: take another extractor for this metric")
        return network


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """One side of a comparison: files in the order of the items, and a digest of what they are made from."""

    title: str
    files: Sequence[Traversable]
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """metrics: group -> metric -> estimate; references: the same of the real pictures, for metrics per
    picture; values: metric -> one number for each generated picture; notes: metric -> why it is left out, or what
    there is to know of it."""

    metrics: Groups
    references: Groups
    values: dict[str, Tensor]
    notes: dict[str, str]


class Scoring:
    """The features of one evaluation: made where they are missing, and turned into estimates."""

    def __init__(
        self,
        items: Sequence[Item],
        rules: Rules,
        size: tuple[int, int] | None,
        networks: Networks,
        processes: Processes,
        folder: Path,
        cache: Path | None = None,
    ) -> None:
        """size: (H, W) that networks see. folder: where features lie; cache: where those of the references do, for
        other evaluations of the same benchmark."""
        self.items, self.rules, self.size = items, rules, size
        self.networks, self.processes = networks, processes
        self.folder, self.cache = folder, cache or folder
        self.prompts = [item.prompt for item in items]

    def run(self, generated: Pictures, references: Pictures) -> Scores | None:
        """Makes all features, shared among processes, and the estimates on the main one (None on the others).

        Raises InputError for a picture that can no longer be read.
        """
        plan = self.networks.plan
        real_networks = tuple(dict.fromkeys((*plan.references, *plan.texts, *plan.labels)))
        generated_caches = self._pictures(generated, self.folder, plan.generated, plan.rewards)
        reference_caches = self._pictures(references, self.cache, real_networks, ())
        text_caches = self._texts()
        if not self.processes.is_main:
            return None
        features, texts = _features(generated_caches, plan.generated), _features(text_caches, plan.texts)
        real = _features(reference_caches, real_networks)
        rewards = {name: rows[:].squeeze(1) for name, rows in _features(generated_caches, plan.rewards).items()}
        per_picture = [
            name for name in self.rules.metrics if name.partition("/")[2] in real and metric(name).per_picture
        ]
        notes: dict[str, str] = {}
        values = self._values(self.rules.metrics, features, texts, rewards, real, notes)
        real_values = self._values(per_picture, real, texts, {}, real, {})
        metrics = self._estimates(self.rules.metrics, real, features, values)
        return Scores(
            metrics=metrics,
            references=self._estimates(per_picture, {}, {}, real_values) if per_picture else {},
            values=values,
            notes={name: left_out() for name in self.rules.metrics if name not in metrics[OVERALL]} | notes,
        )

    def _values(
        self,
        wanted: Sequence[str],
        pictures: Mapping[str, Features],
        texts: Mapping[str, Features],
        rewards: Mapping[str, Tensor],
        real: Mapping[str, Features],
        notes: dict[str, str],
    ) -> dict[str, Tensor]:
        return alignment(
            wanted,
            self.prompts,
            pictures,
            texts,
            rewards,
            real=real,
            labels=self.networks.labels,
            subjects=[item.subject for item in self.items],
            styles=[item.style for item in self.items],
            notes=notes,
            seed=SEED,
        )

    def _estimates(
        self,
        wanted: Sequence[str],
        real: Mapping[str, Features],
        generated: Mapping[str, Features],
        values: Mapping[str, Tensor],
    ) -> Groups:
        categories = [item.category for item in self.items]
        return score(real, generated, categories, wanted, values=values, bootstrap=self.rules.bootstrap, seed=SEED)

    def _pictures(
        self, side: Pictures, place: Path, extractors: Sequence[str], rewards: Sequence[str]
    ) -> dict[str, FeatureCache]:
        """The rows of one side, by the name of their network."""
        jobs = {}
        for name in extractors:
            network = self.networks.extractors[name]
            cache = self._open(side.title, name, network.width, place, pictures=side.digest)
            jobs[name] = CacheJob(cache, _features_by(network))
        for name in rewards:
            cache = self._open(side.title, name, 1, place, pictures=side.digest)
            jobs[name] = CacheJob(cache, _rewards_by(self.networks.rewards[name], self.prompts))

        def load(row: int) -> Tensor:
            return resized(_pixels(side.files[row]), self.size, self.rules.resize)

        fill(list(jobs.values()), load, self.processes, title=f"score {side.title}", unit="pictures")
        return {name: job.cache for name, job in jobs.items()}

    def _texts(self) -> dict[str, FeatureCache]:
        jobs = {}
        for name in self.networks.plan.texts:
            network = self.networks.texts(name)
            cache = self._open("prompts", name, self.networks.extractors[name].width, self.folder, pictures="")
            jobs[name] = CacheJob(cache, _text_features_by(network))
        fill(list(jobs.values()), self.prompts.__getitem__, self.processes, title="score prompts", unit="prompts")
        return {name: job.cache for name, job in jobs.items()}

    def _open(self, title: str, name: str, width: int, place: Path, *, pictures: str) -> FeatureCache:
        fingerprint = {
            "network": self.networks.digests[name],
            "pictures": pictures,
            "prompts": prompts_digest(self.items),
            "size": self.size,
            "resize": self.rules.resize if self.size else "",
        }
        shape = (len(self.items), width)
        return open_cache(place, f"{title}-{name}", fingerprint, shape=shape, processes=self.processes)


def _features_by(network: Extractor) -> Callable[[slice, list[Tensor]], NDArray[Any]]:
    return lambda block, loaded: by_shape(loaded, lambda pixels_B3HW, chosen: network(pixels_B3HW), network.width)


def _rewards_by(network: Any, prompts: Sequence[str]) -> Callable[[slice, list[Tensor]], NDArray[Any]]:
    def compute(block: slice, loaded: list[Tensor]) -> NDArray[Any]:
        own = prompts[block]
        return by_shape(
            loaded,
            lambda pixels_B3HW, chosen: network(pixels_B3HW, [own[i] for i in chosen]).reshape(-1, 1),
            1,
        )

    return compute


def _text_features_by(network: TextExtractor) -> Callable[[slice, list[str]], NDArray[Any]]:
    return lambda block, prompts: network.texts(prompts).numpy()


def by_shape(
    loaded: Sequence[Tensor], network: Callable[[Tensor, list[int]], Tensor], width: int
) -> NDArray[np.float32]:
    """Rows of pictures that may differ in size: a network sees those of one size together."""
    rows = np.empty((len(loaded), width), np.float32)
    shapes: dict[torch.Size, list[int]] = {}
    for index, pixels in enumerate(loaded):
        shapes.setdefault(pixels.shape, []).append(index)
    for shape, alike in shapes.items():
        most = max(1, AT_ONCE // (shape[-2] * shape[-1]))
        for chosen in (alike[first : first + most] for first in range(0, len(alike), most)):
            rows[chosen] = network(torch.stack([loaded[index] for index in chosen]), chosen).cpu().numpy()
    return rows


def _pixels(file: Traversable) -> Tensor:
    try:
        return read_pixels(file)
    except (InputError, *READ_ERRORS) as error:
        raise InputError(f"{file} can no longer be read ({error}): remove or restore it, and run again") from error


def _features(caches: Mapping[str, FeatureCache], names: Sequence[str]) -> dict[str, Features]:
    """Features that stay in their files. Raises InputError for those that are no numbers."""
    features: dict[str, Features] = {}
    for name in names:
        features[name] = found = caches[name].features()
        if not all(bool(part.isfinite().all()) for part in chunks(found, ROWS)):
            raise InputError(
                f"{name} gave NaN or infinite values for some pictures or prompts: its weights are broken, give "
                f"others, or where they were mended remove {caches[name].folder}"
            )
    return features
