"""Normalisation and softmax: statistics are shared along axes that stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.pointwise import broadcast
from metanet.symmetry.rules.registry import rule


def _affine(ctx: Context, x: Value, axes: Sequence[Expr], **parts: Value | None) -> None:
    """Weights and statistics of a norm lie along ``axes``."""
    for role, value in parts.items():
        if value is None:
            continue
        for axis, own in zip(axes, value.axes, strict=True):
            ctx.tie(axis, own)
        ctx.role(value, role, max(x.depth - 1, 0))


@rule("aten.batch_norm", "aten.instance_norm", "aten._native_batch_norm_legit_no_training",
      "aten.cudnn_batch_norm", "aten.native_batch_norm")
def batch_norm(
    ctx: Context, x: Value, weight: Value | None, bias: Value | None, mean: Value | None,
    var: Value | None, *args: Any, **kwargs: Any,
) -> Any:
    """Per channel (axis 1); batch statistics, where used, mix all other axes."""
    _affine(ctx, x, x.axes[1:2], norm_weight=weight, norm_bias=bias, running_mean=mean,
            running_var=var)
    if mean is None or any(flag is True for flag in args[:1]):
        keep = (0, 1) if ctx.op is not None and "instance" in ctx.op.name else (1,)
        ctx.mix(x, [d for d in range(x.rank) if d not in keep])
    out = Value(x.axes, depth=x.depth)
    if len(ctx.shapes) == 1:
        return out
    return (out, *(Value(tuple(ctx.fixed(n, "statistics") for n in shape or ()))
                   for shape in ctx.shapes[1:]))


@rule("aten.layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def layer_norm(
    ctx: Context, x: Value, shape: Sequence[int], weight: Value | None = None,
    bias: Any = None, *args: Any, **kwargs: Any,
) -> Value:
    """Over the last ``len(shape)`` axes."""
    bias = bias if isinstance(bias, Value) else None
    _affine(ctx, x, x.axes[-len(shape) :], norm_weight=weight, norm_bias=bias)
    ctx.mix(x, range(-len(shape), 0))
    return Value(x.axes, depth=x.depth)


@rule("aten.group_norm")
def group_norm(
    ctx: Context, x: Value, groups: int, weight: Value | None = None, bias: Value | None = None,
    *args: Any, **kwargs: Any,
) -> Value:
    """C = (groups, c): statistics per group over c and all axes after C."""
    parts = ctx.split(x.axes[1], groups, length(x.axes[1]) // groups)
    _affine(ctx, x, x.axes[1:2], norm_weight=weight, norm_bias=bias)
    ctx.observe([x.axes[0], parts[0]])
    return Value(x.axes, depth=x.depth)


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.softmin",
      "aten._safe_softmax")
def softmax(ctx: Context, x: Value, dim: int, *args: Any, **kwargs: Any) -> Value:
    """Entries along ``dim`` share their sum."""
    ctx.mix(x, (dim,))
    return Value(x.axes, depth=x.depth)


@rule("aten._weight_norm")
def weight_norm(ctx: Context, direction: Value, scale: Value, dim: int = 0) -> Value:
    """A direction over its norm along all axes but ``dim``, times a scale along ``dim``."""
    broadcast(ctx, [direction, scale])
    ctx.mix(direction, [i for i in range(direction.rank) if i != dim % direction.rank])
    return Value(direction.axes, origin=direction.origin, depth=direction.depth)
