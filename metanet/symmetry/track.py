"""One pass of the rules over a program: every value gets symbolic axes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from metanet.symmetry.effects import idle, mutated
from metanet.symmetry.factor import Expr, Factor, leaves, length
from metanet.symmetry.learned import codebooks
from metanet.symmetry.meta import Unsupported
from metanet.symmetry.rules import Context, Refusal, Value
from metanet.symmetry.rules.indices import (
    INDEX_SAFE,
    always,
    carried,
    counting,
    least_of,
    numbers_of,
)
from metanet.symmetry.rules.pointwise import tensors_in
from metanet.symmetry.rules.registry import keeps_uniform, module_rules, rule_for
from metanet.symmetry.rules.source import IGNORED
from metanet.symmetry.solve import Solver
from metanet.trace.program import VALUE_READ, Op, Program, Ref, Shape, Source, substitute

_STATISTICS = {
    "aten.batch_norm": (3, 4), "aten.instance_norm": (3, 4), "aten.native_batch_norm": (3, 4),
    "aten.cudnn_batch_norm": (3, 4), "aten._native_batch_norm_legit_no_training": (3, 4),
}
_RESHAPED_IN_PLACE = frozenset({
    "aten.transpose", "aten.t", "aten.squeeze", "aten.unsqueeze", "aten.swapaxes", "aten.swapdims",
    "aten.resize", "aten.as_strided", "aten.set",
})
_UNPACKED = {"aten.index": 2, "aten.bmm": 3, "aten.baddbmm": 3, "aten.matmul": 3,
             "aten.einsum": 3, "aten.unbind": 3, "aten.select": 3, "aten.index_select": 3}
"""Operations that take packed weights apart, and the least number of axes of such weights."""
_COPIES = frozenset(f"aten.{name}" for name in (
    "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "pad",
    "constant_pad_nd",
))
"""Operations that make an axis that can move even of values that cannot."""
_NUMBERS = (torch.int64, torch.int32, torch.bool)
_UNKNOWN: dict[str, Any] = {"alike": frozenset(), "content": None, "least": None, "counts": None}
"""What is known of the entries of a value that is written to later."""


@dataclass
class Tracked:
    """Everything the pass found out. ``axes`` has the axes of each named tensor.

    ``guesses`` pairs fixed axes around operations that may be entrywise: nothing is concluded from
    them, an audit tries to move them together.
    """

    program: Program
    solver: Solver
    context: Context
    axes: dict[str, tuple[Expr, ...]] = field(default_factory=dict)
    values: list[tuple[Expr, ...]] = field(default_factory=list)
    unsupported: list[Unsupported] = field(default_factory=list)
    env: dict[int, Any] = field(default_factory=dict)
    guesses: list[tuple[Expr, Expr]] = field(default_factory=list)


def track(program: Program) -> Tracked:
    """Run the rules over a program and freeze its outputs."""
    return _Tracker(program).run()


class _Tracker:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.solver = Solver()
        self.context = Context(self.solver)
        self.found = Tracked(program, self.solver, self.context)
        self.env = self.found.env
        self.mutated = mutated(program)
        self.context.given = frozenset(
            n for s in program.sources if s.kind == "input" for n in s.shape)
        # the recorded path is that of these values: as long as it holds they are constants
        self.read = {ref.index for op in program.ops if op.name == VALUE_READ for ref in op.refs()}
        self.outputs_used = _outputs_used(program)
        self.idle = idle(program, self.mutated)
        self.packed = _packed(program)
        self.losses: list[tuple[str, str, list[Factor]]] = []

    def run(self) -> Tracked:
        self._sources()
        ops, i = self.program.ops, 0
        leaf_runs = _leaf_runs(self.program)
        while i < len(ops):
            if i in leaf_runs:
                self._module(ops[i : leaf_runs[i][0]], leaf_runs[i][1], leaf_runs[i][2])
                i = leaf_runs[i][0]
                continue
            self._operation(ops[i])
            i += 1
        for name, ref in self.program.outputs:
            for value in tensors_in(self.env.get(ref.index)):
                self.context.freeze_valued(value)
                for at, axis in enumerate(value.axes):
                    self.solver.freeze(axis, f"{name}, axis {at}")
        self.losses += [("digits do not fit", via, lost) for via, lost in self.solver.clashes]
        self.found.values += self.context.observed
        self._missing()
        self._report()
        return self.found

    def _report(self) -> None:
        """Operations that took freedom, and how much of it was freedom of a parameter."""
        known = {leaf for axes in self.found.axes.values()
                 for axis in axes for leaf in leaves(axis)}
        for what, where, lost in self.losses:
            own = {leaf for factor in lost for leaf in leaves((factor,))} & known
            self.found.unsupported.append(Unsupported(what, where, sum(f.size for f in own)))

    # ------------------------------------------------------------ sources

    def _sources(self) -> None:
        learned = running_statistics(self.program) | {ref.index for ref in codebooks(self.program)}
        owners: dict[str, Value] = {}
        for source in self.program.sources:
            owner = self.program.aliases.get(source.name, source.name)
            if source.kind == "parameter" or source.ref.index in learned:
                value = owners.get(owner) or self._parameter(owner, source.shape)
                owners[owner] = value
            else:
                value = self._given(source)
            self.env[source.ref.index] = value
            self.found.values.append(value.axes)
            if owner in self.program.tensors and owner not in self.found.axes:
                self.found.axes[owner] = self._written(source, value)

    def _written(self, source: Source, value: Value) -> tuple[Expr, ...]:
        """Axes to print for a tensor of the state: a constant has nothing to move."""
        if source.kind == "parameter" or not _is_uniform(source.value) or value.origin is not None:
            return value.axes
        cause = f"constant buffer '{source.name}'"
        return tuple(self.solver.fixed(n, cause) for n in source.shape)

    def _parameter(self, name: str, shape: Shape) -> Value:
        """Free axes; those of packed weights may move differently for each index before them."""
        axes: tuple[Expr, ...] = ()
        for n in shape:
            bases = [f for axis in axes for f in axis] if name in self.packed else ()
            axes = (*axes, self.solver.free(n, bases))
        return Value(axes, origin=(name, tuple(range(len(shape)))))

    def _given(self, source: Source) -> Value:
        if source.kind != "input" and _is_uniform(source.value):
            if source.ref.index not in self.mutated:
                return Value(tuple(self.solver.free(n) for n in source.shape), uniform=True,
                             dtype=source.dtype)
            return Value(tuple(self.solver.free(n) for n in source.shape))
        cause = f"{source.kind} '{source.name}'"
        alike = source.kind != "input" and source.ref.index not in self.mutated
        known = alike or source.ref.index in self.read - self.mutated
        content = source.value if known and _small(source.value) else None
        start, counts = numbers_of(source.value) if alike else (None, None)
        still = _still(source.value) if alike else 0
        if still:
            moved = self.solver.fixed(source.shape[0] - still, f"{cause}, axis 0")
            axis = self.solver.cat([moved, self.solver.free(still)])
            return Value((axis,), content=content, dtype=source.dtype)
        return Value(tuple(
            self.solver.free(n) if alike and _repeats(source.value, i)
            else self.solver.fixed(n, f"{cause}, axis {i}")
            for i, n in enumerate(source.shape)), content=content, dtype=source.dtype,
            least=start, counts=counts)

    def _missing(self) -> None:
        """Tensors that the program never mentions: nothing depends on them.

        Where Python reads values, they may be reached with other inputs: nothing is known of them.
        """
        chosen = any(op.name == VALUE_READ for op in self.program.ops)
        for name, (shape, _) in self.program.tensors.items():
            owner = self.program.aliases.get(name, name)
            if owner not in self.found.axes:
                why = "not reached on the path that was recorded, which depends on values"
                axes = tuple(self.solver.fixed(n, why) if chosen else self.solver.free(n)
                             for n in shape)
                self.found.axes[owner] = axes
                self.found.values.append(axes)

    # ------------------------------------------------------------ operations

    def _value(self, ref: Ref) -> Any:
        value = self.env.get(ref.index)
        if isinstance(value, Value) and value.uniform:
            return Value(tuple(self.solver.free(n) for n in value.shape), True, depth=value.depth,
                         dtype=value.dtype, alike=frozenset(range(value.rank)))
        return value

    def _operation(self, op: Op) -> None:
        if op.function is operator.getitem:
            whole = self.env.get(op.args[0].index)
            self.env[op.out.index] = whole[op.args[1]] if whole is not None else None
            return
        if op.name == VALUE_READ:
            self._read(op)
            return
        if op.out.index in self.idle or op.family in IGNORED:
            return
        if all(shape is None for shape in op.shapes):
            return
        self.context.op, self.solver.via = op, op.title
        self.context.used = self.outputs_used.get(op.out.index, frozenset({0}))
        args, kwargs = substitute((op.args, dict(op.kwargs)), self._value)
        inputs = list(tensors_in((args, kwargs)))
        self._guard(op, inputs)
        dull = bool(inputs) and op.family not in _COPIES
        if dull and all(v.fixed and not v.uniform and v.valued is None for v in inputs):
            if always(op, inputs) and op.out.index not in self.mutated:
                everywhere = tuple(self.solver.free(n) for n in op.shapes[0] or ())
                self._bind(op, Value(everywhere, uniform=True), inputs)
                return
            out = self._frozen_outputs(op, max(inputs, key=lambda v: v.depth))
            if isinstance(out, Value):
                out = replace(out, content=self._folded(op), least=least_of(op, inputs),
                              counts=counting(op, out, inputs))
            if keeps_uniform(op.name, op.family):
                self._guess(inputs, out)
            self._bind(op, out, inputs)
            return
        rule = rule_for(op.name, op.family)
        if op.mutates and any(v.valued is not None for v in inputs[:1]):
            rule = None
        if op.mutates and op.family in _RESHAPED_IN_PLACE:
            rule = None  # the argument's own axes change, which a rule cannot say
        if rule is None:
            if not inputs:
                self._bind(op, self._frozen_outputs(op, None), inputs)
            else:
                self._fail(op, inputs, op.name)
            return
        try:
            out = self._shaped(op, rule(self.context, *args, **kwargs), inputs)
        except Exception as error:
            why = str(error) if isinstance(error, Refusal) else f"rule failed: {error!r}"
            self._fail(op, inputs, f"{op.name}: {why}")
            return
        out = carried(op, self._uniform(op, out, inputs), inputs)
        if isinstance(out, Value) and out.content is None:
            out = replace(out, content=self._folded(op))
        self._bind(op, out, inputs)

    def _guard(self, op: Op, inputs: Sequence[Value]) -> None:
        """Indices into an axis are understood by few operations; the others see plain numbers."""
        if op.family in INDEX_SAFE:
            return
        for value in inputs:
            self.context.freeze_valued(value)

    def _folded(self, op: Op) -> torch.Tensor | None:
        """The entries of a small integer tensor computed from constants alone."""
        known = [getattr(self.env.get(ref.index), "content", None) for ref in op.refs()]
        if not known or any(k is None for k in known) or op.many or op.mutates:
            return None
        args, kwargs = substitute((op.args, dict(op.kwargs)),
                                  lambda ref: self.env[ref.index].content)
        try:
            out = op.function(*args, **kwargs)
        except Exception:
            return None
        return out if isinstance(out, torch.Tensor) and _small(out) else None

    def _read(self, op: Op) -> None:
        """The recorded path depends on these values, so nothing in them may move."""
        for value in tensors_in([self._value(ref) for ref in op.refs()]):
            self.context.freeze_valued(value)
            if not value.uniform:
                for axis in value.axes:
                    self.solver.freeze(axis, f"Python reads its values at {op.where or op.title}")

    def _uniform(self, op: Op, out: Any, inputs: Sequence[Value]) -> Any:
        """A constant stays constant under pointwise and shape operations, unless written to."""
        if not isinstance(out, Value):
            return out
        constant = out.uniform or (
            bool(inputs) and all(v.uniform for v in inputs) and keeps_uniform(op.name, op.family)
        )
        constant = constant and op.out.index not in self.mutated
        return replace(out, uniform=constant, origin=None if constant else out.origin)

    def _shaped(self, op: Op, out: Any, inputs: Sequence[Value]) -> Any:
        """The rule's answer as values whose sizes are those that were recorded."""
        if isinstance(out, list) or (isinstance(out, tuple) and not op.many
                                     and not any(isinstance(v, Value) for v in out)):
            out = Value(tuple(out), depth=max((v.depth for v in inputs), default=0))
        values = out if isinstance(out, tuple) else (out,)
        if len(values) != len(op.shapes):
            raise Refusal(f"the rule gives {len(values)} outputs, not {len(op.shapes)}")
        for value, shape in zip(values, op.shapes, strict=True):
            if shape is not None and value.shape != shape:
                raise Refusal(f"the rule gives shape {value.shape}, not {shape}")
        return tuple(values) if op.many else values[0]

    def _bind(self, op: Op, out: Any, inputs: Sequence[Value]) -> None:
        out = self._typed(op, out)
        self.env[op.out.index] = out
        told = (v for v in (*inputs, *tensors_in(out)) if not v.uniform)  # a constant stays itself
        self.found.values += [v.seen for v in told]

    def _typed(self, op: Op, out: Any) -> Any:
        """The output with the types that were recorded; what is written to has no known copies."""
        if isinstance(out, Value):
            return self._typed(op, (out,))[0]
        types = op.dtypes or (None,) * len(out)
        written = op.out.index in self.mutated
        return tuple(
            replace(v, dtype=kind, **(_UNKNOWN if written else {}))
            if isinstance(v, Value) else v for v, kind in zip(out, types, strict=True))

    def _frozen_outputs(self, op: Op, cause: Value | None) -> Any:
        depth = cause.depth if cause else 0
        values = tuple(
            Value(tuple(self.solver.fixed(n, _cause(op, cause, n)) for n in shape or ()),
                  depth=depth)
            for shape in op.shapes
        )
        return values if op.many else values[0]

    def _fail(self, op: Op, inputs: Sequence[Value], what: str) -> None:
        """No rule: everything that the operation touches is frozen, and that is reported."""
        axes = [axis for value in inputs for axis in value.seen]
        lost = self.solver.lost(axes)
        for axis in axes:
            self.solver.freeze(axis, f"unsupported operation {what} at {op.where or op.title}")
        self.losses.append((what, op.where or op.title, lost))
        self.found.values += [value.axes for value in inputs]
        values = tuple(
            Value(tuple(self.solver.fixed(n, f"unsupported operation {what}") for n in shape or ()))
            for shape in op.shapes
        )
        self._guess(inputs, values[0])
        self._bind(op, values if op.many else values[0], inputs)

    def _guess(self, inputs: Sequence[Value], out: Any) -> None:
        for value in inputs if isinstance(out, Value) else ():
            pairs = zip(reversed(value.axes), reversed(out.axes), strict=False)
            self.found.guesses += [(a, b) for a, b in pairs if 1 < length(a) == length(b)]

    # ------------------------------------------------------------ modules with a rule

    def _module(self, ops: Sequence[Op], path: str, name: str) -> None:
        made = {op.out.index for op in ops}
        after = _used_after(self.program, ops)
        refs = dict.fromkeys(ref for op in ops for ref in op.refs() if ref.index not in made)
        sources = {s.ref: s for s in self.program.sources}
        prefix = f"{path}." if path else ""
        inputs: list[Value] = []
        parameters: dict[str, Value] = {}
        for ref in refs:
            source, value = sources.get(ref), self._value(ref)
            if source is not None and source.kind != "input":
                parameters[source.name.removeprefix(prefix)] = value
            elif isinstance(value, Value):
                inputs.append(value)
        outs = [op for op in ops if op.out.index in after and not op.many]
        shapes = tuple(op.shapes[0] for op in outs)
        whole = Op(name, operator.getitem, (), {}, ops[-1].out, shapes, len(outs) > 1,
                   where=ops[0].where, module=path)
        self.context.op, self.solver.via = whole, f"{name.rsplit('.', 1)[-1]} ({path})"
        everything = [*inputs, *parameters.values()]
        try:
            out = module_rules()[name](self.context, inputs, parameters)
            values = self._shaped(whole, out, inputs)
        except Exception as error:
            self._fail(whole, everything, f"{name}: {error}")
            values = self.env[whole.out.index]
        for op, value in zip(outs, values if len(outs) > 1 else (values,), strict=True):
            self._bind(op, value, everything)


