"""Axes that are put behind each other or taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.pointwise import broadcast
from metanet.symmetry.rules.registry import rule


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(ctx: Context, values: Sequence[Value], dim: int = 0) -> list[Expr]:
    """A direct sum along ``dim``; all other axes are tied."""
    values = [v for v in values if v.shape != (0,)]
    at = dim % values[0].rank
    axes = [ctx.cat([v.axes[at] for v in values])] * values[0].rank
    for i in range(values[0].rank):
        if i != at:
            ctx.tie_all([v.axes[i] for v in values])
            axes[i] = values[0].axes[i]
    return axes


@rule("aten.stack")
def stack(ctx: Context, values: Sequence[Value], dim: int = 0) -> list[Expr]:
    """A new axis whose indices cannot move; the other axes are tied."""
    at = dim % (values[0].rank + 1)
    for i in range(values[0].rank):
        ctx.tie_all([v.axes[i] for v in values])
    axes = values[0].axes
    return [*axes[:at], ctx.cat([() for _ in values]), *axes[at:]]


def _part(ctx: Context, x: Value, dim: int, lo: int, hi: int) -> list[Expr]:
    return ctx.cut(x.axes, dim % x.rank, lo, hi)


@rule("aten.slice", "aten.narrow")
def slice_(ctx: Context, x: Value, dim: int = 0, start: int | None = None,
           end: int | None = None, step: int = 1) -> list[Expr]:
    """A range of indices; a stride over an axis that could move freezes it."""
    size = length(x.axes[dim])
    if ctx.op is not None and "narrow" in ctx.op.name:
        end = (start or 0) + (end or 0)
    lo, hi, step = slice(start, end, step).indices(size)
    if step == 1:
        return _part(ctx, x, dim, lo, hi)
    ctx.freeze(x.axes[dim], "strided slice")
    ctx.mix(x, (dim,))
    axes = list(x.axes)
    axes[dim] = ctx.fixed(len(range(lo, hi, step)), "strided slice")
    return axes


@rule("aten.select")
def select(ctx: Context, x: Value, dim: int, index: int) -> list[Expr]:
    """One index of an axis; the others keep what freedom they have."""
    at, i = dim % x.rank, index % length(x.axes[dim])
    axes = _part(ctx, x, at, i, i + 1)
    return axes[:at] + axes[at + 1 :]


@rule("aten.unbind")
def unbind(ctx: Context, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """Every index of an axis by itself."""
    return tuple(Value(tuple(select(ctx, x, dim, i)), depth=x.depth)
                 for i in range(length(x.axes[dim])))


@rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split",
      "aten.split_copy", "aten.unsafe_split", "aten.unsafe_chunk", "aten.hsplit")
def split(ctx: Context, x: Value, how: Any, dim: int = 0) -> tuple[Value, ...]:
    """Consecutive ranges, sized like the recorded outputs."""
    if ctx.op is not None and "hsplit" in ctx.op.name:
        dim = 1 if x.rank > 1 else 0
    parts, start = [], 0
    for shape in ctx.shapes:
        if shape is None:
            raise ctx.refuse("an output without a shape")
        stop = start + shape[dim]
        parts.append(Value(tuple(_part(ctx, x, dim, start, stop)), depth=x.depth))
        start = stop
    return tuple(parts)


@rule("aten.glu")
def glu(ctx: Context, x: Value, dim: int = -1) -> list[Expr]:
    """First half times sigmoid of the second."""
    half = ceil(length(x.axes[dim]) / 2)
    first = _part(ctx, x, dim, 0, half)
    second = _part(ctx, x, dim, half, 2 * half)
    return broadcast(ctx, [Value(tuple(first)), Value(tuple(second))])


@rule("aten.pad", "aten.constant_pad_nd", "aten.reflection_pad1d", "aten.reflection_pad2d",
      "aten.replication_pad1d", "aten.replication_pad2d")
def pad(ctx: Context, x: Value, pads: Sequence[int], mode: Any = "constant",
        value: Any = None) -> list[Expr]:
    """Constant padding adds blocks of equal entries, free by themselves; others freeze."""
    constant = ctx.op is not None and ("constant" in ctx.op.name or mode == "constant"
                                       ) and "ection" not in ctx.op.name
    if ctx.op is not None and "replication" in ctx.op.name:
        constant = False
    axes = list(x.axes)
    for i in range(len(pads) // 2):
        lo, hi, dim = pads[2 * i], pads[2 * i + 1], x.rank - 1 - i
        if lo == hi == 0:
            continue
        if constant and lo >= 0 and hi >= 0:
            ends = [ctx.free(n) if n else None for n in (lo, hi)]
            parts = [ends[0], axes[dim], ends[1]]
            axes[dim] = ctx.cat([part for part in parts if part is not None])
            continue
        ctx.freeze(axes[dim], "padding")
        ctx.mix(axes, (dim,))
        axes[dim] = ctx.fixed(ctx.shape[dim], "padding")
    return axes
