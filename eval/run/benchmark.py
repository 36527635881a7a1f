"""One evaluation from beginning to end: a benchmark, a model or a folder of pictures, a protocol -> a record.

    record = evaluate(Asked(model="star-emoji", benchmark=Path("emoji-mjhq"), out=Path("star-emoji.json")), join())

Mistakes are told before the first picture is drawn. All that is made on the way lies in the folder beside the record,
and a run that was killed goes on from there to the same record: `pictures/` (what was drawn, or links to what was made
elsewhere), `manifest.json` (what it was drawn with), `features/`, `pictures.jsonl`, `sheet.png`.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from star.data.errors import InputError
from star.eval.extractors.extractor import extractor
from star.eval.metrics.resampling import FEWEST
from star.eval.report.grid import write_grid
from star.eval.run import external_images as elsewhere
from star.eval.run.audit import UNREADABLE, Seen, conversions, digest_of, inspect
from star.eval.run.fingerprint import family_of, model_digest, parameters_of
from star.eval.run.generation import check, claim, draw, is_whole, picture_of, tidy
from star.eval.run.layout import JOINED, Faults, Item, Layout, Lazily, as_text, on_disk, refuse, spread, survey
from star.eval.run.processes import Processes
from star.eval.run.protocols import Rules, protocol_of, rules_of
from star.eval.run.record import Measured, Picture, Record, folder_of, write, write_pictures
from star.eval.run.scoring import Load, Networks, Pictures, Scores, Scoring
from star.generators import registry
from star.generators.config import from_dict, to_dict
from star.generators.protocol import LARGEST_SEED, SampleOptions

PROTOCOL = "emoji-64"
SHEET = "sheet.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What an evaluation is asked for: either a model that draws, or a folder of pictures made elsewhere."""

    benchmark: Path
    out: Path  # the record
    model: str = ""
    drawn: Path | None = None
    protocol: str = PROTOCOL
    metrics: tuple[str, ...] = ()  # instead of the protocol's
    pictures: int | None = None  # prompts, evenly spread, instead of the protocol's number
    bootstrap: int | None = None  # resamples instead of the protocol's
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)  # SampleOptions that differ from what the model recommends
    batch: int = 8  # pictures drawn at once
    skip_bad: bool = False  # leave out what is wrong with the benchmark, instead of refusing it
    allow_missing: bool = False  # leave out prompts that the folder `drawn` has no picture for
    cache: Path | None = None  # features of the references, for other evaluations (default: beside the record)
    sheet: int = 32  # pictures on the sheet, 0 for none

    def __post_init__(self) -> None:
        if bool(self.model) == (self.drawn is not None):
            raise InputError(
                f"the model {self.model or 'none'} and the folder {self.drawn or 'none'} were given, expected one of "
                "the two: name a model, or a folder of pictures made elsewhere with --drawn"
            )
        if not self.out.suffix:
            raise InputError(
                f"--out is {self.out}, expected a file name with an ending: give {self.out}.json, its pictures go into "
                f"the folder {self.out}"
            )
        for name, least in (("pictures", 1), ("bootstrap", 0), ("batch", 1), ("sheet", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value <= LARGEST_SEED:
                raise InputError(f"--{name} is {value}, expected at least {least}: correct it")
        if self.bootstrap == 1:
            raise InputError(
                f"--bootstrap is 1, and one resample has no spread: give at least {FEWEST} for intervals, or 0 for none"
            )

    @property
    def rules(self) -> Rules:
        """Of the protocol, with what was asked for instead. Raises InputError for an unknown protocol."""
        rules = rules_of(self.protocol)
        return replace(
            rules,
            metrics=self.metrics or rules.metrics,
            pictures=rules.pictures if self.pictures is None else self.pictures,
            bootstrap=rules.bootstrap if self.bootstrap is None else self.bootstrap,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The side that is scored. source: digest of what its pictures are made from."""

    measured: Measured
    items: list[Item]
    files: Sequence[Traversable]
    source: str
    file_format: str = "png"
    faults: Faults = field(default_factory=dict)
    converted: dict[str, list[str]] = field(default_factory=dict)


def evaluate(asked: Asked, processes: Processes, load: Load = extractor) -> Record | None:
    """Draws or gathers, scores, writes; the record on the main process, None on the others.

    load: the extractor of a name. Raises InputError for all that a user can have got wrong.
    """
    rules, folder, times = asked.rules, folder_of(asked.out), dict[str, float]()
    layout = survey(asked.benchmark)
    if not asked.skip_bad:
        refuse(layout.faults, asked.benchmark)
    manifest = _manifest(asked, rules, layout)
    check(folder, manifest)
    if processes.is_main:
        tidy(folder)
    networks = Networks(rules.metrics, processes.device, load)
    notes = asked.cache or folder / "features"
    with _timed(times, "read"):
        items, references, faults = _readable(asked, layout, rules, notes, processes)
    with _timed(times, "draw"):
        drawn = (
            _by_model(asked, rules, manifest, items, processes)
            if asked.model
            else _made_elsewhere(asked, manifest, items, processes)
        )
    digest = digest_of((item.key for item in drawn.items), references)
    size = _size(rules, drawn, asked)
    with _timed(times, "score"):
        scoring = Scoring(drawn.items, rules, size, networks, processes, folder / "features", asked.cache)
        scores = scoring.run(
            Pictures(title="drawn", files=drawn.files, digest=drawn.source),
            Pictures(title="references", files=_references(drawn.items), digest=digest),
        )
    if scores is None:
        return None
    record = Record(
        protocol=protocol_of(
            asked.protocol,
            rules,
            benchmark=layout.name,
            items=drawn.items,
            references=digest,
            size=size,
            file_format=drawn.file_format,
            extractors=networks.digests,
        ),
        measured=drawn.measured,
        metrics=scores.metrics,
        references=scores.references,
        skipped={**faults, **drawn.faults},
        converted={
            **({JOINED: layout.joined} if layout.joined else {}),
            **conversions(references, drawn.items, "reference"),
            **drawn.converted,
        },
        bootstrap=rules.bootstrap,
        times={name: round(seconds, 3) for name, seconds in times.items()},
    )
    _write(record, scores, drawn, size, rules, asked)
    return record


def _manifest(asked: Asked, rules: Rules, layout: Layout) -> dict[str, Any]:
    """All that the pictures of the folder beside the record are a function of."""
    if asked.drawn is not None:
        return {"source": "folder", "name": as_text(asked.drawn.resolve().name), "prompts": layout.prompts}
    return {
        "source": "model",
        "digest": model_digest(asked.model),
        "prompts": layout.prompts,
        "seed": asked.seed,
        "seeds": rules.seeds,
        "options": to_dict(replace(registry.recommended(asked.model), **asked.options)),
    }


def _readable(
    asked: Asked, layout: Layout, rules: Rules, notes: Path, processes: Processes
) -> tuple[list[Item], Mapping[str, Seen], Faults]:
    """The prompts to draw, what their reference pictures are, and all that is left out."""
    items = spread(layout.items, rules.pictures or len(layout.items))
    seen = inspect([item.key for item in items], _references(items), notes, processes, "references")
    faults = dict(layout.faults)
    if len(seen) < len(items):
        faults[UNREADABLE] = [item.place for item in items if item.key not in seen]
    if not seen or not asked.skip_bad:
        refuse(faults, asked.benchmark)
    return [item for item in items if item.key in seen], seen, faults


def _references(items: Sequence[Item]) -> Sequence[Traversable]:
    return Lazily(items, lambda item: item.picture)


def _by_model(
    asked: Asked, rules: Rules, manifest: Mapping[str, Any], items: list[Item], processes: Processes
) -> Drawn:
    """Draws what is missing. A model whose pictures are all there is not loaded."""
    folder, options = folder_of(asked.out), from_dict(SampleOptions, manifest["options"])
    told = check(folder, manifest)
    files = Lazily(items, lambda item: picture_of(folder, item))
    ready = told is not None and all(map(is_whole, files))
    processes.wait()  # before anybody draws, so that all find the same
    if told is None or not ready:
        generator = registry.build(asked.model, device=processes.device)
        told = {"parameters": parameters_of(generator, options), "resolution": list(generator.resolution)}
        if processes.is_main:
            claim(folder, {"model": asked.model, **manifest, **told})
        processes.wait()
        draw(generator, items, folder, processes, seed=asked.seed, rule=rules.seeds, options=options, batch=asked.batch)
    height, width = told["resolution"]
    measured = Measured(
        name=asked.model,
        source="model",
        digest=manifest["digest"],
        family=family_of(asked.model),
        parameters=told["parameters"],
        resolution=(height, width),
        seed=asked.seed,
        options=manifest["options"],
    )
    source = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return Drawn(measured=measured, items=items, files=files, source=source)


def _made_elsewhere(asked: Asked, manifest: Mapping[str, Any], items: list[Item], processes: Processes) -> Drawn:
    """Links to the pictures of a folder, under the names that drawn pictures have."""
    assert asked.drawn is not None
    folder, place = folder_of(asked.out), asked.drawn
    pictures, seen, faults = elsewhere.gather(
        place, items, folder / "features", processes, allow_missing=asked.allow_missing
    )
    there = [item for item in items if item.key in seen]
    if processes.is_main:
        claim(folder, manifest)
        elsewhere.link(place, pictures, folder / "pictures")
    processes.wait()
    measured = Measured(
        name=manifest["name"], source="folder", digest=digest_of(seen, seen), resolution=elsewhere.common_size(seen)
    )
    return Drawn(
        measured=measured,
        items=there,
        files=Lazily(there, lambda item: place / on_disk(pictures[item.key])),
        source=measured.digest,
        file_format=elsewhere.formats(pictures),
        faults=faults,
        converted=conversions(seen, there, "drawn"),
    )


def _size(rules: Rules, drawn: Drawn, asked: Asked) -> tuple[int, int] | None:
    """What networks see pictures at."""
    if rules.size != "drawn":
        return rules.size
    if drawn.measured.resolution is None:
        raise InputError(
            f"{asked.drawn} has pictures of different sizes, but the protocol {asked.protocol} gives references the "
            "size of all drawn ones: resize them, or choose another --protocol"
        )
    return drawn.measured.resolution


def _write(
    record: Record, scores: Scores, drawn: Drawn, size: tuple[int, int] | None, rules: Rules, asked: Asked
) -> None:
    """The record last: where it is, all else is."""
    write_pictures(_judged(scores, drawn.items), asked.out)
    if asked.sheet:
        chosen = spread(range(len(drawn.items)), asked.sheet)
        pairs = [(drawn.items[row], drawn.files[row]) for row in chosen]
        write_grid(pairs, folder_of(asked.out) / SHEET, size or drawn.measured.resolution, rules.resize)
    write(record, asked.out)


def _judged(scores: Scores, items: Sequence[Item]) -> Iterator[Picture]:
    for row, item in enumerate(items):
        told = {name: float(values_N[row]) for name, values_N in scores.values.items()}
        own = {name: value for name, value in told.items() if not math.isnan(value)}
        yield Picture(key=item.key, category=item.category, prompt=item.prompt, scores=own)


@contextmanager
def _timed(times: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    times[stage] = time.monotonic() - start
