"""Writing by index or mask, noise, Fourier transforms, windows: places count, the rest passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.masks import is_boolean, write_masked, write_where
from metanet.symmetry.rules.pointwise import broadcast
from metanet.symmetry.rules.reduce import freeze_along
from metanet.symmetry.rules.registry import rule


@rule("aten.masked_scatter")
def masked_scatter(ctx: Context, x: Value, mask: Value, source: Value) -> list[Expr]:
    """Rows of ``x`` where a mask holds, replaced by the rows of ``source`` in order."""
    return write_where(ctx, x, mask, source)


@rule("aten.index_put")
def index_put(ctx: Context, x: Value, indices: Sequence[Value | None], values: Value,
              accumulate: bool = False) -> list[Expr]:
    """``x[indices] = values``: indexed axes are frozen, the others meet those of the values.

    An axis that is counted through is written row by row, each with values of its own.
    """
    used = [i for i, value in enumerate(indices) if value is not None]
    picked = [value for value in indices if value is not None]
    if len(picked) == 1 and used == [0] and is_boolean(picked[0]):
        out = write_masked(ctx, x, picked[0], values)
        if out is not None:
            return out
    if any(is_boolean(value) and value.rank != 1 for value in picked):
        raise ctx.refuse("masks over several axes that are not the first")
    if used != list(range(used[0], used[-1] + 1)) or len(used) != len(picked):
        raise ctx.refuse("indices that are not next to each other")
    rank = max(value.rank for value in picked)
    whole = ctx.counted_axes(x, used, picked)
    through = {at: x.axes[i] for i, at in whole.items()}
    for i in used:
        if i not in whole:
            ctx.freeze(x.axes[i], "written by index")
    for i, value in zip(used, picked, strict=True):
        for k, axis in enumerate(value.axes):
            if not (i in whole and k == value.counts):
                _written(ctx, axis, through.get(k + rank - value.rank))
    rest = x.axes[used[-1] + 1 :]
    if len(rest) and values.rank and values.rank <= len(rest) + rank:
        broadcast(ctx, [Value(tuple(rest)), Value(values.axes[-len(rest):])])
    front = values.axes[: max(values.rank - len(rest), 0)]
    for k, axis in enumerate(front):
        _written(ctx, axis, through.get(k + rank - len(front)))
    ctx.mix(values, [k for k in range(len(front)) if k + rank - len(front) not in through])
    ctx.mix(x, [i for i in used if i not in whole])
    if used[0] > 0:
        for axis in x.axes[: used[0]]:
            ctx.freeze(axis, "written by index")
    return list(x.axes)


def _written(ctx: Context, axis: Expr, through: Expr | None) -> None:
    """An axis of what is written: that of the rows it is written to, or the order of writing."""
    if through is None:
        ctx.freeze(axis, "order of writing")
    elif length(axis) > 1:
        ctx.tie(axis, through)


@rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(ctx: Context, x: Value, dim: int, index: Value, source: Any = None, *args: Any,
            **kwargs: Any) -> list[Expr]:
    """``dim`` is written by index (or moves with what the index points into); others correspond."""
    at = dim % x.rank
    if index.valued is not None and length(index.valued) == length(x.axes[at]):
        ctx.tie(x.axes[at], index.valued)
    else:
        ctx.freeze(x.axes[at], "written by index")
        ctx.freeze_valued(index)
    for i in range(x.rank):
        others = [v for v in (index, source) if isinstance(v, Value) and v.rank == x.rank]
        for other in others:
            if i != at and length(other.axes[i]) == length(x.axes[i]):
                ctx.tie(other.axes[i], x.axes[i])
            elif i != at:
                ctx.freeze(other.axes[i], "written in part")
                ctx.freeze(x.axes[i], "written in part")
        if i == at and len(others) == 2:
            ctx.tie(others[0].axes[i], others[1].axes[i])
    ctx.mix(x, (at,))
    ctx.mix(index, (at,))
    return list(x.axes)


@rule("aten.index_add", "aten.index_copy", "aten.index_fill", "aten.index_reduce")
def index_add(ctx: Context, x: Value, dim: int, index: Value, source: Any = None, *args: Any,
              **kwargs: Any) -> list[Expr]:
    """Rows along ``dim`` written by index."""
    at = dim % x.rank
    ctx.freeze(x.axes[at], "written by index")
    for axis in index.axes:
        ctx.freeze(axis, "order of writing")
    if isinstance(source, Value) and source.rank == x.rank:
        for i in range(x.rank):
            if i == at:
                ctx.freeze(source.axes[i], "order of writing")
            else:
                ctx.tie(x.axes[i], source.axes[i])
        ctx.mix(source, (at,))
    ctx.mix(x, (at,))
    return list(x.axes)


@rule("aten.rand_like", "aten.randn_like", "aten.bernoulli", "aten.multinomial",
      "aten.randint_like", "aten.normal", "aten.uniform", "aten.exponential")
def noise(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """Noise differs from place to place, so nothing that it is drawn for can move."""
    for axis in x.axes:
        ctx.freeze(axis, "noise is drawn for each place")
    return [ctx.fixed(n, "noise") for n in ctx.shape]


@rule(*(f"aten.fft_{name}" for name in (
    "fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn",
    "ifftn", "rfftn", "irfftn", "fftshift", "ifftshift")))
def fourier(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """Transformed axes are ordered; the others pass."""
    name = ctx.op.family.removeprefix("aten.fft_") if ctx.op is not None else ""
    several = name.endswith(("2", "n", "shift"))
    default = (-2, -1) if name.endswith("2") else tuple(range(x.rank)) if several else (-1,)
    place = 0 if "shift" in name else 1
    dim = kwargs.get("dim", args[place] if len(args) > place else None)
    dims = default if dim is None else dim if isinstance(dim, (list, tuple)) else (dim,)
    at = [d % x.rank for d in dims]
    axes = freeze_along(ctx, x, at, "Fourier transform")
    for d in at:
        axes[d] = ctx.fixed(ctx.shape[d], "Fourier transform")
    return axes


@rule("aten.im2col")
def im2col(ctx: Context, x: Value, kernel: Sequence[int], *args: Any, **kwargs: Any) -> list[Expr]:
    """x [N, C, H, W] becomes [N, C × k·k, windows]."""
    for axis in x.axes[-2:]:
        ctx.freeze(axis, "spatial axis")
    ctx.mix(x, (-2, -1))
    inside = kernel[0] * kernel[1]
    return [*x.axes[:-3], x.axes[-3] + ctx.fixed(inside, "place inside a window"),
            ctx.fixed(ctx.shape[-1], "windows")]


@rule("aten.col2im")
def col2im(ctx: Context, x: Value, size: Any, kernel: Sequence[int], *args: Any,
           **kwargs: Any) -> list[Expr]:
    """x [N, C × k·k, windows] becomes [N, C, H, W]."""
    inside = kernel[0] * kernel[1]
    channel, inner = ctx.split(x.axes[-2], length(x.axes[-2]) // inside, inside)
    for axis in (inner, x.axes[-1]):
        ctx.freeze(axis, "place inside a window")
    ctx.mix((*x.axes[:-2], channel, inner, x.axes[-1]), (-2, -1))
    return [*x.axes[:-2], channel, *(ctx.fixed(n, "spatial axis") for n in ctx.shape[-2:])]


@rule("aten.slice_scatter", "aten.select_scatter")
def slice_scatter(ctx: Context, x: Value, source: Value, dim: int = 0, *args: Any,
                  **kwargs: Any) -> list[Expr]:
    """A part of one axis is overwritten; that axis cannot move."""
    at = dim % x.rank
    ctx.freeze(x.axes[at], "a part of it is overwritten")
    own = [axis for i, axis in enumerate(x.axes) if i != at]
    if source.rank == x.rank:
        ctx.freeze(source.axes[at], "written into a part")
    other = [axis for i, axis in enumerate(source.axes) if source.rank < x.rank or i != at]
    for a, b in zip(own, other, strict=True):
        ctx.tie(a, b)
    ctx.mix(x, (at,))
    return list(x.axes)
