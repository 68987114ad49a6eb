"""Reading and writing where a mask holds.

A mask picks entries in their order, so the axes that it covers are frozen; but along axes where it
is a copy of one entry it takes all or nothing, and those stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.pointwise import broadcast

_BOOLEAN = (torch.bool, torch.uint8)


def is_boolean(index: Value) -> bool:
    """Whether an index is known to be a mask."""
    return index.dtype in _BOOLEAN


def is_mask(ctx: Context, x: Value, index: Value, at: int) -> bool:
    """Whether ``index``, alone at axis ``at``, picks entries where it is true."""
    if index.dtype is not None:
        return index.dtype in _BOOLEAN
    if len(ctx.shape) != x.rank - index.rank + 1:
        return False
    covered = x.shape[at : at + index.rank]
    return covered == index.shape and (index.rank > 1 or ctx.shape[at] != index.shape[0])


def whole_tail(mask: Value) -> int:
    """How many of the last axes the mask takes all or nothing of."""
    count = 0
    while count < mask.rank and (
            mask.rank - 1 - count in mask.alike or length(mask.axes[-1 - count]) == 1):
        count += 1
    return count


def read_masked(ctx: Context, x: Value, mask: Value, at: int) -> Value:
    """``x`` where one mask holds: the axes that it covers become one, of any size."""
    tail = whole_tail(mask)
    covered = range(at, at + mask.rank - tail)
    kept = x.axes[at + mask.rank - tail : at + mask.rank]
    for axis in (*(x.axes[i] for i in covered), *mask.axes[: mask.rank - tail]):
        ctx.freeze(axis, "picked by a mask")
    ctx.mix(x, covered)
    size = prod(map(length, kept))
    rows = ctx.shape[at] // size if size else 0
    picked = ctx.fixed(rows, "picked by a mask")
    inside = tuple(factor for axis in kept for factor in axis)
    return Value((*x.axes[:at], picked + inside, *x.axes[at + mask.rank :]), depth=x.depth)


def read_mixed(ctx: Context, x: Value, indices: Sequence[Value | None]) -> Value:
    """Masks and numbers together: every axis that either covers is frozen."""
    places: list[int] = []
    rest: list[Expr] = []
    at = 0
    numbers: list[Value] = []
    starts: list[int] = []
    for value in indices:
        if value is None:
            rest.append(x.axes[at])
            at += 1
            continue
        mask = is_boolean(value)
        width = value.rank if mask else 1
        starts.append(len(rest))
        places += range(at, at + width)
        ctx.freeze_valued(value)
        if mask:
            for axis in value.axes:
                ctx.freeze(axis, "picked by a mask")
        else:
            numbers.append(value)
        at += width
    rest += x.axes[at:]
    for place in places:
        ctx.freeze(x.axes[place], "read by index")
    ctx.mix(x, places)
    before = starts[0] if len(set(starts)) == 1 else 0
    count = len(ctx.shape) - len(rest)
    axes = broadcast(ctx, numbers)
    shape = ctx.shape[before : before + count]
    axes = [()] * (count - len(axes)) + axes
    middle = [axis if length(axis) == n else ctx.fixed(n, "picked by a mask")
              for axis, n in zip(axes, shape, strict=True)]
    return Value((*rest[:before], *middle, *rest[before:]), depth=x.depth)


def write_masked(ctx: Context, x: Value, mask: Value, values: Value) -> list[Expr] | None:
    """``x`` with a number, a row or rows written where a mask over its first axes holds."""
    if x.shape[: mask.rank] != mask.shape:
        return None
    if prod(values.shape) == 1:
        for own, other in zip(x.axes, mask.axes, strict=False):
            ctx.tie(own, other)
        return list(x.axes)
    tail = whole_tail(mask)
    kept, rest = x.axes[mask.rank - tail : mask.rank], x.axes[mask.rank :]
    if values.rank <= len(rest):  # the same row wherever the mask holds
        for own, other in zip(x.axes, mask.axes, strict=False):
            ctx.tie(own, other)
        broadcast(ctx, [Value(tuple(rest)), values])
        return list(x.axes)
    size = prod(map(length, kept))
    if values.rank != 1 + len(rest) or not size or length(values.axes[0]) % size:
        return None
    covered = range(mask.rank - tail)
    for axis in (*(x.axes[i] for i in covered), *mask.axes[: mask.rank - tail]):
        ctx.freeze(axis, "written where a mask holds")
    rows, inside = ctx.split(values.axes[0], length(values.axes[0]) // size, size)
    ctx.freeze(rows, "order of writing")
    own = tuple(factor for axis in kept for factor in axis)
    ctx.tie(own, inside)
    broadcast(ctx, [Value(tuple(rest)), Value(values.axes[1:])])
    ctx.observe([inside, *values.axes[1:]])
    ctx.mix(x, covered)
    return list(x.axes)


def write_where(ctx: Context, x: Value, mask: Value, source: Value) -> list[Expr]:
    """``masked_scatter``: rows of ``x`` where a mask holds, replaced by those of ``source``."""
    tail = whole_tail(mask)
    if mask.rank != x.rank or not tail:
        raise ctx.refuse("a mask that may hold for a part of the last axis")
    front = x.rank - tail
    kept = x.axes[front:]
    size, total = prod(map(length, kept)), prod(source.shape)
    if not size or total % size:
        raise ctx.refuse("a source of which rows are used in part")
    for axis in (*x.axes[:front], *mask.axes[:front]):
        ctx.freeze(axis, "rows are told apart by a mask")
    rows, *inside = ctx.regroup(source.axes, (total // size, *map(length, kept)))
    ctx.freeze(rows, "rows are told apart by a mask")
    for own, other in zip(kept, inside, strict=True):
        ctx.tie(own, other)
    ctx.observe(inside)
    ctx.mix(x, range(front))
    return list(x.axes)
