"""Every generator by name: families that can read a model directory, and the models known by a name.

    generator = build("star-emoji")             # a name of `entries()`
    generator = build("runs/mine/model")        # a model directory
    generator = build("someone/their-model")    # a repository on the Hugging Face hub

Families are given as "module:attribute", a class or a `Registration`, and imported on first use, so this module reaches
rooms that it may not import. A package of a third party adds one through the entry-point group `star.generators`:

    [project.entry-points."star.generators"]
    dots = "their_package.dots:FAMILY"
"""

import difflib
import importlib.metadata
import importlib.util
import os
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.data.errors import InputError
from star.data.files import described, read_json
from star.generators.registration import TARGET, Registration, load

if TYPE_CHECKING:  # `star list` needs no torch
    import torch

    from star.generators.protocol import Family, Generator, SampleOptions

GROUP = "star.generators"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Where the model directory of a name is, and on what terms."""

    location: str  # "package:star/weights/star-emoji", shipped with that package; or a hub id
    licence: str = ""
    source: str = ""  # paper or page
    # "module:function", called with a name and a folder, makes the model directory of weights that the hub has in
    # another form; it is kept in `home`.
    fetch: str = ""

    def folder(self) -> Path | None:
        """The folder of shipped weights, found without importing the package; None if they are not on this machine."""
        scheme, _, place = self.location.partition(":")
        if scheme != "package":
            return None
        package, _, rest = place.partition("/")
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(root) / rest / "config.json").is_file():
                return Path(root) / rest
        return None


def shipped(name: str) -> Path | None:
    """The folder of weights that the package carries under a name, generators or not; None if there are none."""
    return Weights(location=f"package:star/weights/{name}").folder() if name else None


def place_of(model: str | Path) -> str:
    """Where a tokenizer, a text encoder or a model to start from is, from any working directory.

    A folder as it stands; one that the package carries by its name, such as clip-emoji or star/weights/clip-emoji; and
    else what was given, which may be a hub id.
    """
    given = Path(model)
    folder = None
    if not given.exists() and given.parts[:-1] in ((), ("star", "weights")):
        folder = shipped(given.name)
    return str(folder or model)


def home() -> Path:
    """Where model directories that were fetched by name are kept: $STAR_HOME, by default ~/.cache/star."""
    return Path(os.environ.get("STAR_HOME") or "~/.cache/star").expanduser()


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A model known by a name. What is not given here is told by the model directory itself."""

    family: str
    weights: Weights
    resolution: tuple[int, int] | None = None  # (H, W)
    conditioning: str = ""

    def about(self) -> dict[str, Any]:
        """family, resolution, conditioning, licence, weights: for lists; reads config.json of shipped weights."""
        folder = self.weights.folder()
        told: dict[str, Any] = {"resolution": self.resolution, "conditioning": self.conditioning}
        told["licence"] = self.weights.licence
        if folder:
            own = read_json(folder / "config.json").get("about", {})
            told |= {name: own[name] for name in told if own.get(name)}
        shipped = self.weights.location.startswith("package:")
        place = self.weights.location if not shipped else "shipped" if folder else "missing"
        return {"family": self.family, **told, "weights": place}


