"""`star sample`: prompts to PNG files, each with what made it in its metadata, and a grid where there are several."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.commands.drawing import DEFAULT_MODEL, LARGEST_SEED, add_options, chosen
from star.commands.options import within
from star.data.disk import check_writable, writing
from star.data.errors import InputError
from star.generators import placement
from star.terminal import as_text

if TYPE_CHECKING:
    from torch import Tensor

    from star.pictures.job import Share, Task
    from star.pictures.record import Record
    from star.pictures.requests import Request
    from star.pictures.source import Source

MOST_PICTURES = 10**6  # of one call


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describes the command's arguments."""
    parser = commands.add_parser(
        "sample",
        help="draw pictures from prompts",
        description="Draws each prompt COUNT times, with the seeds SEED, SEED + 1, ..., and prints the paths of the "
        "pictures, and of a grid of all where there are several. An empty prompt draws without a condition. The same "
        "prompt, seed, model and options give the same picture. Long lists of prompts can be shared by several "
        "processes (accelerate launch or torchrun ... -m star.cli sample --prompts FILE), killed, and called again.",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to draw; for a model of classes its number")
    parser.add_argument(
        "--prompts",
        dest="list",
        metavar="FILE",
        help="a list instead, - for standard input: lines; .csv or .tsv with a column prompt; .jsonl (from standard "
        "input told by its first brace). Rows may have a seed, a negative_prompt and options of their own",
    )
    parser.add_argument(
        "--like",
        metavar="PNG",
        help="draw a picture of `star sample` again, from what it says of itself; what else is given counts instead",
    )
    parser.add_argument("--model", help=f"name, folder or hub id (default: {DEFAULT_MODEL})")
    parser.add_argument("--adapter", metavar="DIR", help="what `star finetune --lora` made of that model")
    parser.add_argument("--seed", type=int, metavar="N", help="of the first picture (default: 0)")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="pictures per prompt (default: %(default)s)")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="of STAR: what the pictures are led away from")
    add_options(parser)
    parser.add_argument(
        "--out", default="pictures", metavar="DIR", help="or a .png for one picture (default: %(default)s)"
    )
    parser.add_argument(
        "--skip-existing", action="store_true", help="draw what of the list is not in DIR yet, or not whole"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON as each picture is there, not paths")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at once (default: %(default)s)")
    placement.add_options(parser)
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Draws, and returns 1 if `--like` gave another picture, else 0."""
    _check(args)
    from star.pictures import job
    from star.pictures.record import Record
    from star.pictures.source import Source

    share = job.Share.of_environment()
    like = None if args.like is None else Record.read(args.like)
    if like is not None:
        _as_it_was_made(args, like)
    place = placement.placed(share.device(args.device), args.dtype, args.model or DEFAULT_MODEL)
    source = Source.find(args.model or DEFAULT_MODEL, args.adapter or "")
    base = source if like is None else replace(source, recommended=_options_of(like, args.like))
    if like is not None:
        _check_digest(like, source, args)
    named = bool(args.list or args.skip_existing or share.world > 1)
    tasks = job.plan(_requests(args, source.conditioning), base, chosen(args), place, named=named)
    if _is_file(args.out):
        tasks = _one(tasks, args.out)
    paths = _draw(args, source, tasks, share, place)
    if like is not None and len(tasks) == 1 and like.same_picture(tasks[0].record):
        return _compare(args.like, paths[0], like)
    return 0


def _draw(
    args: argparse.Namespace, source: "Source", tasks: "Sequence[Task]", share: "Share", place: "placement.Placement"
) -> list[Path]:
    """Draws this process's share, writes and prints what there is to it, and returns its paths."""
    from star.data.progress import Progress
    from star.pictures import job
    from star.pictures.sheet import LARGEST

    parts = job.batches(tasks, args.batch)[share.rank :: share.world]
    own = {id(task) for part in parts for task in part}
    tasks = [task for task in tasks if id(task) in own]
    named = _is_file(args.out)  # by the user, who wants it replaced
    folder, wanted = Path(args.out).parent if named else Path(args.out), tasks
    if tasks and tasks[0].name and not named:
        wanted = job.missing(tasks, folder)
        if len(wanted) < len(tasks) and not args.skip_existing:
            raise InputError(
                f"{len(tasks) - len(wanted)} of the {len(tasks)} pictures are in {folder} already: give "
                "--skip-existing to draw the others, or another --out"
            )
    paths = {id(task): folder / task.name for task in tasks}
    left = {id(task) for task in wanted}
    if args.json:
        for task in tasks:
            if id(task) not in left:
                print(job.line(task, paths[id(task)]), flush=True)
    pictures: dict[int, Tensor] = {}
    if wanted:  # where nothing is left to draw, no model is loaded
        generator = source.load(place)
        _check_conditioning(args, generator.conditioning)
        _prepare(folder)
        job.tidy(tasks, folder)
        total, done, shown = len(tasks), len(tasks) - len(wanted), len(wanted) > args.batch and share.rank == 0
        with Progress(total, unit="pictures", title="draw", start=done, enabled=shown) as progress:
            for task, pixels_3HW in job.draw_all(generator, parts, wanted):
                paths[id(task)] = job.save(task, pixels_3HW, folder)
                if args.json:
                    print(job.line(task, paths[id(task)]), flush=True)
                if len(tasks) <= LARGEST and share.world == 1:
                    pictures[id(task)] = pixels_3HW
                progress.update()
    if args.list and tasks:
        job.write_records([job.line(task, paths[id(task)]) for task in tasks], folder, share)
    told = [] if share.world > 1 else _save_grid(args, tasks, paths, pictures)
    if not args.json:
        print("\n".join(str(path) for path in (*paths.values(), *told)))
    return list(paths.values())


