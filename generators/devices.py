"""The device that was asked for, looked at before anything is loaded onto it."""

from star.data.errors import InputError


def usable(name: str | None = None) -> str:
    """The device itself if it computes here; None or "": a GPU where there is one, else the CPU.

    Raises InputError that says which devices there are.
    """
    import torch

    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).add(1).cpu()
    except Exception as error:  # each kind of device has its own way to be missing
        raise InputError(
            f"the device is {name!r}, which this machine or this torch does not have, expected {_known()}: choose one"
        ) from error
    return name


def _known() -> str:
    import torch

    known = ["cpu"]
    if torch.cuda.is_available():
        known += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    elif torch.accelerator.is_available():
        known.append(str(torch.accelerator.current_accelerator()))
    return "cpu" if len(known) == 1 else f"one of {', '.join(known)}"
