"""Reading by index, and operations for which the order of an axis counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from metanet.symmetry.factor import Expr, atoms, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.indices import pieces
from metanet.symmetry.rules.masks import is_boolean, is_mask, read_masked, read_mixed
from metanet.symmetry.rules.pointwise import broadcast
from metanet.symmetry.rules.reduce import drop, freeze_along
from metanet.symmetry.rules.registry import rule


@rule("aten.embedding")
def embedding(ctx: Context, weight: Value, index: Value, *args: Any, **kwargs: Any) -> Value:
    """weight [V, C] read at index [...]: the vocabulary is frozen, C passes.

    A table of which every row is read, in their order, is a matrix like others.
    """
    axes = list(index.axes)
    if ctx.counted(weight, 0, index):
        axes[index.counts or 0] = weight.axes[0]
    else:
        _freeze_from(ctx, weight.axes[0], index.least or 0)
    ctx.role(weight, "embedding", 0)
    ctx.weight(weight, (1,), (0,), index.depth, role="embedding")
    depth = index.depth + int(weight.origin is not None)
    return Value((*axes, weight.axes[1]), depth=depth)


def _freeze_from(ctx: Context, axis: Expr, least: int) -> None:
    """Rows that are looked up; those in parts of a table before the first number never are."""
    digits, start = atoms(axis), 0
    parts = digits[0].blocks if len(digits) == 1 else None
    if parts is None:
        ctx.freeze(axis, "looked up by index")
    for block in parts or ():
        start += length(block)
        if start > least:
            ctx.freeze(block, "looked up by index")


@rule("aten.index_select", "aten.take_along_dim")
def index_select(ctx: Context, x: Value, dim: Any, index: Any) -> list[Expr]:
    """One axis read at a vector of indices."""
    if isinstance(dim, Value):
        raise ctx.refuse("no rule for this overload")
    at = dim % x.rank
    ctx.freeze(x.axes[at], "read by index")
    return [*x.axes[:at], *(index.axes or ((),)), *x.axes[at + 1 :]]


@rule("aten.index")
def index(ctx: Context, x: Value, indices: Sequence[Value | None]) -> Value:
    """Advanced indexing: indexed axes are frozen, index axes are broadcast into their place."""
    used = [i for i, value in enumerate(indices) if value is not None]
    picked = [value for value in indices if value is not None]
    only = picked[0] if len(picked) == 1 else None
    if only is not None and is_mask(ctx, x, only, used[0]):
        if (part := _known(ctx, x, used[0], only)) is not None:
            return part
        return read_masked(ctx, x, only, used[0])
    if any(is_boolean(value) for value in picked):
        return read_mixed(ctx, x, indices)
    if len(ctx.shape) < x.rank - len(used):
        raise ctx.refuse("indices by mask")
    if only is not None and (part := _known(ctx, x, used[0], only)) is not None:
        return part
    if only is not None and only.valued is not None and _readable(only, x.axes[used[0]]):
        return _read_by(ctx, x, used[0], only)
    whole = ctx.counted_axes(x, used, picked)
    for i, value in zip(used, picked, strict=True):
        if i not in whole:
            ctx.freeze(x.axes[i], "read by index")
            ctx.freeze_valued(value)
    middle = _places(ctx, x, used, picked, whole)
    adjacent = used == list(range(used[0], used[-1] + 1))
    rest = [axis for i, axis in enumerate(x.axes) if i not in used]
    at = used[0] if adjacent else 0
    ctx.mix(x, [i for i in used if i not in whole])
    return Value((*rest[:at], *middle, *rest[at:]), depth=x.depth, valued=x.valued)


def _known(ctx: Context, x: Value, at: int, index: Value) -> Value | None:
    """An axis read by a constant vector of numbers, or a mask, if those are few ranges."""
    if index.content is None or index.rank != 1:
        return None
    content = index.content
    numbers = content.nonzero().flatten() if content.dtype == torch.bool else content
    part = pieces(ctx, x, at, numbers.tolist())
    return None if part is None else Value(tuple(part), depth=x.depth)


def _places(ctx: Context, x: Value, used: Sequence[int], picked: Sequence[Value],
            whole: Mapping[int, int]) -> list[Expr]:
    """Axes of the places that are read: where an index counts, the axis that it counts through.

    ``x[arange(n)[:, None], best]`` reads each of the n rows at places of its own.
    """
    shown = [replace(value, axes=tuple(() if value.counts == k else axis
                                       for k, axis in enumerate(value.axes)))
             if i in whole else value for i, value in zip(used, picked, strict=True)]
    rank = max(value.rank for value in picked)
    middle = broadcast(ctx, shown)
    middle = [()] * (rank - len(middle)) + middle
    for i, at in whole.items():
        if length(middle[at]) == 1:
            middle[at] = x.axes[i]
        else:
            ctx.tie(middle[at], x.axes[i])
    return middle


def _readable(index: Value, axis: Expr) -> bool:
    return index.valued is not None and length(index.valued) == length(axis)


def _read_by(ctx: Context, x: Value, at: int, index: Value) -> Value:
    """Rows read by indices into their own axis, which may go on moving."""
    if index.valued is None:
        raise ctx.refuse("no indices into an axis")
    ctx.tie(x.axes[at], index.valued)
    axes = (*x.axes[:at], *index.axes, *x.axes[at + 1 :])
    rows = at == 0 and index.rank == 1
    mark = (index.valued, ctx.token(index)) if rows else None
    if mark is None:
        ctx.mix(x, (at,))
    return Value(axes, depth=max(x.depth, index.depth), through=mark)


@rule("aten.gather")
def gather(ctx: Context, x: Value, dim: int, index: Value, **kwargs: Any) -> list[Expr]:
    """``dim`` is read by index, the other axes correspond."""
    at = dim % x.rank
    if index.valued is not None and _readable(index, x.axes[at]):
        ctx.tie(x.axes[at], index.valued)
    else:
        ctx.freeze(x.axes[at], "read by index")
        ctx.freeze_valued(index)
    ctx.freeze_valued(x)
    for i in range(x.rank):
        if i != at and length(x.axes[i]) == length(index.axes[i]):
            ctx.tie(x.axes[i], index.axes[i])
        elif i != at:
            ctx.freeze(x.axes[i], "read in part")
            ctx.freeze(index.axes[i], "read in part")
    ctx.mix(x, (at,))
    return list(index.axes)


@rule("aten.roll", "aten.flip", "aten.fliplr", "aten.flipud")
def reorder(ctx: Context, x: Value, *args: Any) -> list[Expr]:
    """Axes are rolled or turned round."""
    name = ctx.op.family if ctx.op is not None else ""
    given = args[1] if "roll" in name and len(args) > 1 else (args[0] if "flip" in name else [])
    dims = [d % x.rank for d in (given if isinstance(given, (list, tuple)) else [given])]
    return freeze_along(ctx, x, dims or range(x.rank), "order of the axis counts")


@rule("aten.topk", "aten.sort", "aten.argsort", "aten.argmax", "aten.argmin")
def chosen(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Places by order of their entries: values in order, and indices that move with the axis."""
    name = ctx.op.family.removeprefix("aten.") if ctx.op is not None else ""
    given = args[1:] if name == "topk" else args
    dim = kwargs.get("dim", next((a for a in given if type(a) is int), None))
    if dim is None and name.startswith("arg") and name != "argsort":
        for axis in x.axes:
            ctx.freeze(axis, "indices into it are used")
        return drop(x, set(range(x.rank)), False)
    at = (-1 if dim is None else dim) % x.rank
    ctx.mix(x, (at,))
    axes = list(x.axes)
    if len(ctx.shape) == x.rank:
        axes[at] = ctx.fixed(ctx.shape[at], "in order of the entries")
    else:
        del axes[at]
    numbers = Value(tuple(axes), depth=x.depth, valued=x.axes[at])
    return (Value(tuple(axes), depth=x.depth), numbers) if len(ctx.shapes) > 1 else numbers


