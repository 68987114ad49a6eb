"""Axes that are summed, averaged or otherwise folded away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.pointwise import broadcast
from metanet.symmetry.rules.registry import rule


def _dims(x: Value, dim: Any) -> set[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return set(range(x.rank))
    dims = dim if isinstance(dim, (list, tuple)) else [dim]
    return {d % x.rank for d in dims} if x.rank else set()


def drop(x: Value, dims: set[int], keepdim: bool) -> list[Expr]:
    """Axes left after a reduction over ``dims``."""
    if keepdim:
        return [() if i in dims else axis for i, axis in enumerate(x.axes)]
    return [axis for i, axis in enumerate(x.axes) if i not in dims]


@rule("aten.mean", "aten.sum", "aten.amax", "aten.amin", "aten.logsumexp", "aten.prod",
      "aten.nansum", "aten.nanmean", "aten.all", "aten.any", "aten.count_nonzero", "aten.aminmax")
def reduce(ctx: Context, x: Value, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """Symmetric functions of the entries along ``dim``."""
    dim, keepdim = kwargs.get("dim", dim), kwargs.get("keepdim", keepdim)
    if isinstance(dim, bool):
        dim, keepdim = None, dim
    axes = drop(x, _dims(x, dim), bool(keepdim))
    if len(ctx.shapes) > 1:
        return tuple(Value(tuple(axes), depth=x.depth) for _ in ctx.shapes)
    return axes


@rule("aten.var", "aten.std", "aten.var_mean", "aten.std_mean")
def spread(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Variance and its kin; the output's rank tells the axes where the overload does not."""
    dim = kwargs.get("dim", next((a for a in args if isinstance(a, (list, tuple))), None))
    if dim is None and args and isinstance(args[0], int) and not isinstance(args[0], bool):
        dim = args[0]
    shape = ctx.shape
    axes = drop(x, _dims(x, dim), len(shape) == x.rank)
    values = tuple(Value(tuple(axes), depth=x.depth) for _ in ctx.shapes)
    return values if len(values) > 1 else values[0]


@rule("aten.linalg_vector_norm", "aten.norm", "aten.frobenius_norm", "aten.linalg_norm")
def norm(ctx: Context, x: Value, ord: Any = 2, dim: Any = None, keepdim: bool = False,
         *args: Any, **kwargs: Any) -> list[Expr]:
    """Entry-wise norms; matrix norms other than Frobenius are refused."""
    dim, keepdim = kwargs.get("dim", dim), kwargs.get("keepdim", keepdim)
    name = ctx.op.family if ctx.op is not None else ""
    entrywise = "vector" in name or ord in (None, 2, "fro") or len(_dims(x, dim)) == 1
    if not entrywise or ("linalg_norm" in name and ord is not None and len(_dims(x, dim)) != 1):
        raise ctx.refuse(f"norm of order {ord!r}")
    return drop(x, _dims(x, dim), bool(keepdim))


@rule("aten.max", "aten.min", "aten.median", "aten.nanmedian", "aten.kthvalue", "aten.mode")
def extreme(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Over everything, over an axis (values, indices), or of two tensors entry by entry."""
    if args and isinstance(args[0], Value):
        return broadcast(ctx, [x, args[0]])
    numbers = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    if ctx.op is not None and "kthvalue" in ctx.op.name:
        numbers = numbers[1:] or [-1]
    if not numbers and "dim" not in kwargs and len(ctx.shapes) == 1:
        return []
    dim = kwargs.get("dim", numbers[0] if numbers else -1)
    valued = None
    if ctx.uses(1) and _distinct(ctx, x):
        ctx.mix(x, (dim,))
        valued = x.axes[dim]
    elif ctx.uses(1):
        ctx.freeze(x.axes[dim], "indices of the largest entries are used")
    axes = tuple(drop(x, _dims(x, dim), len(ctx.shape) == x.rank))
    return Value(axes, depth=x.depth), Value(axes, depth=x.depth, valued=valued)


def _distinct(ctx: Context, x: Value) -> bool:
    """Whether which entry is the largest is told by the entries: ties are broken by place."""
    real = x.dtype is not None and x.dtype.is_floating_point
    return real and ctx.op is not None and ctx.op.family in ("aten.max", "aten.min")


@rule("aten.cosine_similarity", "aten.pairwise_distance")
def compare(ctx: Context, a: Value, b: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """Two tensors entry by entry, then a sum along one axis."""
    cosine = ctx.op is not None and "cosine" in ctx.op.name
    out = broadcast(ctx, [a, b])
    dim = (args[0] if args else 1) if cosine else len(out) - 1
    return drop(Value(tuple(out)), {dim % len(out)}, len(ctx.shape) == len(out))


@rule("aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d",
      "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d",
      "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d", "aten.max_pool1d",
      "aten.max_pool2d", "aten.max_pool3d", "aten.max_pool2d_with_indices",
      "aten.upsample_nearest1d", "aten.upsample_nearest2d", "aten.upsample_nearest3d",
      "aten._upsample_nearest_exact2d", "aten.upsample_linear1d", "aten.upsample_bilinear2d",
      "aten.upsample_bicubic2d", "aten.upsample_trilinear3d", "aten._upsample_bilinear2d_aa",
      "aten._upsample_bicubic2d_aa", "aten.lp_pool2d", "aten.lp_pool1d")
def pool(ctx: Context, x: Value, size: Any, *args: Any, **kwargs: Any) -> Any:
    """Channels pass, places are frozen; pooling over everything needs no order of places."""
    shape = ctx.shape
    name = ctx.op.family if ctx.op is not None else ""
    space = int(name.rstrip("_a").removesuffix("_with_indices").rstrip("_a")[-2])
    whole = "adaptive" in name and all(n == 1 for n in shape[-space:])
    places: list[Expr] = [()] * space
    if not whole or ctx.uses(1):
        for axis in x.axes[-space:]:
            ctx.freeze(axis, "spatial axis")
        places = [ctx.fixed(n, "spatial axis") for n in shape[-space:]]
        ctx.mix(x, range(-space, 0))
    out = Value((*x.axes[:-space], *places), depth=x.depth)
    return out if len(ctx.shapes) == 1 else (out, out)


@rule("aten.grid_sampler", "aten.grid_sampler_2d")
def grid_sample(ctx: Context, x: Value, grid: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """x [N, C, H, W] read at grid [N, h, w, 2]."""
    for axis in (*x.axes[2:], grid.axes[-1]):
        ctx.freeze(axis, "spatial axis")
    ctx.tie(x.axes[0], grid.axes[0])
    ctx.mix(x, range(2, x.rank))
    ctx.mix(grid, (-1,))
    return [*x.axes[:2], *grid.axes[1:-1]]


def freeze_along(ctx: Context, x: Value, dims: Sequence[int], why: str) -> list[Expr]:
    """Freeze axes along which order counts; they keep their sizes."""
    for dim in dims:
        ctx.freeze(x.axes[dim], why)
    ctx.mix(x, dims)
    axes = list(x.axes)
    for dim in dims:
        axes[dim] = ctx.fixed(length(x.axes[dim]), why)
    return axes
