"""Which digits some output depends on: the rest belongs to dead groups."""

from __future__ import annotations

import operator
from typing import Any

from metanet.symmetry.factor import Factor, leaves
from metanet.symmetry.rules.context import Value
from metanet.symmetry.rules.pointwise import tensors_in
from metanet.trace.program import Op, Program

_CUTS = frozenset(f"aten.{name}" for name in (
    "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "tensor_split",
    "unsafe_split", "unsafe_chunk", "hsplit",
))
_SEPARATE = frozenset(f"aten.{name}" for name in (
    "linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d", "embedding", "relu",
    "gelu", "silu", "tanh", "sigmoid", "sin", "add", "sub", "mul", "div", "view", "reshape",
    "permute", "transpose", "unsqueeze", "squeeze", "flatten", "unflatten", "contiguous", "dropout",
    "clone", "to", "cat", "expand", "t", "pad", "constant_pad_nd", "stack", "neg", "exp", "pow",
    "copy", "where", "masked_fill", "unsafe_view", "mT", "movedim",
))


def live_digits(program: Program, env: dict[int, Any]) -> set[Factor]:
    """Free digits of parameters that matter to an output.

    Cutting passes back only what is kept; entrywise operations and contractions pass back what is
    asked of their output and all that they sum over; other operations ask for everything.
    """
    needed: dict[int, set[Factor]] = {}
    for _, ref in program.outputs:
        needed[ref.index] = _digits(env.get(ref.index))
    for op in reversed(program.ops):
        asked = needed.get(op.out.index)
        if asked is None and not op.mutates:
            continue
        for ref in op.refs():
            have = _digits(env.get(ref.index))
            needed.setdefault(ref.index, set()).update(_passed(op, have, asked or set(), env))
    parameters = [s.ref.index for s in program.sources if isinstance(env.get(s.ref.index), Value)]
    return set().union(*(needed.get(index, set()) for index in parameters))


def _passed(op: Op, have: set[Factor], asked: set[Factor], env: dict[int, Any]) -> set[Factor]:
    if op.function is operator.getitem or op.family in _CUTS or _constant_index(op, env):
        return have & asked
    if op.family in _SEPARATE and not op.mutates and isinstance(env.get(op.out.index), Value):
        return {d for d in have if d in asked or d not in _digits(env[op.out.index])}
    return have


def _constant_index(op: Op, env: dict[int, Any]) -> bool:
    """Whether an index operation cuts out what constants say."""
    found = [env.get(ref.index) for ref in op.refs()[1:]] if op.family == "aten.index" else []
    return bool(found) and all(getattr(value, "content", None) is not None for value in found)


def _digits(value: Any) -> set[Factor]:
    """Leaves of the axes, fixed ones included: a cut of a fixed axis still keeps its part."""
    return {leaf for v in tensors_in(value) for axis in v.axes for leaf in leaves(axis)}
