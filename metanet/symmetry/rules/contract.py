"""Sums over products: linear, matmul, einsum, convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.pointwise import broadcast
from metanet.symmetry.rules.registry import rule


def result(ctx: Context, axes: Sequence[Expr], *values: Value | None) -> Value:
    """The output of a weighted layer: one deeper than its deepest input if a weight is in it."""
    present = [v for v in values if v is not None]
    weighted = any(v.origin is not None for v in present)
    depth = max((v.depth for v in present), default=0) + int(weighted)
    return Value(tuple(axes), depth=depth)


def _depth(*values: Value) -> int:
    return max(v.depth for v in values)


@rule("aten.linear")
def linear(ctx: Context, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x [..., C], weight [O, C] or [C], bias [O]."""
    ctx.tie(x.axes[-1], weight.axes[-1])
    ctx.weight(weight, range(weight.rank - 1), (weight.rank - 1,), x.depth)
    if bias is not None:
        ctx.tie(weight.axes[0], bias.axes[0])
        ctx.role(bias, "bias", x.depth)
    return result(ctx, x.axes[:-1] + weight.axes[:-1], x, weight)


@rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.__matmul__")
def matmul(ctx: Context, a: Value, b: Value) -> Value:
    """[..., M, K] times [..., K, N] with broadcast batch axes; vectors as torch.matmul."""
    if a.rank == 0 or b.rank == 0:
        raise ctx.refuse("a factor has no axes")
    contracted = b.axes[-2] if b.rank > 1 else b.axes[0]
    ctx.tie(a.axes[-1], contracted)
    ctx.weight(b, (b.rank - 1,) if b.rank > 1 else (), (max(b.rank - 2, 0),), a.depth)
    ctx.weight(a, (a.rank - 2,) if a.rank > 1 else (), (a.rank - 1,), b.depth)
    batch = broadcast(ctx, [Value(v.axes[:-2]) for v in (a, b)])
    rows = a.axes[-2:-1] if a.rank > 1 else ()
    columns = b.axes[-1:] if b.rank > 1 else ()
    return result(ctx, (*batch, *rows, *columns), a, b)


@rule("aten.addmm", "aten.baddbmm", "aten.addmv")
def addmm(ctx: Context, bias: Value, a: Value, b: Value, **kwargs: Any) -> Value:
    """bias + a @ b."""
    out = matmul(ctx, a, b)
    ctx.role(bias, "bias", _depth(a, b))
    return Value(tuple(broadcast(ctx, [out, bias])), depth=out.depth)


@rule("aten.einsum", "aten.outer", "aten.ger")
def einsum(ctx: Context, equation: Any, operands: Any = None, **kwargs: Any) -> Value:
    """Equal letters are one axis. ``...`` broadcasts."""
    if isinstance(equation, Value):  # outer(a, b)
        return result(ctx, equation.axes + operands.axes, equation, operands)
    left, arrow, right = equation.replace(" ", "").replace("...", "@").partition("->")
    if not arrow or "." in left:
        raise ctx.refuse("einsum without an output part")
    found: dict[str, Expr] = {}
    dots: list[Value] = []
    for letters, value in zip(left.split(","), operands, strict=True):
        extra = value.rank - len(letters.replace("@", ""))
        at = letters.find("@")
        if at >= 0:
            dots.append(Value(value.axes[at : at + extra]))
        axes = value.axes[:at] + value.axes[at + extra :] if at >= 0 else value.axes
        for letter, axis in zip(letters.replace("@", ""), axes, strict=True):
            if letter in found and 1 in (length(axis), length(found[letter])):
                found[letter] = max(axis, found[letter], key=length)
            elif letter in found:
                ctx.tie(found[letter], axis)
            else:
                found[letter] = axis
        kept = [i for i, letter in enumerate(letters) if letter in right and letter != "@"]
        gone = [i for i, letter in enumerate(letters) if letter not in right and letter != "@"]
        if at < 0:
            ctx.weight(value, kept, gone, max(v.depth for v in operands))
    middle = broadcast(ctx, dots)
    out = [e for letter in right for e in (middle if letter == "@" else [found[letter]])]
    return result(ctx, out, *operands)


def _spatial(ctx: Context, x: Expr, kernel: Expr, moves: bool, out: int, name: str) -> Expr:
    """A spatial axis passes a kernel of size 1 without stride; else it is frozen."""
    ctx.freeze(kernel, "kernel axis")
    if not moves and length(x) == out:
        return x
    ctx.freeze(x, "spatial axis of a convolution")
    return ctx.fixed(out, f"spatial axis of {name}")


def _many(value: Any, n: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [v if isinstance(v, int) else 1 for v in values * (n if len(values) == 1 else 1)]


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def conv(
    ctx: Context, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Value:
    """x [N, C, ...], weight [O, C/groups, ...]; with groups C = (g, i) and O = (g, o)."""
    space = weight.rank - 2
    channels, outs = x.axes[-space - 1], weight.axes[0]
    if groups == 1:
        ctx.tie(channels, weight.axes[1])
    else:
        inner = ctx.split(channels, groups, length(channels) // groups)
        outer = ctx.split(outs, groups, length(outs) // groups)
        ctx.tie(inner[0], outer[0])
        ctx.tie(inner[1], weight.axes[1])
    return _conv_result(ctx, x, weight, bias, (0,), (1,), stride, padding)


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def conv_transpose(
    ctx: Context, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:
    """x [N, C, ...], weight [C, O/groups, ...]."""
    space = weight.rank - 2
    channels = x.axes[-space - 1]
    ctx.tie(channels, weight.axes[0])
    if groups > 1:
        major = ctx.split(channels, groups, length(channels) // groups)[0]
        outs = ctx.split(ctx.free(groups * length(weight.axes[1])), groups, length(weight.axes[1]))
        ctx.tie(outs[0], major)
        ctx.tie(outs[1], weight.axes[1])
        flipped = Value((outs[0] + outs[1], weight.axes[0], *weight.axes[2:]))
        out = _conv_result(ctx, x, flipped, bias, (0,), (1,), stride, padding)
        ctx.weight(weight, (1,), (0,), x.depth)
        return Value(out.axes, depth=x.depth + 1)
    origin = weight.origin and (weight.origin[0], (1, 0, *range(2, weight.rank)))
    flipped = Value((weight.axes[1], weight.axes[0], *weight.axes[2:]), origin=origin)
    return _conv_result(ctx, x, flipped, bias, (0,), (1,), stride, padding)


def _conv_result(
    ctx: Context, x: Value, weight: Value, bias: Value | None, outs: Sequence[int],
    ins: Sequence[int], stride: Any, padding: Any,
) -> Value:
    space = weight.rank - 2
    strides = _many(stride, space)
    pads = [1] * space if isinstance(padding, str) else _many(padding, space)
    kernels = weight.axes[2:]
    moves = [length(k) > 1 or s != 1 or p != 0
             for k, s, p in zip(kernels, strides, pads, strict=True)]
    shape = ctx.shape
    if any(moves):
        ctx.mix(x, [i - space for i, move in enumerate(moves) if move])
    places = [
        _spatial(ctx, x.axes[i - space], kernels[i], moves[i], shape[i - space], "convolution")
        for i in range(space)
    ]
    if bias is not None:
        ctx.tie(weight.axes[0], bias.axes[0])
        ctx.role(bias, "bias", x.depth)
    ctx.weight(weight, outs, ins, x.depth)
    return result(ctx, (*x.axes[: -space - 1], weight.axes[0], *places), x, weight)
