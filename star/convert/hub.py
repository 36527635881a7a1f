"""Released models from the Hugging Face hub: found, downloaded, verified and converted when first asked for by name.

Reached by `star.generators.registry`, which knows the names but not this module's content.
"""

from pathlib import Path
from typing import Any

from star.convert.published import RELEASED, TOKENIZER_FILE, VAR_HUB, Released
from star.data.errors import InputError
from star.generators.pretrained import sha256


def fetch(name: str, folder: Path) -> None:
    """Makes the model directory `folder` of a name of `RELEASED`.

    Raises InputError that says what to fetch and where to put it if the hub cannot be reached or does not plainly hold
    the file, and if a download differs from the sha256 that the hub publishes.
    """
    from star.convert.convert import convert

    released = RELEASED[name]
    file = _download(name, released.hub, released, folder)
    tokenizer = _download(name, VAR_HUB, TOKENIZER_FILE, folder) if released.kind == "var" else None
    convert(released.kind, file, folder, preset=name, tokenizer=tokenizer)


def choose(names: list[str], released: Released) -> list[str]:
    """The files of a repository that may be the released one."""
    if released.file:
        return [name for name in names if name == released.file]
    plain = {name: name.rpartition("/")[2].lower() for name in names if name.endswith((".pth", ".pt"))}
    return [
        name
        for name, lower in plain.items()
        if all(word in lower for word in released.words) and not any(word in lower for word in released.without)
    ]


def _download(name: str, hub: str, wanted: Released | str, folder: Path) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    try:
        siblings: list[Any] = HfApi().model_info(hub, files_metadata=True, timeout=10).siblings or []
        held = {sibling.rfilename: sibling for sibling in siblings}
        found = choose(list(held), wanted) if isinstance(wanted, Released) else [wanted]
        if len(found) != 1:
            raise InputError(
                f"{hub} has {', '.join(found) or 'no file'} for {name}, expected one that is plainly it: "
                f"{_advice(name, folder)}"
            )
        path = Path(hf_hub_download(hub, found[0]))
    except InputError:
        raise
    except Exception as error:  # whatever keeps the hub away: network, firewall, a renamed repository
        raise InputError(
            f"the weights of {name} are not on this machine and {hub} could not be had from the Hugging Face hub "
            f"({type(error).__name__}): {_advice(name, folder)}"
        ) from error
    published = held[found[0]].lfs
    if published and sha256(path) != published.sha256:
        raise InputError(f"{path} differs from the sha256 that {hub} publishes for {found[0]}: delete it and try again")
    return path


def _advice(name: str, folder: Path) -> str:
    """What to do by hand."""
    released = RELEASED[name]
    file = released.file or f"the file of {name}"
    more = f" with {TOKENIZER_FILE} beside it" if released.kind == "var" else ""
    return (
        f"fetch {file} from https://huggingface.co/{released.hub}{more}, then run "
        f"`star convert {released.kind} FILE {folder} --preset {name}`"
    )
