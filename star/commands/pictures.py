"""What the commands that work with a picture or with several share: their options, the model, and what they write."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.commands.drawing import DEFAULT_MODEL, LARGEST_SEED, add_options, chosen
from star.commands.options import within
from star.data.disk import check_writable, writing
from star.data.errors import InputError
from star.generators import placement

if TYPE_CHECKING:
    from PIL import Image

    from star.pictures.source import Source
    from star.pipeline import Pipeline

FOLDER = "pictures"
LARGEST_ZOOM = 64
Added = argparse.ArgumentParser


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help: str, description: str
) -> Added:
    """A command with the options of drawing; its own arguments come first, `add_output` last."""
    parser = commands.add_parser(name, help=help, description=description)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name, folder or hub id (default: %(default)s)")
    parser.add_argument("--adapter", metavar="DIR", help="what `star finetune --lora` made of that model")
    add_options(parser)
    placement.add_options(parser)
    return parser


def add_seed(parser: Added) -> None:
    """--seed, of the first picture."""
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first picture (default: %(default)s)")


def add_output(parser: Added, *, films: bool) -> None:
    """--out and --zoom. films: frames, whose files may be .gif and .mp4 as well; else pictures."""
    if films:
        told = f"what to write: .png is a strip, .gif and .mp4 a film (default: a strip and a GIF in {FOLDER})"
    else:
        told = f"the .png to write, of a sheet where there are several pictures (default: one in {FOLDER})"
    parser.add_argument("--out", nargs="+", metavar="FILE", help=told)
    parser.add_argument("--zoom", type=int, default=1, metavar="N", help="times as large (default: %(default)s)")
    if films:
        parser.add_argument(
            "--seconds", type=float, default=0.15, metavar="S", help="that each frame is shown (default: %(default)s)"
        )


def check(args: argparse.Namespace, *, films: bool) -> None:
    """Everything that needs no look at models: numbers, and where to write."""
    from star.pictures.film import check_suffixes

    within("--zoom", args.zoom, 1, LARGEST_ZOOM)
    if films:
        within("--seconds", args.seconds, 0.02, 60)
    if hasattr(args, "seed"):
        within("--seed", args.seed, 0, LARGEST_SEED)
    check_suffixes(args.out or [])
    for path in args.out or [f"{FOLDER}/x.png"]:
        if not films and Path(path).suffix.lower() != ".png":
            raise InputError(f"{path} was given to write, expected a name that ends with .png: change it")
        check_writable(Path(path).parent)
        if Path(path).is_dir():
            raise InputError(f"{path} is a folder, expected a file to write: give its name, too")


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is ready, and what pictures are to say of it."""

    pipe: "Pipeline"
    source: "Source"
    place: placement.Placement

    def text(self, made_by: str, prompt: str, seed: int, **more: Any) -> dict[str, str]:
        """The metadata of a picture that a command made. more: what it was told besides."""
        from star import __version__
        from star.pictures.record import Record

        return Record(
            prompt=prompt,
            seed=seed,
            model=self.source.model,
            options=asdict(self.pipe.options),
            adapter=self.source.adapter,
            digest=self.source.digest,
            version=__version__,
            **self.place.told(),
            made_by=made_by,
            more=more,
        ).to_text()


def open_pipeline(args: argparse.Namespace) -> "Opened":
    """The model that was asked for. Raises InputError for options it has no use for before its weights are read."""
    from star.pictures.source import Source

    place = placement.placed(args.device, args.dtype, args.model)
    source = Source.find(args.model, args.adapter or "")
    source.refuse(chosen(args))
    from star.pipeline import Pipeline

    options = replace(source.recommended, **chosen(args))
    return Opened(Pipeline(source.load(place), options, args.model), source, place)


def write_frames(
    args: argparse.Namespace,
    frames: "Sequence[Image.Image]",
    name: str,
    text: Mapping[str, str],
    *,
    columns: int = 0,
    kinds: Sequence[str] = (".png", ".gif"),
) -> list[Path]:
    """Writes frames where they were asked for, else under the first free names in FOLDER; prints and returns the paths.

    A file that was named is replaced, one that was not never is. columns: of a strip.
    """
    from star.pictures.film import enlarged, write
    from star.pictures.names import put

    frames = [enlarged(frame, args.zoom) for frame in frames]
    options: dict[str, Any] = {"seconds": getattr(args, "seconds", 1.0), "columns": columns, "text": text}
    paths = [Path(path) for path in args.out or []]
    for path in paths:
        write(frames, path, **options)
    if not paths:
        folder = Path(FOLDER)
        with writing(folder):
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".star-") as partial:
                for kind in kinds:
                    write(frames, Path(partial) / f"x{kind}", **options)
                    paths.append(put(Path(partial) / f"x{kind}", folder, name, kind))
    print("\n".join(map(str, paths)))
    return paths


def prompt_of(given: str | None, picture: str) -> str:
    """The prompt that was given, else what the picture says that it was drawn from, else none."""
    from star.pictures.record import Record
    from star.terminal import as_text

    if given is not None:
        return as_text(given)
    try:
        return Record.read(picture).prompt
    except InputError:
        return ""
