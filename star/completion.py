"""What a STAR model learnt of some subjects in some styles beside the rest, heard for these alone.

A model knows a subject in some styles; pictures of it in others can be made (star.restyle) and learnt as a low-rank
addition to the transformer, W + up down (Hu et al. 2021, section 4.1), with those of a style that it knows too little.
Trained into the weights themselves they would cost some of what it knows by heart. So the addition is kept beside the
weights, and a prompt hears it where the wordings list its subject and style as completed (star.clip.wordings); every
other picture stays as it was, to the bit.

r rank, I O width of what goes into and comes out of a layer.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.pretrained import check_finite
from star.model.transformer import NextScaleTransformer

COMPLETION = "completion."  # what the names of its tensors begin with in a model's files
DOWN, UP = ".down", ".up"


class Completion:
    """A low-rank addition, and the transformer that it makes of another one.

    factors: for the name of each linear layer down_rI and up_Or, float32, whose product is added to its weight.
    """

    def __init__(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Raises ValueError if there is no factor, or two do not go together."""
        shapes = {name: (tuple(down.shape), tuple(up.shape)) for name, (down, up) in factors.items()}
        for name, (down, up) in shapes.items():
            if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
                raise ValueError(f"the completion of {name} has shapes {down} and {up}, expected (r, I) and (O, r)")
        ranks = {down[0] for down, _ in shapes.values()}
        if len(ranks) != 1:
            raise ValueError(f"the completion's ranks are {sorted(ranks)}, expected one: give all layers the same")
        self.rank = ranks.pop()
        self.factors = {name: (down.detach().float(), up.detach().float()) for name, (down, up) in factors.items()}
        self._made: tuple[object, NextScaleTransformer] | None = None

    @torch.no_grad()
    def complete(self, transformer: NextScaleTransformer) -> NextScaleTransformer:
        """The transformer with the addition: it shares all other weights, and is made again after any was changed.

        Raises ValueError if a layer is missing or has another shape.
        """
        weights = [*transformer.parameters(), *transformer.buffers()]
        state = tuple((weight.data_ptr(), weight.dtype, weight.device, weight._version) for weight in weights)
        if self._made is None or self._made[0] != state:
            made = copy.deepcopy(transformer, {id(weight): weight for weight in weights})
            for layer, (down_rI, up_Or) in zip(self._layers(made), self.factors.values(), strict=True):
                old = layer.weight
                total = old.float() + (up_Or @ down_rI).to(old.device)
                layer.weight = nn.Parameter(total.to(old.dtype), requires_grad=False)
            self._made = state, made
        return self._made[1]

    def check(self, transformer: NextScaleTransformer) -> None:
        """Raises ValueError if a layer is missing or has another shape."""
        self._layers(transformer)

    def _layers(self, transformer: NextScaleTransformer) -> list[nn.Linear]:
        """The layers that are added to, in the order of the factors; inside what peft put around them."""
        named, found = dict(transformer.named_modules()), []
        for name, (down_rI, up_Or) in self.factors.items():
            layer, shape = named.get(name), (up_Or.shape[0], down_rI.shape[1])
            layer = getattr(layer, "base_layer", layer)
            if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != shape:
                raise ValueError(f"the completion adds to {name} of shape {shape}, which the transformer does not have")
            found.append(layer)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """By the names that they have in a model's files."""
        named: dict[str, Tensor] = {}
        for name, (down_rI, up_Or) in self.factors.items():
            named |= {f"{COMPLETION}{name}{DOWN}": down_rI, f"{COMPLETION}{name}{UP}": up_Or}
        return named

    @classmethod
    def taken(cls, tensors: dict[str, Tensor], where: str | Path, transformer: NextScaleTransformer) -> Self:
        """Takes its own tensors out of those of a model's files. Raises InputError if they are no completion of it."""
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(COMPLETION)}
        names = [name.removeprefix(COMPLETION).removesuffix(DOWN) for name in own if name.endswith(DOWN)]
        for name, tensor in own.items():
            check_finite(tensor, name, where)
        try:
            if not names or len(own) != 2 * len(names):
                raise ValueError(
                    f"{len(own)} tensors complete {len(names)} layers, expected two for each of one or more"
                )
            made = cls({name: (own[f"{COMPLETION}{name}{DOWN}"], own[f"{COMPLETION}{name}{UP}"]) for name in names})
            made.check(transformer)
        except (KeyError, ValueError) as error:
            raise InputError(f"{where} is damaged ({error}): get the model again") from error
        return made


def stretches(transformers: Sequence[NextScaleTransformer]) -> list[tuple[NextScaleTransformer, slice]]:
    """Runs of pictures that the same transformer draws, and their places."""
    found, start = [], 0
    for transformer, run in itertools.groupby(transformers):
        stop = start + len(list(run))
        found.append((transformer, slice(start, stop)))
        start = stop
    return found
