"""Operations met now and then: losses, products of odd shapes, tables, binning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.contract import linear, matmul, result
from metanet.symmetry.rules.norm import group_norm, layer_norm
from metanet.symmetry.rules.pointwise import broadcast
from metanet.symmetry.rules.reduce import drop, freeze_along
from metanet.symmetry.rules.registry import rule


@rule("aten.mse_loss", "aten.l1_loss", "aten.smooth_l1_loss", "aten.huber_loss",
      "aten.binary_cross_entropy", "aten.binary_cross_entropy_with_logits", "aten.kl_div",
      "aten.soft_margin_loss")
def entrywise_loss(ctx: Context, *args: Any, **kwargs: Any) -> list[Expr]:
    """A function of two entries, then a mean or a sum over all of them, or neither."""
    values = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    axes = broadcast(ctx, values)
    return axes if ctx.shape else []


@rule("aten.cross_entropy_loss", "aten.nll_loss", "aten.nll_loss_nd", "aten.nll_loss2d")
def class_loss(ctx: Context, scores: Value, target: Value, *args: Any,
               **kwargs: Any) -> list[Expr]:
    """Classes (axis 1, or the only one) are told apart by number; all else is summed."""
    at = 0 if scores.rank == 1 else 1
    ctx.freeze(scores.axes[at], "classes are told apart by number")
    rest = [axis for i, axis in enumerate(scores.axes) if i != at]
    same = target.shape == scores.shape
    targets = [axis for i, axis in enumerate(target.axes) if not (same and i == at)]
    out = broadcast(ctx, [Value(tuple(rest)), Value(tuple(targets))])
    for value in (a for a in (*args, *kwargs.values()) if isinstance(a, Value)):
        for axis in value.axes:
            ctx.freeze(axis, "classes are told apart by number")
    ctx.mix(scores, (at,))
    return out if ctx.shape else []


@rule("aten.inner")
def inner(ctx: Context, a: Value, b: Value) -> Value:
    """Last axes are summed; all others stand behind each other."""
    if not a.rank or not b.rank:
        raise ctx.refuse("a factor has no axes")
    ctx.tie(a.axes[-1], b.axes[-1])
    return result(ctx, (*a.axes[:-1], *b.axes[:-1]), a, b)


@rule("aten.tensordot")
def tensordot(ctx: Context, a: Value, b: Value, own: Sequence[int], other: Sequence[int],
              *args: Any) -> Value:
    """Pairs of axes are summed; all others stand behind each other."""
    mine, theirs = [d % a.rank for d in own], [d % b.rank for d in other]
    for i, j in zip(mine, theirs, strict=True):
        ctx.tie(a.axes[i], b.axes[j])
    left = [i for i in range(a.rank) if i not in mine]
    right = [i for i in range(b.rank) if i not in theirs]
    ctx.weight(b, right, theirs, a.depth)
    ctx.weight(a, left, mine, b.depth)
    return result(ctx, (*(a.axes[i] for i in left), *(b.axes[i] for i in right)), a, b)


@rule("aten.bilinear")
def bilinear(ctx: Context, x: Value, y: Value, weight: Value, bias: Value | None = None) -> Value:
    """weight [O, I, J] between x [..., I] and y [..., J]."""
    ctx.tie(x.axes[-1], weight.axes[1])
    ctx.tie(y.axes[-1], weight.axes[2])
    if bias is not None:
        ctx.tie(bias.axes[0], weight.axes[0])
        ctx.role(bias, "bias", max(x.depth, y.depth))
    ctx.weight(weight, (0,), (1, 2), max(x.depth, y.depth))
    front = broadcast(ctx, [Value(v.axes[:-1]) for v in (x, y)])
    return result(ctx, (*front, weight.axes[0]), x, y, weight)


@rule("aten.addbmm")
def addbmm(ctx: Context, bias: Value, a: Value, b: Value, **kwargs: Any) -> Value:
    """bias plus the sum over the batch of a @ b."""
    out = matmul(ctx, a, b)
    return Value(tuple(broadcast(ctx, [Value(out.axes[1:]), bias])), depth=out.depth)


@rule("aten.addr")
def addr(ctx: Context, bias: Value, a: Value, b: Value, **kwargs: Any) -> Value:
    """bias plus the outer product."""
    return result(ctx, broadcast(ctx, [Value((a.axes[0], b.axes[0])), bias]), a, b)


@rule("aten.cdist", "aten._cdist_forward", "aten._euclidean_dist")
def distances(ctx: Context, a: Value, b: Value, *args: Any, **kwargs: Any) -> Value:
    """a [..., P, M], b [..., R, M]: distances [..., P, R]."""
    ctx.tie(a.axes[-1], b.axes[-1])
    batch = broadcast(ctx, [Value(v.axes[:-2]) for v in (a, b)])
    return result(ctx, (*batch, a.axes[-2], b.axes[-2]), a, b)


@rule("aten.kron")
def kron(ctx: Context, a: Value, b: Value) -> Value:
    """Each axis is the product of the axes of both."""
    if a.rank != b.rank:
        raise ctx.refuse("factors of different rank")
    return result(ctx, [x + y for x, y in zip(a.axes, b.axes, strict=True)], a, b)


@rule("aten.linalg_cross", "aten.cross")
def cross(ctx: Context, a: Value, b: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """Three components along one axis, in order."""
    dim = kwargs.get("dim", args[0] if args else None)
    if dim is None:
        if ctx.op is None or "linalg" not in ctx.op.family:
            raise ctx.refuse("no axis is named")
        dim = -1
    out = broadcast(ctx, [a, b])
    return freeze_along(ctx, Value(tuple(out)), (dim % len(out),), "order of three components")


@rule("aten.trace")
def trace(ctx: Context, x: Value) -> list[Expr]:
    """Rows and columns of the same number meet."""
    if length(x.axes[0]) != length(x.axes[1]):
        raise ctx.refuse("a matrix that is not square")
    ctx.tie(x.axes[0], x.axes[1])
    return []


@rule("aten.diagonal", "aten.diag", "aten.diag_embed", "aten.diagonal_copy")
def diagonal(ctx: Context, x: Value, offset: int = 0, *args: Any, **kwargs: Any) -> list[Expr]:
    """Entries where two axes have the same number; a vector becomes such a matrix."""
    name = ctx.op.family if ctx.op is not None else ""
    offset = kwargs.get("offset", kwargs.get("diagonal", offset))
    default = (0, 1) if "embed" not in name else (-2, -1)
    numbers = [a for a in args if isinstance(a, int)]
    a = kwargs.get("dim1", numbers[0] if numbers else default[0])
    b = kwargs.get("dim2", numbers[1] if len(numbers) > 1 else default[1])
    if offset:
        raise ctx.refuse("a diagonal beside the middle")
    if "embed" in name or x.rank == 1:
        rank = x.rank + 1
        out: list[Expr | None] = [None] * rank
        out[a], out[b] = x.axes[-1], x.axes[-1]
        rest = iter(x.axes[:-1])
        return [next(rest) if axis is None else axis for axis in out]
    a, b = a % x.rank, b % x.rank
    if length(x.axes[a]) != length(x.axes[b]):
        raise ctx.refuse("a matrix that is not square")
    ctx.tie(x.axes[a], x.axes[b])
    ctx.observe([axis for i, axis in enumerate(x.axes) if i != b])
    return [*(axis for i, axis in enumerate(x.axes) if i not in (a, b)), x.axes[a]]


@rule("aten.hstack", "aten.vstack", "aten.dstack", "aten.column_stack")
def joined(ctx: Context, values: Sequence[Value]) -> list[Expr]:
    """Tensors behind each other along the axis that the name says; ranks that grow are refused."""
    name = ctx.op.family.removeprefix("aten.") if ctx.op is not None else ""
    at = {"hstack": 1, "vstack": 0, "dstack": 2, "column_stack": 1}[name]
    if values[0].rank == 1 and name == "hstack":
        at = 0
    elif any(v.rank <= at or v.rank < 2 for v in values):
        raise ctx.refuse("vectors are joined to a matrix")
    for i in range(values[0].rank):
        if i != at:
            ctx.tie_all([v.axes[i] for v in values])
    axes = list(values[0].axes)
    axes[at] = ctx.cat([v.axes[at] for v in values])
    return axes


@rule("aten.pad_sequence")
def pad_sequence(ctx: Context, values: Sequence[Value], batch_first: bool = False, *args: Any,
                 **kwargs: Any) -> list[Expr]:
    """Tensors of several lengths (axis 0) under each other, filled up to the longest."""
    for value in values:
        ctx.freeze(value.axes[0], "filled up to one length")
        ctx.mix(value, (0,))
    for i in range(1, values[0].rank):
        ctx.tie_all([value.axes[i] for value in values])
    ends = [ctx.fixed(n, "filled up to one length") for n in ctx.shape[:2]]
    return [*ends, *values[0].axes[1:]]


@rule("aten.meshgrid")
def meshgrid(ctx: Context, values: Sequence[Value], *args: Any, **kwargs: Any
             ) -> tuple[Value, ...]:
    """Vectors as the axes of a grid (the first two exchanged for indexing="xy")."""
    order = list(range(len(values)))
    if kwargs.get("indexing", args[0] if args else "ij") == "xy" and len(order) > 1:
        order[:2] = [1, 0]
    axes = tuple(values[i].axes[0] if values[i].rank else () for i in order)
    return tuple(Value(axes, depth=v.depth) for v in values)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(ctx: Context, x: Value, groups: int) -> list[Expr]:
    """Channels (g, c) become (c, g)."""
    major, minor = ctx.split(x.axes[1], groups, length(x.axes[1]) // groups)
    return [x.axes[0], minor + major, *x.axes[2:]]


@rule("aten.masked_select")
def masked_select(ctx: Context, x: Value, mask: Value) -> list[Expr]:
    """Entries where a mask holds, in order."""
    for value in (x, mask):
        for axis in value.axes:
            ctx.freeze(axis, "picked by a mask")
        ctx.mix(value, range(value.rank))
    return [ctx.fixed(ctx.shape[0], "picked by a mask")]


@rule("aten.nonzero", "aten.argwhere", "aten.unique", "aten._unique2", "aten.unique_consecutive",
      "aten.unique_dim", "aten.where.default", "aten.nonzero_numpy", "aten.histc",
      "aten.bincount", "aten.msort", "aten.rot90", "aten.take",
      "aten.renorm", "aten.stft", "aten.istft", "aten.affine_grid_generator",
      "aten.linalg_lstsq", "aten.trapezoid", "aten.cumulative_trapezoid")
def listed(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
    """What comes out is in the order of places or of numbers: nothing that goes in can move."""
    values = [x, *(a for a in (*args, *kwargs.values()) if isinstance(a, Value))]
    for value in values:
        for axis in value.axes:
            ctx.freeze(axis, "order of the axis counts")
        ctx.mix(value, range(value.rank))
    outs = tuple(Value(tuple(ctx.fixed(n, "in order") for n in shape or ()), depth=x.depth)
                 for shape in ctx.shapes)
    return outs if len(outs) > 1 else outs[0]


@rule("aten.searchsorted", "aten.bucketize", "aten.isin")
def looked_up(ctx: Context, a: Value, b: Any, *args: Any, **kwargs: Any) -> list[Expr]:
    """Each number is looked up in a list, whose order counts; numbers keep their places."""
    name = ctx.op.family if ctx.op is not None else ""
    table, numbers = (a, b) if "searchsorted" in name else (b, a)
    if not isinstance(table, Value):
        return list(numbers.axes)
    if "searchsorted" in name and table.rank > 1 and isinstance(numbers, Value):
        broadcast(ctx, [Value(table.axes[:-1]), Value(numbers.axes[:-1])])
        ctx.freeze(table.axes[-1], "order of the boundaries")
        return list(numbers.axes)
    for axis in table.axes:
        ctx.freeze(axis, "order of the boundaries")
    return list(numbers.axes) if isinstance(numbers, Value) else []


@rule("aten.repeat_interleave.self_Tensor", "aten.repeat_interleave.Tensor")
def repeat_by_counts(ctx: Context, x: Value, counts: Any = None, dim: int | None = None,
                     **kwargs: Any) -> list[Expr]:
    """Each index of one axis as often as its own count says: that axis is in order."""
    if not isinstance(counts, Value) or dim is None:
        for value in (x, counts) if isinstance(counts, Value) else (x,):
            for axis in value.axes:
                ctx.freeze(axis, "repeated by counts")
            ctx.mix(value, range(value.rank))
        return [ctx.fixed(ctx.shape[0], "repeated by counts")]
    at = dim % x.rank
    for axis in (x.axes[at], *counts.axes):
        ctx.freeze(axis, "repeated by counts")
    ctx.mix(x, (at,))
    out = list(x.axes)
    out[at] = ctx.fixed(ctx.shape[at], "repeated by counts")
    return out


@rule("aten.quantile", "aten.nanquantile")
def quantile(ctx: Context, x: Value, q: Any, dim: Any = None, keepdim: bool = False,
             **kwargs: Any) -> list[Expr]:
    """Symmetric in the entries along ``dim``; several quantiles stand in a first axis."""
    dims = set(range(x.rank)) if dim is None else {dim % x.rank}
    out = drop(x, dims, keepdim)
    return [*(q.axes if isinstance(q, Value) else ()), *out]


@rule("aten.native_layer_norm")
def native_layer_norm(ctx: Context, x: Value, shape: Sequence[int], *args: Any) -> Any:
    """Layer norm with its statistics."""
    out = layer_norm(ctx, x, shape, *args)
    front = x.axes[: -len(shape)]
    statistics = Value((*front, *(() for _ in shape)), depth=x.depth)
    return out, statistics, statistics


@rule("aten.native_group_norm")
def native_group_norm(ctx: Context, x: Value, weight: Value | None, bias: Value | None, n: int,
                      c: int, size: int, groups: int, *args: Any) -> Any:
    """Group norm with its statistics."""
    out = group_norm(ctx, x, groups, weight, bias)
    major = ctx.split(x.axes[1], groups, length(x.axes[1]) // groups)[0]
    statistics = Value((x.axes[0], major), depth=x.depth)
    return out, statistics, statistics


@rule("aten.native_dropout")
def native_dropout(ctx: Context, x: Value, p: float, train: Any = None) -> Any:
    """Nothing is dropped in eval mode."""
    if train is not False:
        raise ctx.refuse("entries are dropped at random")
    return Value(x.axes, depth=x.depth), Value(x.axes, depth=x.depth)


@rule("aten.mkldnn_linear", "aten._addmm_activation")
def other_linear(ctx: Context, x: Value, weight: Value, bias: Any = None, **kwargs: Any) -> Value:
    """Linear layers by other names."""
    if ctx.op is not None and "addmm" in ctx.op.family:
        raise ctx.refuse("no rule")
    return linear(ctx, x, weight, bias)


@rule("aten._weight_norm_interface")
def weight_norm_interface(ctx: Context, direction: Value, scale: Value, dim: int = 0) -> Any:
    """Weight norm with the norms."""
    broadcast(ctx, [direction, scale])
    ctx.mix(direction, [i for i in range(direction.rank) if i != dim % direction.rank])
    norms = tuple(direction.axes[i] if length(scale.axes[i]) > 1 else ()
                  for i in range(scale.rank))
    return Value(direction.axes, depth=direction.depth), Value(norms, depth=direction.depth)


@rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(ctx: Context, weight: Value, index: Value, *args: Any, **kwargs: Any) -> Any:
    """Rows looked up and summed: the vocabulary is frozen, the channels pass."""
    values = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    for axis in (weight.axes[0], *index.axes, *(axis for v in values for axis in v.axes)):
        ctx.freeze(axis, "looked up by index")
    ctx.weight(weight, (1,), (0,), index.depth, role="embedding")
    first = ctx.shape
    outs: list[Value] = [Value((*(ctx.fixed(n, "bags") for n in first[:-1]), weight.axes[1]),
                               depth=index.depth + 1)]
    for number, shape in enumerate(ctx.shapes[1:], 1):
        if ctx.uses(number):
            raise ctx.refuse("sizes of the bags are used")
        outs.append(Value(tuple(ctx.fixed(n, "bags") for n in shape or ())))
    return tuple(outs) if len(outs) > 1 else outs[0]