def _cause(op: Op, source: Value | None, size: int) -> str:
    """Why an axis computed from fixed values is fixed: because an axis of its size was."""
    if source is None:
        return f"made at {op.title}"
    axes = sorted(source.axes, key=lambda axis: length(axis) != size)
    known = (leaf.cause for axis in axes for leaf in leaves(axis) if leaf.cause)
    return next(known, f"computed from fixed values at {op.title}")


def _repeats(value: torch.Tensor | None, axis: int) -> bool:
    """Whether a constant is the same at each index of an axis, as a blur is for each channel."""
    if value is None or value.is_meta or value.shape[axis] < 2 or value.numel() == 0:
        return False
    return bool((value == value.narrow(axis, 0, 1)).all())


def _still(value: torch.Tensor | None) -> int:
    """How many zeros end a vector of real numbers, as the frequencies of digits that never turn."""
    if value is None or value.is_meta or value.ndim != 1 or not value.is_floating_point():
        return 0
    count = int(value.flip(0).eq(0).cumprod(0).sum())
    return count if 1 < count < len(value) else 0


def _is_uniform(value: torch.Tensor | None) -> bool:
    if value is None or value.numel() < 2 or value.device.type == "meta":
        return False
    return bool((value == value.reshape(-1)[0]).all())


def running_statistics(program: Program) -> set[int]:
    """Values that stand where a norm keeps its running statistics."""
    found = set()
    for op in program.ops:
        for at in _STATISTICS.get(op.family, ()):
            if at < len(op.args) and isinstance(op.args[at], Ref):
                found.add(op.args[at].index)
    return found


