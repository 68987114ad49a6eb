"""What carries out a step: reads gradients, asks the net, guards, writes.

Built at the first step, and again after a group was added or a state was loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metanet.errors import MetanetError
from metanet.tasks.optimize.flat import Flat
from metanet.tasks.optimize.fused import Fused
from metanet.tasks.optimize.guard import Guard, Steps, settle
from metanet.tasks.optimize.layout import Layout
from metanet.tasks.optimize.rule import TINY
from metanet.tasks.optimize.spec import BASE

if TYPE_CHECKING:
    from metanet.tasks.optimize.optimizer import LearnedOptimizer

NARROW = (torch.float16, torch.bfloat16)
_MASTER = "master"


class Engine:
    """All parameters of an optimizer, their state, and the net on them: plain or compiled."""

    def __init__(self, owner: LearnedOptimizer) -> None:
        pairs = owner.named()
        self.params, self.names = [p for _, p in pairs], [name for name, _ in pairs]
        self.layout = Layout(tuple(self.names), tuple(tuple(p.shape) for p in self.params))
        self.net, spec = owner.net, owner.net.spec
        self.plain = spec.structured and spec.base == "momentum"
        device = self.params[0].device if self.params else torch.device("cpu")
        self.core = Fused(self.net, self.layout, device) if owner.compiled else \
            Flat(self.net, self.layout, owner.space, device)
        self.narrow = [i for i, p in enumerate(self.params) if p.dtype in NARROW]
        for i, p in enumerate(self.params):
            self._adopt(owner, i, p)

    def _adopt(self, owner: LearnedOptimizer, i: int, p: Tensor) -> None:
        """Copy the state that there is into that of the core, and make views of it the state."""
        views = self.core.views(i)
        if i in self.narrow:
            views[_MASTER] = p.detach().float()
        for what, value in owner.state.get(p, {}).items():
            if what not in views or value.shape != views[what].shape:
                raise MetanetError(f"state {what!r} of parameter {self.names[i]} has shape "
                                   f"{tuple(value.shape)}, which does not fit; it is of another "
                                   "network or net")
            views[what].copy_(value)
        owner.state[p] = views

    def step(self, owner: LearnedOptimizer) -> None:
        """Read gradients, propose, guard, write."""
        groups = [group for group in owner.param_groups for _ in group["params"]]
        grads = self._grads(groups)
        if not grads:
            return
        guard = owner.guard
        if guard is not None and not bool(
                torch.stack(torch._foreach_norm(list(grads.values()))).isfinite().all()):
            guard.skipped += 1
            return
        values = [self._value(owner, i, p) for i, p in enumerate(self.params)]
        found = self.core.propose(values, grads)
        factors = self._guarded(found, list(grads), guard)
        for at, i in enumerate(grads):
            lr, decay = float(groups[i]["lr"]), groups[i]["weight_decay"]
            if decay:
                values[i].mul_(1 - lr * BASE * decay)
            if lr * factors[at]:
                values[i].add_(found.raws[at], alpha=-lr * factors[at])
            if i in self.narrow:
                self.params[i].copy_(values[i])

    def _grads(self, groups: list[dict[str, Any]]) -> dict[int, Tensor]:
        """Number of a parameter → gradient, to be descended."""
        found = {}
        for i, (p, group) in enumerate(zip(self.params, groups, strict=True)):
            if p.grad is None or not p.numel():
                continue
            if p.grad.is_sparse:
                raise MetanetError(f"the gradient of {self.names[i]} is sparse; learned "
                                   "optimizers read dense ones: make the layer with sparse=False")
            found[i] = p.grad.neg() if group["maximize"] else p.grad
        return found

    def _value(self, owner: LearnedOptimizer, i: int, p: Tensor) -> Tensor:
        """A float32 parameter itself, or the float32 copy of a narrow one; what was changed
        outside is taken over."""
        if i not in self.narrow:
            return p
        master: Tensor = owner.state[p][_MASTER]
        master.copy_(torch.where(master.to(p.dtype) == p, master, p.float()))
        return master

    def _guarded(self, found: Steps, busy: list[int], guard: Guard | None) -> list[float]:
        """What to multiply each direction by; replaces those that misbehave."""
        told = torch.stack([found.length, found.own, found.log, found.along], 1).tolist()
        factors, bad = settle(told, guard, self.plain)
        for at in bad:
            found.raws[at] = self.core.base(busy[at]).nan_to_num(0.0, 0.0, 0.0)
            if not self.plain:
                size = float((found.raws[at].square().mean() + TINY).sqrt())
                factors[at] *= BASE * told[at][0] / size
        return factors
