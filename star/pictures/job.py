"""A list of pictures drawn by one process or by several, once each, whoever is killed and whenever it is called again.

Each process draws its share of the batches (RANK, WORLD_SIZE, as accelerate and torchrun set them); they exchange
nothing. A file's name follows from the list, and a file is there whole or not at all. Where a batch has any picture
missing it is drawn whole on a GPU, because there a picture's last bits depend on its batch.

B pictures, H W pixels, 3 RGB.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star import __version__
from star.data.disk import write_text, writing
from star.data.errors import InputError
from star.data.whole import is_whole_png
from star.pictures.names import numbered, put, slug
from star.pictures.record import Record
from star.pictures.requests import Request

if TYPE_CHECKING:
    from torch import Tensor

    from star.generators.placement import Placement
    from star.generators.protocol import Generator, SampleOptions
    from star.pictures.source import Source

PARTIAL = re.compile(r"\.(.+)\.\d+\.part")  # as star.data.images.save_png names what is not whole yet


@dataclass(frozen=True, slots=True)
class Task:
    """A picture to draw, and what its file will say. name: of its file; "" takes the first free one."""

    request: Request
    options: "SampleOptions"
    record: Record
    name: str = ""

    @property
    def stem(self) -> str:
        """Of the file's name: words of the prompt and the seed."""
        return f"{slug(self.request.prompt)}-{self.request.seed}"


@dataclass(frozen=True, slots=True)
class Share:
    """Which of `world` processes this one is. local: its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> "Share":
        """As RANK, WORLD_SIZE and LOCAL_RANK say; alone without them. Raises InputError where they make no sense."""
        told = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        if not (told["RANK"] and told["WORLD_SIZE"]):
            return cls()
        try:
            share = cls(int(told["RANK"]), int(told["WORLD_SIZE"]), int(told["LOCAL_RANK"] or told["RANK"]))
        except ValueError:
            share = cls(rank=-1)
        if not 0 <= share.rank < share.world:
            raise InputError(
                f"RANK is {told['RANK']} and WORLD_SIZE {told['WORLD_SIZE']}, expected a number below the other: "
                "correct them, or unset both"
            )
        return share

    def device(self, given: str | None) -> str | None:
        """The device that was asked for; else, of several processes, a GPU of this one's own where there are any."""
        if given or self.world == 1:
            return given
        import torch

        return f"cuda:{self.local % torch.cuda.device_count()}" if torch.cuda.is_available() else None


def plan(
    requests: Sequence[Request],
    source: "Source",
    chosen: Mapping[str, Any],
    place: "Placement",
    *,
    named: bool = True,
) -> list[Task]:
    """The requests with all options: the model's recommended ones, those chosen for all, and each one's own.

    named: gives files the names that follow from the list. Raises InputError for options that are out of range, or
    that the model has no use for.
    """
    known: dict[str, SampleOptions] = {}
    tasks = []
    for request in requests:
        given = {**chosen, **request.options}
        key = json.dumps(given, sort_keys=True)
        if key not in known:
            known[key] = replace(source.recommended, **given)
            source.refuse(given, negative_prompt=request.negative_prompt is not None)
        options = known[key]
        if request.negative_prompt is not None and options.guidance_scale == 1:
            raise InputError(
                "a negative prompt needs guidance, which is off: raise guidance_scale above 1, or leave it out"
            )
        record = Record(
            prompt=request.prompt,
            seed=request.seed,
            model=source.model,
            options=asdict(options),
            negative_prompt=request.negative_prompt,
            adapter=source.adapter,
            digest=source.digest,
            version=__version__,
            **place.told(),
            more=request.more,
        )
        tasks.append(Task(request, options, record))
    if not named:
        return tasks
    names = numbered(task.stem for task in tasks)
    return [replace(task, name=name) for task, name in zip(tasks, names, strict=True)]


