"""`star rank`: the pictures of each prompt in the order in which a CLIP finds them to fit it."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from star.data.disk import check_writable, writing
from star.data.errors import InputError

if TYPE_CHECKING:
    from star.eval.run.ranking import Ranked


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "rank",
        help="order the pictures of each prompt by how well they fit it",
        description="Reads PNGs of `star sample`, which say what they were drawn from, and prints how well each fits "
        "its prompt by a CLIP, the best of each prompt first. With --keep 1 --out DIR the best of several draws of a "
        "prompt are copied, as they are.",
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURES", help="PNGs, or folders of them")
    parser.add_argument(
        "--by", default="clip-emoji", metavar="NETWORK", help="or clip:DIR, pick:DIR, hps:DIR (default: %(default)s)"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="of all pictures, in place of what they say")
    parser.add_argument("--keep", type=int, metavar="K", help="the best K of each prompt alone (default: all)")
    parser.add_argument("--out", metavar="DIR", help="also copy them there")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.set_defaults(work=work)


def work(args: argparse.Namespace) -> int:
    """Reads, prints, copies."""
    if args.keep is not None and args.keep < 1:
        raise InputError(f"--keep is {args.keep}, expected at least 1: correct it")
    if args.out:
        check_writable(args.out)
    from star.eval.run.ranking import pictures_in, prompt_of, rank, scorer
    from star.generators.devices import usable

    device = usable(args.device)
    named = {Path(place) for place in args.pictures}
    told = [(path, args.prompt or prompt_of(path)) for path in pictures_in(args.pictures)]
    for path, prompt in told:
        if not prompt and path in named:
            raise InputError(f"{path} does not say what it was drawn from: give that by --prompt")
    pictures = [(path, prompt) for path, prompt in told if prompt]
    if not pictures:
        raise InputError("none of the pictures says what it was drawn from: give that by --prompt")
    if len(pictures) < len(told):
        print(f"star: left out {len(told) - len(pictures)} that do not say what they were drawn from", file=sys.stderr)
    kept = [one for one in rank(pictures, scorer(args.by, device)) if args.keep is None or one.rank <= args.keep]
    places = _copy(kept, Path(args.out)) if args.out else [one.path for one in kept]
    for one, place in zip(kept, places, strict=True):
        if args.json:
            values = {"path": str(place), "prompt": one.prompt, "score": one.score, "rank": one.rank}
            print(json.dumps(values, ensure_ascii=False))
        else:
            print(f"{one.score:.4f}  {place}")
    return 0


def _copy(kept: "list[Ranked]", folder: Path) -> list[Path]:
    """The files, byte for byte. Raises InputError where two would have one name, or one is there."""
    places = [folder / one.path.name for one in kept]
    taken: set[Path] = set()
    for place in places:
        if place in taken or place.exists():
            raise InputError(f"{place} would be written twice, expected files of different names: give another --out")
        taken.add(place)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for one, place in zip(kept, places, strict=True):
            shutil.copyfile(one.path, place)
    return places
