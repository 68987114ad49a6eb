"""Operations that act entry by entry, with broadcasting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.registry import rule

_ACTIVATIONS = """
    relu relu6 gelu silu sigmoid tanh sin cos exp elu selu celu leaky_relu softplus mish
    hardswish hardsigmoid hardtanh logsigmoid log_sigmoid softsign threshold tanhshrink
    hardshrink softshrink erf
""".split()  # noqa: SIM905
_PLAIN = """
    abs neg sqrt rsqrt reciprocal square log log1p log2 log10 exp2 expm1 erfc erfinv sign sgn
    floor ceil round trunc frac tan sinh cosh asin acos atan asinh acosh atanh sinc logit
    bitwise_not logical_not isnan isinf isfinite nan_to_num clamp clamp_min clamp_max clip
    add sub rsub mul div true_divide floor_divide remainder fmod pow float_power maximum minimum
    fmax fmin atan2 hypot lerp addcmul addcdiv where eq ne lt le gt ge logical_and logical_or
    logical_xor bitwise_and bitwise_or bitwise_xor xlogy masked_fill dropout feature_dropout
    alpha_dropout to _to_copy clone contiguous detach alias lift_fresh lift_fresh_copy
    copy fill zero polar complex real imag conj deg2rad rad2deg copysign heaviside
    positive float double half type _conj resolve_conj resolve_neg multiply
    subtract divide negative __and__ __or__ __xor__ not_equal greater less greater_equal
    less_equal absolute fix special_expit special_erf isclose logaddexp logaddexp2 angle lgamma
    digamma i0 signbit isreal isposinf isneginf ldexp nextafter conj_physical gcd lcm special_log1p
    special_logit special_xlogy special_erfc special_i0 special_i1 special_gammaln igamma igammac
    bitwise_left_shift bitwise_right_shift __lshift__ __rshift__ __xor__
""".split()  # noqa: SIM905


def tensors_in(tree: Any) -> Iterator[Value]:
    """All values in a tree of arguments."""
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from tensors_in(part)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))


def broadcast(ctx: Context, values: list[Value]) -> list[Expr]:
    """Tie the axes that numpy's rules align; the axes of the result."""
    rank = max((value.rank for value in values), default=0)
    out: list[Expr] = []
    for back in range(rank, 0, -1):
        here = [v.axes[-back] for v in values if v.rank >= back and length(v.axes[-back]) != 1]
        if here:
            ctx.tie_all(here)
        out.append(here[0] if here else ())
    return out


@rule(*(f"aten.{name}" for name in _ACTIVATIONS), uniform=True)
def activation(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """A nonlinearity; remembered as the activation of the neurons on its axes."""
    if ctx.op is not None:
        name = ctx.op.family.removeprefix("aten.")
        ctx.activations += [(axis, name) for axis in x.axes]
    return list(x.axes)


@rule(*(f"aten.{name}" for name in _PLAIN), uniform=True)
def pointwise(ctx: Context, *args: Any, **kwargs: Any) -> list[Expr]:
    """Any other function of one entry of each argument."""
    values = list(tensors_in((args, kwargs)))
    out = broadcast(ctx, values)
    if len(values) == 2 and ctx.op is not None and ctx.op.family in ("aten.add", "aten.sub"):
        _note_residual(ctx, *values)
    return out


def _note_residual(ctx: Context, a: Value, b: Value) -> None:
    """A sum of two activations of different depth is a residual edge; of a parameter, its use."""
    depth = max(a.depth, b.depth)
    for mine, other in ((a, b), (b, a)):
        ctx.role(mine, "bias", max(depth - 1, 0) if other.origin is None else depth)
    if a.origin is None and b.origin is None and a.shape == b.shape and a.depth != b.depth:
        ctx.residuals += zip(a.axes, b.axes, strict=True)


@rule("aten.type_as", "aten.to.other", uniform=True)
def cast_like(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> list[Expr]:
    """Only the type of the second argument counts."""
    return list(x.axes)


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(ctx: Context, x: Value, weight: Value) -> list[Expr]:
    """One slope for all or one per channel (axis 1)."""
    ctx.role(weight, "slope", max(x.depth - 1, 0))
    axis = next((axis for axis in weight.axes if length(axis) != 1), None)
    if axis is not None:
        ctx.tie(axis, x.axes[1 if x.rank > 1 else 0])
    ctx.activations += [(x_axis, "prelu") for x_axis in x.axes]
    return list(x.axes)