class Registry:
    """Families and entries; the module's functions use one that everybody shares."""

    def __init__(self, group: str | None = None, catalogue: str = "") -> None:
        """group: of entry points that add families. catalogue: "module:function" that gives more entries by name."""
        self._families: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        self._group, self._catalogue = group, catalogue

    def register_family(self, name: str, target: str) -> None:
        """`target` is "module:class" (`protocol.Family`) or that of a `Registration`. Raises ValueError for a name that
        is taken."""
        if not TARGET.fullmatch(target):
            raise ValueError(f"family {name!r} is given as {target!r}, expected 'module:class'")
        if name in self._families:
            raise ValueError(f"family {name!r} is registered already, as {self._families[name]}")
        self._families[name] = target

    def register(self, name: str, entry: Entry) -> None:
        """Raises ValueError if the name is taken or its family is unknown."""
        if name in self._entries:
            raise ValueError(f"model {name!r} is registered already, as a {self._entries[name].family}")
        if entry.family not in self._families:
            raise ValueError(f"model {name!r} is of the family {entry.family!r}, which is not registered")
        self._entries[name] = entry

    def entries(self) -> dict[str, Entry]:
        """Models by name, in the order of registration."""
        catalogue, self._catalogue = self._catalogue, ""
        if catalogue:
            for name, entry in load(catalogue)().items():
                self.register(name, entry)
        return dict(self._entries)

    def families(self) -> tuple[str, ...]:
        """Names of all families, those of other packages included."""
        self._discover()
        return tuple(self._families)

    def registration(self, name: str) -> Registration:
        """What a family brings, its module imported now. Raises InputError for an unknown name."""
        self._discover()
        if name not in self._families:
            raise InputError(
                f"there is no family {name!r}{near(name, self._families)}; install the package that brings it"
            )
        found = load(self._families[name])
        return found if isinstance(found, Registration) else Registration(generator=self._families[name])

    def family(self, name: str) -> "type[Family]":
        """The class of a family, imported now."""
        family: type[Family] = load(self.registration(name).generator)
        return family

    def locate(self, model: str | Path) -> Path:
        """The model directory of a name, a folder or a hub id. Raises InputError with near misses if there is none."""
        if (entry := self.entries().get(str(model))) is not None:
            if entry.weights.location.startswith("package:"):
                if (folder := entry.weights.folder()) is None:
                    raise InputError(
                        f"the weights of {model} are missing at {entry.weights.location}: install the package anew, or "
                        "train them as EXPERIMENTS.md tells"
                    )
                return folder
            if entry.weights.fetch:
                folder = home() / str(model)
                if not (folder / "config.json").is_file():
                    load(entry.weights.fetch)(str(model), folder)
                return folder
            return _from_hub(entry.weights.location, str(model))
        if Path(model).is_dir():
            return Path(model)
        if isinstance(model, str) and HUB_ID.fullmatch(model):
            return _from_hub(model, model)
        raise InputError(
            f"there is no model {str(model)!r}, expected a name of `star list`, a model directory or a hub id"
            f"{near(str(model), self.entries())}"
        )

    def build(
        self, model: str | Path, device: "str | torch.device" = "cpu", dtype: "torch.dtype | None" = None
    ) -> "Generator":
        """Reads a trained generator; see `locate` for what `model` may be.

        `<family>-test` gives the tiny network with random weights that the contract suite uses. Everything else has
        weights or raises InputError, never a random network.
        """
        if family := self._test_family(str(model)):
            return self.family(family).for_test()
        from star.generators.pretrained import ModelDirectory

        path = self.locate(model)
        with described(path, "get the model directory again"):
            return self.family(ModelDirectory.read(path).family).from_directory(path, device=device, dtype=dtype)

    def family_of(self, model: str | Path) -> "type[Family]":
        """The class that a model is read by, before any of its weights are. Raises InputError if there is none."""
        if family := self._test_family(str(model)):
            return self.family(family)
        from star.generators.pretrained import ModelDirectory

        return self.family(ModelDirectory.read(self.locate(model)).family)

    def recommended(self, model: str | Path) -> "SampleOptions":
        """The options that a model's directory recommends (`about.options`), else the usual ones."""
        from star.generators.config import from_dict
        from star.generators.pretrained import ModelDirectory
        from star.generators.protocol import SampleOptions

        if self._test_family(str(model)):
            return SampleOptions()
        path = self.locate(model)
        return from_dict(SampleOptions, ModelDirectory.read(path).about.get("options", {}), f"{path} about.options")

    def images_seen(self, model: str | Path) -> int:
        """Pictures that training showed to a model, repeats counted; 0 where nobody wrote it down."""
        from star.generators.pretrained import ModelDirectory

        return 0 if self._test_family(str(model)) else ModelDirectory.read(self.locate(model)).images_seen

    def images_seen_after(self, images: int, start: str | Path = "") -> int:
        """The same of what was trained on so many more, from scratch or from a model of which it must be known."""
        before = self.images_seen(start) if start else 0
        return 0 if start and not before else before + images

    def is_test(self, model: str | Path) -> bool:
        """Whether it names the tiny network of a family, which is in no directory."""
        return self._test_family(str(model)) is not None

    def _test_family(self, model: str) -> str | None:
        family = model.removesuffix("-test")
        return family if family != model and family in self.families() else None

    def _discover(self) -> None:
        group, self._group = self._group, None
        for point in importlib.metadata.entry_points(group=group) if group else ():
            try:
                self.register_family(point.name, point.value)
            except ValueError as error:  # of one package: the others' families are there all the same
                warnings.warn(f"an installed package adds a generator that is left out: {error}", stacklevel=2)


def near(name: str, known: Collection[str]) -> str:
    """ "; did you mean ...?" with the known names closest to a wrong one, or all of them if none is close."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known are {', '.join(known)}" if known else ""


def _from_hub(hub_id: str, name: str) -> Path:
    from star.data.pretrained import snapshot

    try:
        # Never code, never pickles.
        wanted = ["*.json", "*.safetensors", "*.md", "*.txt", "*.model"]
        return snapshot(hub_id, wanted)
    except Exception as error:
        raise InputError(
            f"model {name!r} is neither a name of `star list` nor a folder here, and {hub_id} could not be had from "
            f"the Hugging Face hub ({type(error).__name__}): check the spelling and the connection"
        ) from error


_shared = Registry(GROUP, catalogue="star.convert.published:entries")
register_family, register = _shared.register_family, _shared.register
entries, families, family, registration = _shared.entries, _shared.families, _shared.family, _shared.registration
locate, build, recommended = _shared.locate, _shared.build, _shared.recommended
images_seen, images_seen_after = _shared.images_seen, _shared.images_seen_after
family_of, is_test = _shared.family_of, _shared.is_test

# Families that can be trained and converted as their Registration says. One that is copied or deleted: its line here.
GANS = {
    "stylegan-t": "star.generators.stylegan_t:FAMILY",
    "stylenat": "star.generators.stylenat:FAMILY",
    "styleformer": "star.generators.styleformer:FAMILY",
}


def gans() -> dict[str, Registration]:
    """The GANs of this package with all they bring; loads neither torch nor a network."""
    return {name: registration(name) for name in GANS}


def others() -> tuple[str, ...]:
    """Names of the families that other packages add; loads nothing of theirs."""
    return tuple(name for name in families() if name not in _OWN)


_OWN = {"star": "star.generator:StarGenerator", "var": "star.class_generator:VarGenerator", **GANS}
for _name, _target in _OWN.items():
    register_family(_name, _target)
for _name in ("star", *GANS):  # ship with the package
    register(f"{_name}-emoji", Entry(family=_name, weights=Weights(location=f"package:star/weights/{_name}-emoji")))
