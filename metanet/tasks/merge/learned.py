"""Learned alignment: turns that make the average of two models good on calibration inputs.

From an alignment that weights or activations gave, the orthogonal matrices of all groups that turn
are improved by gradient descent on the loss of models between ``a`` and the moved ``b`` (as in
"Generalized Linear Mode Connectivity for Transformers", arXiv 2506.22712). A matrix moves along its
manifold by a Cayley transform of a skew-symmetric one, so ``b`` computes what it did all along;
permutations and signs stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metanet.errors import MetanetError, SymmetryError
from metanet.symmetry import GroupElement, WeightSpace
from metanet.symmetry.action import gather, weighed
from metanet.symmetry.element import Values
from metanet.symmetry.kinds import ROTATING
from metanet.symmetry.rotations import procrustes
from metanet.tasks.merge.data import Samples, fitted
from metanet.tasks.merge.runner import Runner, State
from metanet.tasks.merge.scores import ensemble, kind_of


@dataclass(frozen=True, eq=False)
class Learned:
    """What was found: the element, and the losses of the steps."""

    element: GroupElement
    losses: tuple[float, ...]


def learn(
    runner: Runner, a: State, b: State, start: GroupElement, calib: Samples, *,
    steps: int = 200, rows: int = 16, rate: float = 0.01, seed: int = 0,
) -> Learned:
    """Improve the turns of an element.

    Args:
        runner: the network, in a space with groups that turn (``metanet.tasks.merge.fold``).
        a: the reference.
        b: what is moved.
        start: the element to start from.
        calib: inputs; with labels the loss is that on them, without it is the cross-entropy (or
            mean square) to what both models say together.
        steps: of Adam, the rate falling to zero along a cosine.
        rows: inputs per step.
        rate: of Adam, for the entries of the skew-symmetric matrices.
        seed: of the order of the inputs and of the points between the models.

    Raises:
        SymmetryError: nothing turns in this space.
        MetanetError: numbers below 1, or a loss that is not finite.
    """
    if min(steps, rows) < 1 or not rate > 0:
        raise MetanetError(f"steps ({steps}) and rows ({rows}) are at least 1, and the rate "
                           f"({rate}) is above 0")
    space = start.space
    turns = {g.label: _Turn(space, g.label, start) for g in space.groups if g.kind in ROTATING}
    if not turns:
        raise SymmetryError("no group of this space turns, so there is nothing to learn; fold the "
                            "models first (metanet.tasks.merge.fold)")
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([turn.free for turn in turns.values()], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for x, y in _batches(runner, calib, rows, steps, rng):
        t = 0.4 + 0.2 * float(torch.rand((), generator=rng))
        matrices = {label: turn.matrix() for label, turn in turns.items()}
        moved = moved_by(start, matrices, b)
        between = {name: torch.lerp(a[name].float(), moved[name], t) for name in space.tensors}
        loss = _loss(runner, a, b, between, x, y, t)
        if not bool(loss.isfinite()):
            raise MetanetError("the loss of the average is not finite; learn with a smaller rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    values = dict(start.values) | {label: turn.exact() for label, turn in turns.items()}
    return Learned(GroupElement(space, start.tables, values), tuple(losses))


class _Turn:
    """The matrices of one group: a start, turned further by what is learned."""

    def __init__(self, space: WeightSpace, label: str, start: GroupElement) -> None:
        self.kind = space.group(label).kind
        self.start = torch.from_numpy(start.values[label]).float()
        self.free = torch.zeros_like(self.start, requires_grad=True)

    def matrix(self) -> Tensor:
        """``[*over, n, n]``, orthogonal up to rounding."""
        free = self.free
        if self.kind == "O1":  # nothing turns into or out of the ones
            free = free - free.mean(-1, keepdim=True)
            free = free - free.mean(-2, keepdim=True)
        skew = free - free.transpose(-1, -2)
        one = torch.eye(skew.shape[-1])
        turn: Tensor = torch.linalg.solve(one - skew, one + skew)
        return turn @ self.start

    def exact(self) -> Values:
        """In float64, without the rounding."""
        found: Values = self.matrix().detach().double().numpy()
        flat = [procrustes(self.kind, m)[0] for m in found.reshape(-1, *found.shape[-2:])]
        return np.stack(flat).reshape(found.shape)


def moved_by(
    element: GroupElement, matrices: Mapping[str, Tensor], state: State
) -> dict[str, Tensor]:
    """``element.apply`` in float32 with other matrices, through which gradients flow."""
    values = {label: torch.from_numpy(value) for label, value in element.values.items()}
    values.update(matrices)
    found = {}
    for name in element.space.tensors:
        tensor = state[name].float()
        out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for block in element.space.blocks(name):
            view = gather(block.view(tensor), block, element.tables)
            block.view(out).copy_(weighed(view, block.digits, values))
        found[name] = out
    return found


def _batches(
    runner: Runner, calib: Samples, rows: int, steps: int, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Inputs and labels, in random order, over and over."""
    x, rows = fitted(calib.x, runner.sample), min(rows, len(calib))
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < rows:
            order = torch.randperm(len(x), generator=rng)
        now, order = order[:rows], order[rows:]
        yield x[now], None if calib.y is None else calib.y[now]


def _loss(
    runner: Runner, a: State, b: State, between: State, x: Tensor, y: Tensor | None, t: float
) -> Tensor:
    """Loss of the model between, on labels or against both parents."""
    out = _run(runner, between, x)
    kind = kind_of(y, out)
    if y is None:
        of_a, of_b = runner.lockstep([a, b], x)
        target = ensemble(of_a, of_b, t, kind)
        if kind == "real":
            return F.mse_loss(out, target.to(out))
        return -(target.exp().to(out) * out.log_softmax(-1)).sum(-1).mean()
    if kind == "real":
        return F.mse_loss(out, y.reshape(out.shape).to(out))
    return F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))


def _run(runner: Runner, state: State, x: Tensor) -> Tensor:
    program = runner.program(x)
    values = {name: runner.value(state, name, program) for name in program.tensors}
    values |= {s.name: x for s in program.sources
               if s.kind == "input" and s.shape == tuple(x.shape)}
    found = program.run(values)[0]
    if not isinstance(found, Tensor):
        raise MetanetError("the network's first output is no tensor, so nothing can be learned")
    return found
