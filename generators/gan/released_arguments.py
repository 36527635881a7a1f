"""What a released network was made with: arguments that our networks know, do not need, or refuse by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from star.data.errors import InputError

Values = tuple[Any, ...] | None  # that our networks can do; None: any, for it changes nothing that is drawn


def check_arguments(told: Mapping[str, Any], known: Mapping[str, Values], of: str, file: str | Path) -> None:
    """Raises InputError for an argument that no network here knows, or a value that none can do.

    told: by their released names. known: what is allowed for each. of: what they made, for the message.
    """
    if unknown := sorted(str(name) for name in told.keys() - known.keys()):
        raise InputError(
            f"{file} was made with {of} of the unknown {', '.join(unknown)}, expected only {', '.join(known)}: give a "
            "file of the release, as its authors' code wrote it"
        )
    for name, value in told.items():
        allowed = known[name]
        plain = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        if allowed is not None and not any(type(plain) is type(one) and plain == one for one in allowed):
            choices = " or ".join(map(repr, allowed))
            raise InputError(
                f"{file} was made with {of} of {name} {value!r}, expected {choices}: our network has no other, give "
                "another file"
            )


def clamp_of(value: Any, file: str | Path) -> float | None:
    """conv_clamp: the largest activation, None where there is none. Raises InputError for what is no such number."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
        return None if value is None else float(value)
    raise InputError(f"{file} has the conv_clamp {value!r}, expected a positive number or none: give another file")
