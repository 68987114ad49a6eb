"""What a rule sees: values with symbolic axes, and the few things it may do with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from metanet.symmetry.factor import Expr, Factor, all_fixed, atoms, length
from metanet.symmetry.solve import Solver
from metanet.trace.program import Op, Shape


class Refusal(Exception):
    """A rule cannot say what an operation does: all that it touches is frozen."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor whose axes are products of factors.

    ``uniform`` marks a constant (zeros, ones): each use sees fresh axes. ``origin`` is the
    parameter that this value is, with the parameter's axis for each axis here. ``depth`` counts
    the weighted layers before it. ``valued`` marks integers that are indices into an axis: where
    that axis moves, they move with it. ``through`` marks rows (axis 0) that were read by such
    indices: (the axis, which indices); what depends on the axis may differ from row to row.
    ``content`` has the entries of a small integer constant, ``dtype`` is the type if known, and
    ``alike`` lists axes along which all entries are equal because they are copies of one. No entry
    is below ``least``, whatever the sizes of the inputs. Along axis ``counts`` the entries are
    0, 1, 2, …, and along all others they are copies.
    """

    axes: tuple[Expr, ...]
    uniform: bool = False
    origin: tuple[str, tuple[int | None, ...]] | None = None
    depth: int = 0
    valued: Expr | None = None
    through: tuple[Expr, int] | None = None
    content: Tensor | None = field(default=None, compare=False)
    dtype: torch.dtype | None = field(default=None, compare=False)
    alike: frozenset[int] = field(default=frozenset(), compare=False)
    least: int | None = field(default=None, compare=False)
    counts: int | None = field(default=None, compare=False)

    @property
    def seen(self) -> tuple[Expr, ...]:
        """All axes on which entries may depend, those that indices point into included."""
        rows = () if self.through is None else (self.through[0],)
        return (*self.axes, *rows, *(() if self.valued is None else (self.valued,)))

    @property
    def shape(self) -> Shape:
        """Sizes of the axes."""
        return tuple(length(axis) for axis in self.axes)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def fixed(self) -> bool:
        """Whether no axis can move."""
        return all(all_fixed(axis) for axis in self.axes)


Axes: TypeAlias = Sequence[Expr]


@dataclass(frozen=True, slots=True)
class Weighted:
    """A parameter that maps the neurons of one axis to those of another."""

    name: str
    out_axes: tuple[int, ...]
    in_axes: tuple[int, ...]
    depth: int


class Context:
    """Handed to every rule; ``op`` is the operation at hand and ``shapes`` its output shapes."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.op: Op | None = None
        self.observed: list[tuple[Expr, ...]] = []
        self.weighted: list[Weighted] = []
        self.roles: dict[str, str] = {}
        self.depths: dict[str, int] = {}
        self.activations: list[tuple[Expr, str]] = []
        self.residuals: list[tuple[Expr, Expr]] = []
        self.used: frozenset[int] = frozenset()
        self.given: frozenset[int] = frozenset()  # sizes of the inputs
        self.tokens: dict[int, tuple[int, Value]] = {}  # the value is kept so that its id stays

    # ------------------------------------------------------------ for rules

    @property
    def shapes(self) -> tuple[Shape | None, ...]:
        """Shapes of the outputs of this operation."""
        return self.op.shapes if self.op else ()

    @property
    def shape(self) -> Shape:
        """Shape of the only output."""
        shape = self.shapes[0] if self.shapes else None
        if shape is None:
            raise self.refuse("it has no tensor output")
        return shape

    def refuse(self, why: str) -> Refusal:
        """The exception that freezes everything this operation touches."""
        return Refusal(why)

    def tie(self, a: Expr, b: Expr) -> None:
        """These two axes move together, index by index."""
        if length(a) != length(b):
            raise self.refuse(f"axes of sizes {length(a)} and {length(b)} meet")
        self.solver.tie(a, b)

    def tie_all(self, exprs: Iterable[Expr]) -> None:
        """All these axes move together."""
        first, *rest = exprs
        for other in rest:
            self.tie(first, other)

    def free(self, size: int, bases: Sequence[Factor] = ()) -> Expr:
        """A new axis that may move."""
        return self.solver.free(size, bases)

    def fixed(self, size: int, why: str | None = None) -> Expr:
        """A new axis that cannot move."""
        return self.solver.fixed(size, f"{why or 'made'} at {self.solver.via}")

    def freeze(self, axis: Expr, why: str) -> None:
        """This axis cannot move; ``why`` is what ``explain`` prints."""
        self.solver.freeze(axis, f"{why} at {self.solver.via}")

    def freeze_valued(self, value: Value) -> None:
        """The numbers themselves count: what they are indices into cannot move."""
        if value.valued is not None:
            self.freeze(value.valued, "indices into it are used")

    def split(self, axis: Expr, *sizes: int) -> list[Expr]:
        """The digits of an axis, major to minor; refuses where they do not fit."""
        if not length(axis):  # no entries: nothing to tell apart
            return [self.fixed(size, "nothing is taken") for size in sizes]
        out: list[Expr] = []
        left = axis
        for size in reversed(sizes):
            halves = self.solver.split_product(left, size)
            if halves is None:
                raise self.refuse(f"an axis of {length(axis)} has no digits {sizes}")
            left = halves[0]
            out.insert(0, halves[1])
        return out

    def regroup(self, axes: Axes, shape: Sequence[int]) -> list[Expr]:
        """The same entries under another shape (view)."""
        return self.solver.regroup(axes, shape)

    def cut(self, axes: Axes, dim: int, lo: int, hi: int) -> list[Expr]:
        """Axes of the part ``lo <= i < hi`` of axis ``dim``."""
        return self.solver.cut_axes(axes, dim, lo, hi)

    def cat(self, parts: Sequence[Expr]) -> Expr:
        """Axes behind each other."""
        return self.solver.cat(parts)

    def stack_cases(self, values: Sequence[Expr]) -> tuple[Expr, Expr]:
        """A new fixed axis, and the axis that is ``values[k]`` at its index k."""
        base = self.solver.cat([() for _ in values])
        return base, self.solver.cases(base, [() for _ in values], values)

    def token(self, value: Value) -> int:
        """A number for these indices: the same for the same tensor, however often it is used."""
        return self.tokens.setdefault(id(value), (len(self.tokens), value))[0]

    def observe(self, axes: Axes) -> None:
        """A tensor with these axes takes part in the computation, though nobody names it."""
        self.observed.append(tuple(axes))

    def mix(self, value: Value | Axes, dims: Iterable[int]) -> None:
        """The operation mixes entries along ``dims``: no other axis may depend on their index."""
        axes = value.axes if isinstance(value, Value) else value
        gone = {dim % len(axes) for dim in dims}
        self.observe([axis for dim, axis in enumerate(axes) if dim not in gone])

    def weight(self, value: Value, outs: Sequence[int], ins: Sequence[int], depth: int,
               role: str = "weight") -> None:
        """Note for Meta that ``value`` (if a parameter) maps axes ``ins`` to axes ``outs``."""
        if value.origin is None:
            return
        name, axes = value.origin
        out_axes, in_axes = (
            tuple(sorted({a for a in (axes[i] for i in dims) if a is not None}))
            for dims in (outs, ins)
        )
        self.weighted.append(Weighted(name, out_axes, in_axes, depth))
        self.roles.setdefault(name, role)
        self.depths.setdefault(name, depth)

    def role(self, value: Value | None, role: str, depth: int) -> None:
        """Note for Meta what a parameter is for."""
        if value is not None and value.origin is not None:
            self.roles.setdefault(value.origin[0], role)
            self.depths.setdefault(value.origin[0], depth)

    def counted(self, value: Value, at: int, index: Value) -> bool:
        """Whether ``index`` counts through all of axis ``at`` of a value, whatever the inputs.

        A table that happens to be as long as an input is not read whole for longer ones.
        """
        if index.counts is None:
            return False
        size = length(value.axes[at])
        chance = value.origin is not None and size in self.given
        return length(index.axes[index.counts]) == size and not chance

    def counted_axes(self, x: Value, used: Sequence[int], picked: Sequence[Value]
                     ) -> dict[int, int]:
        """Axes of ``x`` that indices count through → the axis of all indices together."""
        rank = max(value.rank for value in picked)
        return {i: v.counts + rank - v.rank for i, v in zip(used, picked, strict=True)
                if v.counts is not None and self.counted(x, i, v)}

    def uses(self, output: int) -> bool:
        """Whether output number ``output`` of this operation is used by another."""
        return output in self.used


def bases_of(axes: Iterable[Expr]) -> list[Factor]:
    """All digits of some axes, as bases of a new one."""
    return [atom for axis in axes for atom in atoms(axis)]


def with_axes(value: Value, axes: Axes) -> Value:
    """A value that is no parameter any more, with other axes."""
    return replace(value, axes=tuple(axes), uniform=False, origin=None)
