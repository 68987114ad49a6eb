"""Weights shared by role, for deep nets whose blocks repeat.

The *role* of a block of numbers is its structural position: its name with every whole-number
component starred (``h.3.mlp.c_fc.weight`` → ``h.*.mlp.c_fc.weight``), the roles of its slots, and
the width of what is folded. The role of a group is the set of places (starred names, slots) where
it stands. What a name says up to its last number (``h.3``) is the *instance*.

With ``mixing="role"`` one matrix serves all signatures of equal roles (the neurons of ``h.0`` and
of ``h.3``), and within a signature (the residual stream, the global state) pieces of one role share
weights over depth as an equivariant set does: each gets its own instance's pieces by one matrix,
and the mean over the instances by another. Time then grows with the number of blocks times the
number of roles, and weights with the square of the number of roles alone: twelve blocks need as
many as three. Any sharing of weights between basis terms is equivariant; biases and positional
weights stay per block, so that depth can be told apart. (After UNF, arXiv 2402.05232, whose exact
form is ``mixing="exact"``, and deep sets, arXiv 1703.06114.)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metanet.nn.basis import Basis, Bucket, Piece
from metanet.nn.grid import Grid


def split_name(name: str) -> tuple[str, str]:
    """Starred name and instance: ``h.3.ln.weight#1`` → ``h.*.ln.weight#1``, ``h.3``."""
    tensor, _, block = name.partition("#")
    parts = tensor.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    starred = ".".join("*" if i in numbers else part for i, part in enumerate(parts))
    instance = ".".join(parts[:numbers[-1] + 1]) if numbers else ""
    return f"{starred}#{block}" if block else starred, instance


@dataclass(frozen=True)
class Layout:
    """How the pieces of one signature share the matrices of their roles.

    Attributes:
        key: which matrices: signatures of equal roles have equal keys.
        rows: of each piece in: its role's rows in the matrices, start and width.
        columns: of each piece out: its role's columns.
        pooled: per role in, in the order of the matrix: the pieces that have it, none if absent.
        sets: instances that hold equal roles: per instance, its pieces in and its pieces out.
    """

    key: int
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    pooled: tuple[tuple[int, ...], ...]
    sets: tuple[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], ...]


@dataclass(frozen=True)
class Sharing:
    """The layouts of all signatures, and rows, columns and need of a mean matrix per key."""

    layouts: tuple[Layout, ...]
    sizes: tuple[tuple[int, int], ...]
    crossing: tuple[bool, ...]