def _small(value: torch.Tensor | None) -> bool:
    """Whether the entries of a constant are worth knowing: they may be indices or a mask."""
    return value is not None and value.dtype in _NUMBERS and value.numel() <= 64


def _packed(program: Program) -> set[str]:
    """Parameters whose first axis is taken apart, or is a batch: several weights in one."""
    names = {s.ref: program.aliases.get(s.name, s.name) for s in program.sources
             if s.kind == "parameter" and len(s.shape) > 1}
    found: set[str] = set()
    for op in program.ops:
        least = _UNPACKED.get(op.family)
        for ref in op.refs() if least is not None else ():
            if ref in names and len(program.tensors[names[ref]][0]) >= (least or 0):
                found.add(names[ref])
    return found


def _outputs_used(program: Program) -> dict[int, frozenset[int]]:
    used: dict[int, set[int]] = {}
    read = {ref.index for op in program.ops for ref in op.refs()}
    read |= {ref.index for _, ref in program.outputs}
    for op in program.ops:
        if op.function is operator.getitem and op.out.index in read:
            used.setdefault(op.args[0].index, set()).add(op.args[1])
    return {index: frozenset(numbers) for index, numbers in used.items()}


def _used_after(program: Program, ops: Sequence[Op]) -> set[int]:
    inside = {op.out.index for op in ops}
    used = {ref.index for _, ref in program.outputs}
    for op in program.ops:
        if op.out.index not in inside:
            used |= {ref.index for ref in op.refs()}
    return inside & used


def _leaf_runs(program: Program) -> dict[int, tuple[int, str, str]]:
    """First operation of each call of a module with a rule → (end, path, class)."""
    known = module_rules()
    if not known:
        return {}
    runs: dict[int, tuple[int, str, str]] = {}
    i = 0
    while i < len(program.ops):
        hit = next((pair for pair in program.ops[i].inside if pair[1] in known), None)
        j = i + 1
        if hit is not None:
            while j < len(program.ops) and hit in program.ops[j].inside:
                j += 1
            runs[i] = (j, *hit)
        i = j
    return runs


