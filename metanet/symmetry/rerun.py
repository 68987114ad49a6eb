"""Running a program again after a few of its sources have changed: only what depends on them.

A proof runs one network hundreds of times, each time with one tensor moved. What does not depend
on that tensor is kept from the first run, as far as memory allows. The results are those of a
whole run, bit for bit: programs for which that is not certain (values written to through views,
random numbers) are run whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        self.reads = [tuple(ref.index for ref in op.refs())
                      for op in (self.pure.ops if self.pure else ())]
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
        for op, reads in zip(self.pure.ops, self.reads, strict=True):
            if op.name != VALUE_READ and not env.keys().isdisjoint(reads):
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
    size, kept = 0, True
    last = program.last_uses()
    places = _Places()
    for index, value in env.items():
        places.add(index, value)
    for at, op in enumerate(program.ops):
        if op.name == VALUE_READ:
            continue
        if op.mutates and places.shared(op.args[0].index, env, at, last):
            raise _Shared
        out = env[op.out.index] = _call(op, env, env, call)
        places.add(op.out.index, out)
        size += _bytes(out)
        if kept and size > _KEPT_BYTES:
            kept = False
            places.forget([i for i in env if last.get(i, -1) <= at], env)
        elif not kept:
            used = {op.out.index, *(ref.index for ref in op.refs())}
            places.forget([i for i in used if last.get(i, -1) <= at], env)
    return [env[ref.index] for _, ref in program.outputs], env if kept else None


class _Places:
    """Which values lie in which piece of memory."""

    def __init__(self) -> None:
        self.values: dict[int, set[int]] = {}

    def add(self, index: int, value: Any) -> None:
        for place in _memory(value):
            self.values.setdefault(place, set()).add(index)

    def shared(self, written: int, env: Mapping[int, Any], at: int, last: Mapping[int, int]
               ) -> bool:
        """Whether what is written lies where a value lies that is used after operation ``at``."""
        others = {i for place in _memory(env[written]) for i in self.values.get(place, ())}
        return any(last.get(i, -1) > at for i in others - {written})

    def forget(self, indices: Sequence[int], env: dict[int, Any]) -> None:
        """Values that nobody needs any more."""
        for index in indices:
            for place in _memory(env.pop(index, None)):
                self.values.get(place, set()).discard(index)


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
