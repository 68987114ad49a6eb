"""Activation matching: neurons are partners where they do the same on the same inputs.

One streaming pass over the inputs sums, for each place where a group is seen, the cross-moments of
every neuron of ``a`` with every neuron of ``b``; no activation is kept. Their correlations, summed
over all places of a group (all that write to a residual stream, say), are the gains of the same
nested assignment that weight matching solves (Li et al. 2015; Ainsworth et al., ICLR 2023). Groups
that turn are matched by second moments instead: orthogonal Procrustes on activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.symmetry import GroupElement, WeightSpace
from metanet.symmetry.assign import assign
from metanet.symmetry.gains import Gains, tree
from metanet.symmetry.group import Group
from metanet.symmetry.kinds import ROTATING
from metanet.symmetry.values import Spot, replaced_writes
from metanet.tasks.merge.runner import Runner, State
from metanet.trace.program import Op

_FLOOR = 1e-3
"""Deviations below this share of the largest of their group count as that much: dead neurons
have no correlation with anything."""
SIDES = ("both", "read", "write")


@dataclass(frozen=True, eq=False)
class Seen:
    """Gains by activations: per root group, its tree of summed correlations."""

    space: WeightSpace
    roots: tuple[Gains, ...]
    places: int
    rows: int

    def element(self, start: GroupElement | None = None) -> GroupElement:
        """The best element by these gains; groups that were not seen stay as in ``start``."""
        start = GroupElement(self.space) if start is None else start
        tables, values = start.tables, start.values
        for root in self.roots:
            if any(np.any(g.plain) or np.any(g.odd) for g in _all(root)):
                tables, values = assign(root, tables, values)
        kept = {k: v for k, v in values.items() if self.space.group(k).kind != "positive"}
        return GroupElement(self.space, tables, kept)


def _all(node: Gains) -> list[Gains]:
    return [node, *(inner for member in node.members for inner in _all(member))]


@dataclass
class _Moments:
    """Sums at one place: rows are the held bases and the digits from the root down."""

    node: Gains
    order: list[int]
    signed: bool
    lead: int
    size: int
    count: int = 0
    shift: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    cross: Tensor | None = None

    def add(self, views: Sequence[Tensor]) -> None:
        """Add one batch of the values of ``a`` and of ``b``, each in its factored view."""
        rows = [v.permute(self.order).reshape(self.lead, self.size, -1).float() for v in views]
        if not self.shift:  # moments around a near mean lose no digits
            self.shift = [r.mean(-1, keepdim=True) for r in rows]
            zeros = torch.zeros(self.lead, self.size, dtype=torch.float64)
            self.sums, self.squares = [zeros, zeros.clone()], [zeros.clone(), zeros.clone()]
        rows = [r - s for r, s in zip(rows, self.shift, strict=True)]
        self.count += rows[0].shape[-1]
        for i, r in enumerate(rows):
            self.sums[i] += r.double().sum(-1)
            self.squares[i] += r.square().double().sum(-1)
        product = (rows[0] @ rows[1].transpose(1, 2)).double()
        self.cross = product if self.cross is None else self.cross + product

    def gain(self) -> np.ndarray:
        """``[lead, n, n]``: correlations of neurons, between -1 and 1.

        What turns has no neurons: second moments, the sum of squares of each model being 1.
        """
        if self.cross is None:
            return np.zeros((self.lead, self.size, self.size))
        means = [s / self.count for s in self.sums]
        variances = [(q / self.count - m * m).clamp_min(0)
                     for q, m in zip(self.squares, means, strict=True)]
        found = self.cross / self.count - means[0][:, :, None] * means[1][:, None, :]
        if self.node.group.kind in ROTATING:
            whole = [m + s.squeeze(-1).double() for m, s in zip(means, self.shift, strict=True)]
            sizes = [(v + w * w).sum(-1).sqrt() for v, w in zip(variances, whole, strict=True)]
            found = found + whole[0][:, :, None] * whole[1][:, None, :]
            return np.asarray((found / (sizes[0] * sizes[1])[:, None, None]).numpy())
        deviations = [v.sqrt() for v in variances]
        floors = [d.clamp_min(max(_FLOOR * float(d.max()), 1e-30)) for d in deviations]
        return np.asarray((found / (floors[0][:, :, None] * floors[1][:, None, :])).numpy())


def activation_gains(
    runner: Runner, a: State, b: State, x: Tensor, *, side: str = "both",
) -> Seen:
    """Run both models on the inputs and sum correlations of their neurons.

    Args:
        runner: the network.
        a: weights of the reference.
        b: weights of the model to be moved.
        x: inputs ``[N, ...]``; no labels are used.
        side: ``read`` sees neurons where the next layer takes them in (after the activation
            function), ``write`` where a layer made them (after its normalisation), ``both`` both.
    """
    space = runner.space
    trees = {g.label: tree(space, g) for g in space.groups if _is_root(space, g)}
    nodes = {label: node for members in trees.values() for label, node in members.items()}
    places: dict[tuple[Any, ...], _Moments] = {}
    rows = 0
    for batch in runner.batches(x):
        rows += len(batch)
        seen = _wanted(runner, batch, side)
        by_op: dict[int, list[Spot]] = {}
        for spot in seen:
            by_op.setdefault(spot.at, []).append(spot)
        runner.lockstep([a, b], batch, _collector(by_op, nodes, places))
    for place in places.values():
        target = place.node.odd if place.signed else place.node.plain
        target += place.gain().reshape(target.shape)
    return Seen(space, tuple(trees[root][root] for root in trees), len(places), rows)


def _is_root(space: WeightSpace, group: Group) -> bool:
    return all(space.group(base).kind == "fixed" for base in group.over)


def _wanted(runner: Runner, batch: Tensor, side: str) -> list[Spot]:
    """Places to look at; a group that is never read is seen where it is written."""
    seen = [s for s in runner.spots(batch) if s.at >= 0]
    gone = replaced_writes(runner.program(batch), seen)
    writes = [s for s in seen if s.side == "write" and s.value not in gone]
    reads = [s for s in seen if s.side == "read"]
    written = {(s.value, s.label) for s in writes}
    reads_only = [s for s in reads if (s.value, s.label) not in written]
    if side == "write":
        return writes
    if side == "read":
        read = {s.label for s in reads}
        return [*reads, *(s for s in writes if s.label not in read)]
    return [*writes, *reads_only]


def _collector(
    by_op: dict[int, list[Spot]], nodes: dict[str, Gains],
    places: dict[tuple[Any, ...], _Moments],
) -> Callable[[int, Op, list[tuple[Any, ...]], list[Any]], list[Any]]:
    def hook(at: int, op: Op, args: list[tuple[Any, ...]], outs: list[Any]) -> list[Any]:
        for spot in by_op.get(at, ()):
            node = nodes[spot.label]
            key = (at, spot.block.name, spot.position, spot.side)
            if key not in places and (made := _place(spot, node)) is not None:
                places[key] = made
            if key in places:
                places[key].add([spot.block.view(out.contiguous()) for out in outs])
        return outs

    return hook


def _place(spot: Spot, node: Gains) -> _Moments | None:
    """Sums for one place; None where another branch of the family meets the group there."""
    digits, position = spot.block.digits, spot.position
    above = (*digits[position].bases, position)
    chain = [p for p in above if digits[p].label in node.chain]
    held = [p for p in above if p not in chain]
    rest = [p for p in range(len(digits)) if p not in (*held, *chain)]
    if any(set(digits[p].bases) & set(chain) for p in rest):
        return None
    if len(chain) != len(node.chain) or len(held) != len(node.held):
        return None
    signed = node.group.kind == "signed" and digits[position].exponent % 2 == 1
    return _Moments(node, [*held, *chain, *rest], signed, prod(node.held.values()),
                    prod(node.chain.values()))
