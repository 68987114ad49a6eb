"""Operations that make tensors from nothing, and those that only keep books."""

from __future__ import annotations

from typing import Any

from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.registry import rule

CHECKS = frozenset({
    "aten._assert_tensor_metadata", "aten._assert_async", "aten._assert_scalar",
    "aten.sym_constrain_range", "aten.sym_constrain_range_for_size",
})
"""Operations that make nothing and need not be run."""
IGNORED = CHECKS | {
    "aten.sym_size", "aten.sym_numel", "aten.sym_stride", "aten.sym_storage_offset",
    "aten.sym_is_contiguous",
}
"""Operations without a tensor."""


@rule("aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.new_zeros", "aten.new_ones",
      "aten.new_full", "aten.new_empty", "aten.zeros_like", "aten.ones_like", "aten.full_like",
      "aten.empty_like", "aten.scalar_tensor", "aten.empty_permuted", "aten.new_empty_strided",
      "aten.empty_strided")
def constant(ctx: Context, *args: Any, **kwargs: Any) -> Value:
    """The same number everywhere: every axis is free, anew at each use."""
    return Value(tuple(ctx.free(n) for n in ctx.shape), uniform=True)


@rule("aten.eye")
def eye(ctx: Context, *args: Any, **kwargs: Any) -> Value:
    """Rows and columns move together; one that is not square is numbered."""
    if len(set(ctx.shape)) > 1:
        return numbered(ctx)
    axis = ctx.free(ctx.shape[0])
    return Value((axis, axis))


@rule("aten.arange", "aten.linspace", "aten.tril_indices", "aten.triu_indices",
      "aten.logspace", "aten.hann_window", "aten.hamming_window", "aten.blackman_window",
      "aten.bartlett_window", "aten.kaiser_window", "aten.fft_fftfreq", "aten.fft_rfftfreq",
      "aten.range", "aten.rand", "aten.randn", "aten.randint", "aten.randperm")
def numbered(ctx: Context, *args: Any, **kwargs: Any) -> Value:
    """Different numbers at each index: fixed."""
    axes = tuple(ctx.fixed(n, "numbered") for n in ctx.shape)
    ints = [arg for arg in args if type(arg) is int]
    if ctx.op is None or ctx.op.family != "aten.arange" or len(ints) < len(args) or len(ints) > 2:
        return Value(axes)
    start = ints[0] if len(ints) == 2 else 0
    whole = ctx.shape[0] > 1 and start == 0
    return Value(axes, least=start, counts=0 if whole else None)
