"""Cells of tied vertices: finding, splitting and reading them.

A vertex is a flat index into colours ``[*over, n, signs]`` of its group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from metanet.symmetry.colours import Colours
from metanet.symmetry.element import GroupElement, table_shape

if TYPE_CHECKING:
    from metanet.symmetry.space import WeightSpace

Cell = Int64[np.ndarray, "vertices"]


def tied_cells(own: Int64[np.ndarray, "*over n signs"]) -> list[Cell]:
    """Vertices that share a colour, by colour; each cell in increasing order."""
    flat = own.reshape(-1)
    order = np.argsort(flat, kind="stable")
    edges = np.flatnonzero(np.diff(flat[order])) + 1
    return [cell for cell in np.split(order, edges) if len(cell) > 1]


def first_tie(space: WeightSpace, colours: Colours) -> tuple[str, Cell] | None:
    """The first group with ties, bases before what is fibred over them, and its first cell."""
    for group in sorted(space.groups, key=lambda g: len(g.over)):
        cells = tied_cells(colours[group.label])
        if cells:
            return group.label, cells[0]
    return None


def single_out(colours: Colours, label: str, vertex: int) -> Colours:
    """The same colours with one vertex in front of its cell."""
    own = colours[label] * 2 + 1
    own.reshape(-1)[vertex] -= 1
    return {**colours, label: own}


def spread_cell(colours: Colours, label: str, cell: Cell) -> Colours:
    """The same colours with the vertices of a cell told apart by their index."""
    own = colours[label] * len(cell)
    own.reshape(-1)[cell] += np.arange(len(cell))
    _, ranks = np.unique(own, return_inverse=True)  # so that many cells do not overflow
    return {**colours, label: ranks.reshape(own.shape)}


def by_index(colours: Colours) -> Colours:
    """All ties broken by index."""
    return {
        label: np.argsort(np.argsort(own.reshape(-1), kind="stable")).reshape(own.shape)
        for label, own in colours.items()
    }


def element_of(space: WeightSpace, colours: Colours) -> GroupElement:
    """The element that sorts every group by its colours, each neuron with its first sign."""
    tables: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for group in sorted(space.groups, key=lambda g: len(g.over)):
        # Output rows of a fibred table read from rows that the bases, already known, choose.
        rows = GroupElement(space, tables, values).base_rows(group).reshape(-1)
        own = colours[group.label].reshape(-1, group.size, colours[group.label].shape[-1])[rows]
        table = np.argsort(own.min(axis=-1), axis=-1, kind="stable")
        shape = table_shape(space, group)
        tables[group.label] = table.reshape(shape)
        if group.kind == "signed":
            sign = np.where(own[..., 0] <= own[..., 1], 1.0, -1.0)
            values[group.label] = np.take_along_axis(sign, table, axis=-1).reshape(shape)
    return GroupElement(space, tables, values)


def generators(space: WeightSpace, label: str, cell: Cell) -> Iterator[GroupElement]:
    """Elements that generate all permutations (and signs) within a cell; none if it cannot be.

    A swap of two neurons and a cycle of all generate the symmetric group; a flip of one adds the
    signs where the cell holds both readings of its neurons.
    """
    group = space.group(label)
    signs = 2 if group.kind == "signed" else 1
    neurons, sign = np.divmod(cell, signs)
    sign = 1.0 - 2.0 * sign
    both = signs == 2 and len(np.unique(neurons)) < len(neurons)
    if both:
        neurons, sign = neurons[::2], sign[::2]
    if len(np.unique(neurons // group.size)) > 1:
        return
    row = int(neurons[0] // group.size)
    cycles = [(neurons, sign)] if len(neurons) > 1 else []
    cycles += [(neurons[:2], sign[:2])] if len(neurons) > 2 else []
    for some, theirs in cycles:
        table = np.arange(group.size)
        value = np.ones(group.size)
        table[some % group.size] = np.roll(some, -1) % group.size
        value[some % group.size] = theirs * np.roll(theirs, -1)
        yield _one_row(space, label, row, table, value)
    if both:
        value = np.ones(group.size)
        value[neurons[0] % group.size] = -1.0
        yield _one_row(space, label, row, np.arange(group.size), value)


def _one_row(
    space: WeightSpace, label: str, row: int, table: np.ndarray, value: np.ndarray
) -> GroupElement:
    group = space.group(label)
    shape = table_shape(space, group)
    tables = np.broadcast_to(np.arange(group.size), shape).reshape(-1, group.size).copy()
    tables[row] = table
    if group.kind != "signed":
        return GroupElement(space, {label: tables.reshape(shape)})
    values = np.ones_like(tables, dtype=np.float64)
    values[row] = value
    return GroupElement(space, {label: tables.reshape(shape)}, {label: values.reshape(shape)})
