"""A model directory: what a trained network is on disk and on the Hugging Face hub.

    config.json          format, family, config, what it says about itself, references with digests, sha256 of its files
    model*.safetensors   the tensors
    README.md            the model card
    <part>/              other model directories it brings along (a tokenizer, a text encoder)

It appears whole or not at all: written beside its place and renamed.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.files import check_safetensors, described, read_json, shorten
from star.data.unfilled import fill, unfilled
from star.generators.registry import place_of, shipped
from star.generators.renamed import moved_to
from star.generators.staging import staged

FORMAT = 1
CONFIG, CARD = "config.json", "README.md"
IMAGES_SEEN = "images_seen"  # in `about`, see ModelDirectory.images_seen


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Another model that this one needs: a path relative to the directory, or a hub id; and the digest it must have."""

    location: str
    digest: str  # "" if it was not at hand when the directory was written: then nothing is checked


@dataclass(frozen=True)
class ModelDirectory:
    """A model directory that was read: `config.json` is checked at once, tensors when they are asked for."""

    path: Path
    family: str
    config: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)  # resolution, conditioning, licence: for people and lists
    references: dict[str, Reference] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # name: sha256
    parts: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, family: str | None = None) -> "ModelDirectory":
        """Reads `config.json`. Raises InputError if there is none, it is damaged, or it is of another family."""
        path = Path(path)
        if not (path / CONFIG).exists():
            raise InputError(
                f"{path} is no model directory, it has no {CONFIG}: give a folder that a training or a conversion wrote"
            )
        values = read_json(path / CONFIG, "the description of a model directory")
        if values.get("format") != FORMAT:
            raise InputError(
                f"{path / CONFIG} has format {shorten(repr(values.get('format')))}, expected {FORMAT}: it is of "
                "another program or of a newer version of this one"
            )
        try:
            directory = cls(
                path=path,
                family=values["family"],
                config=values["config"],
                about=values.get("about", {}),
                references={name: Reference(**value) for name, value in values.get("references", {}).items()},
                files=values["files"],
                parts=tuple(values.get("parts", ())),
            )
            directory._check_types()
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path / CONFIG} is damaged ({shorten(error)}): get the model directory again") from error
        if family is not None and directory.family != family:
            raise InputError(f"{path} holds a {directory.family}, expected a {family}: give another model directory")
        return directory

    @property
    def images_seen(self) -> int:
        """Pictures that training showed to the weights, repeats counted; 0 where the directory does not say."""
        told = self.about.get(IMAGES_SEEN, 0)
        return told if type(told) is int and 0 < told < 2**63 else 0

    def _check_types(self) -> None:
        """Raises TypeError where a part of the description is not of its type."""
        texts = [self.family, *self.parts, *self.files, *self.files.values()]
        texts += [part for entry in self.references.values() for part in (entry.location, entry.digest)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name, a place or a digest is no text")
        if not isinstance(self.config, dict) or not isinstance(self.about, dict):
            raise TypeError("config or about is no object")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, from the headers of the files. Raises InputError if one is missing or damaged."""
        found: dict[str, tuple[int, ...]] = {}
        for name in self.files:
            file = self._file(name)
            check_safetensors(file)
            with described(file, "get the model directory again"), safe_open(file, framework="pt") as tensors:
                found |= {key: tuple(tensors.get_slice(key).get_shape()) for key in list(tensors.keys())}
        return found

    def check_fits(self, build: Callable[[], nn.Module], prefix: str = "", others: Sequence[str] = ()) -> None:
        """Raises InputError unless the files hold what the network needs that the config describes, before it is built.

        build: makes the network; it is called on the meta device. prefix: what its tensors' names begin with in the
        files. others: names, or with a dot at the end beginnings of names, of tensors that belong to something else.
        """
        with described(f"{self.path / CONFIG}", "correct it, or get the model directory again"):
            with unfilled():
                wanted = build()
            shapes = {
                name.removeprefix(prefix): shape
                for name, shape in self.shapes().items()
                if name.startswith(prefix)
                and not any(name == other or (other.endswith(".") and name.startswith(other)) for other in others)
            }
            _check_shapes(wanted, shapes, self.path)

    def _file(self, name: str) -> Path:
        file = self.path / name
        if Path(name).name != name or not file.is_file():
            raise InputError(
                f"{self.path} lacks the file {shorten(name)} named in {CONFIG}: get the model directory again"
            )
        return file

    def tensors(self) -> dict[str, Tensor]:
        """All tensors on the CPU as stored. Raises InputError if a file is missing or differs from its sha256."""
        found: dict[str, Tensor] = {}
        for name, expected in self.files.items():
            file = self._file(name)
            check_safetensors(file)
            if (actual := sha256(file)) != expected:
                raise InputError(
                    f"{file} has sha256 {actual[:12]}..., {CONFIG} says {expected[:12]}...: it is damaged or was "
                    "exchanged, get the model directory again"
                )
            try:
                found |= load_file(file)
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{file} is no safetensors file ({shorten(error)}): get the model directory again"
                ) from error
        return found

    @cached_property
    def digest(self) -> str:
        """Of the content, see `digest`."""
        return digest(self.config, self.tensors())

    def resolve(self, name: str) -> str:
        """Where a referenced model is: a folder if one is there, one that ships by its name, else as it stands (a hub
        id)."""
        if name not in self.references:
            raise InputError(f"{self.path / CONFIG} names no {name}: get the model directory again")
        location = self.references[name].location
        if ships := shipped(moved_to(location, self.references[name].digest)):
            return str(ships)
        folder = Path(os.path.normpath(self.path / location))
        return str(folder) if folder.is_dir() else place_of(location)

    def check_reference(self, name: str, digest: str) -> None:
        """Raises InputError if the model found for a reference is not the one that this model was trained with."""
        expected = self.references[name].digest
        if expected and digest != expected:
            raise InputError(
                f"{self.path} belongs to a {name} with digest {expected[:12]}..., the one at {self.resolve(name)} has "
                f"{digest[:12]}...: they were not trained together, give the {name} it was trained with"
            )


def reference(path: str | Path, place: str) -> str:
    """How a model directory at `path` refers to another: by the way to its folder, or as it stands (a hub id, or the
    name of one that ships)."""
    return os.path.relpath(place, path) if Path(place).is_dir() else place


def write(
    path: str | Path,
    *,
    family: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    card: str,
    about: Mapping[str, Any] | None = None,
    references: Mapping[str, Reference] | None = None,
    parts: Mapping[str, Callable[[Path], object]] | None = None,
    dtype: torch.dtype | None = None,
    shard_size: int = 5 * 10**9,
    written: Callable[[int], object] | None = None,
) -> ModelDirectory:
    """Writes a model directory, in place of one that is already there.

    config, about: plain JSON values. card: the text of README.md. parts: functions that write a folder of that name
    inside. dtype: stores floating tensors in it. shard_size: bytes per file. written: told the bytes of each file.
    Raises InputError if the disk refuses, or the place holds anything that is not a model directory's own.
    """
    path = Path(path)
    _refuse_foreign(path)
    with staged(path) as staging:
        for name, write_part in (parts or {}).items():
            write_part(staging / name)
        files = _write_tensors(staging, tensors, dtype, shard_size, written)
        values = {
            "format": FORMAT,
            "family": family,
            "config": dict(config),
            "about": dict(about or {}),
            "references": {name: asdict(reference) for name, reference in (references or {}).items()},
            "files": files,
            "parts": sorted(parts or {}),
        }
        (staging / CONFIG).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (staging / CARD).write_text(card, encoding="utf-8")
    return ModelDirectory.read(path)


def load_into(
    module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Loads tensors strictly. Raises InputError that names what is missing, unexpected, of another shape, or NaN.

    dtype: that a module which was built `unfilled` gets (float32 if None); one that has values keeps its own.
    """
    _check_shapes(module, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
    for name, tensor in tensors.items():
        check_finite(tensor, name, where)
    if any(parameter.is_meta for parameter in module.parameters()):
        fill(module, tensors, dtype or torch.float32)
    else:
        module.load_state_dict(tensors)


def _check_shapes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: str | Path) -> None:
    wanted = module.state_dict()
    complaints = [
        ("lacks", sorted(wanted.keys() - shapes.keys())),
        ("has the unexpected", sorted(shapes.keys() - wanted.keys())),
        (
            "has another shape for",
            [
                f"{name} {shapes[name]} instead of {tuple(wanted[name].shape)}"
                for name in sorted(wanted.keys() & shapes.keys())
                if shapes[name] != tuple(wanted[name].shape)
            ],
        ),
    ]
    told = "; ".join(f"{complaint} {_shorten(names)}" for complaint, names in complaints if names)
    if told:
        raise InputError(
            f"{where} does not fit a {type(module).__name__}: it {told}; config and weights must belong together"
        )


def check_finite(tensor: Tensor, name: str, file: str | Path) -> None:
    """Raises InputError that counts the values which are infinite or not a number."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    values = tensor if tensor.itemsize > 1 else tensor.float()
    if not all(math.isfinite(float(bound)) for bound in values.aminmax()):  # makes no copy; NaN is passed on
        bad = values.numel() - int(values.isfinite().sum())
        raise InputError(
            f"{file} has {bad} of {values.numel()} values in {name} that are infinite or not a number, expected "
            "weights: the training diverged or the file is damaged, give an earlier checkpoint"
        )


def digest(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of what a network computes with: config and tensors, whatever type the values are stored in.

    Floating values count as float32, so a network has the same digest before and after it was written, as long as the
    stored type holds its values.
    """
    total = hashlib.sha256(json.dumps(dict(config), sort_keys=True, ensure_ascii=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor.long()
        total.update(f"\n{name} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def sha256(path: Path) -> str:
    """Of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    shard_size: int,
    written: Callable[[int], object] | None,
) -> dict[str, str]:
    """One file's tensors at a time, so that a mapping which reads them from elsewhere never has all in memory."""
    plan = {
        name: torch.empty(tensors[name].shape, dtype=_stored_type(tensors[name], dtype), device="meta")
        for name in sorted(tensors)
    }
    from huggingface_hub import split_torch_state_dict_into_shards  # reading needs none of that library

    split = split_torch_state_dict_into_shards(
        plan, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_size
    )
    for name, names in split.filename_to_tensors.items():
        save_file(_alone({key: tensors[key].to("cpu", plan[key].dtype) for key in names}), folder / name)
        (folder / name).chmod(0o644)  # safetensors writes for the owner alone
        if written is not None:
            written((folder / name).stat().st_size)
    return {name: sha256(folder / name) for name in sorted(split.filename_to_tensors)}


def _stored_type(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype and tensor.is_floating_point() else tensor.dtype


def _alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each with a storage of its own, copied only if it shares one with another name or is a part of a larger one."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        if tensor.data_ptr() in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        tensors[name] = tensor
    return tensors


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    present = set(os.listdir(path)) if path.is_dir() else {path.name}
    if present and CONFIG not in present:
        raise InputError(f"{path} exists and is no model directory: choose another folder, or remove it")
    if present:
        old = ModelDirectory.read(path)
        foreign = present - {CONFIG, CARD, *old.files, *old.parts}
        if foreign:
            raise InputError(
                f"{path} holds {_shorten(sorted(foreign))} beside the model that would be replaced: move it away "
                "first, or choose another folder"
            )


def _shorten(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
