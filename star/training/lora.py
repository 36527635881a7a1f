"""An adapter: a small directory that changes what a STAR model draws, by a low-rank addition to some of its matrices.

    adapter_config.json          as peft writes it: rank, alpha, which layers
    adapter_model.safetensors    lora_A (r, in) and lora_B (out, r) of each layer
    base.json                    the model it belongs to, and the sha256 of the tensors
    README.md                    what it was made of

W + alpha / r B A (Hu et al. 2021). Applying needs no peft: the addition is made once, and drawing costs what it did.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from star.data.errors import InputError
from star.data.files import check_safetensors, read_json
from star.generators.pretrained import ModelDirectory, check_finite, sha256

CONFIG, WEIGHTS, BASE, CARD = "adapter_config.json", "adapter_model.safetensors", "base.json", "README.md"
PREFIX = "base_model.model."  # of every name, as peft writes it
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
# Settings of peft's LoRA that compute something else than the formula above.
OTHER = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication")


def mark(directory: ModelDirectory) -> str:
    """What an adapter remembers of its base: a digest of the files' sha256, which reading them verifies."""
    return hashlib.sha256(json.dumps(sorted(directory.files.items())).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that was read: for each layer's name (r, in) and (out, r), and the factor of their product."""

    path: Path
    factors: dict[str, tuple[Tensor, Tensor]]
    scale: float
    base: dict[str, str]

    @classmethod
    def read(cls, path: str | Path) -> "Adapter":
        """Raises InputError if a file is missing, damaged, or holds another kind of adapter than LoRA."""
        path = Path(path)
        config, base = _json(path / CONFIG), _json(path / BASE)
        odd = [name for name in OTHER if config.get(name)]
        if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
            kind = ", ".join(odd) or f"{config.get('peft_type')} with bias {config.get('bias')}"
            raise InputError(f"{path} holds an adapter of {kind}, expected plain LoRA: train one by `star finetune`")
        if not (path / WEIGHTS).is_file() or sha256(path / WEIGHTS) != base.get("sha256"):
            raise InputError(f"{path / WEIGHTS} is not what {BASE} names by its sha256: get the adapter again")
        try:
            check_safetensors(path / WEIGHTS)
            tensors = load_file(path / WEIGHTS)
            for name, tensor in tensors.items():
                check_finite(tensor, name, path / WEIGHTS)
            names = [name.removeprefix(PREFIX).removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
            factors = {
                name: (tensors.pop(f"{PREFIX}{name}{DOWN}").float(), tensors.pop(f"{PREFIX}{name}{UP}").float())
                for name in names
            }
            rank = int(config["r"])
            scale = float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)
            if rank < 1 or any(down.ndim != 2 or up.ndim != 2 for down, up in factors.values()):
                raise ValueError(f"its rank is {rank}, or its tensors are no matrices")
        except InputError:
            raise
        except (OverflowError, OSError, KeyError, ValueError, TypeError, ZeroDivisionError, SafetensorError) as error:
            raise InputError(f"{path} is damaged ({error}): get the adapter again") from error
        if tensors or not factors:
            raise InputError(
                f"{path / WEIGHTS} holds {next(iter(tensors), 'nothing')}, expected pairs of LoRA matrices"
            )
        return cls(path, factors, scale, base)

    def check_base(self, directory: ModelDirectory) -> None:
        """Raises InputError unless the model is the one that the adapter was trained on."""
        if self.base.get("mark") != mark(directory):
            raise InputError(
                f"{self.path} was trained on {self.base.get('model')}, whose files differ from those of "
                f"{directory.path}: give the model it was trained on"
            )

    @torch.no_grad()
    def merge_into(self, network: nn.Module) -> None:
        """Adds every product to its layer's weights. Raises InputError if the network lacks a layer or its shape."""
        layers = dict(network.named_modules())
        for name, (down, up) in self.factors.items():
            layer = layers.get(name)
            shape = (up.shape[0], down.shape[1])
            if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != shape or up.shape[1] != down.shape[0]:
                raise InputError(f"{self.path} changes {name} of shape {shape}, which the model does not have")
        for name, (down, up) in self.factors.items():
            weight = layers[name].weight
            assert isinstance(weight, Tensor)
            weight.add_((self.scale * up @ down).to(weight.device, weight.dtype))


def write_base(path: Path, *, model: str, directory: ModelDirectory, card: str) -> None:
    """Completes a folder that holds what peft writes."""
    base = {"model": model, "mark": mark(directory), "sha256": sha256(path / WEIGHTS)}
    (path / BASE).write_text(json.dumps(base, indent=1) + "\n", encoding="utf-8")
    (path / CARD).write_text(card, encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"{path.parent} is no adapter, it has no {path.name}: give what `star finetune` wrote")
    return read_json(path, "the description of an adapter")