def _check(args: argparse.Namespace) -> None:
    """Everything that needs no look at models."""
    from star.pictures.requests import notice_file_names

    most = MOST_PICTURES // max(len(args.prompts), 1)
    for name, value, low, high in (
        ("count", args.count, 1, most),
        ("batch", args.batch, 1, MOST_PICTURES),
        ("seed", args.seed or 0, 0, LARGEST_SEED + 1 - min(args.count, most)),
    ):
        within(f"--{name}", value, low, high)
    if sum((bool(args.prompts), args.list is not None)) > 1:
        raise InputError(f"prompts and --prompts {args.list} were both given, expected one of them: leave one out")
    if args.like is not None and args.list is not None:
        raise InputError(f"--like and --prompts {args.list} were both given, expected one of them: leave one out")
    notice_file_names(args.prompts)
    check_writable(Path(args.out).parent if _is_file(args.out) else args.out)


def _is_file(out: str) -> bool:
    return Path(out).suffix.lower() == ".png" and not Path(out).is_dir()


def _one(tasks: "Sequence[Task]", out: str) -> "list[Task]":
    """The only task, to be written to the file. Raises InputError if there are several."""
    if len(tasks) != 1:
        raise InputError(f"--out is {out} for {len(tasks)} pictures, expected a folder: give one")
    return [replace(tasks[0], name=Path(out).name)]


def _requests(args: argparse.Namespace, conditioning: str) -> "list[Request]":
    """What was asked for. Raises InputError for a list that cannot be read, and where there is no prompt."""
    from star.pictures import requests

    first = args.seed or 0
    seeds = range(first, first + args.count)
    if args.list is not None:
        found = requests.read(args.list, seeds, args.negative_prompt)
        within("the number of pictures", len(found), 1, MOST_PICTURES)
        return found
    prompts = [as_text(prompt) for prompt in args.prompts]
    if not prompts:
        if conditioning and conditioning != "none":
            _refuse_no_prompt()
        prompts = [""]
    elif conditioning == "text" and not all(prompt.strip() for prompt in prompts):
        print("star: an empty prompt draws without a condition", file=sys.stderr)
    return [requests.Request(prompt, seed, args.negative_prompt) for prompt in prompts for seed in seeds]


