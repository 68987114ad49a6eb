"""Reshaping, reordering and repeating axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value, bases_of
from metanet.symmetry.rules.registry import rule


def _numbers(args: Sequence[Any]) -> list[int]:
    flat = [n for arg in args for n in (arg if isinstance(arg, (list, tuple)) else [arg])]
    return [n for n in flat if isinstance(n, int)]


def _ordered(value: Value, order: Sequence[int]) -> Value:
    axes = tuple(value.axes[i] for i in order)
    origin = value.origin and (value.origin[0], tuple(value.origin[1][i] for i in order))
    return Value(axes, origin=origin, depth=value.depth)


@rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten._reshape_alias", "aten.flatten",
      "aten.unflatten", "aten.reshape_as", "aten.view_as", "aten.ravel", uniform=True)
def view(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """The same entries in the same order under another shape."""
    return ctx.regroup(x.axes, ctx.shape)


@rule("aten.view.dtype", "aten.view_as_complex")
def view_dtype(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """Pairs on the last axis become one complex number."""
    if ctx.op is not None and "complex" not in ctx.op.name:
        raise ctx.refuse("the bits are read as another type")
    ctx.freeze(x.axes[-1], "real and imaginary part")
    ctx.mix(x, (-1,))
    return list(x.axes[:-1])


@rule("aten.view_as_real")
def view_as_real(ctx: Context, x: Value) -> list[Expr]:
    """A last axis (real, imaginary) appears."""
    return [*x.axes, ctx.fixed(2, "real and imaginary part")]


@rule("aten.permute", uniform=True)
def permute(ctx: Context, x: Value, dims: Sequence[int]) -> Value:
    """Axes in another order."""
    return _ordered(x, [dim % x.rank for dim in dims])


@rule("aten.transpose", "aten.swapaxes", "aten.swapdims", uniform=True)
def transpose(ctx: Context, x: Value, a: int, b: int) -> Value:
    """Two axes exchanged."""
    order = list(range(x.rank))
    if order:
        order[a], order[b] = order[b], order[a]
    return _ordered(x, order)


@rule("aten.t", "aten.numpy_T", "aten.mT", "aten.adjoint", "aten.matrix_H", uniform=True)
def matrix_transpose(ctx: Context, x: Value) -> Value:
    """The last two axes exchanged (all of them for numpy_T)."""
    if ctx.op is not None and "numpy_T" in ctx.op.name:
        return _ordered(x, list(reversed(range(x.rank))))
    return transpose(ctx, x, -2, -1) if x.rank > 1 else x


@rule("aten.movedim", "aten.moveaxis", uniform=True)
def movedim(ctx: Context, x: Value, source: Any, target: Any) -> Value:
    """Axes moved to new places, the others in their order."""
    moved = dict(zip([d % x.rank for d in _numbers([target])],
                     [d % x.rank for d in _numbers([source])], strict=True))
    rest = iter(d for d in range(x.rank) if d not in moved.values())
    return _ordered(x, [moved[i] if i in moved else next(rest) for i in range(x.rank)])


@rule("aten.unsqueeze", uniform=True)
def unsqueeze(ctx: Context, x: Value, dim: int) -> Value:
    """A new axis of size 1."""
    at = dim % (x.rank + 1)
    origin = x.origin and (x.origin[0], (*x.origin[1][:at], None, *x.origin[1][at:]))
    return Value((*x.axes[:at], (), *x.axes[at:]), origin=origin, depth=x.depth)


@rule("aten.squeeze", uniform=True)
def squeeze(ctx: Context, x: Value, dim: Any = None) -> Value:
    """Axes of size 1 vanish."""
    dims = range(x.rank) if dim is None else [d % x.rank for d in _numbers([dim])]
    keep = [i for i in range(x.rank) if i not in dims or length(x.axes[i]) != 1]
    return _ordered(x, keep)


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to", "aten.expand_copy", uniform=True)
def expand(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Value:
    """An axis of equal copies may be permuted by itself, even for each index before it."""
    return _expanded(ctx, x, ctx.shape)


@rule("aten.broadcast_tensors")
def broadcast_tensors(ctx: Context, values: Sequence[Value]) -> tuple[Value, ...]:
    """Each of several tensors expanded to the common shape."""
    return tuple(_expanded(ctx, value, shape or ())
                 for value, shape in zip(values, ctx.shapes, strict=True))


def _expanded(ctx: Context, x: Value, shape: Sequence[int]) -> Value:
    out: list[Expr] = []
    more = len(shape) - x.rank
    own = [()] * more + list(x.axes)
    copies = {more + i for i in x.alike}
    for axis, size in zip(own, shape, strict=True):
        if length(axis) != size:
            copies.add(len(out))
            axis = ctx.free(size, bases_of(out))
        out.append(axis)
    return Value(tuple(out), depth=x.depth, alike=frozenset(copies))


@rule("aten.repeat", "aten.tile", uniform=True)
def repeat(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """Each axis becomes (copies, axis)."""
    out: list[Expr] = []
    own = [()] * (len(ctx.shape) - x.rank) + list(x.axes)
    for axis, size in zip(own, ctx.shape, strict=True):
        out.append(ctx.free(size // length(axis), bases_of(out)) + axis)
    return out


@rule("aten.repeat_interleave.self_int", uniform=True)
def repeat_interleave(ctx: Context, x: Value, repeats: int, dim: int | None = None,
                      **kwargs: Any) -> list[Expr]:
    """The axis becomes (axis, copies)."""
    axes = list(x.axes) if dim is not None else [tuple(f for axis in x.axes for f in axis)]
    at = (dim or 0) % len(axes)
    axes[at] = axes[at] + ctx.free(repeats, bases_of(axes[: at + 1]))
    return axes


@rule("aten.pixel_shuffle", "aten.pixel_unshuffle")
def pixel_shuffle(ctx: Context, x: Value, factor: int) -> list[Expr]:
    """Channels (c, r, r) and places (H, W) exchange digits; the places are frozen."""
    for axis in x.axes[-2:]:
        ctx.freeze(axis, "spatial axis")
    if ctx.op is not None and "unshuffle" in ctx.op.name:
        channel = x.axes[-3] + ctx.fixed(factor * factor, "place inside a cell")
    else:
        size = length(x.axes[-3]) // factor**2
        channel, inner = ctx.split(x.axes[-3], size, factor**2)
        ctx.freeze(inner, "place inside a cell")
    ctx.mix((*x.axes[:-3], channel, *x.axes[-2:]), (-2, -1))
    return [*x.axes[:-3], channel, *(ctx.fixed(n, "spatial axis") for n in ctx.shape[-2:])]