def batches(tasks: Sequence[Task], size: int) -> list[list[Task]]:
    """Tasks that are drawn together: of the same options, at most so many, a function of the list alone."""
    groups: dict[tuple[str, bool], list[Task]] = {}
    for task in tasks:
        key = (json.dumps(asdict(task.options), sort_keys=True), task.request.negative_prompt is None)
        groups.setdefault(key, []).append(task)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def missing(tasks: Sequence[Task], folder: Path) -> list[Task]:
    """Those whose file is not there, or not whole.

    Raises InputError if a file of that name is another picture: of another model, seed, prompt or options.
    """
    found = []
    for task in tasks:
        path = folder / task.name
        if not is_whole_png(path):
            found.append(task)
        elif not Record.read(path).same_picture(task.record):
            raise InputError(
                f"{path} is another picture, of another model or other options: give another --out, or remove it"
            )
    return found


def tidy(tasks: Sequence[Task], folder: Path) -> None:
    """Removes what a kill left half written of these pictures; of others', somebody may be writing."""
    names = {task.name for task in tasks}
    for file in folder.glob(".*.part"):
        if (match := PARTIAL.fullmatch(file.name)) and match[1] in names:
            with contextlib.suppress(OSError):
                file.unlink()


def draw(generator: "Generator", batch: Sequence[Task]) -> "Tensor":
    """pixels_B3HW of tasks of the same options."""
    requests, options = [task.request for task in batch], batch[0].options
    prompts, seeds = [request.prompt for request in requests], [request.seed for request in requests]
    if requests[0].negative_prompt is None:
        return generator.generate(prompts, seeds=seeds, options=options)
    negative = [request.negative_prompt or "" for request in requests]
    pixels_B3HW: Tensor = generator.generate(  # type: ignore[call-arg]
        prompts, seeds=seeds, options=options, negative_prompts=negative
    )
    return pixels_B3HW


def draw_all(
    generator: "Generator", parts: Sequence[Sequence[Task]], wanted: Sequence[Task]
) -> "Iterator[tuple[Task, Tensor]]":
    """Those of the tasks that are wanted, each with its pixels_3HW; parts: batches that hold them."""
    names = {id(task) for task in wanted}
    on_cpu = str(getattr(generator, "device", "cpu")) == "cpu"
    for part in parts:
        left = [task for task in part if id(task) in names]
        if not left:
            continue
        drawn = left if on_cpu else part
        for task, pixels_3HW in zip(drawn, draw(generator, drawn), strict=True):
            if id(task) in names:
                yield task, pixels_3HW


def save(task: Task, pixels_3HW: "Tensor", folder: Path) -> Path:
    """Writes a picture with its record, whole or not at all, and returns its path."""
    from star.data.images import save_png

    if not task.name:
        return save_new(pixels_3HW, folder, task.stem, task.record.to_text())
    save_png(pixels_3HW, folder / task.name, task.record.to_text())
    return folder / task.name


def save_new(pixels_3HW: "Tensor", folder: Path, stem: str, text: Mapping[str, str]) -> Path:
    """Writes a picture under the first free name of stem.png, stem-2.png, ... and returns its path.

    Raises InputError that tells of that name if the disk refuses.
    """
    from star.data.images import save_png

    partial = folder / f".{stem}.{os.getpid()}.png"
    try:
        with writing(folder):
            save_png(pixels_3HW, partial, text)
            return put(partial, folder, stem)
    except InputError as error:  # nobody knows the file by the name it has here
        raise InputError(str(error).replace(partial.name, f"{stem}.png")) from error
    finally:
        partial.unlink(missing_ok=True)


def line(task: Task, path: Path) -> str:
    """A picture's record as one line of JSON, its file first."""
    return json.dumps({"file": path.name, **task.record.values()}, ensure_ascii=False)


def write_records(lines: Sequence[str], folder: Path, share: Share) -> Path:
    """Writes pictures.jsonl, or the part of it that this process has; lines of other pictures there stay."""
    part = "" if share.world == 1 else f"-{share.rank:05d}-of-{share.world:05d}"
    path = folder / f"pictures{part}.jsonl"
    own = {json.loads(line)["file"] for line in lines}
    others = []
    with contextlib.suppress(OSError, ValueError):
        for old in path.read_text(encoding="utf-8").splitlines():
            if json.loads(old)["file"] not in own:
                others.append(old)
    write_text(path, "".join(f"{line}\n" for line in (*others, *lines)))
    return path