def _check_conditioning(args: argparse.Namespace, conditioning: str) -> None:
    """For models that do not say it before they are loaded."""
    if conditioning != "none" and not args.prompts and args.list is None:
        _refuse_no_prompt()


def _refuse_no_prompt() -> None:
    raise InputError('no prompt was given, expected at least one: put it in quotes, or give "" to draw without')


def _prepare(folder: Path) -> None:
    """Makes the folder, in which there is room for a little; that there is none is found before drawing, not after."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".star-") as probe:
            probe.write(bytes(4096))
            probe.flush()


def _save_grid(
    args: argparse.Namespace, tasks: "Sequence[Task]", paths: dict[int, Path], pictures: "dict[int, Tensor]"
) -> list[Path]:
    """A sheet of all pictures where there are several, in the order of the list."""
    from star.data.images import read_png, save_png
    from star.pictures.job import save_new
    from star.pictures.sheet import LARGEST, columns_of, sheet

    if not 1 < len(tasks) <= LARGEST:
        if len(tasks) > 1:
            print(f"star: no grid of {len(tasks)} pictures, which is made of up to {LARGEST}", file=sys.stderr)
        return []
    there = Path(args.out) / "grid.png"
    if not pictures and there.is_file():
        return [there]  # nothing was drawn
    drawn = [pictures[id(task)] if id(task) in pictures else read_png(paths[id(task)]) for task in tasks]
    pixels_3HW = sheet(drawn, columns_of(len(drawn), args.count))
    if not tasks[0].name:
        return [save_new(pixels_3HW, Path(args.out), "grid", {})]
    save_png(pixels_3HW, there)
    return [there]


# ---- --like


def _as_it_was_made(args: argparse.Namespace, like: "Record") -> None:
    """Fills in what was not given. Raises InputError for a picture that prompt and seed alone do not make."""
    from star.pictures.record import PLAIN

    if like.made_by != PLAIN:
        raise InputError(
            f"{args.like} was made by `star {like.made_by}`, expected a picture of `star sample`: call that again"
        )
    filled: dict[str, Any] = {
        "prompts": args.prompts or ([like.prompt] if like.prompt else []),
        "seed": like.seed if args.seed is None else args.seed,
        "negative_prompt": like.negative_prompt if args.negative_prompt is None else args.negative_prompt,
        "adapter": args.adapter or (like.adapter if args.model is None else None),
        "model": args.model or like.model,
        "dtype": like.dtype if like.dtype in placement.DTYPES and args.dtype == placement.AUTO else args.dtype,
    }
    for name, value in filled.items():
        setattr(args, name, value)


def _options_of(like: "Record", path: str) -> Any:
    from star.generators.config import from_dict
    from star.generators.protocol import SampleOptions

    return from_dict(SampleOptions, like.options, f"{path} options")


def _check_digest(like: "Record", source: "Source", args: argparse.Namespace) -> None:
    if like.digest and source.digest != like.digest:
        raise InputError(
            f"{args.like} was drawn by {like.model} with digest {like.digest[:12]}..., {source.model} has "
            f"{source.digest[:12] or 'none'}...: give the model it was drawn with by --model, or draw its prompt anew"
        )


def _compare(old: str, new: Path, like: "Record") -> int:
    """Says on standard error whether a picture was drawn again bit for bit; 1 if not."""
    from star.data.images import read_png

    before, after = read_png(old), read_png(new)
    if before.shape == after.shape and bool((before == after).all()):
        print(f"star: the same picture as {old}, bit for bit", file=sys.stderr)
        return 0
    detail = "another size"
    if before.shape == after.shape:
        detail = f"{int((before != after).any(dim=0).sum())} pixels differ"
    print(
        f"star: not the same picture as {old} ({detail}), which version {like.version or 'unknown'} drew: another "
        "device, or another version of torch, rounds in another way",
        file=sys.stderr,
    )
    return 1
