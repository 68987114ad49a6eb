"""The norms that read a residual stream, and the linear layers that read the norms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from metanet.checkpoint.names import printable
from metanet.errors import SymmetryError
from metanet.symmetry import WeightSpace
from metanet.symmetry.axis import Occ
from metanet.tasks.merge.layers import layer_of
from metanet.trace.program import Op, Program, Ref

_NORMS = {"aten.layer_norm": (2, 3), "aten.native_layer_norm": (2, 3), "aten.rms_norm": (2, None),
          "aten._fused_rms_norm": (2, None), "aten.mul": (0, None)}
"""Family -> places of gain and shift; a norm that is written out multiplies by its gain."""
_PASSING = frozenset({"aten.to", "aten._to_copy", "aten.dropout", "aten.native_dropout",
                      "aten.view", "aten.reshape", "aten.clone", "aten.contiguous", "aten.slice",
                      "aten.select", "aten.index", "aten.alias", "aten.detach", "getitem",
                      "_operator.getitem", "aten.flatten", "aten.squeeze", "aten.unsqueeze",
                      "aten.type_as", "aten.float"})
"""Operations after which linear layers may still take the gain in; what is passed wrongly (a view
that splits the axis) fails the proof by numbers that every folding must pass."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A linear layer that reads a norm: its weight, its bias, the axis of the weight it sums."""

    weight: str
    bias: str | None
    axis: int


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of the stream ``label``: gain, shift (or None) and all that read it."""

    label: str
    gain: str
    shift: str | None
    readers: tuple[Reader, ...]


def norms(program: Program, space: WeightSpace) -> tuple[Norm, ...]:
    """All norms whose gains stand on one free, unfibred group, with their readers.

    Raises:
        SymmetryError: there is none, or the output of one goes elsewhere than into linear layers
            of its own (a post-norm network adds it to the stream), or a reader has two norms.
    """
    names = {s.ref.index: s.name for s in program.sources if s.name in program.tensors}
    made = {op.out.index: op for op in program.ops}
    users: dict[int, list[int]] = {}
    for at, op in enumerate(program.ops):
        for ref in op.refs():
            users.setdefault(ref.index, []).append(at)
    found = []
    for op in program.ops:
        gain, shift = _gain(op, names, space)
        if gain is not None:
            label = str(_group(space, gain))
            readers = tuple(_readers(program, op, names, made, users))
            found.append(Norm(label, gain, shift, readers))
    if not found:
        raise SymmetryError("no norm reads a residual stream of this network, so there are no "
                            "gains to fold and nothing to rotate; align without rotation")
    _alone(program, found)
    return tuple(found)


def _group(space: WeightSpace, name: str) -> str | None:
    """The free group that a vector stands on, all of it; None for anything else."""
    axes = space.normal_axes(name)
    if len(axes) != 1 or not isinstance(axes[0], Occ) or axes[0].bases:
        return None
    return axes[0].label if space.group(axes[0].label).kind in ("S", "signed") else None


def _gain(
    op: Op, names: Mapping[int, str], space: WeightSpace
) -> tuple[str | None, str | None]:
    """Names of gain and shift of a norm of some stream."""
    if op.family not in _NORMS:
        return None, None

    def vector(place: int | None) -> str | None:
        ref = op.args[place] if place is not None and place < len(op.args) else None
        name = names.get(ref.index) if isinstance(ref, Ref) else None
        return name if name is not None and _group(space, name) is not None else None

    gain, shift = _NORMS[op.family]
    if op.family == "aten.mul" and vector(0) is None:
        gain = 1
    return vector(gain), vector(shift)


def _readers(
    program: Program, norm: Op, names: Mapping[int, str], made: Mapping[int, Op],
    users: Mapping[int, list[int]],
) -> list[Reader]:
    found, waiting = [], [norm.out.index]
    while waiting:
        value = waiting.pop()
        for at in users.get(value, ()):
            op = program.ops[at]
            if op.family in _PASSING or not op.shapes:
                waiting.append(op.out.index)
                continue
            layer = layer_of(at, op, names, made)
            if layer is None or layer.kind != "linear" or not _is(op.args[layer.input], value):
                raise SymmetryError(
                    f"the output of {norm.title} goes into {op.title}, which is no linear layer: "
                    "this is no pre-norm residual stream; align without rotation")
            found.append(Reader(str(layer.weight), layer.bias, 1 - layer.out))
    return found


def _is(argument: object, value: int) -> bool:
    return isinstance(argument, Ref) and argument.index == value


def _alone(program: Program, found: list[Norm]) -> None:
    """Every gain, weight and bias is used by one operation only."""
    names = {s.ref.index: program.aliases.get(s.name, s.name) for s in program.sources
             if s.name in program.tensors}
    uses = Counter(names[ref.index] for op in program.ops for ref in op.refs()
                   if ref.index in names)
    for norm in found:
        for name in (norm.gain, norm.shift, *(r.weight for r in norm.readers),
                     *(r.bias for r in norm.readers)):
            if name is not None and uses[program.aliases.get(name, name)] > 1:
                raise SymmetryError(f"{printable(name)} is used several times, so a gain cannot "
                                    "be folded into it; align without rotation")
