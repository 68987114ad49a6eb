"""Which values of a program are written to, and from which nothing follows."""

from __future__ import annotations

from metanet.trace.program import VALUE_READ, Program, refs_in


def mutated(program: Program) -> set[int]:
    """Values that are written to after they are made, views of them included."""
    found: set[int] = set()
    for op in reversed(program.ops):
        first = next(iter(refs_in(op.args)), None)
        if first is None:
            continue
        if op.writes or (op.out.index in found and op.shares):
            found.add(first.index)
            found.add(op.out.index)
    return found


def idle(program: Program, written: set[int]) -> frozenset[int]:
    """Values that no output needs and that no parameter is read for: nothing follows from them.

    What is made of parameters stays, so that the groups of unread layers are found as well, and
    so does all that is written to, for it may be a view of what an output needs.
    """
    live = program.live()
    made = {op.out.index for op in program.ops}
    weights = {s.ref.index for s in program.sources if s.name in program.tensors}
    shown = {ref.index for op in program.ops if op.name == VALUE_READ for ref in op.refs()}
    kept = set(live) | set(written) | shown
    group: dict[int, int] = {}

    def root(index: int) -> int:
        while group.setdefault(index, index) != index:
            index = group[index]
        return index

    bound: set[int] = set()
    dead = [op for op in program.ops if op.out.index not in live and op.name != VALUE_READ]
    for op in dead:
        refs = [ref.index for ref in op.refs()]
        for other in refs:
            if other in made and other not in live:
                group[root(other)] = root(op.out.index)
        if op.writes or op.out.index in kept or weights.intersection(refs):
            bound.add(op.out.index)
    tied = {root(index) for index in bound}
    return frozenset(op.out.index for op in dead if root(op.out.index) not in tied)