@dataclass(frozen=True)
class Shared:
    """The linear map of a signature: ``own`` within an instance, ``mean`` over instances."""

    layout: Layout
    own: Tensor
    mean: Tensor | None

    def to(self, dtype: torch.dtype) -> Shared:
        """The same map in another dtype."""
        return Shared(self.layout, self.own.to(dtype),
                      None if self.mean is None else self.mean.to(dtype))

    def __call__(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Pieces in ``[N, *slots, wc_in]`` → pieces out ``[N, *slots, wc_out]``."""
        found: dict[int, Tensor] = {}
        for alike in self.layout.sets:
            heard = [_joined([pieces[i] for i in rows]) for rows, _ in alike]
            mixed = (torch.stack(heard) if len(heard) > 1 else heard[0][None]) @ self._part(alike)
            for (_, columns), value in zip(alike, mixed, strict=True):
                widths = [self.layout.columns[j][1] for j in columns]
                found.update(zip(columns, value.split(widths, -1), strict=True))
        if self.mean is not None:
            everywhere = self._pool(pieces, self.mean)
            for j, (start, width) in enumerate(self.layout.columns):
                found[j] = found[j] + everywhere.narrow(-1, start, width)
        return [found[j] for j in range(len(self.layout.columns))]

    def _pool(self, pieces: Sequence[Tensor], weight: Tensor) -> Tensor:
        """The mean of each role through ``weight``; roles that are absent here are left out."""
        parts, rows = [], []
        for members in self.layout.pooled:
            if members:
                parts.append(torch.stack([pieces[i] for i in members]).mean(0)
                             if len(members) > 1 else pieces[members[0]])
                start, width = self.layout.rows[members[0]]
                rows.append(weight[start:start + width])
        return _joined(parts) @ (weight if len(rows) == len(self.layout.pooled)
                                 else torch.cat(rows))

    def _part(self, alike: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Tensor:
        """The rows and columns of the roles that these instances hold."""
        ins, outs = alike[0]
        rows = [self.own[i:i + h] for i, h in (self.layout.rows[k] for k in ins)]
        tall = torch.cat(rows)
        columns = [tall[:, j:j + w] for j, w in (self.layout.columns[k] for k in outs)]
        return _joined(columns)

    def dense(self) -> Tensor:
        """The matrix of this map ``[rows, columns]``, pieces side by side."""
        widths = [width for _, width in self.layout.rows]
        unit = torch.eye(sum(widths), dtype=self.own.dtype, device=self.own.device)
        return torch.cat(self(unit.split(widths, -1)), -1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)


class _Roles:
    """Roles of the blocks, groups and pieces of a basis."""

    def __init__(self, found: Basis) -> None:
        self.grids = found.grids
        self.rank: dict[str, int] = {}
        places: dict[str, set[tuple[str, int]]] = {}
        for name, grid in found.grids.items():
            for place, slot in enumerate(grid.slots):
                self.rank.setdefault(slot.label, len(self.rank))
                places.setdefault(slot.label, set()).add((split_name(name)[0], place))
        self.group = {label: tuple(sorted(found)) for label, found in places.items()}

    @cached_property
    def block(self) -> dict[str, Hashable]:
        """Role of every block."""
        return {name: (split_name(name)[0], grid.width, *_slots(grid, self.group))
                for name, grid in self.grids.items()}

    def order(self, bucket: Bucket) -> list[int]:
        """The places of a signature in an order that does not depend on labels' spelling."""
        places = range(len(bucket.signature))
        return sorted(places, key=lambda i: (self.group[bucket.signature[i][0]],
                                             self.rank[bucket.signature[i][0]]))

    def signature(self, bucket: Bucket) -> Hashable:
        """Role of a signature."""
        order = self.order(bucket)
        return tuple((self.group[bucket.signature[i][0]],
                      tuple(order.index(b) for b in bucket.signature[i][1])) for i in order)

    def piece(self, piece: Piece, order: Sequence[int]) -> Hashable:
        """Role of a piece."""
        return (self.block[piece.block], piece.pattern.classes, piece.pattern.bases,
                tuple(piece.order[i] for i in order))


def _slots(grid: Grid, group: dict[str, tuple[tuple[str, int], ...]]) -> list[Hashable]:
    return [("",) if slot.private else (group[slot.label], slot.bases) for slot in grid.slots]


class _Side:
    """Spans of roles along the rows or columns of one key's matrices."""

    def __init__(self) -> None:
        self.spans: dict[Hashable, tuple[int, int]] = {}
        self.width = 0

    def span(self, role: Hashable, width: int) -> tuple[int, int]:
        """Start and width of a role, which gets room when it is first met."""
        if role not in self.spans:
            self.spans[role] = (self.width, width)
            self.width += width
        return self.spans[role]


def share(found: Basis, c_in: int, c_out: int) -> Sharing:
    """Which weights of a basis are one when they are shared by role."""
    roles = _Roles(found)
    keys: dict[Hashable, int] = {}
    sides: list[tuple[_Side, _Side]] = []
    drafts = []
    for bucket in found.buckets:
        key = keys.setdefault(roles.signature(bucket), len(keys))
        if key == len(sides):
            sides.append((_Side(), _Side()))
        order = roles.order(bucket)
        ins, outs = ([roles.piece(piece, order) for piece in pieces]
                     for pieces in (bucket.features, bucket.terms))
        rows = _spans(found, bucket.features, ins, sides[key][0], c_in)
        columns = _spans(found, bucket.terms, outs, sides[key][1], c_out)
        drafts.append((bucket, key, ins, outs, rows, columns))
    layouts = []
    for bucket, key, ins, outs, rows, columns in drafts:
        pooled = tuple(tuple(i for i, one in enumerate(ins) if one == role)
                       for role in sides[key][0].spans)
        layouts.append(Layout(key, rows, columns, pooled, _sets(bucket, ins, outs)))
    crossing = tuple(any(sum(map(len, layout.sets)) > 1 for layout in layouts if layout.key == key)
                     for key in range(len(sides)))
    return Sharing(tuple(layouts), tuple((a.width, b.width) for a, b in sides), crossing)


def _spans(found: Basis, pieces: Sequence[Piece], roles: Sequence[Hashable], side: _Side,
           channels: int) -> tuple[tuple[int, int], ...]:
    return tuple(side.span(role, found.grids[piece.block].width * channels)
                 for piece, role in zip(pieces, roles, strict=True))


def _sets(bucket: Bucket, ins: Sequence[Hashable], outs: Sequence[Hashable]
          ) -> tuple[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], ...]:
    """Instances grouped by the roles they hold; pieces in an order of their roles."""
    held: dict[str, tuple[list[int], list[int]]] = {}
    for side, pieces in enumerate((bucket.features, bucket.terms)):
        for i, piece in enumerate(pieces):
            held.setdefault(split_name(piece.block)[1], ([], []))[side].append(i)
    alike: dict[Hashable, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for rows, columns in held.values():
        rows.sort(key=lambda i: repr(ins[i]))
        columns.sort(key=lambda i: repr(outs[i]))
        kind = (tuple(ins[i] for i in rows), tuple(outs[i] for i in columns))
        alike.setdefault(kind, []).append((tuple(rows), tuple(columns)))
    return tuple(tuple(found) for found in alike.values())
