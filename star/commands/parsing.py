"""The parser that every command of `star` uses."""

import argparse
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse that tells a mistake in one line, and takes no option for a longer one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"allow_abbrev": False} | options))

    def error(self, message: str) -> NoReturn:
        """Ends with code 2 after one line."""
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` tells more\n")
