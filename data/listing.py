"""Finding shards: from folders, patterns, ranges, addresses and lists to one list of tars."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import braceexpand

from data.errors import InputError
from data.remote import find, is_url

SHARD_NAME = re.compile(r"[^.].*\.(tar|tgz|tar\.(gz|bz2|xz))", re.IGNORECASE)


def list_shards(specs: Sequence[str]) -> list[str]:
    """Expands directories, globs, brace ranges, URLs and text files of such specs into a list of shards.

    A directory stands for its `*.tar*` files in order of name, also one on an object store, or on a web server where
    an index.json lists it; a text file holds one spec per line, `#` begins a comment, and relative paths in it start
    from its folder. Order is kept and repeats are dropped. Files of a range or list that are not there stay in the
    result, so that they are missed and counted. Raises InputError for a spec of which nothing is there, or whose
    driver is not installed.
    """
    if isinstance(specs, str):
        specs = (specs,)
    shards: dict[str, None] = {}
    for spec in specs:
        found = _expand(spec, depth=0)
        if not any(is_url(shard) or os.path.isfile(shard) for shard in found):
            raise InputError(f"No shards at {spec!r}; give a folder, glob, brace range, URL or list of .tar files.")
        shards.update(dict.fromkeys(found))
    if not shards:
        raise InputError(
            "No shards were given; give at least one folder, glob, brace range, URL or list of .tar files."
        )
    return list(shards)


def _expand(spec: str, depth: int) -> list[str]:
    if spec.startswith("pipe:"):
        return [spec]  # a command's braces belong to its shell
    if is_url(spec):
        return [shard for braceless in braceexpand.braceexpand(spec) for shard in find(braceless, names_shard)]
    path = Path(spec).expanduser()
    if path.is_dir():
        return [str(shard) for shard in sorted(path.iterdir()) if names_shard(shard.name) and shard.is_file()]
    if path.is_file():
        if names_shard(path.name):
            return [str(path)]
        return _expand_list(path, depth)
    found: list[str] = []
    for braceless in braceexpand.braceexpand(str(path)):
        if glob.escape(braceless) == braceless or os.path.isfile(braceless):
            found.extend([braceless] if names_shard(braceless) else [])
            continue
        for match in sorted(glob.glob(braceless)):
            if names_shard(match) or os.path.isdir(match):
                found.extend(_expand(match, depth))
    return found


def names_shard(name: str) -> bool:
    return SHARD_NAME.fullmatch(os.path.basename(name)) is not None


def _expand_list(path: Path, depth: int) -> list[str]:
    if depth > 4:
        raise InputError(f"The shard list {path} is nested more than four deep; check that it does not name itself.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is neither a .tar shard nor a readable text list of shards ({error}).") from error
    found: list[str] = []
    for line in lines:
        entry = line.strip() if line.lstrip().startswith("pipe:") else re.split(r"(?:^|\s)#", line)[0].strip()
        if not entry:
            continue
        if not is_url(entry):
            entry = str(path.parent / Path(entry).expanduser())
        matches = _expand(entry, depth + 1)
        if not matches:
            raise InputError(
                f"The shard list {path} names {entry!r}, which matches nothing; correct or remove the line."
            )
        found.extend(matches)
    return found
