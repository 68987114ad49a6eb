"""A traced network as a flat stream of operations, whatever front end recorded it.

A ``Program`` is pure: ``run`` is a function of its sources. Rules read it, ``verify`` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
VALUE_READ = "python.read"
"""Name of the operation by which Python looks at values, so that what is recorded may depend on
them; it has no output and is not run."""

_SAME_ENTRIES = frozenset({
    "aten.reshape", "aten.contiguous", "aten.to", "aten.flatten", "aten._reshape_alias",
})
"""Operations that copy or do not, as they like."""

Call = Callable[["Op", tuple[Any, ...], dict[str, Any]], Any]
"""How to run one operation on real arguments."""


@dataclass(frozen=True, slots=True)
class Ref:
    """The value number ``index`` of a program, as it stands in the arguments of an operation."""

    index: int


@dataclass(frozen=True, slots=True)
class Source:
    """A value that no operation makes.

    ``kind`` is ``parameter``, ``buffer``, ``constant`` or ``input``. ``value`` is the real tensor
    of a buffer or constant and the example of an input; parameters have none, only a shape.
    """

    ref: Ref
    kind: str
    name: str
    shape: Shape
    dtype: torch.dtype
    value: Tensor | None = field(default=None, compare=False)
    persistent: bool = True


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    ``name`` is ``namespace.op.overload``; ``shapes`` has the shape of each output (None where an
    output is no tensor), ``many`` tells a tuple of outputs from a single one; ``where`` is the
    source line, ``module`` the path of the module and ``inside`` all (path, class) around it;
    ``dtypes`` those of the outputs, where they are known.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Ref
    shapes: tuple[Shape | None, ...]
    many: bool = False
    mutates: bool = False
    where: str = ""
    module: str = ""
    inside: tuple[tuple[str, str], ...] = ()
    dtypes: tuple[torch.dtype | None, ...] = ()

    @property
    def family(self) -> str:
        """The name without overload and without the underscore of an in-place variant."""
        namespace, op = (self.name.split(".") + [""])[:2]
        return f"{namespace}.{op.rstrip('_') if self.mutates else op}"

    @property
    def title(self) -> str:
        """How reports call this operation: ``linear (fc1)``."""
        short = self.family.removeprefix("aten.")
        return f"{short} ({self.module})" if self.module else short

    @property
    def writes(self) -> bool:
        """Whether entries change; ``detach_`` is called in-place and leaves them alone."""
        return self.mutates and self.family != "aten.detach"

    @property
    def written(self) -> list[Ref]:
        """The arguments whose entries change."""
        schema = getattr(self.function, "_schema", None)
        if schema is None or not self.writes:
            return []
        told = [(a.name, i) for i, a in enumerate(schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write]
        return list(refs_in([self.args[i] if i < len(self.args) else self.kwargs.get(name)
                             for name, i in told]))

    @property
    def shares(self) -> bool:
        """Whether the output may share memory with the first argument."""
        schema = getattr(self.function, "_schema", None)
        if schema is None or self.family in _SAME_ENTRIES:
            return True
        return any(r.alias_info is not None for r in schema.returns)

    def refs(self) -> list[Ref]:
        """The values among the arguments, in order."""
        return list(refs_in((self.args, dict(self.kwargs))))


@dataclass(frozen=True, slots=True)
class Program:
    """Sources, operations in order, and outputs with their names.

    ``tensors`` lists name → (shape, dtype) of every floating tensor of the module's state;
    ``aliases`` maps tied names to the name that owns the values; ``front_end`` says who recorded.
    ``recorded`` has the weights with which one was recorded that may depend on them.
    """

    sources: tuple[Source, ...]
    ops: tuple[Op, ...]
    outputs: tuple[tuple[str, Ref], ...]
    tensors: Mapping[str, tuple[Shape, torch.dtype]]
    aliases: Mapping[str, str]
    front_end: str = "export"
    recorded: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    def run(
        self, values: Mapping[str, Tensor], call: Call | None = None
    ) -> list[Any]:
        """Outputs for these source values, by name (clones are fed: nothing given is changed).

        ``call`` may replace how one operation is run. Sources that ``values`` lacks take their
        recorded value.
        """
        env: dict[int, Any] = {}
        for source in self.sources:
            value = values.get(source.name, source.value)
            env[source.ref.index] = value.clone() if isinstance(value, Tensor) else value
        last = self.last_uses()
        for at, op in enumerate(self.ops):
            if op.name == VALUE_READ:
                continue
            args, kwargs = substitute((op.args, dict(op.kwargs)), lambda r: env[r.index])
            env[op.out.index] = (
                call(op, args, kwargs) if call else op.function(*args, **kwargs)
            )
            for index in (*(ref.index for ref in op.refs()), op.out.index):
                if last.get(index, -1) <= at:  # nobody needs it any more
                    env.pop(index, None)
        return [env[ref.index] for _, ref in self.outputs]

    def last_uses(self) -> dict[int, int]:
        """For each value, the place in ``ops`` of the last that uses it; outputs are used after."""
        last: dict[int, int] = {}
        for at, op in enumerate(self.ops):
            if op.name != VALUE_READ:
                last |= dict.fromkeys((ref.index for ref in op.refs()), at)
        return last | dict.fromkeys((ref.index for _, ref in self.outputs), len(self.ops))

    def live(self) -> frozenset[int]:
        """Numbers of the values that some output depends on, written through views included."""
        place: dict[int, int] = {}
        for op in self.ops:
            first = next(refs_in(op.args), None) if op.shares else None
            if first is not None:
                place[op.out.index] = place.get(first.index, first.index)
        live = {ref.index for _, ref in self.outputs}
        places = {place.get(index, index) for index in live}
        for op in reversed(self.ops):
            refs = [ref.index for ref in op.refs()]
            written = [place.get(ref.index, ref.index) for ref in op.written]
            if op.out.index in live or not places.isdisjoint(written):
                live.update(refs)
                places.update(place.get(index, index) for index in refs)
        return frozenset(live)


def refs_in(tree: Any) -> Iterator[Ref]:
    """All refs in a tree of arguments."""
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from refs_in(part)
    elif isinstance(tree, dict):
        yield from refs_in(list(tree.values()))


def substitute(tree: Any, function: Callable[[Ref], Any]) -> Any:
    """The tree with each ref replaced by ``function(ref)``."""
    if isinstance(tree, Ref):
        return function(tree)
    if isinstance(tree, dict):
        return {key: substitute(part, function) for key, part in tree.items()}
    if isinstance(tree, slice):
        return tree
    if isinstance(tree, (tuple, list)):
        parts = [substitute(part, function) for part in tree]
        return tuple(parts) if isinstance(tree, tuple) else parts
    return tree


def substitute_leaves(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """The tree with each leaf of one type replaced."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, dict):
        return {key: substitute_leaves(part, kind, function) for key, part in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(substitute_leaves(part, kind, function) for part in tree)
    return tree