@rule("aten.one_hot")
def one_hot(ctx: Context, x: Value, classes: int = -1) -> list[Expr]:
    """A new last axis, which is the axis that the indices point into."""
    if x.valued is not None and length(x.valued) == ctx.shape[-1]:
        return [*x.axes, x.valued]
    ctx.freeze_valued(x)
    return [*x.axes, ctx.fixed(ctx.shape[-1], "classes")]


@rule("aten.cumsum", "aten.cumprod", "aten.logcumsumexp", "aten.cummax", "aten.cummin",
      "aten.unfold", "aten.diff")
def ordered(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
    """The order of one axis counts, or indices into it are handed out."""
    name = ctx.op.family if ctx.op is not None else ""
    if "diff" in name:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    else:
        dim = kwargs.get("dim", next((a for a in args if type(a) is int), -1))
    at = dim % x.rank
    axes = freeze_along(ctx, x, (at,), "order of the axis counts")
    axes[at] = ctx.fixed(ctx.shape[at], "order of the axis counts")
    if "unfold" in name:
        axes.append(ctx.fixed(ctx.shape[-1], "window"))
    values = tuple(Value(tuple(axes), depth=x.depth) for _ in ctx.shapes)
    return values if len(values) > 1 else values[0]


@rule("aten.tril", "aten.triu")
def positional(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """The last two axes are told apart by position."""
    return freeze_along(ctx, x, (x.rank - 2, x.rank - 1), "order of the axis counts")
