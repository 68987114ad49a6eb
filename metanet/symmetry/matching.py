"""Weight matching: the element that brings one checkpoint closest to another, and the distance.

Coordinate descent on the sum over tensors of ``<a, g b>`` (Ainsworth et al., "Git Re-Basin", ICLR
2023), for any space: fibred groups by nested assignment, signs by the sign of the gain, rotations
by orthogonal Procrustes. Gains are summed in float64, and an assignment is kept unless another is
better by more than the rounding of the products, so the objective never falls.

Running statistics take no part in objective or distance (they follow their neurons); nor do
integer tensors. An alias counts once. Groups of kind positive are permuted, not rescaled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.symmetry.action import act, check
from metanet.symmetry.assign import assign
from metanet.symmetry.element import GroupElement
from metanet.symmetry.gains import Gains, family, moved_view
from metanet.symmetry.group import Group
from metanet.symmetry.inputs import Weights, tensors_of
from metanet.symmetry.kinds import PERMUTING, ROTATING
from metanet.symmetry.remembered import Memory
from metanet.symmetry.space import WeightSpace
from metanet.symmetry.starts import grown_start, kicked_start

# What a step must gain, as a share of the norms: above the rounding of the products.
_EPS = {torch.float32: 1e-6, torch.float64: 1e-12}
# Where a group meets itself in a tensor, the linear gain may overshoot: then the old places are
# made dearer by these shares (they add up) of the largest gain, until the step is short enough.
_PULLS = (0.1, 0.2, 0.4)


@dataclass(frozen=True, eq=False)
class Match:
    """The result of matching ``b`` to ``a``.

    ``element.apply(b)`` is aligned to ``a``. ``objective`` is the sum over tensors of
    ``<a, element b>``; ``history`` its value at the start and after each sweep of the best run;
    ``objectives`` the end of every run: from ``init``, or from the identity and from the fixed
    axes; then the restarts.
    ``converged`` says that the last sweep changed nothing.
    """

    element: GroupElement
    objective: float
    sweeps: int
    converged: bool
    history: tuple[float, ...]
    objectives: tuple[float, ...]
    _problem: _Problem = field(repr=False)

    @cached_property
    def matched(self) -> dict[str, float]:
        """Per group, the mean cosine between a neuron's weights in ``a`` and those of its partner.

        1 where they are equal up to size, 0 where they have nothing in common.
        """
        return self._problem.matched(self.element.tables, self.element.values)


@dataclass(frozen=True)
class Distance:
    """Distance of two checkpoints over the best element that was found.

    ``aligned`` and ``naive`` are Euclidean norms of the difference with and without alignment,
    ``norm`` is the root mean square of the norms of both; ``relative`` is ``aligned / norm``
    (0 for equal, about sqrt(2) for unrelated weights). A Distance compares with numbers, and
    ``float`` of it is, the aligned one. It is an upper bound of the distance of the orbits.
    """

    aligned: float
    naive: float
    norm: float
    relative: float
    match: Match

    def __float__(self) -> float:
        return self.aligned

    def __lt__(self, other: float | Distance) -> bool:
        return self.aligned < float(other)

    def __le__(self, other: float | Distance) -> bool:
        return self.aligned <= float(other)

    def __gt__(self, other: float | Distance) -> bool:
        return self.aligned > float(other)

    def __ge__(self, other: float | Distance) -> bool:
        return self.aligned >= float(other)


def match(
    a: Weights,
    b: Weights,
    space: WeightSpace,
    *,
    init: GroupElement | None = None,
    restarts: int = 1,
    seed: int = 0,
    max_sweeps: int = 100,
    dtype: torch.dtype | None = None,
) -> Match:
    """Find the element whose action on ``b`` comes closest to ``a``.

    Args:
        a: the reference: tensors, a checkpoint or a module.
        b: what is moved.
        space: the space of both; its groups permute (S, signed, positive), turn (O, O1, SO)
            or are fixed.
        init: where the first run starts; by default there are two, from the identity and from
            an element that is grown from the fixed axes.
        restarts: all but the first start at the best element so far, a fifth of it drawn anew.
        seed: for the random starts and the order of the groups in them.
        max_sweeps: sweeps over all groups per run.
        dtype: of the products: float64, or float32 (by default, where no tensor is float64); sums
            of gains and assignments are in float64.

    Raises:
        SpaceMismatch: if tensors or ``init`` do not fit the space.
        SymmetryError: for other kinds, complex or non-finite tensors.
    """
    if restarts < 1 or max_sweeps < 1:
        raise SymmetryError(f"restarts ({restarts}) and max_sweeps ({max_sweeps}) are at least 1")
    if init is not None and init.space != space:
        raise SpaceMismatch("init is an element of another space")
    if init is not None and any(bool((v != 1).any()) for k, v in init.values.items()
                                if space.group(k).kind == "positive"):
        raise SymmetryError("init must not rescale: matching permutes, signs and turns")
    if dtype not in (None, *_EPS):
        raise SymmetryError(f"dtype is float32 or float64, not {dtype}")
    problem = _Problem(space, tensors_of(a), tensors_of(b), dtype)
    runs = [_Run(problem, init or GroupElement(space), None, max_sweeps)]
    if init is None:
        grown = grown_start(space, problem.a, problem.b)
        same = grown == GroupElement(space, runs[0].tables, runs[0].values)
        runs.append(runs[0] if same else _Run(problem, grown, None, max_sweeps))
    for number in range(1, restarts):
        rng = np.random.default_rng([seed, number])
        runs.append(_Run(problem, kicked_start(_best(space, runs)[1], rng), rng, max_sweeps))
    best, element = _best(space, runs)
    return Match(
        element=element,
        objective=best.objective,
        sweeps=len(best.history) - 1,
        converged=best.converged,
        history=tuple(best.history),
        objectives=tuple(run.objective for run in runs),
        _problem=problem,
    )


def _best(space: WeightSpace, runs: Sequence[_Run]) -> tuple[_Run, GroupElement]:
    best = max(runs, key=lambda run: run.objective)
    return best, GroupElement(space, best.tables, best.values)


def distance(a: Weights, b: Weights, space: WeightSpace, **options: object) -> Distance:
    """Aligned and naive Euclidean distance of two checkpoints.

    Args:
        a: tensors, a checkpoint or a module.
        b: the same.
        space: the space of both.
        options: as for ``match``.
    """
    one, other = tensors_of(a), tensors_of(b)
    found = match(one, other, space, **options)  # type: ignore[arg-type]
    aligned = naive = norm = 0.0
    for name in compared(space, one):
        left, right = one[name].detach().cpu().double(), other[name].detach().cpu().double()
        aligned += float((left - act(found.element, name, right)).square().sum())
        naive += float((left - right).square().sum())
        norm += float(left.square().sum() + right.square().sum()) / 2
    relative = (aligned / norm) ** 0.5 if norm else 0.0
    return Distance(aligned**0.5, naive**0.5, norm**0.5, relative, found)


def compared(space: WeightSpace, tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors that count in objective and distance: floats that are no running statistics."""
    return [
        name for name in space.tensors
        if tensors[name].is_floating_point()
        and not name.rpartition(".")[2].startswith("running_")
        and not space.tensor_meta(name).role.startswith("running_")
    ]


