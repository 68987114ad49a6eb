"""GroupElement: one permutation table per group, with values for all kinds but S.

Convention (card `weight-space`, "Action"): ``new[i] = value[i]**e * old[table[i]]``, and the
digits of the *output* index choose the row of a fibred table. Values of the kinds O, O1 and SO are
orthogonal matrices, their tables do not move: ``new[i] = sum over j of value[i, j] * old[j]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.symmetry.group import Group
from metanet.symmetry.kinds import PERMUTING, ROTATING, SCALING
from metanet.symmetry.rotations import checked_rotations, random_rotation

if TYPE_CHECKING:
    from torch import Tensor

    from metanet.symmetry.space import WeightSpace

Table = Int64[np.ndarray, "*over n"]
Values = Float64[np.ndarray, "*shape"]


class GroupElement:
    """An element of the group of a space.

    Args:
        space: the space that it acts on.
        tables: group label → table of shape ``[*sizes of over, n]``; absent groups do not move.
        values: group label → values of the same shape, for signed (±1) and positive (> 0) groups;
            matrices ``[*sizes of over, n, n]`` for groups of kinds O, O1 and SO.

    Raises:
        SymmetryError: if a table is no permutation or a value is outside its kind.
    """

    def __init__(
        self,
        space: WeightSpace,
        tables: Mapping[str, Table] | None = None,
        values: Mapping[str, Values] | None = None,
    ) -> None:
        self.space = space
        tables, values = dict(tables or {}), dict(values or {})
        self.tables: dict[str, Table] = {}
        self.values: dict[str, Values] = {}
        for group in space.groups:
            shape = table_shape(space, group)
            table = tables.pop(group.label, None)
            value = values.pop(group.label, None)
            self.tables[group.label] = _checked_table(group, shape, table)
            if group.kind in SCALING | ROTATING:
                self.values[group.label] = _checked_values(group, shape, value)
            elif value is not None:
                raise SymmetryError(f"group {group.label!r} of kind {group.kind} takes no values")
        for label in (*tables, *values):
            raise SymmetryError(f"no group {label!r} in the space of this element")

    # ------------------------------------------------------------ algebra

    def base_rows(self, group: Group) -> Int64[np.ndarray, "*over"]:
        """Flat row of a fibred table that each base index of the output reads from."""
        sizes = [self.space.group(base).size for base in group.over]
        flat = np.zeros(sizes, dtype=np.int64)
        for position, base in enumerate(group.over):
            # The base's own table, spread over those of group.over that it is fibred over.
            own = [*(group.over.index(b) for b in self.space.group(base).over), position]
            shape = [size if i in own else 1 for i, size in enumerate(sizes)]
            source = _table_of(self, base).transpose(np.argsort(own)).reshape(shape)
            flat = flat * sizes[position] + source
        return flat

    def __matmul__(self, other: GroupElement) -> GroupElement:
        """``(g @ h).apply(x) == g.apply(h.apply(x))``."""
        if self.space != other.space:
            raise SpaceMismatch("elements of different spaces cannot be composed")
        tables, values = {}, {}
        partner = dict(zip(self.tables, other.tables, strict=True))
        for group in self.space.groups:
            mine, theirs = group.label, partner[group.label]
            rows = self.base_rows(group)
            first = other.tables[theirs].reshape(-1, group.size)[rows]
            tables[mine] = np.take_along_axis(first, self.tables[mine], axis=-1)
            if group.kind in ROTATING:
                turned = other.values[theirs].reshape(-1, group.size, group.size)[rows]
                values[mine] = self.values[mine] @ turned
            elif mine in self.values:
                carried = other.values[theirs].reshape(-1, group.size)[rows]
                moved = np.take_along_axis(carried, self.tables[mine], axis=-1)
                values[mine] = self.values[mine] * moved
        return GroupElement(self.space, tables, values)

    def inverse(self) -> GroupElement:
        """The element that undoes this one."""
        tables, values = {}, {}
        for group in self.space.groups:
            label, rows = group.label, self.base_rows(group).reshape(-1)
            table = self.tables[label].reshape(-1, group.size)
            undone = np.empty_like(table)
            undone[rows] = np.argsort(table, axis=-1)
            tables[label] = undone.reshape(self.tables[label].shape)
            if group.kind in ROTATING:
                turns = self.values[label].reshape(-1, group.size, group.size)
                back = np.empty_like(turns)
                back[rows] = turns.swapaxes(-1, -2)
                values[label] = back.reshape(self.values[label].shape)
            elif label in self.values:
                value = np.empty_like(self.values[label].reshape(-1, group.size))
                own = self.values[label].reshape(-1, group.size)
                value[rows] = 1.0 / np.take_along_axis(own, np.argsort(table, axis=-1), axis=-1)
                values[label] = value.reshape(self.values[label].shape)
        return GroupElement(self.space, tables, values)

    def is_identity(self) -> bool:
        """Whether nothing moves, no value differs from 1 and no matrix from the identity."""
        return self == identity(self.space)

    def moved(self) -> dict[str, float]:
        """Share of the neurons of each group that an element moves or turns."""
        found = {k: float((t != np.arange(t.shape[-1])).mean()) for k, t in self.tables.items()}
        for label, value in self.values.items():
            if self.space.group(label).kind in ROTATING:
                found[label] = float((value != np.eye(value.shape[-1])).any(-1).mean())
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GroupElement) or self.space != other.space:
            return False
        pairs = [*zip(self.tables.values(), other.tables.values(), strict=True),
                 *zip(self.values.values(), other.values.values(), strict=True)]
        return all(np.array_equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shares = ", ".join(f"{label} {share:.0%}" for label, share in self.moved().items())
        return f"GroupElement(moves {shares or 'nothing'})"

    # ------------------------------------------------------------ action

    def apply(self, state_dict: Mapping[str, Tensor], *, untie: bool = False) -> dict[str, Tensor]:
        """The acted-on tensors, in the order of ``state_dict``; the input is not changed.

        Integer and boolean tensors that the space does not know pass through
        (``metanet.symmetry.action.passed_through`` lists them). Aliases stay tied.

        Args:
            untie: let an alias hold another value than its owner, and act on each copy.

        Raises:
            SpaceMismatch: for a float tensor that the space does not know, a missing tensor,
                another shape, or an alias that differs from its owner.
        """
        from metanet.symmetry.action import apply

        return apply(self, state_dict, untie=untie)

    # ------------------------------------------------------------ plain data

    def to_json(self) -> dict[str, Any]:
        """Tables and values as nested lists."""
        return {
            "tables": {label: table.tolist() for label, table in self.tables.items()},
            "values": {label: value.tolist() for label, value in self.values.items()},
        }

    @classmethod
    def from_json(cls, space: WeightSpace, data: Mapping[str, Any]) -> GroupElement:
        """Inverse of ``to_json``."""
        try:
            tables = {k: np.asarray(v, dtype=np.int64) for k, v in data["tables"].items()}
            values = {k: np.asarray(v, dtype=np.float64) for k, v in data["values"].items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SymmetryError(f"the JSON of the element is malformed: {error!r}") from error
        return cls(space, tables, values)


def identity(space: WeightSpace) -> GroupElement:
    """The element that moves nothing."""
    return GroupElement(space)


def random(space: WeightSpace, seed: int = 0) -> GroupElement:
    """Uniform permutations and rotations, fair signs, log-normal scales (sigma 0.5)."""
    rng = np.random.default_rng(seed)
    tables, values = {}, {}
    for group in space.groups:
        if group.kind in ROTATING:
            rows = np.prod(table_shape(space, group)[:-1], dtype=int)
            turns = [random_rotation(group.kind, group.size, rng) for _ in range(rows)]
            values[group.label] = np.stack(turns).reshape(*table_shape(space, group), group.size)
            continue
        if group.kind not in PERMUTING:
            raise SymmetryError(f"no random element for group {group.label!r}: the action of kind "
                                f"{group.kind!r} is not defined yet")
        shape = table_shape(space, group)
        tables[group.label] = rng.permuted(np.broadcast_to(np.arange(group.size), shape), axis=-1)
        if group.kind == "signed":
            values[group.label] = rng.choice([-1.0, 1.0], size=shape)
        elif group.kind == "positive":
            values[group.label] = np.exp(0.5 * rng.standard_normal(shape))
    return GroupElement(space, tables, values)


def table_shape(space: WeightSpace, group: Group) -> tuple[int, ...]:
    """``[*sizes of over, n]``."""
    return (*(space.group(base).size for base in group.over), group.size)


def _table_of(element: GroupElement, label: str) -> Table:
    """A group's table; fixed bases do not move."""
    table = element.tables.get(label)
    return np.arange(element.space.group(label).size) if table is None else table


def _checked_table(group: Group, shape: tuple[int, ...], table: Table | None) -> Table:
    still = np.broadcast_to(np.arange(group.size), shape)
    if table is None:
        return still.copy()
    table = np.asarray(table)
    if group.kind not in PERMUTING and not np.array_equal(table, still):
        raise SymmetryError(f"group {group.label!r} of kind {group.kind} takes no table")
    if table.shape != shape or not np.array_equal(np.sort(table, axis=-1), still):
        raise SymmetryError(f"the table of {group.label!r} is not one permutation of "
                            f"{group.size} per row of shape {shape}; its shape is {table.shape}")
    return table.astype(np.int64)


def _checked_values(group: Group, shape: tuple[int, ...], value: Values | None) -> Values:
    if group.kind in ROTATING:
        return checked_rotations(group.label, group.kind, shape, value)
    if value is None:
        return np.ones(shape)
    value = np.asarray(value, dtype=np.float64)
    good = np.abs(value) == 1 if group.kind == "signed" else np.isfinite(value) & (value > 0)
    if value.shape != shape or not good.all():
        want = "all ±1" if group.kind == "signed" else "positive and finite"
        raise SymmetryError(f"values of {group.label!r} must be {want}, of shape {shape}")
    return value
