"""Mutation testing of the formulas: does a test fail when one of them is changed?

    make mutate                                                # every file of PLAN, which takes about an hour
    python -m tests.mutation tokenizer/losses.py --sample 40

Each mutant (tests.mutants) runs the tests that cover its file in a child, forked with every library loaded already.
What survives is printed. One that changes nothing anybody could see is listed in EQUIVALENT with the reason, and is
left out of the share.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import CodeType

import pytest

from tests.mutants import changes
from tests.mutation_plan import EQUIVALENT, PLAN

ROOT = Path(__file__).parents[1]
OWN = tuple(path.parent.name for path in ROOT.glob("*/__init__.py")) + ("tests",)
OPTIONS = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow"]
SECONDS = 90  # a mutant that runs longer hangs, and counts as killed


class Mutated(importlib.machinery.SourceFileLoader):
    """Loads one module from a tree instead of its file, ahead of every other finder."""

    def __init__(self, module: str, path: Path, tree: ast.Module) -> None:
        super().__init__(module, str(path))
        self.tree = tree

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return compile(ast.fix_missing_locations(self.tree), self.path, "exec")


def run_tests(tests: list[str], mutated: Mutated) -> int:
    """The exit status of pytest in a child; -1 where it hangs. 0: all tests passed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.meta_path.insert(0, mutated)
            status = int(pytest.main([*OPTIONS, *tests]))
        finally:
            os._exit(status)
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def load_libraries(tests: list[str]) -> int:
    """Runs the tests here, so that no child has to load a library; what is ours is forgotten again. pytest's status."""
    before = set(sys.modules)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        status = pytest.main([*OPTIONS, *tests])
    for name in set(sys.modules) - before:
        if name.split(".")[0] in OWN:
            del sys.modules[name]
    return int(status)


def examine(file: str, sample: int | None, seed: int) -> tuple[int, int]:
    """(killed, judged) of one file; prints the survivors."""
    path, module, tests = ROOT / file, file.removesuffix(".py").replace("/", "."), PLAN[file]
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    if load_libraries(tests):
        raise SystemExit(f"{' '.join(tests)}: the tests of {file} fail without a change; mend them first")
    equivalent = EQUIVALENT.get(file, {})
    judged = []
    for number, (line, what, _) in enumerate(changes(ast.parse(source))):
        text = lines[line - 1].strip()
        if (text, what) not in equivalent:
            judged.append((number, line, what, text))
    if sample is not None and sample < len(judged):
        judged = sorted(random.Random(seed).sample(judged, sample))
    killed = 0
    for number, line, what, text in judged:
        tree = ast.parse(source)
        list(changes(tree))[number][2]()
        if run_tests(tests, Mutated(module, path, tree)):
            killed += 1
        else:
            print(f"survived  {file}:{line}  {what}  |  {text}", flush=True)
    print(f"{file}: {killed} of {len(judged)} killed, {len(equivalent)} equivalent", flush=True)
    return killed, len(judged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(PLAN), help="of PLAN; all by default")
    parser.add_argument("--sample", type=int, help="at most so many mutants a file, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    arguments = parser.parse_args()
    found = [examine(file, arguments.sample, arguments.seed) for file in arguments.files]
    killed, judged = (sum(part) for part in zip(*found, strict=True))
    print(f"all: {killed} of {judged} killed, {100 * killed / max(judged, 1):.1f} %")


if __name__ == "__main__":
    main()
