"""Best permutations and rotations of a family of groups, given their gains: nested assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import linear_sum_assignment

from metanet.symmetry.gains import Gains
from metanet.symmetry.kinds import ROTATING
from metanet.symmetry.rotations import procrustes

Rows = tuple[int, ...]


@dataclass(frozen=True)
class _Solved:
    """The best assignment of one group for one pair of rows, and those of its members.

    ``value`` holds signs, or the matrix of a group that turns (its table stays in order).
    """

    node: Gains
    at: Rows
    table: Int64[np.ndarray, " n"]
    value: Float64[np.ndarray, "*n"]
    gain: float
    members: tuple[_Solved, ...]


def assign(
    gains: Gains, tables: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """New tables and signs, with the family of ``gains`` at its best.

    The outer cost of mapping one base index to another is the gain of their best inner
    assignments, so members whose base moves are solved together with it.
    """
    tables = {label: table.copy() for label, table in tables.items()}
    values = {label: value.copy() for label, value in values.items()}
    for rows in product(*(range(size) for size in gains.held.values())):
        _write(_solve(gains, rows, (), ()), tables, values)
    return tables, values


def _solve(node: Gains, held: Rows, rows_a: Rows, rows_b: Rows) -> _Solved:
    n = node.group.size
    where: tuple[int | slice, ...] = (*held, *rows_a, slice(None), *rows_b, slice(None))
    if node.group.kind in ROTATING:
        turn, worth = procrustes(node.group.kind, node.plain[where])
        return _Solved(node, _place(node, held, rows_a), np.arange(n), turn, worth, ())
    odd = node.odd[where]
    gain = node.plain[where] + np.abs(odd)
    below: dict[tuple[int, int], tuple[_Solved, ...]] = {}
    if node.members:
        gain = gain.copy()
        for i, j in product(range(n), repeat=2):
            below[i, j] = tuple(_inner(node, held, (*rows_a, i), (*rows_b, j)))
            gain[i, j] += sum(found.gain for found in below[i, j])
    rows, table = linear_sum_assignment(gain, maximize=True)
    sign = np.where(odd[rows, table] < 0, -1.0, 1.0)
    members = tuple(m for pair in zip(rows, table, strict=True) for m in below.get(pair, ()))
    at = _place(node, held, rows_a)
    return _Solved(node, at, table, sign, float(gain[rows, table].sum()), members)


def _inner(node: Gains, held: Rows, rows_a: Rows, rows_b: Rows) -> list[_Solved]:
    """Members' best assignments for one pair of base indices, for every base that they add."""
    known = dict(zip(node.held, held, strict=True))
    found = []
    for member in node.members:
        ranges = [(known[base],) if base in known else range(size)
                  for base, size in member.held.items()]
        found += [_solve(member, rows, rows_a, rows_b) for rows in product(*ranges)]
    return found


def _place(node: Gains, held: Rows, rows_a: Rows) -> Rows:
    """Row of the group's table, in the order of its bases."""
    index = dict(zip(node.held, held, strict=True)) | dict(zip(node.chain, rows_a, strict=False))
    return tuple(index[base] for base in node.group.over)


def _write(
    solved: _Solved, tables: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> None:
    label = solved.node.group.label
    tables[label][solved.at] = solved.table
    if solved.node.group.kind == "signed" or solved.node.group.kind in ROTATING:
        values[label][solved.at] = solved.value
    for member in solved.members:
        _write(member, tables, values)
