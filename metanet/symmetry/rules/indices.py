"""Integers that are indices into an axis: what makes them, what passes them on, what reads by them.

``topk`` over an axis of experts gives numbers of experts. Permute the experts and the numbers are
renamed accordingly, so the axis stays free as long as the numbers are only used to read from axes
that move with it. Anything else that looks at them (arithmetic, comparison with a constant) freezes
the axis: only operations listed here are trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from metanet.symmetry.factor import Expr, length
from metanet.symmetry.rules.context import Context, Value
from metanet.trace.program import Op

_MOVED = frozenset(f"aten.{name}" for name in (
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t",
    "unsqueeze", "squeeze", "expand", "contiguous", "clone", "to", "detach", "alias", "slice",
    "select", "movedim", "view_as", "reshape_as", "expand_as",
))
"""Operations whose output has the very same numbers, at other places."""

INDEX_SAFE = _MOVED | frozenset(f"aten.{name}" for name in (
    "index", "gather", "scatter", "scatter_add", "one_hot",
))
"""Operations that treat indices into an axis as such."""

_ENTRYWISE = frozenset(f"aten.{name}" for name in (
    "to", "_to_copy", "clone", "contiguous", "detach", "alias", "logical_not", "logical_and",
    "logical_or", "bitwise_not", "bitwise_and", "bitwise_or", "eq", "ne", "lt", "le", "gt", "ge",
    "__and__", "__or__",
))
"""Operations on masks that keep copies of one entry equal."""

_COUNTED = 1 << 16
"""Longest constant of which it is looked whether it counts."""

_SAME_PLACES = frozenset(
    {"to", "_to_copy", "clone", "contiguous", "detach", "alias", "lift_fresh_copy"})
"""Operations whose output has the very same numbers, at the same places."""

_ROWWISE = frozenset(f"aten.{name}" for name in (
    "mul", "add", "sub", "div", "relu", "silu", "gelu", "sigmoid", "tanh", "to", "contiguous",
    "clone", "bmm", "matmul", "baddbmm", "square", "pow", "clamp", "dropout", "neg", "exp",
))
"""Operations that leave each row (axis 0) to itself."""


def least_of(op: Op, inputs: Sequence[Value]) -> int | None:
    """A bound from below that holds for the output because it holds for the only input."""
    bound = inputs[0].least if len(inputs) == 1 else None
    if bound is None:
        return None
    if op.family == "aten.add" and len(op.args) == 2 and type(op.args[1]) is int and not op.kwargs:
        return bound + op.args[1]
    return bound if op.family in _MOVED else None


def always(op: Op, inputs: Sequence[Value]) -> bool:
    """Whether the output is true everywhere, for inputs of all sizes: ``arange(n) >= 0``."""
    bound = inputs[0].least if len(inputs) == 1 else None
    if bound is None or op.family not in ("aten.ge", "aten.gt") or len(op.args) != 2:
        return False
    other = op.args[1]
    return type(other) is int and (bound >= other if op.family == "aten.ge" else bound > other)


def numbers_of(value: Tensor | None) -> tuple[int | None, int | None]:
    """Of a constant that counts up along its only axis: from where, and that axis if from 0."""
    if value is None or value.is_meta or value.dtype != torch.int64 or not value.numel() > 1:
        return None, None
    if value.numel() > _COUNTED or max(value.shape) != value.numel():
        return None, None
    start = int(value.flatten()[0])
    if not torch.equal(value.flatten(), torch.arange(start, start + value.numel())):
        return None, None
    return start, None if start else value.shape.index(value.numel())


def counting(op: Op, out: Value, inputs: Sequence[Value]) -> int | None:
    """The axis along which the entries of an output still count from 0."""
    if len(inputs) != 1 or inputs[0].counts is None:
        return None
    value, at = inputs[0], inputs[0].counts
    name, size = op.family.removeprefix("aten."), length(inputs[0].axes[inputs[0].counts])
    if name in _SAME_PLACES or (name == "slice" and value.shape == out.shape):
        return at
    if name == "unsqueeze":
        dim = op.args[1] if len(op.args) > 1 else op.kwargs["dim"]
        return at + int(dim % out.rank <= at)
    if name in ("expand", "broadcast_to"):
        return at + out.rank - value.rank
    if name in ("view", "reshape") and prod(out.shape) == size and size in out.shape:
        return out.shape.index(size)
    return None


def carried(op: Op, out: Any, inputs: Sequence[Value]) -> Any:
    """The output of an operation with the marks that its inputs pass on."""
    if not inputs:
        return out
    if isinstance(out, tuple):
        parts = tuple(carried(op, part, inputs) for part in out)
        return parts if op.family in ("aten.chunk", "aten.split") else out
    if not isinstance(out, Value):
        return out
    if op.family in _MOVED and inputs[0].valued is not None:
        out = replace(out, valued=inputs[0].valued)
    if (at := counting(op, out, inputs)) is not None:
        out = replace(out, counts=at)
    if op.family in _ENTRYWISE and (alike := _alike(out, inputs)):
        out = replace(out, alike=alike)
    through = _through(op, out, inputs)
    return out if through is None else replace(out, through=through)


def _alike(out: Value, inputs: Sequence[Value]) -> frozenset[int]:
    """Axes along which every input of an entrywise operation is a copy of one entry."""
    def copied(value: Value, at: int) -> bool:
        own = at - (out.rank - value.rank)
        return own < 0 or length(value.axes[own]) == 1 or own in value.alike

    return frozenset(i for i in range(out.rank) if all(copied(v, i) for v in inputs))


def _through(op: Op, out: Value, inputs: Sequence[Value]) -> tuple[Expr, int] | None:
    """Rows stay rows read by the same indices, if all marked inputs agree on them."""
    if out.through is not None:
        return out.through
    marks = {v.through[1]: v.through for v in inputs if v.through is not None}
    if len(marks) != 1:
        return None
    marked = [v for v in inputs if v.through is not None]
    if not out.rank or any(length(out.axes[0]) != length(v.axes[0]) for v in marked):
        return None
    dims = [arg for arg in op.args[1:] if isinstance(arg, int)]
    family = op.family.removeprefix("aten.")
    if op.family in _ROWWISE:
        kept = all(v.rank == out.rank for v in marked) and all(v.rank <= out.rank for v in inputs)
    elif family in ("unsqueeze", "squeeze", "transpose"):
        kept = bool(dims) and all(d % max(out.rank, marked[0].rank) != 0 for d in dims)
    elif family in ("view", "reshape", "_unsafe_view"):
        kept = True  # the first axis has kept its size
    elif family in ("slice", "chunk", "split"):
        place = 1 if family == "slice" else 2
        at = op.args[place] if len(op.args) > place else op.kwargs.get("dim", 0)
        kept = isinstance(at, int) and at % out.rank != 0
    elif family == "linear":
        kept = marked == list(inputs[:1])
    else:
        kept = False
    return marks.popitem()[1] if kept else None


def pieces(ctx: Context, x: Value, at: int, content: Sequence[int]) -> list[Expr] | None:
    """Axis ``at`` read at constant indices, as few ranges put behind each other; else None."""
    size = length(x.axes[at])
    numbers = [n % size for n in content]
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([n, n + 1])
    if not runs or len(runs) > 2 or len(set(numbers)) < len(numbers):
        return None
    cuts = [ctx.cut(x.axes, at, lo, hi) for lo, hi in runs]
    out = list(cuts[0])
    if len(cuts) > 1:
        for i in range(x.rank):
            if i != at:
                ctx.tie_all([cut[i] for cut in cuts])
        out[at] = ctx.cat([cut[at] for cut in cuts])
    return out
