"""Adaptive discriminator augmentation, ADA (Karras et al. 2020, "Training Generative Adversarial Networks with Limited
Data").

    augment = AdaptiveAugment(("bgc",))
    logits = discriminator(augment(raw_B3HW))         # real and drawn pictures alike
    augment.observe(real_logits.sign().mean(), pictures=32)

Each operation strikes each picture with one probability, which rises while the discriminator is too sure of the real
pictures and falls otherwise. What moves pixels becomes one matrix and one resampling, what changes colours another.

Operations can contradict a caption: an arrow that was mirrored, a red that became blue. For text there is the group
"text"; any other choice is made by names of single operations (ada_operations.py).

B batch, H W pixels, 3 RGB.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from star.data.errors import InputError
from star.generators.gan.augment.ada_images import low_pass, move, recolour
from star.generators.gan.augment.ada_operations import COLOURS, MOVES, Chance, operations_of


class AdaptiveAugment(nn.Module):
    """The operations, and the probability with which each strikes. Its whole state is buffers, so that runs resume."""

    probability: Tensor
    signs: Tensor
    observations: Tensor
    waiting: Tensor
    taps_k: Tensor

    def __init__(
        self,
        operations: Sequence[str] = ("bgc",),
        *,
        target: float = 0.6,
        pictures: int = 500_000,
        every: int = 4,
        limit: float = 1.0,
        probability: float = 0.0,
    ) -> None:
        """operations: names of them or of groups. target: of the mean sign of real logits. pictures: in which the
        probability can go from 0 to 1. every: observations between two moves of it. limit: of the probability; 0.7
        where a Styleformer uses the projection of Linformer, as released. probability: at first.

        Raises InputError for an unknown operation and for numbers out of range.
        """
        super().__init__()
        if not 0 <= probability <= limit <= 1:
            raise InputError(
                f"augmentation begins with a probability of {probability} and is limited to {limit}, expected two "
                "from 0 to 1 in this order: correct them"
            )
        if pictures < 1 or every < 1:
            raise InputError(
                f"augmentation moves every {every} observations at a pace of {pictures} pictures, expected at least 1 "
                "of both: correct them"
            )
        self.operations = operations_of(operations)
        self.target, self.pictures, self.every, self.limit = target, pictures, every, limit
        self.register_buffer("probability", torch.tensor(float(probability)))
        self.register_buffer("signs", torch.zeros(()))  # sum of the observations since the last move
        self.register_buffer("observations", torch.zeros((), dtype=torch.int64))
        self.register_buffer("waiting", torch.zeros((), dtype=torch.int64))  # pictures since the last move
        self.register_buffer("taps_k", low_pass(), persistent=False)
        # What the host knows of the buffers, so that it need not wait for the device in every call; None: ask once.
        self._seen: int | None = None
        self._off: bool | None = None
        self.register_load_state_dict_post_hook(lambda *_: self._forget())

    def forward(self, image_B3HW: Tensor, quantile: float | None = None) -> Tensor:
        """Pictures of the same shape, at least float32; drawn from torch's global generator. As they are where the
        probability is 0.

        quantile: instead of random numbers that quantile of each distribution, and every operation strikes.
        """
        if quantile is None and self._is_off():
            return image_B3HW
        with torch.autocast(image_B3HW.device.type, enabled=False):
            image_B3HW = image_B3HW.to(torch.promote_types(image_B3HW.dtype, torch.float32))
            chance = Chance(image_B3HW, self.probability, quantile)
            moves = [operation(chance) for name, operation in MOVES if name in self.operations]
            colours = [operation(chance) for name, operation in COLOURS if name in self.operations]
            if moves:  # inverses, so the first comes first
                image_B3HW = move(image_B3HW, reduce(torch.matmul, moves), self.taps_k.to(image_B3HW.dtype))
            if colours:
                image_B3HW = recolour(image_B3HW, reduce(torch.matmul, reversed(colours)))
        return image_B3HW

    def _is_off(self) -> bool:
        if self._off is None:
            self._off = float(self.probability) == 0
        return self._off

    def _forget(self) -> None:
        self._seen = self._off = None

    @torch.no_grad()
    def observe(self, sign: Tensor | float, pictures: int) -> None:
        """Takes note of the mean sign of the discriminator's logits on `pictures` real pictures.

        Every so many observations the probability moves by a fixed step, up if their mean is above the target.
        """
        self.signs += sign
        self.observations += 1
        self.waiting += pictures
        self._seen = int(self.observations) if self._seen is None else self._seen + 1
        if self._seen < self.every:
            return
        direction = torch.sign(self.signs / self.observations - self.target)
        self.probability += direction * self.waiting / self.pictures
        self.probability.clamp_(0, self.limit)
        for buffer in (self.signs, self.observations, self.waiting):
            buffer.zero_()
        self._seen, self._off = 0, None
