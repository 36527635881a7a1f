"""`star sample`: prompts to PNG files, each with what made it in its metadata, and a grid where there are several."""

import argparse
import itertools
import json
import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.commands.options import within
from star.data.disk import check_writable, writing
from star.data.errors import InputError
from star.generators.renamed import refuse_old_options
from star.terminal import as_text

if TYPE_CHECKING:
    from torch import Tensor

    from star.generators.protocol import Generator, SampleOptions

OPTIONS = (
    "guidance_scale",
    "guidance_ramp",
    "top_k",
    "top_p",
    "truncation",
    "temperature",
    "temperature_decay",
    "cross_attention",
    "refine",
    "size",
)
LONGEST_NAME = 100  # bytes of a file name that come from the prompt
LARGEST_GRID = 1024  # pictures; more are not looked at side by side
MOST_PICTURES = 10**6  # of one call
LARGEST_SEED = 2**63 - 1  # as star.generators.protocol has it; not imported from there, since help must be instant


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "sample",
        help="draw pictures from prompts",
        description="Draws each prompt COUNT times, with the seeds SEED, SEED + 1, ..., and prints the paths of the "
        "pictures, and of a grid of all where there are several. An empty prompt draws without a condition. The same "
        "prompt, seed, model and options give the same picture.",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to draw; for a model of classes its number")
    parser.add_argument("--model", default="star-emoji", help="name, folder or hub id (default: %(default)s)")
    parser.add_argument("--adapter", metavar="DIR", help="what `star finetune --lora` made of that model")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first picture (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="pictures per prompt (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, help="how far to follow the prompt; 1 is the prompt alone")
    parser.add_argument(
        "--guidance-ramp",
        type=float,
        help="of STAR: share of the guidance that the coarsest scale lacks; 0 guides all alike",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest codes; 0 keeps all")
    parser.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest codes that reach this share")
    parser.add_argument("--temperature", type=float, help="below 1 is safer, above 1 more varied")
    parser.add_argument(
        "--temperature-decay",
        type=float,
        help="of STAR: share of the temperature that the finest scale lacks; 0 is none",
    )
    parser.add_argument("--truncation", type=float, help="of GANs: 1 draws from all, 0 the mean picture")
    parser.add_argument(
        "--cross-attention",
        choices=("released", "per-sample"),
        help="whose words the unconditional half reads: the prompt's, as released, or its own (default: the model's)",
    )
    parser.add_argument(
        "--no-refine", dest="refine", action="store_const", const=False, help="leave a checkpoint's refiner unused"
    )
    parser.add_argument("--size", metavar="HxW", help="of STAR: pixels as 56x84, or an aspect width:height as 3:2")
    refuse_old_options(parser)
    parser.add_argument("--out", default="pictures", metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at once (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.set_defaults(work=work)


@dataclass(frozen=True)
class Request:
    """One picture to draw."""

    prompt: str
    seed: int


def work(args: argparse.Namespace) -> int:
    _check(args)
    from star.data.progress import Progress
    from star.generators import registry
    from star.generators.devices import usable

    device = usable(args.device)
    recommended = registry.recommended(args.model)  # before the slow part: a missing model is told at once
    options = replace(recommended, **{name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None})
    generator = registry.build(args.model, device=device)
    if args.adapter:
        _adapt(generator, args.model, args.adapter)
        args.model = f"{args.model} with {args.adapter}"
    prompts = [as_text(prompt) for prompt in args.prompts]
    requests = _requests(prompts, generator.conditioning, range(args.seed, args.seed + args.count))
    out = _folder(args.out)
    paths, pictures = [], []
    with Progress(len(requests), unit="pictures", enabled=len(requests) > args.batch) as progress:
        for request, pixels_3HW in draw(generator, requests, options, args.batch):
            paths.append(_save(out, request, pixels_3HW, args.model, options))
            if len(requests) <= LARGEST_GRID:
                pictures.append(pixels_3HW)
            progress.update()
    if len(pictures) > 1:
        paths.append(_save_grid(out, pictures, args.count))
    elif len(requests) > 1:
        print(f"star: no grid of {len(requests)} pictures, which is made of up to {LARGEST_GRID}", file=sys.stderr)
    print("\n".join(str(path) for path in paths))
    return 0


def _adapt(generator: "Generator", model: str, adapter: str) -> None:
    """Changes the generator's weights by an adapter that belongs to it."""
    from star.generator import StarGenerator
    from star.generators import registry
    from star.generators.pretrained import ModelDirectory
    from star.training.lora import Adapter

    if not isinstance(generator, StarGenerator):
        raise InputError(f"--adapter was given for {model}, expected a STAR model: leave it out")
    read = Adapter.read(adapter)
    read.check_base(ModelDirectory.read(registry.locate(model)))
    read.merge_into(generator.transformer)


def draw(
    generator: "Generator", requests: Sequence[Request], options: "SampleOptions", batch: int
) -> "Iterator[tuple[Request, Tensor]]":
    """Each request with its pixels_3HW, drawn `batch` at a time."""
    for first in range(0, len(requests), batch):
        part = requests[first : first + batch]
        prompts, seeds = [request.prompt for request in part], [request.seed for request in part]
        pixels_B3HW = generator.generate(prompts, seeds=seeds, options=options)
        yield from zip(part, pixels_B3HW, strict=True)


def slug(prompt: str) -> str:
    """The words of a prompt, in any script, as part of a file name."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", prompt).lower())
    name = "-".join(words).encode()[:LONGEST_NAME].decode(errors="ignore").rstrip("-")
    return name or ("picture" if prompt.strip() else "unconditional")


def put(partial: Path, folder: Path, stem: str) -> Path:
    """Gives a finished file the first free name of stem.png, stem-2.png, ... in the folder, and returns its path.

    A name is taken and filled in one step, which fails if it is taken already: two processes that draw into one folder
    never write over each other's pictures.
    """
    for number in itertools.count(1):
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        try:
            os.link(partial, path)
        except FileExistsError:
            continue
        except OSError:  # no hard links there: the name first, then the file
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                continue
            partial.replace(path)
        return path
    raise AssertionError("numbers do not end")


def _check(args: argparse.Namespace) -> None:
    most = MOST_PICTURES // max(len(args.prompts), 1)
    for name, low, high in (
        ("count", 1, most),
        ("batch", 1, MOST_PICTURES),
        ("seed", 0, LARGEST_SEED + 1 - min(args.count, most)),
    ):
        within(f"--{name}", getattr(args, name), low, high)
    check_writable(args.out)


def _requests(prompts: Sequence[str], conditioning: str, seeds: range) -> list[Request]:
    if not prompts:
        if conditioning != "none":
            raise InputError('no prompt was given, expected at least one: put it in quotes, or give "" to draw without')
        prompts = [""]
    elif conditioning == "text" and not all(prompt.strip() for prompt in prompts):
        print("star: an empty prompt draws without a condition", file=sys.stderr)
    return [Request(prompt, seed) for prompt in prompts for seed in seeds]


def _folder(path: str) -> Path:
    """The folder, in which there is room for a little; that there is none is found before drawing, not after."""
    folder = Path(path)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".star-") as probe:
            probe.write(bytes(4096))
            probe.flush()
    return folder


def _save(folder: Path, request: Request, pixels_3HW: "Tensor", model: str, options: "SampleOptions") -> Path:
    made_from: dict[str, Any] = {"prompt": request.prompt, "seed": request.seed, "model": model}
    text = {name: str(value) for name, value in made_from.items()} | {"options": json.dumps(asdict(options))}
    return _save_new(pixels_3HW, folder, f"{slug(request.prompt)}-{request.seed}", text)


def _save_grid(folder: Path, pictures: "Sequence[Tensor]", count: int) -> Path:
    import torch

    from star.data.images import grid

    columns = count if count > 1 else round(len(pictures) ** 0.5 + 0.49)  # a row per prompt, else about a square
    return _save_new(grid(torch.stack(list(pictures)), columns), folder, "grid", {})


def _save_new(pixels_3HW: "Tensor", folder: Path, stem: str, text: Mapping[str, str]) -> Path:
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
