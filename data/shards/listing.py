"""Finding shards: from folders, patterns, ranges, addresses and lists to one list of tars."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from math import prod
from pathlib import Path

import braceexpand

from star.data.errors import InputError
from star.data.files import open_regular, read_all
from star.data.shards.remote import find, is_url
from star.data.shards.write import PACKING_MARK

SHARD_NAME = re.compile(r"[^.].*\.(tar|tgz|tar\.(gz|bz2|xz))", re.IGNORECASE)
RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?\}")
MOST = 1_000_000  # shards of one training, and names that braces may stand for

_pipes_allowed: ContextVar[bool] = ContextVar("pipes_allowed", default=False)


@contextmanager
def pipes_allowed(allowed: bool = True) -> Iterator[None]:
    """Lets the text lists of shards that are read meanwhile name commands; otherwise that is refused."""
    token = _pipes_allowed.set(allowed)
    try:
        yield
    finally:
        _pipes_allowed.reset(token)


def list_shards(specs: Sequence[str], *, allow_pipe: bool = False, unfinished: bool = False) -> list[str]:
    """Expands directories, globs, brace ranges, URLs and text files of such specs into a list of shards.

    A directory stands for its `*.tar*` files in order of name, also one on an object store, or on a web server where
    an index.json lists it; a text file (UTF-8) holds one spec per line, `#` begins a comment, and relative paths in it
    start from its folder. Order is kept and repeats are dropped. Files of a range or list that are not there stay in
    the result, so that they are missed and counted. Raises InputError for a spec of which nothing is there, whose
    driver is not installed, or that stands for more than a million names; and for a command (pipe:...) in a list,
    unless `allow_pipe`, or within `pipes_allowed()`: who wrote the list would run it here. Shards of a packing that was
    stopped, or is at work, are refused unless `unfinished`.
    """
    if isinstance(specs, str):
        specs = (specs,)
    shards: dict[str, None] = {}
    with pipes_allowed(allow_pipe or _pipes_allowed.get()):
        for spec in specs:
            found = _expand(spec, depth=0)
            if not any(is_url(shard) or os.path.isfile(shard) for shard in found):
                wanted = "give a folder, glob, brace range, URL or list of .tar files"
                raise InputError(f"No shards at {spec!r}; {wanted}{_advice(spec)}.")
            shards.update(dict.fromkeys(found))
    if not shards:
        raise InputError(
            "No shards were given; give at least one folder, glob, brace range, URL or list of .tar files."
        )
    if not unfinished:
        _refuse_unfinished(shards)
    return list(shards)


def _advice(spec: str) -> str:
    """What makes shards of a folder that has none."""
    path = os.path.expanduser(spec)
    return f", or make some of its pictures: star data pack {spec} SHARDS" if os.path.isdir(path) else ""


def _refuse_unfinished(shards: Iterable[str]) -> None:
    for folder in dict.fromkeys(os.path.dirname(shard) for shard in shards if not is_url(shard)):
        if os.path.lexists(os.path.join(folder, PACKING_MARK)):
            raise InputError(
                f"The shards in {folder or '.'} are not all there: their packing was stopped or is at work "
                f"({PACKING_MARK} is beside them); run `star data pack` to its end."
            )


def _expand(spec: str, depth: int) -> list[str]:
    if spec.startswith("pipe:"):
        return [spec]  # a command's braces belong to its shell
    if is_url(spec):
        return [shard for braceless in _braceless(spec) for shard in find(braceless, names_shard)]
    if "\0" in spec:
        raise InputError(f"{spec[:200]!r} holds a null byte, which no path does; correct it.")
    path = Path(os.path.expanduser(spec))
    if os.path.isdir(path):  # os.path takes any name; Path raises for those that are too long
        try:
            return [str(shard) for shard in sorted(path.iterdir()) if names_shard(shard.name) and shard.is_file()]
        except OSError as error:
            raise InputError(f"{path} cannot be listed ({error.strerror}); give a folder that can be read.") from error
    if os.path.isfile(path):
        if names_shard(path.name):
            return [str(path)]
        return _expand_list(path, depth)
    found: list[str] = []
    for braceless in _braceless(str(path)):
        if glob.escape(braceless) == braceless or os.path.isfile(braceless):
            found.extend([braceless] if names_shard(braceless) else [])
            continue
        for match in sorted(glob.glob(braceless)):
            if names_shard(match) or os.path.isdir(match):
                found.extend(_expand(match, depth))
    return found


def _braceless(spec: str) -> list[str]:
    """What the braces of a spec stand for; bounded before it is spelt out."""
    ranges = [[int(number or 1) for number in match.groups()] for match in RANGE.finditer(spec)]
    sizes = _choices(spec) * prod(abs(end - begin) // (abs(step) or 1) + 1 for begin, end, step in ranges)
    widest = max(map(len, re.findall(r"\d+", spec)), default=0) if ranges else 0
    if sizes <= MOST and widest < 1000:
        try:
            found = list(islice(braceexpand.braceexpand(spec), MOST + 1))
        except (ValueError, RecursionError) as error:  # braces that do not close, or in each other without end
            raise InputError(f"The braces of {spec[:200]!r} cannot be read ({error}); correct them.") from error
        if len(found) <= MOST:
            return found
    raise InputError(f"The braces of {spec[:200]!r} stand for more than {MOST:,} names; give fewer.")


def _choices(spec: str) -> int:
    """How many names the commas of a spec's braces make, at most and roughly; no more than a little above MOST."""
    products, sums = [1], [0]  # of each open brace: choices within the present alternative, and in those before it
    for letter in spec:
        if letter == "{":
            products.append(1)
            sums.append(0)
        elif letter == "," and len(products) > 1:
            sums[-1] += products[-1]
            products[-1] = 1
        elif letter == "}" and len(products) > 1:
            choices = sums.pop() + products.pop()
            products[-1] = min(products[-1] * choices, 2 * MOST)
    return prod(products) if len(products) < 200 else 2 * MOST


def names_shard(name: str) -> bool:
    return SHARD_NAME.fullmatch(os.path.basename(name)) is not None


def _expand_list(path: Path, depth: int) -> list[str]:
    if depth > 4:
        raise InputError(f"The shard list {path} is nested more than four deep; check that it does not name itself.")
    try:
        with open_regular(path) as file:
            lines = read_all(file).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is neither a .tar shard nor a readable text list of shards ({error}).") from error
    found: list[str] = []
    for line in lines:
        entry = line.strip() if line.lstrip().startswith("pipe:") else re.split(r"(?:^|\s)#", line)[0].strip()
        if not entry:
            continue
        if entry.startswith("pipe:") and not _pipes_allowed.get():
            raise InputError(
                f"The shard list {path} names a command, {entry[:200]!r}, which would be run; if you trust the list, "
                "allow it by --allow-pipe."
            )
        if not is_url(entry):
            entry = str(path.parent / os.path.expanduser(entry))
        matches = _expand(entry, depth + 1)
        if not matches:
            raise InputError(
                f"The shard list {path} names {entry!r}, which matches nothing; correct or remove the line."
            )
        found.extend(matches)
        if len(found) > MOST:
            raise InputError(f"The shard list {path} stands for more than {MOST:,} shards; give fewer.")
    return found
