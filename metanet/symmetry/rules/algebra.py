"""Linear algebra on the last two axes: systems, inverses, factorisations."""

from __future__ import annotations

from typing import Any

from metanet.symmetry.factor import Expr
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.pointwise import broadcast
from metanet.symmetry.rules.registry import rule


def _batch(ctx: Context, *values: Value) -> list[Expr]:
    return broadcast(ctx, [Value(v.axes[:-2]) for v in values])


@rule("aten.linalg_solve_triangular", "aten.triangular_solve")
def solve_triangular(ctx: Context, a: Value, b: Value, *args: Any, left: bool = True,
                     **kwargs: Any) -> Any:
    """A X = B or X A = B with A triangular: its axes are ordered, the other axis of B passes."""
    legacy = ctx.op is not None and ctx.op.family == "aten.triangular_solve"
    matrix, other = (b, a) if legacy else (a, b)
    for axis in matrix.axes[-2:]:
        ctx.freeze(axis, "order of a triangular matrix")
    ctx.freeze(other.axes[-2 if left else -1], "order of a triangular matrix")
    batch = _batch(ctx, matrix, other)
    ctx.mix(matrix, (-2, -1))
    ctx.mix(other, (-2 if left else -1,))
    out = Value((*batch, *other.axes[-2:]), depth=max(a.depth, b.depth))
    return (out, Value((*batch, *matrix.axes[-2:]), depth=matrix.depth)) if legacy else out


@rule("aten.linalg_solve")
def solve(ctx: Context, a: Value, b: Value, *args: Any, left: bool = True,
          **kwargs: Any) -> Value:
    """A X = B: the rows of A and B are equations, the columns of A unknowns."""
    if b.rank < 2 or not left or b.rank < a.rank:
        raise ctx.refuse("a system with vectors, or from the right")
    ctx.tie(a.axes[-2], b.axes[-2])
    batch = _batch(ctx, a, b)
    ctx.mix(a, (-2, -1))
    ctx.mix(b, (-2,))
    return Value((*batch, a.axes[-1], b.axes[-1]), depth=max(a.depth, b.depth))


@rule("aten.linalg_inv", "aten.inverse", "aten.linalg_pinv")
def inverse(ctx: Context, a: Value, *args: Any, **kwargs: Any) -> Value:
    """Rows become columns: the inverse of P A Q is Q⁻¹ A⁻¹ P⁻¹."""
    ctx.mix(a, (-2, -1))
    return Value((*a.axes[:-2], a.axes[-1], a.axes[-2]), depth=a.depth)


@rule("aten.linalg_matrix_exp", "aten.matrix_exp", "aten.linalg_matrix_power",
      "aten.matrix_power")
def power(ctx: Context, a: Value, *args: Any, **kwargs: Any) -> Value:
    """Rows and columns are one axis: f(P A P⁻¹) = P f(A) P⁻¹."""
    ctx.tie(a.axes[-2], a.axes[-1])
    ctx.mix(a, (-2, -1))
    return Value(a.axes, depth=a.depth)


@rule("aten.linalg_cholesky", "aten.cholesky", "aten.linalg_qr", "aten.linalg_svd", "aten.svd",
      "aten._linalg_svd", "aten.linalg_eigh", "aten._linalg_eigh", "aten.linalg_det", "aten.det",
      "aten.logdet", "aten.slogdet", "aten.linalg_slogdet", "aten.linalg_lu")
def factorised(ctx: Context, a: Value, *args: Any, **kwargs: Any) -> Any:
    """Factors depend on the order of rows and columns, determinants on its sign."""
    for axis in a.axes[-2:]:
        ctx.freeze(axis, "order in a factorisation")
    ctx.mix(a, (-2, -1))
    outs = tuple(
        Value((*a.axes[:-2], *(ctx.fixed(n, "a factorisation") for n in shape[a.rank - 2 :])),
              depth=a.depth) for shape in (shape or () for shape in ctx.shapes))
    return outs if len(outs) > 1 else outs[0]
