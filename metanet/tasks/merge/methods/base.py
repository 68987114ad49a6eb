"""What every method of merging shares: its parameters, and one tensor of all models in blocks.

A method sees tensors as flat blocks of bounded size, so that its memory does not grow with the
tensor. Block borders are fixed, so the result does not depend on where the tensors come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from metanet.errors import MetanetError

BLOCK = 1 << 16  # elements: a handful of blocks in float32 fits a cache of a MiB or two
Number = float | int | bool
Block = Float[Tensor, " b"]


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes: ``each`` model its own, or one for the whole tensor.

    ``default`` None: it must be given. ``low`` and ``high`` are allowed values, too.
    """

    name: str
    default: Number | None
    each: bool = False
    low: float = float("-inf")
    high: float = float("inf")
    kind: type = float

    def check(self, value: object) -> Number:
        """The value as a number of the right kind. Raises MetanetError."""
        fits = isinstance(value, bool) if self.kind is bool else (
            isinstance(value, int | float) and not isinstance(value, bool))
        if not fits or not self.low <= value <= self.high:  # type: ignore[operator]
            limits = f" from {self.low:g} to {self.high:g}" if self.kind is not bool else ""
            raise MetanetError(f"parameter {self.name!r} must be a {self.kind.__name__}{limits}, "
                               f"not {value!r}")
        return self.kind(value)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Values:
    """Parameters of one tensor: ``whole`` ones, and of ``each`` model in turn."""

    whole: Mapping[str, Number]
    each: Sequence[Mapping[str, Number]]

    def of(self, name: str) -> list[float]:
        """One parameter of all models."""
        return [float(values[name]) for values in self.each]


class Stack:
    """One tensor of all models, and of the base where there is one, seen in blocks.

    Args:
        models: the tensor in each model, of one shape; never written to.
        base: the same in the base model.
        name: of the tensor; random numbers depend on it.
        seed: of random numbers.
    """

    def __init__(self, models: Sequence[Tensor], base: Tensor | None = None, name: str = "",
                 seed: int = 0) -> None:
        shapes = {tuple(t.shape) for t in (*models, *([] if base is None else [base]))}
        if len(shapes) != 1:
            raise MetanetError(f"tensor {name!r} has different shapes: {sorted(shapes)}")
        every = [*models, *([] if base is None else [base])]
        wide = any(t.dtype == torch.float64 for t in every)
        self.dtype = torch.float64 if wide else torch.float32
        self.models = [t.reshape(-1) for t in models]
        self.base = None if base is None else base.reshape(-1)
        self.numel = self.models[0].numel()
        self.name, self.seed = name, seed

    def blocks(self) -> Iterator[list[Block]]:
        """The models, block by block, in the dtype of computation: copies that may be written to,
        and that the next block overwrites."""
        yield from self._copies(self.models)

    def with_base(self) -> Iterator[tuple[list[Block], Block]]:
        """Task vectors (model minus base, exact up to rounding in float32) and base, by block, in
        copies as of ``blocks``."""
        if self.base is None:
            raise MetanetError("task vectors need a base model")
        for base, *deltas in self._copies([self.base, *self.models]):
            for delta in deltas:
                delta.sub_(base)
            yield deltas, base

    def _copies(self, tensors: Sequence[Tensor]) -> Iterator[list[Block]]:
        # The same few buffers for all blocks: they stay in the cache.
        held = [torch.empty(min(self.numel, BLOCK), dtype=self.dtype) for _ in tensors]
        for at in range(0, self.numel, BLOCK):
            size = min(BLOCK, self.numel - at)
            yield [buffer[:size].copy_(t[at:at + size])
                   for buffer, t in zip(held, tensors, strict=True)]

    def vectors(self) -> Iterator[list[Block]]:
        """Task vectors where there is a base, else the models."""
        if self.base is None:
            yield from self.blocks()
        else:
            yield from (deltas for deltas, _ in self.with_base())

    def sample(self, count: int) -> list[Block]:
        """About ``count`` elements of each of ``vectors``, evenly spaced; none where all are few.

        The step is odd, lest it meets one column of a matrix only.
        """
        step = (self.numel // count) | 1
        if self.numel < 4 * count or self.base is None:
            return []
        base = self.base[::step].to(self.dtype)
        return [t[::step].to(self.dtype) - base for t in self.models]

    def generator(self, model: int) -> torch.Generator:
        """Random numbers of one tensor of one model: the same in whatever order tensors come."""
        key = hashlib.sha256(repr((self.seed, self.name, model)).encode("utf-8",
                                                                        "backslashreplace"))
        return torch.Generator().manual_seed(int.from_bytes(key.digest()[:7], "little"))


Run = Callable[[Stack, Values], Iterator[Block]]


@dataclass(frozen=True)
class Method:
    """A way to merge.

    Attributes:
        name: as recipes spell it.
        run: blocks of the merged tensor, in order; each is valid until the next one.
        parameters: what it takes.
        base: whether it needs a base model (None: it may have one).
        models: least and greatest number of models, the base not counted.
        source: the paper of its formula.
        element_wise: whether every element depends on that element of the models alone, once
            thresholds are known: then memory does not depend on the number of models.
        random: whether the result depends on a seed.
    """

    name: str
    run: Run
    parameters: tuple[Parameter, ...] = ()
    base: bool | None = False
    models: tuple[int, int] = (1, 1 << 16)
    source: str = ""
    element_wise: bool = True
    random: bool = False

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, or None."""
        return next((p for p in self.parameters if p.name == name), None)

    def values(self, whole: Mapping[str, object], each: Sequence[Mapping[str, object]]) -> Values:
        """Checked parameters with defaults filled in. Raises MetanetError."""
        return Values({p.name: _one(p, whole, self.name) for p in self.parameters if not p.each},
                      [{p.name: _one(p, given, self.name) for p in self.parameters if p.each}
                       for given in each])

    def __call__(self, stack: Stack, values: Values) -> Tensor:
        """The merged tensor, flat, in the dtype of computation."""
        parts = [block.clone() for block in self.run(stack, values)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=stack.dtype)


def _one(parameter: Parameter, given: Mapping[str, object], method: str) -> Number:
    value = given.get(parameter.name, parameter.default)
    if value is None:
        raise MetanetError(f"method {method!r} needs the parameter {parameter.name!r}"
                           f"{' of every model' if parameter.each else ''}")
    return parameter.check(value)


def normalized(weights: Sequence[float], method: str) -> list[float]:
    """Weights that sum to one. Raises MetanetError where their sum is zero."""
    total = sum(weights)
    if abs(total) < 1e-12:
        raise MetanetError(f"the weights of {method!r} sum to zero; give others, or "
                           "normalize: false")
    return [w / total for w in weights]


def combine(blocks: Sequence[Block], weights: Sequence[float]) -> Block:
    """Weighted sum of blocks, from left to right, in the first of them."""
    first, *rest = blocks
    out = first if weights[0] == 1 else first.mul_(weights[0])
    for block, weight in zip(rest, weights[1:], strict=True):
        out.add_(block, alpha=weight)
    return out


WEIGHT = Parameter("weight", None, each=True)
LAMBDA = Parameter("lambda", 1.0)
DENSITY = Parameter("density", 1.0, each=True, low=0.0, high=1.0)


def switch(name: str, default: bool) -> Parameter:
    """A parameter that is on or off."""
    return Parameter(name, default, kind=bool, low=0, high=1)
