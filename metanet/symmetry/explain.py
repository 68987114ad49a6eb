"""Why an axis is as free as it is, in words."""

from __future__ import annotations

from metanet.checkpoint.names import printable
from metanet.errors import SymmetryError
from metanet.symmetry.axis import Axis, Fixed, occurrences
from metanet.symmetry.space import WeightSpace
from metanet.symmetry.text import print_axes

_SHOWN = 6


def explain(space: WeightSpace, name: str, axis: int) -> str:
    """Which groups act on an axis of a tensor, and why the rest of it is fixed.

    Raises:
        SymmetryError: no such tensor or axis.
    """
    owner = space.owner(name)
    spec = space.tensors[owner]
    if not -len(spec.shape) <= axis < len(spec.shape):
        raise SymmetryError(f"{printable(name)!r} has {len(spec.shape)} axes; there is no axis "
                            f"{axis}")
    axis %= len(spec.shape)
    tree = spec.axes[axis]
    lines = [f"{printable(name)}, axis {axis} ({spec.shape[axis]}): {print_axes((tree,))}"]
    if owner != name:
        lines.append(f"  is another name of {printable(owner)}")
    for label in dict.fromkeys(occ.label for occ in occurrences(tree)):
        lines += _group(space, label)
    lines += _fixed(space, owner, axis, tree)
    return "\n".join(lines)


def _group(space: WeightSpace, label: str) -> list[str]:
    fixed = {group.label: group for group in space.fixed}
    if label in fixed:
        why = printable(fixed[label].reason or "declared so")
        return [f"  {label}: {fixed[label].size} indices that cannot move: {why}"]
    known = {group.label: group for group in space.groups}
    if label not in known:
        return [f"  {label}: a single index"]
    group = known[label]
    over = f", another one for each index of {' x '.join(group.over)}" if group.over else ""
    meta = space.meta.groups.get(label)
    activation = f", through {meta.activation}" if meta and meta.activation else ""
    shown = ", ".join(map(printable, group.tensors[:_SHOWN]))
    more = f" and {len(group.tensors) - _SHOWN} more" if len(group.tensors) > _SHOWN else ""
    dead = "; no output depends on it" if group.dead else ""
    return [f"  {label}: any {group.kind}({group.size}){over}{activation}{dead}; it moves "
            f"{shown}{more} together"]


def _fixed(space: WeightSpace, owner: str, axis: int, tree: Axis) -> list[str]:
    parts = space.meta.reasons.get(owner, {}).get(axis, ())
    if parts:
        return [f"  {part.size} fixed: {printable(part.reason)}" for part in parts]
    if isinstance(tree, Fixed) and tree.size == 1:
        return ["  a single index has nowhere to move"]
    if "!" in print_axes((tree,)):
        return ["  what is fixed was written so in the space"]
    return []