def objective(a: Weights, b: Weights, element: GroupElement) -> float:
    """``<a, element b>`` summed over the tensors that count: what matching makes large."""
    problem = _Problem(element.space, tensors_of(a), tensors_of(b), torch.float64)
    return sum(problem.gain(n, element.tables, element.values) for n in problem.names)


class _Problem:
    """Two checkpoints in the precision of the products."""

    def __init__(
        self, space: WeightSpace, a: Mapping[str, Tensor], b: Mapping[str, Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        other = [str(g) for g in space.groups if g.kind not in PERMUTING | ROTATING]
        if other:
            raise SymmetryError(f"group {other[0]} cannot be matched: only groups that permute "
                                f"(S, signed, positive) or turn (O, O1, SO) are")
        for tensors in (a, b):
            check(space, tensors)
        self.space = space
        self.names = compared(space, a)
        wide = any(t[n].dtype == torch.float64 for t in (a, b) for n in self.names)
        dtype = dtype or (torch.float64 if wide else torch.float32)
        self.eps = _EPS[dtype]
        self.a = {name: _number(name, a[name], dtype) for name in self.names}
        self.b = {name: _number(name, b[name], dtype) for name in self.names}
        self.size = {name: float(self.a[name].norm() * self.b[name].norm()) for name in self.names}

    def touched(self, group: Group) -> list[str]:
        """Tensors that a group or what is fibred over it stands in."""
        names = {name for member in family(self.space, group) for name in member.tensors}
        return [name for name in self.names if name in names]

    def near(self, group: Group) -> set[str]:
        """Groups whose gains change when a group moves: itself only if it meets itself."""
        labels = {str(label) for name in self.touched(group)
                  for block in self.space.blocks(name) for label in block.labels}
        return labels if self.coupled(group) else labels - {group.label}

    def coupled(self, group: Group) -> bool:
        """Whether a group stands twice in one block, so that its objective is not linear."""
        return any(block.labels.count(group.label) > 1
                   for name in group.tensors for block in self.space.blocks(name))

    def gain(
        self, name: str, tables: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
    ) -> float:
        """``<a, g b>`` of one tensor."""
        return sum(
            float((block.view(self.a[name])
                   * moved_view(block, block.view(self.b[name]), tables, values)
                   ).sum(dtype=torch.float64))
            for block in self.space.blocks(name)
        )

    def matched(
        self, tables: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Mean cosine of partners, per group that stands in a compared tensor."""
        sums = {g.label: np.zeros((3, int(np.prod(tables[g.label].shape))))
                for g in self.space.groups}
        seen = set()
        for name in self.names:
            for block in self.space.blocks(name):
                left = block.view(self.a[name])
                right = moved_view(block, block.view(self.b[name]), tables, values)
                parts = torch.stack((left * right, left * left, right * right))
                for position, digit in enumerate(block.digits):
                    if digit.label in sums:
                        own = [p + 1 for p in (*digit.bases, position)]
                        rest = [p for p in range(1, parts.ndim) if p not in own]
                        rows = parts.permute(0, *own, *rest).reshape(
                            3, sums[digit.label].shape[1], -1)
                        sums[digit.label] += rows.sum(-1, dtype=torch.float64).numpy()
                        seen.add(digit.label)
        return {label: _cosine(*found) for label, found in sums.items() if label in seen}


def _cosine(product: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    size = np.sqrt(one * other)
    cosine = np.divide(product, size, out=np.zeros_like(product), where=size > 0)
    cosine[(one == 0) & (other == 0)] = 1.0
    return float(cosine.mean())


def _number(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    found = tensor.cpu().to(dtype)
    if not bool(found.sum(dtype=torch.float64).isfinite()):
        raise SymmetryError(f"{name}: not all values are finite, so nothing can be matched to it; "
                            f"`metanet doctor` tells where they are")
    return found


class _Run:
    """One coordinate descent. Without ``rng`` the groups are taken in order."""

    def __init__(
        self, problem: _Problem, start: GroupElement, rng: np.random.Generator | None,
        max_sweeps: int,
    ) -> None:
        self.problem, self.rng = problem, rng
        self.tables, self.values = start.tables, start.values
        self.memory = Memory(problem.space, (problem.a, problem.b))
        self.gains: dict[str, float] = {}  # of tensors, by the current element; others are stale
        self.total = sum(self._gain(name) for name in problem.names)
        self.history = [self.total]
        self.stale = {group.label for group in problem.space.groups}
        self.converged = False
        while not self.converged and len(self.history) <= max_sweeps:
            self.converged = not self._sweep()
            self.history.append(self.total)
        self.gains.clear()  # what was added up in steps is rounded; the end is not
        self.objective = sum(self._gain(name) for name in problem.names)

    def _gain(self, name: str) -> float:
        if name not in self.gains:
            self.gains[name] = self.problem.gain(name, self.tables, self.values)
        return self.gains[name]

    def _sweep(self) -> bool:
        groups = self.problem.space.groups
        order = range(len(groups)) if self.rng is None else self.rng.permutation(len(groups))
        changed = [self._improve(groups[i]) for i in order if groups[i].label in self.stale]
        return any(changed)

    def _improve(self, group: Group) -> bool:
        """Re-solve one family; keep the old assignment unless the objective truly rises."""
        problem = self.problem
        self.stale.discard(group.label)
        gains = self.memory.collect(group, self.tables, self.values)
        if self.memory.lone(group):
            return self._accept(group, *assign(gains, self.tables, self.values), gains)
        largest = float((np.abs(gains.plain) + np.abs(gains.odd)).max(initial=0.0))
        pulled = problem.coupled(group) and group.kind not in ROTATING
        for pull in (0.0, *_PULLS) if pulled else (0.0,):
            stay = self.tables[group.label][..., None]
            kept = np.take_along_axis(gains.plain, stay, -1)
            np.put_along_axis(gains.plain, stay, kept + pull * largest, -1)
            if self._accept(group, *assign(gains, self.tables, self.values)):
                return True
        return False

    def _accept(
        self, group: Group, tables: dict[str, np.ndarray], values: dict[str, np.ndarray],
        linear: Gains | None = None,
    ) -> bool:
        """Take an assignment if the objective rises: by ``linear`` gains, or by the tensors."""
        problem = self.problem
        names = problem.touched(group)
        found: dict[str, float] = {}
        if linear is not None:
            rows = np.arange(group.size)
            rise = float((linear.plain[rows, tables[group.label]]
                          - linear.plain[rows, self.tables[group.label]]).sum())
        else:
            before = sum(self._gain(name) for name in names)
            found = {name: problem.gain(name, tables, values) for name in names}
            rise = sum(found.values()) - before
        if rise <= problem.eps * sum(problem.size[name] for name in names):
            return False
        self.tables, self.values = tables, values
        self.total += rise
        for name in names:
            self.gains.pop(name, None)
        self.gains.update(found)
        self.stale |= problem.near(group)
        return True
