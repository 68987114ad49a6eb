"""Building a space by hand from shapes: everything is fixed until somebody says otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.info import is_floating
from metanet.symmetry.axis import Axis, Fixed, Occ, Prod
from metanet.symmetry.group import Group
from metanet.symmetry.meta import Frozen, Meta
from metanet.symmetry.space import TensorSpec, WeightSpace

Place = tuple[str, int]


class Sketch:
    """The floating tensors of a checkpoint, and the axes of them that may be permuted together.

    Args:
        checkpoint: names and shapes; nothing is read.
        reason: why an axis is fixed of which nobody says anything.
    """

    def __init__(self, checkpoint: Checkpoint, reason: str) -> None:
        self.checkpoint, self.reason = checkpoint, reason
        self.shapes = {name: checkpoint.shape(name) for name in checkpoint.names
                       if is_floating(checkpoint.dtype(name)) and name not in checkpoint.aliases}
        self.groups: dict[str, Group] = {}
        self.axes: dict[str, list[Axis]] = {n: [*map(Fixed, s)] for n, s in self.shapes.items()}
        self.reasons: dict[Place, str] = {}

    def tie(self, name: str, size: int, places: Iterable[Place]) -> None:
        """One S_n that acts on all these axes; longer ones hold a run of entries per neuron.

        Args:
            name: what to call the group; made a label, and made unique.
            size: how many neurons.
            places: tensors and axis numbers.
        """
        if size < 2:
            return
        label = self._label(name)
        self.groups[label] = Group(label, size)
        for tensor, axis in places:
            length, rest = divmod(self.shapes[tensor][axis], size)
            run: Axis = Occ(label) if length == 1 else Prod((Occ(label), Fixed(length)))
            if rest or not isinstance(self.axes[tensor][axis], Fixed):
                raise ValueError(f"axis {axis} of {tensor!r} cannot hold {size} neurons")
            self.axes[tensor][axis] = run

    def because(self, places: Iterable[Place], reason: str) -> None:
        """Say why these axes are fixed."""
        self.reasons |= dict.fromkeys(places, reason)

    def space(self) -> WeightSpace:
        """The space, ``inferred``."""
        tensors = {n: TensorSpec(s, tuple(self.axes[n])) for n, s in self.shapes.items()}
        aliases = {a: o for a, o in self.checkpoint.aliases.items() if o in tensors}
        meta = Meta(reasons={name: self._why(name) for name in tensors})
        return WeightSpace(self.groups.values(), tensors, aliases, status="inferred", meta=meta)

    def _why(self, name: str) -> dict[int, tuple[Frozen, ...]]:
        out: dict[int, tuple[Frozen, ...]] = {}
        for axis, tree in enumerate(self.axes[name]):
            if isinstance(tree, Fixed):
                reason = self.reasons.get((name, axis), self.reason)
                out[axis] = (Frozen(tree.size, reason),)
            elif isinstance(tree, Prod):
                size = self.shapes[name][axis] // self.groups[_first(tree)].size
                out[axis] = (Frozen(size, "entries of one neuron stay in their order"),)
        return out

    def _label(self, name: str) -> str:
        label = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:60].strip("_") or "h"
        label = f"h_{label}" if label[0].isdigit() else label
        number, free = 2, label
        while free in self.groups:
            free, number = f"{label}_{number}", number + 1
        return free


def _first(tree: Prod) -> str:
    return next(part.label for part in tree.parts if isinstance(part, Occ))
