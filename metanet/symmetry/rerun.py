"""Running a program again after a few of its sources have changed: only what depends on them.

A proof runs one network hundreds of times, each time with one tensor moved. What does not depend
on that tensor is kept from the first run, as far as memory allows. The results are those of a
whole run, bit for bit: programs for which that is not certain (values written to through views,
random numbers) are run whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metanet.trace.program import VALUE_READ, Call, Op, Program, Ref, substitute

_KEPT_BYTES = 1_500_000_000


class Rerun:
    """A program with the values of one run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.pure = functional(program)
        self.base: dict[int, Any] | None = None

    def run(self, values: Mapping[str, Tensor], call: Call) -> list[Any]:
        """All of the program; the values are kept for ``again``."""
        self.base = None
        if self.pure is None:
            return self.program.run(values, call)
        kept: dict[int, Any] = {}
        for source in self.pure.sources:
            kept[source.ref.index] = values.get(source.name, source.value)
        try:
            outputs, self.base = _execute(self.pure, kept, call)
        except _Shared:
            self.pure = None
            return self.program.run(values, call)
        return outputs

    def again(
        self, values: Mapping[str, Tensor], changed: frozenset[str], call: Call
    ) -> list[Any]:
        """Outputs with other values of the sources named in ``changed``, all else as before."""
        if self.pure is None or self.base is None:
            return self.program.run(values, call)
        env: dict[int, Any] = {}
        for source in self.pure.sources:
            if source.name in changed:
                env[source.ref.index] = values[source.name]
        for op in self.pure.ops:
            if op.name != VALUE_READ and any(ref.index in env for ref in op.refs()):
                out = _call(op, env, self.base, call)
                if not _same(out, self.base[op.out.index]):
                    env[op.out.index] = out
        return [env.get(ref.index, self.base[ref.index]) for _, ref in self.pure.outputs]


def functional(program: Program) -> Program | None:
    """The same program with a new number for each value that is written to, from then on.

    None where numbers are drawn at random, or where an operation writes to several arguments.
    """
    names: dict[int, int] = {}
    ops: list[Op] = []
    for op in program.ops:
        if _random(op):
            return None
        args, kwargs = _renamed(op, names)
        ops.append(replace(op, args=args, kwargs=kwargs))
        if not op.mutates:
            continue
        first = op.args[0] if op.args else None
        if not isinstance(first, Ref) or not _writes_first_only(op):
            return None
        names |= {old: op.out.index for old, new in names.items() if new == args[0].index}
        names[first.index] = op.out.index
    outputs = tuple((name, Ref(names.get(ref.index, ref.index))) for name, ref in program.outputs)
    return replace(program, ops=tuple(ops), outputs=outputs)


def _renamed(op: Op, names: Mapping[int, int]) -> Any:
    return substitute((op.args, dict(op.kwargs)), lambda ref: Ref(names.get(ref.index, ref.index)))


def _random(op: Op) -> bool:
    tags = getattr(op.function, "tags", ())
    if torch.Tag.nondeterministic_seeded not in tags:
        return False
    return "dropout" not in op.family  # drawn in training only


def _writes_first_only(op: Op) -> bool:
    schema = getattr(op.function, "_schema", None)
    if schema is None or not schema.arguments:
        return False
    written = [i for i, a in enumerate(schema.arguments)
               if a.alias_info is not None and a.alias_info.is_write]
    return written == [0]


class _Shared(Exception):
    """A value that is written to shares memory with one that is used later."""


def _execute(program: Program, env: dict[int, Any], call: Call
             ) -> tuple[list[Any], dict[int, Any] | None]:
    """Outputs, and all values if they are not too large to keep."""
    size = 0
    base: dict[int, Any] | None = env
    last = _last_uses(program)
    for at, op in enumerate(program.ops):
        if op.name == VALUE_READ:
            continue
        if op.mutates:
            _check_alone(op, at, env, last)
        out = _call(op, env, env, call)
        env[op.out.index] = out
        size += _bytes(out)
        if size > _KEPT_BYTES:
            base = None
    return [env[ref.index] for _, ref in program.outputs], base


def _last_uses(program: Program) -> dict[int, int]:
    last: dict[int, int] = {}
    for at, op in enumerate(program.ops):
        last |= dict.fromkeys((ref.index for ref in op.refs()), at)
    return last | dict.fromkeys((ref.index for _, ref in program.outputs), len(program.ops))


def _check_alone(op: Op, at: int, env: Mapping[int, Any], last: Mapping[int, int]) -> None:
    written = op.args[0].index
    memory = set(_memory(env[written]))
    for index, value in env.items():
        if index != written and last.get(index, -1) > at and memory & set(_memory(value)):
            raise _Shared


def _memory(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        return [value.untyped_storage().data_ptr()] if value.numel() else []
    return [p for part in value for p in _memory(part)] if isinstance(value, (tuple, list)) else []


def _call(op: Op, env: Mapping[int, Any], base: Mapping[int, Any], call: Call) -> Any:
    def value(ref: Ref) -> Any:
        return env[ref.index] if ref.index in env else base[ref.index]

    args, kwargs = substitute((op.args, dict(op.kwargs)), value)
    if op.mutates:  # what is kept must stay what it was
        args = (args[0].clone(), *args[1:])
    return call(op, args, kwargs)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return 0 if value._is_view() else value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) if not isinstance(a, Tensor) and not isinstance(b, Tensor) else False
