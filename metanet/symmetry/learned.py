"""Buffers that are learned: what training writes into them is weights, not constants."""

from __future__ import annotations

from metanet.trace.program import Op, Program, Ref


def codebooks(program: Program) -> set[Ref]:
    """Buffers of the state from which tables of ``embedding`` are made, and from nothing else.

    A vector quantiser learns its codebook as a moving average and keeps it in buffers, which a
    fresh module fills with zeros; the encoder reaches the output through it alone.
    """
    buffers = {s.ref for s in program.sources
               if s.kind == "buffer" and s.persistent and s.dtype.is_floating_point}
    sources = {s.ref for s in program.sources}
    made: dict[int, Op] = {op.out.index: op for op in program.ops}
    found: set[Ref] = set()
    for op in program.ops:
        if op.family == "aten.embedding" and isinstance(op.args[0], Ref):
            roots = _roots(op.args[0], made)
            if roots and roots <= buffers and roots <= sources:
                found |= roots
    return found


def _roots(ref: Ref, made: dict[int, Op]) -> set[Ref]:
    """The sources that a value is computed from."""
    found: set[Ref] = set()
    todo, seen = [ref], {ref}
    while todo:
        at = todo.pop()
        op = made.get(at.index)
        if op is None:
            found.add(at)
            continue
        new = [r for r in op.refs() if r not in seen]
        seen.update(new)
        todo += new
    return found
