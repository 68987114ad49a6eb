"""Running a network's recorded program with any weights, several models in step.

The module itself is never run: a program takes weights as values, frees what it no longer needs,
and lets a hook see and replace what each operation makes, in all models at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metanet.errors import MetanetError, SpaceMismatch
from metanet.symmetry import WeightSpace
from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.rules.source import IGNORED
from metanet.symmetry.values import Spot, spots
from metanet.symmetry.verify import check_names, run_doubled, widened
from metanet.tasks.merge.data import fitted
from metanet.trace.inputs import synthesise
from metanet.trace.program import VALUE_READ, Op, Program, substitute

State: TypeAlias = Mapping[str, Tensor]
Hook: TypeAlias = "Callable[[int, Op, list[tuple[Any, ...]], list[Any]], list[Any]]"
"""(number, operation, its arguments per model, its outputs per model) -> outputs to go on with."""

_VALUES = 200 << 20
"""Bytes that the largest value of one batch may take."""


class Runner:
    """A network without weights.

    Args:
        module: the network; its weights do not matter.
        space: of the models; inferred from the module by default.
        example_inputs: as for ``metanet.infer``; one tensor, for the network is fed one array.
        batch: rows per run; by default as many as 200 MB for the largest value allow.

    Raises:
        MetanetError: the network takes several tensors.
        SpaceMismatch: the space is about other tensors.
    """

    def __init__(
        self, module: nn.Module, space: WeightSpace | None = None, example_inputs: Any = None,
        batch: int | None = None,
    ) -> None:
        self.module = module
        self.example = synthesise(module) if example_inputs is None else example_inputs
        tensors = [x for x in pytree.tree_leaves(self.example) if isinstance(x, Tensor)]
        if len(tensors) != 1:
            raise MetanetError(f"the network takes {len(tensors)} tensors; runs on data are for "
                               "networks of one input. Wrap it in a module that takes one.")
        self.sample: Tensor = tensors[0]
        self._programs: dict[tuple[int, ...], Program] = {}
        self._spots: dict[tuple[int, ...], list[Spot]] = {}
        self._batch = batch
        self.space = self._first_space() if space is None else space
        self.check()

    def _first_space(self) -> WeightSpace:
        return infer_program(self.program(self.sample))

    def check(self) -> None:
        """Whether space and network have the same tensors."""
        try:
            check_names(self.program(self.sample), self.space)
        except SpaceMismatch as error:
            raise SpaceMismatch(f"the space does not fit the network to run: {error}") from error

    # ------------------------------------------------------------ programs

    def program(self, x: Tensor) -> Program:
        """The program for inputs of this shape."""
        key = tuple(x.shape)
        if key not in self._programs:
            inputs = pytree.tree_map_only(Tensor, lambda _: x, self.example)
            self._programs[key] = record(self.module, inputs)
        return self._programs[key]

    def spots(self, x: Tensor) -> list[Spot]:
        """Where groups are seen, for inputs of this shape."""
        key = tuple(x.shape)
        if key not in self._spots:
            self._spots[key] = spots(self.program(x), self.space)
        return self._spots[key]

    @cached_property
    def _widest(self) -> float:
        """Bytes of the largest value per row and per entry of a row."""
        program, rows = self.program(self.sample), max(len(self.sample), 1)
        sizes = [prod(shape) for op in program.ops for shape in op.shapes if shape]
        return 4 * max([*sizes, self.sample.numel()]) / rows / max(self.sample[0].numel(), 1)

    def batches(self, x: Tensor) -> Iterator[Tensor]:
        """Rows in the layout of the network: equal batches, then what is left."""
        x = fitted(x, self.sample)
        size = self._batch or max(2, int(_VALUES / (self._widest * max(x[0].numel(), 1))))
        if size < len(x) <= 64 * size:  # equal parts are recorded once
            parts = -(-len(x) // size)
            size = next((len(x) // p for p in range(parts, 2 * parts + 1) if len(x) % p == 0), size)
        for start in range(0, len(x), size):
            yield x[start : start + size]

    # ------------------------------------------------------------ running

    def outputs(self, state: State, x: Tensor, hook: Hook | None = None) -> Tensor:
        """First output of the network with these weights, for all rows."""
        return torch.cat([self.lockstep([state], batch, hook)[0] for batch in self.batches(x)])

    def lockstep(
        self, states: Sequence[State], x: Tensor, hook: Hook | None = None
    ) -> list[Tensor]:
        """First output of each model on one batch; ``hook`` sees every operation of all of them."""
        program = self.program(x)
        last = _last_uses(program)
        models = [self._sources(program, state, x) for state in states]
        with torch.no_grad(), torch.random.fork_rng(devices=[]), same_noise():
            for at, op in enumerate(program.ops):
                if op.name == VALUE_READ:
                    continue
                self._step(at, op, models, hook)
                for index in last.get(at, ()):
                    for env in models:
                        env.pop(index, None)
        return [_tensor(env[program.outputs[0][1].index]) for env in models]

    def doubled(self, states: Sequence[State], x: Tensor) -> list[Tensor]:
        """First output of each model in float64 with all casts to smaller floats lifted."""
        program, outs = self.program(x), []
        for state in states:
            values = {name: widened(self.value(state, name, program)) for name in program.tensors}
            for source in program.sources:
                if source.name not in values and source.value is not None:
                    given = x if source.kind == "input" and source.shape == tuple(x.shape) else None
                    values[source.name] = widened(source.value if given is None else given)
            outs.append(_tensor(run_doubled(program, values)[0]))
        return outs

    @staticmethod
    def _step(at: int, op: Op, models: list[dict[int, Any]], hook: Hook | None) -> None:
        calls = [_arguments(op, env) for env in models]
        if op.family in IGNORED:
            outs: list[Any] = [None for _ in calls]
        else:
            outs = [op.function(*args, **kwargs) for args, kwargs in calls]
        if hook is not None:
            outs = hook(at, op, [args for args, _ in calls], outs)
        for env, out in zip(models, outs, strict=True):
            env[op.out.index] = out

    def _sources(self, program: Program, state: State, x: Tensor) -> dict[int, Any]:
        env: dict[int, Any] = {}
        for source in program.sources:
            value = source.value
            if source.kind == "input":
                value = x if source.shape == tuple(x.shape) else value
            elif source.name in program.tensors:
                value = as_float(self.value(state, source.name, program))
            elif source.name in state:
                value = state[source.name]
            env[source.ref.index] = value.clone() if isinstance(value, Tensor) else value
        return env

    def value(self, state: State, name: str, program: Program) -> Tensor:
        """A tensor by the program's name for it; a file may know one name of a tied tensor."""
        owner = program.aliases.get(name, name)
        names = (name, owner, *(a for a, o in program.aliases.items() if o == owner))
        for known in names:
            if known in state:
                return state[known]
        raise SpaceMismatch(f"tensor {name!r} of the network is not among the model's")


def _arguments(op: Op, env: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = substitute((op.args, dict(op.kwargs)), lambda ref: env[ref.index])
    return args, kwargs


@contextmanager
def same_noise() -> Iterator[None]:
    """A network that draws noise draws the same at each run."""
    torch.manual_seed(0)
    yield


def as_float(tensor: Tensor) -> Tensor:
    """In single precision, for half precision is slow and rough on a CPU; doubles stay."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.detach().float()


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise MetanetError("the network's first output is no tensor, so it cannot be scored")
    return value


def _last_uses(program: Program) -> dict[int, list[int]]:
    """Number of an operation → values that nobody needs after it."""
    last: dict[int, int] = {}
    for at, op in enumerate(program.ops):
        last[op.out.index] = at
        for ref in op.refs():
            last[ref.index] = at
    for _, ref in program.outputs:
        last.pop(ref.index, None)
    found: dict[int, list[int]] = {}
    for index, at in last.items():
        found.setdefault(at, []).append(index)
    return found
