"""Scaled dot-product attention as one operation."""

from __future__ import annotations

from typing import Any

from metanet.symmetry.factor import length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.pointwise import broadcast
from metanet.symmetry.rules.registry import rule


@rule("aten.scaled_dot_product_attention")
def sdpa(
    ctx: Context, q: Value, k: Value, v: Value, mask: Value | None = None, dropout: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
    **kwargs: Any,
) -> Value:
    """q [..., L, E], k [..., S, E], v [..., S, F]: q and k share E, k and v share S."""
    ctx.tie(q.axes[-1], k.axes[-1])
    ctx.tie(k.axes[-2], v.axes[-2])
    heads = list(broadcast(ctx, [Value(t.axes[:-2]) for t in (k, v)]))
    own = list(q.axes[:-2])
    if enable_gqa and own and length(own[-1]) != length(heads[-1]):
        shared = length(heads[-1])
        major, _ = ctx.split(own[-1], shared, length(own[-1]) // shared)
        ctx.tie(major, heads[-1])
        broadcast(ctx, [Value(tuple(own[:-1])), Value(tuple(heads[:-1]))])
        batch = own
    else:
        batch = broadcast(ctx, [Value(tuple(own)), Value(tuple(heads))])
    scores = Value((*batch, q.axes[-2], k.axes[-2]))
    if mask is not None:
        broadcast(ctx, [scores, mask])
    if is_causal:
        for axis in scores.axes[-2:]:
            ctx.freeze(axis, "causal mask")
    ctx.observe(scores.axes)
    ctx.mix(scores, (-1,))
    return Value((*batch, q.axes[-2], v.axes[-1]), depth=max(q.depth, k.depth, v.depth))
