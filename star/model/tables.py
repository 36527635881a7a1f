"""What a transformer knows of every token of a pyramid by its place alone: its scale, and its rotary angles.

L tokens of all scales, P pairs of channels (half a head).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from star.model.rope import Rotation, pyramid_rotation
from star.tokenizer.scales import ScaleSchedule

if TYPE_CHECKING:
    from star.model.transformer import TransformerConfig


class PyramidTables(nn.Module):
    """Constants of every token of a pyramid, as buffers that no state dict holds.

    They follow the network from device to device and are never lowered in precision: angles in bfloat16 would be off by
    several degrees at the far corner. A network's own are of
    squares; `of` makes those of rectangles, and keeps them.
    """

    levels_L: Tensor  # int64
    cos_LP: Tensor | None  # float32; None for absolute positions
    sin_LP: Tensor | None

    def __init__(self, config: "TransformerConfig", schedule: ScaleSchedule | None = None) -> None:
        super().__init__()
        self.config, self.schedule = config, schedule or config.schedule
        rotation = None
        if config.positions == "rope":
            grids, theta, norm = self.schedule.grids, config.rope_theta, config.rope_norm
            rotation = pyramid_rotation(grids, config.head_width, theta=theta, norm=norm)
        self.register_buffer("levels_L", self.schedule.level_ids_L(), persistent=False)
        self.register_buffer("cos_LP", None if rotation is None else rotation.cos_lP, persistent=False)
        self.register_buffer("sin_LP", None if rotation is None else rotation.sin_lP, persistent=False)
        self._others: dict[ScaleSchedule, PyramidTables] = {}  # no modules of this one

    def of(self, schedule: ScaleSchedule | None) -> "PyramidTables":
        """Those of another schedule of the same scales, on the same device; of the squares if None.

        Raises ValueError for rectangles where positions are absolute: they are learnt for the squares.
        """
        if schedule is None or schedule == self.schedule:
            return self
        if self.config.positions != "rope":
            raise ValueError("rectangles need positions='rope': absolute positions are learnt for the squares alone")
        if schedule.sizes != self.schedule.sizes:
            raise ValueError(f"a schedule of sides {schedule.sizes} was given, the network has {self.schedule.sizes}")
        if schedule not in self._others:
            with torch.inference_mode(False), torch.device("cpu"):  # kept for training, too
                self._others[schedule] = PyramidTables(self.config, schedule).to(self.levels_L.device)
        return self._others[schedule]

    def rotation(self, span: slice | Tensor) -> Rotation | None:
        """The angles of some tokens, a slice or their numbers; None for absolute positions."""
        return None if self.cos_LP is None or self.sin_LP is None else Rotation(self.cos_LP, self.sin_LP).part(span)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to`, `.half` and `.to_empty` come down to: of these only the device counts here."""
        for name, table in self._buffers.items():
            if table is not None:
                self._buffers[name] = table.to(fn(table).device)
        self._others.clear()
        return self


def tables_of(config: "TransformerConfig") -> PyramidTables:
    """Scales and rotary angles of all tokens; real ones, also where a network is being built on the meta device."""
    with torch.device("cpu"):
        return PyramidTables(config)
