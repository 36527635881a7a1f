"""What `make docs` needs beside the pages in this folder: files of the repository that the pages lead to.

EXPERIMENTS.md and its like become pages of the site, model cards pages under cards/; links are turned to them.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("EXPERIMENTS.md", "CONTRIBUTING.md", "CHANGELOG.md")
CARD = re.compile(r"star/weights/([\w.-]+)/README\.md")
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
FILES = ("LICENSE", "CITATION.cff")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from outside, and those files of the repository that are not text."""
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for card in sorted(ROOT.glob("star/weights/*/README.md")):
        place = f"cards/{card.parent.name}.md"
        files.append(File.generated(config, place, content=card.read_text(encoding="utf-8")))
    for name in FILES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turns links that lead to files of the repository to where these are on the site."""
    here = page.file.src_uri
    home = origin(here)

    def turned(found: re.Match[str]) -> str:
        before, link, anchor, after = found.groups()
        if ":" in link or link.startswith("/"):
            return found[0]
        target = place(posixpath.normpath(posixpath.join(posixpath.dirname(home), link)))
        if target is None:
            return found[0]
        return f"{before}{posixpath.relpath(target, posixpath.dirname(here) or '.')}{anchor or ''}{after}"

    return LINK.sub(turned, markdown)


def origin(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    if uri in PAGES:
        return uri
    if uri.startswith("cards/"):
        return f"star/weights/{uri.removeprefix('cards/').removesuffix('.md')}/README.md"
    return f"docs/{uri}"


def place(path: str) -> str | None:
    """Where a file of the repository lies on the site; None if it is not there."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if card := CARD.fullmatch(path):
        return f"cards/{card[1]}.md"
    if path == "README.md":
        return "index.md"
    return path if path in (*PAGES, *FILES) else None
