"""Operations that inputs of small sizes make trivial, so that what leads to them proves nothing."""

from __future__ import annotations

from metanet.trace.program import Op, Program, Ref, Shape

_SOFTMAX = frozenset(f"aten.{name}" for name in (
    "softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "softmin"))


def trivial(program: Program) -> tuple[str, ...]:
    """Softmax over one entry and choices of all entries, by title, where an output sees them."""
    shapes: dict[int, Shape | None] = {s.ref.index: s.shape for s in program.sources}
    found: dict[str, None] = {}
    live = program.live()
    for op in program.ops:
        if op.out.index in live and _is_trivial(op, shapes):
            found[op.title] = None
        if len(op.shapes) == 1:
            shapes[op.out.index] = op.shapes[0]
    return tuple(found)


def _is_trivial(op: Op, shapes: dict[int, Shape | None]) -> bool:
    at = 1 if op.family == "aten.scaled_dot_product_attention" else 0
    value = op.args[at] if len(op.args) > at else None
    shape = shapes.get(value.index) if isinstance(value, Ref) else None
    if not shape:
        return False
    if op.family == "aten.scaled_dot_product_attention":
        return shape[-2] == 1
    numbers = [a for a in op.args[1:] if type(a) is int]
    if op.family in _SOFTMAX:
        return bool(shape[op.kwargs.get("dim", numbers[0] if numbers else -1)] == 1)
    if op.family == "aten.topk":
        dim = op.kwargs.get("dim", numbers[1] if len(numbers) > 1 else -1)
        return bool(numbers and numbers[0] >= shape[dim])
    return False
