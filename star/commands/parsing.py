"""The parser that every command of `star` uses."""

import argparse
import re
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse that tells a mistake in one line, and takes no option for a longer one and no number for an option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"allow_abbrev": False} | options))
        # argparse of Python 3.11 takes -1e-3 for an option, unlike -1 and -0.001.
        self._negative_number_matcher = re.compile(r"-\.?\d[\d_.]*(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Ends with code 2 after one line."""
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` tells more\n")
