"""Numbers given as options, looked at before anything is loaded."""

from star.data.errors import InputError


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises InputError unless the value of an option lies in a range, both ends allowed; NaN lies in none."""
    if not value >= low:
        raise InputError(f"{name} is {value}, expected at least {low}: correct it")
    if not value <= high:
        raise InputError(f"{name} is {value}, expected at most {high}: correct it")
