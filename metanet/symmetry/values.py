"""Where the neurons of each group are seen while a network runs.

The pass that finds the group also knows the axes of every intermediate value: here they are given
the labels of a space, as the axes of tensors are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.symmetry.emit import Emitter
from metanet.symmetry.fibre import settle
from metanet.symmetry.group import Group
from metanet.symmetry.layout import Block
from metanet.symmetry.rules import Value
from metanet.symmetry.space import TensorSpec, WeightSpace
from metanet.symmetry.track import Tracked, track
from metanet.trace.program import Op, Program


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a program where a group's neurons are seen.

    ``value`` is the number of the value and ``at`` that of the operation that makes it (-1 for an
    input); ``position`` is the group's digit in ``block``, the value's factored view. ``side`` is
    ``write`` where an operation with weights makes the neurons' values, ``read`` where one takes
    them in.
    """

    value: int
    at: int
    block: Block
    position: int
    label: str
    side: str


def spots(program: Program, space: WeightSpace) -> list[Spot]:
    """All places where groups are seen, in the order of the program.

    Raises:
        SpaceMismatch: the program has another group than the space.
    """
    found = track(program)
    settle(found.solver, [found.axes[name] for name in program.tensors
                          if name not in program.aliases], found.values)
    emitter = Emitter(found)
    inferred = emitter.space()
    names = _names(inferred, space)
    writes, reads = _ends(program)
    made = {op.out.index: at for at, op in enumerate(program.ops)}
    result = []
    for value, side in [*((v, "write") for v in writes), *((v, "read") for v in reads)]:
        for block in _blocks(found, emitter, inferred, value):
            digits = tuple(replace(d, label=names.get(d.label)) if d.label else d
                           for d in block.digits)
            block = replace(block, digits=digits)
            result += [Spot(value, made.get(value, -1), block, p, d.label, side)
                       for p, d in enumerate(digits) if d.label in {g.label for g in space.groups}]
    contracted = _contracted(found, program, result, writes)
    return sorted((s for s in result if s.side == "write" or (s.value, s.label) in contracted),
                  key=lambda s: (s.at, s.side))


def _names(inferred: WeightSpace, space: WeightSpace) -> dict[str, str]:
    """Labels of the program's own space -> those of the given one, of equal labels or else order.

    By labels kinds may differ: where gains are folded, groups that permuted may turn.
    """
    own = {g.label: (g.size, g.copies) for g in inferred.normal_groups}
    if own.items() <= {g.label: (g.size, g.copies) for g in space.normal_groups}.items():
        return {label: label for label in own}
    if [(g.kind, g.size, g.copies) for g in inferred.groups] != [
            (g.kind, g.size, g.copies) for g in space.groups]:
        raise SpaceMismatch(
            f"the network that was recorded has {len(inferred.groups)} groups and the space "
            f"{len(space.groups)}, or other ones: activations can be told apart by group only in "
            "the space that was inferred from this very network"
        )
    return {mine.label: theirs.label for mine, theirs
            in zip(inferred.normal_groups, space.normal_groups, strict=True)}


def mixing(program: Program) -> list[int]:
    """Numbers of the operations in which weights meet data."""
    data = {s.ref.index for s in program.sources if s.kind == "input"}
    weights = {s.ref.index for s in program.sources if s.kind == "parameter"}
    found = []
    for at, op in enumerate(program.ops):
        refs = {ref.index for ref in op.refs()}
        if refs & data:
            data.add(op.out.index)
            if refs & weights:
                found.append(at)
        elif refs & weights:
            weights.add(op.out.index)
    return found


def _ends(program: Program) -> tuple[list[int], list[int]]:
    """Values that operations with weights make, and that they read."""
    at = mixing(program)
    ops = program.ops
    weights = _weights(program)
    writes = dict.fromkeys(ops[i].out.index for i in at)
    reads = dict.fromkeys(ref.index for i in at for ref in ops[i].refs()
                          if ref.index not in weights)
    return [*writes], [*reads]


def _weights(program: Program) -> set[int]:
    """Values that depend on no input."""
    data = {s.ref.index for s in program.sources if s.kind == "input"}
    every = {s.ref.index for s in program.sources} | {op.out.index for op in program.ops}
    for op in program.ops:
        if any(ref.index in data for ref in op.refs()):
            data.add(op.out.index)
    return every - data


def _contracted(
    found: Tracked, program: Program, seen: Sequence[Spot], writes: Sequence[int]
) -> set[tuple[int, str]]:
    """Pairs of a value and a label that an operation with weights sums away."""
    labels: dict[int, set[str]] = {}
    for spot in seen:
        labels.setdefault(spot.value, set()).add(spot.label)
    made = set(writes)
    gone = set()
    for op in program.ops:
        if op.out.index in made:
            kept = labels.get(op.out.index, set())
            gone |= {(ref.index, label) for ref in op.refs()
                     for label in labels.get(ref.index, set()) - kept}
    return gone


def replaced_writes(program: Program, seen: Sequence[Spot]) -> set[int]:
    """Values whose neurons all go through another operation with weights at once, entry by entry.

    A convolution before its batch norm, a product before its bias: the neuron is seen after it.
    """
    labels: dict[int, set[str]] = {}
    for spot in seen:
        if spot.side == "write":
            labels.setdefault(spot.value, set()).add(spot.label)
    users: dict[int, list[Op]] = {}
    for op in program.ops:
        for ref in op.refs():
            users.setdefault(ref.index, []).append(op)
    return {value for value, own in labels.items() if users.get(value) and all(
        own & labels.get(op.out.index, set()) for op in users[value])}


def _blocks(
    found: Tracked, emitter: Emitter, inferred: WeightSpace, value: int
) -> tuple[Block, ...]:
    """The factored view of a value; nothing where it cannot be written in the space's labels."""
    known = found.env.get(value)
    if not isinstance(known, Value):
        return ()
    name = f"value {value}"
    try:
        axes = tuple(emitter.tree(axis, name) for axis in known.axes)
        used = _used(inferred, axes)
        own = WeightSpace(used, {name: TensorSpec(known.shape, axes)})
        return own.blocks(name)
    except (KeyError, SymmetryError):
        return ()


def _used(space: WeightSpace, axes: Sequence[object]) -> list[Group]:
    from metanet.symmetry.axis import occurrences

    labels = {occ.label for axis in axes for occ in occurrences(axis)}  # type: ignore[arg-type]
    declared = {g.label: g for g in (*space.groups, *space.fixed, *space.normal_groups)}
    for label in [*labels]:
        labels.update(declared[label].over)
    return [g for label, g in declared.items() if label in labels]
