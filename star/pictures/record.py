"""What a picture says of how it was made: the metadata of its PNG, and one line of JSON.

    Record(prompt="a blue fish", seed=3, model="star-emoji", options={...}, digest="...", version="0.1.0")

The digest stands for everything that a model draws with: its own config and files, and the digests of the models that
it refers to. Two directories with the same digest draw the same pictures on the same machine.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from star.data.errors import InputError
from star.data.files import parse_json, shorten

if TYPE_CHECKING:
    from star.generators.pretrained import ModelDirectory

PLAIN = "sample"  # what made a picture of prompt, seed, model and options alone
TEXTS = ("adapter", "digest", "version", "device", "dtype", "made_by")
METADATA_VALUES = 10_000  # of the JSON in a PNG


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Everything that a picture is a function of, and what wrote it.

    options: fields of SampleOptions, all of them. negative_prompt: None where there was none. adapter: folder of a
    LoRA adapter, "" without. digest: see `digest_of`; "" where it is not known. version: of this program. device,
    dtype: where, and in which type, it was computed. made_by: the command, "sample" unless the picture was made of
    another one or of several prompts. more: what that command was told besides, and the columns of a list of prompts
    that are no options.
    """

    prompt: str
    seed: int
    model: str
    options: Mapping[str, Any]
    negative_prompt: str | None = None
    adapter: str = ""
    digest: str = ""
    version: str = ""
    device: str = ""
    dtype: str = ""
    made_by: str = PLAIN
    more: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """As JSON holds it; what is empty is left out."""
        kept = {"prompt": self.prompt, "seed": self.seed, "model": self.model, "options": dict(self.options)}
        if self.negative_prompt is not None:
            kept["negative_prompt"] = self.negative_prompt
        for name in ("adapter", "digest", "version", "device", "dtype", "made_by", "more"):
            if value := getattr(self, name):
                kept[name] = dict(value) if isinstance(value, Mapping) else value
        return kept

    def to_text(self) -> dict[str, str]:
        """As the metadata of a PNG holds it: texts, and JSON for what is no text."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in self.values().items()
        }

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Of a PNG that this program wrote, older ones too. Raises InputError if it says nothing, or nothing usable."""
        from star.data.images import read_text
        from star.generators.renamed import translate_options

        text = read_text(path)
        if not {"prompt", "seed", "model", "options"} <= text.keys():
            raise InputError(
                f"{path} does not say how it was made, expected a PNG that `star sample` wrote: give one, or the "
                "prompt and the seed"
            )
        try:
            options, more = (parse_json(text.get(name, "{}").encode(), METADATA_VALUES) for name in ("options", "more"))
            if not isinstance(options, dict) or not isinstance(more, dict):
                raise ValueError("its options are no object")
            return cls(
                prompt=text["prompt"],
                seed=int(text["seed"]),
                model=text["model"],
                options=translate_options(options),
                negative_prompt=text.get("negative_prompt"),
                more=more,
                **{name: text[name] for name in TEXTS if name in text},
            )
        except ValueError as error:
            raise InputError(
                f"{path} says in its metadata what cannot be read ({shorten(error, 100)}): give the prompt and the "
                "seed instead"
            ) from error

    def same_picture(self, other: "Record") -> bool:
        """Whether both ask for the same picture of the same model: what names the model and writes it may differ."""
        names = ("prompt", "seed", "negative_prompt", "digest", "dtype", "made_by", "options")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def digest_of(directory: "ModelDirectory", adapter: str = "") -> str:
    """sha256 (hex) of a model directory's description, whose own sums reading it verifies; no tensor is read."""
    values = {
        "family": directory.family,
        "config": directory.config,
        "files": directory.files,
        "references": {name: reference.digest for name, reference in directory.references.items()},
    }
    if adapter:
        from star.generators.pretrained import sha256
        from star.training.lora import WEIGHTS

        values["adapter"] = sha256(Path(adapter) / WEIGHTS)
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
