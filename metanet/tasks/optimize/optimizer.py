"""LearnedOptimizer: a ``torch.optim.Optimizer`` whose rule was learned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from math import exp, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metanet.errors import MetanetError
from metanet.symmetry import WeightSpace, infer
from metanet.tasks.optimize.guard import Guard
from metanet.tasks.optimize.layout import Layout
from metanet.tasks.optimize.rule import State, Tables
from metanet.tasks.optimize.shipped import named
from metanet.tasks.optimize.spec import BASE, LOG_MOST, Net
from metanet.tasks.optimize.stream import Buffers, Proposal, Stream, observe
from metanet.tasks.optimize.structured import Structured

_NARROW = (torch.float16, torch.bfloat16)
_MOMENTA, _SQUARE, _STEP, _MASTER = "momenta", "square", "step", "master"


class LearnedOptimizer(Optimizer):
    """Steps that were learned: a residual on Adam with a guard.

    Args:
        params: a module (then the symmetry of its weights can be inferred), or what any torch
            optimizer takes: parameters, pairs (name, parameter), or groups with options.
        net: ``default``, ``context``, a file of ``Net.save``, or a ``Net``.
        lr: a factor on the learned step sizes, for schedulers and groups; 1 is what was learned.
        weight_decay: decoupled, per group: parameters shrink by ``lr · 0.001 · weight_decay``.
        maximize: climb instead of descending.
        guard: replace learned steps that misbehave (see ``guard``).
        space: of the parameters by their names; by default inferred where the net needs it.
        example_inputs: for the inference, as in ``metanet.infer``.

    The state of every parameter is float32, also of bfloat16 and float16 ones, which moreover get a
    float32 master copy, so that small steps add up. A state dict holds everything, with the hash
    of the net; loading it goes on bit for bit.

    Attributes:
        net: the learned net. structure: what it knows of the network, in words. guard: counts of
            what the guard did, or None.

    Raises:
        MetanetError: for complex parameters, sparse gradients, parameters on several devices, or
            a net that does not fit.
    """

    def __init__(self, params: nn.Module | Iterable[Any], net: str | Path | Net = "default",
                 lr: float = 1.0, weight_decay: float = 0.0, *, maximize: bool = False,
                 guard: bool = True, space: WeightSpace | None = None,
                 example_inputs: Any = None) -> None:
        if not lr >= 0 or not weight_decay >= 0:
            raise MetanetError(f"lr={lr} and weight_decay={weight_decay} must not be negative")
        self.net = net if isinstance(net, Net) else named(net)
        self.guard = Guard() if guard else None
        module = params if isinstance(params, nn.Module) else None
        given = params.named_parameters() if isinstance(params, nn.Module) else params
        self._engine: _Engine | None = None
        super().__init__(given, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})
        self.space, self.structure = _structure(self.net, module, space, example_inputs)
        self._check()

    # ------------------------------------------------------------ parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch."""
        super().add_param_group(param_group)
        self._engine = None

    def _check(self) -> None:
        for name, p in self._named():
            if p.is_complex() or not p.is_floating_point():
                raise MetanetError(f"parameter {name} is {p.dtype}; learned optimizers train real "
                                   "floating-point numbers. Train torch.view_as_real of it")
        if len({p.device for _, p in self._named()}) > 1:
            raise MetanetError("the parameters are on several devices; make one optimizer for "
                               "each device")

    def _named(self) -> list[tuple[str, Tensor]]:
        found = []
        for g, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"{g}.{i}" for i in range(len(group["params"]))]
            found += list(zip(names, group["params"], strict=True))
        return found

    # ------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """One step.

        Args:
            closure: computes the loss and the gradients again; its value is returned.
            loss: the loss of this step, for the guard, where there is no closure.

        Raises:
            MetanetError: for a sparse gradient.
        """
        found = loss
        if closure is not None:
            with torch.enable_grad():
                found = closure()
        if self.guard is not None and found is not None:
            self.guard.told(float(found))
        if self._engine is None:
            self._check()
            self._engine = _Engine(self)
        self._engine.step(self)
        return found

    # ------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Everything, copied: state per parameter, groups, the net's hash, the guard's memory."""
        found = super().state_dict()
        found["state"] = {key: {what: value.clone() for what, value in state.items()}
                          for key, state in found["state"].items()}
        found["learned"] = {"hash": self.net.hash, "kind": self.net.spec.kind,
                            "guard": self.guard.state() if self.guard else None}
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state; dtypes of the state stay as they are.

        Raises:
            MetanetError: if it was made with another net.
        """
        learned = state_dict.get("learned")
        if not isinstance(learned, Mapping) or learned.get("hash") != self.net.hash:
            told = str(learned.get("hash"))[:12] if isinstance(learned, Mapping) else "none"
            raise MetanetError(f"the state was made with another learned net (hash {told}, here "
                               f"{self.net.hash[:12]}); make the optimizer with the same net")
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        params = [p for _, p in self._named()]
        for key, state in state_dict["state"].items():
            p = params[int(key)]
            self.state[p] = {what: value.detach().to(p.device, torch.float32, copy=True)
                             for what, value in state.items()}
        if self.guard is not None and learned.get("guard"):
            self.guard = Guard(**learned["guard"])
        self._engine = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("net", "guard", "space", "structure")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._engine = None

    def memory(self) -> int:
        """Bytes that the state and the buffers take at most, parameters and gradients left out."""
        n = sum(p.numel() for _, p in self._named())
        narrow = sum(p.numel() for _, p in self._named() if p.dtype in _NARROW)
        tables = 16 * (2 if self.net.spec.kind == "context" else 1)
        return n * (4 * (6 + len(self.net.spec.decays)) + tables) + 4 * narrow


def _structure(net: Net, module: nn.Module | None, space: WeightSpace | None, inputs: Any
               ) -> tuple[WeightSpace | None, str]:
    """The space that a net needs, and what is known, in words."""
    if net.spec.kind == "element":
        return None, "none: this net reads every tensor on its own"
    why = "only a module tells its structure; give the module, or its space"
    if space is None and module is not None:
        try:
            space = infer(module, inputs)
        except MetanetError as error:
            why = f"no space could be inferred ({error})"
    if space is not None:
        return space, f"{len(space.groups)} groups of neurons ({space.status})"
    if net.spec.structured:
        raise MetanetError(f"a net of kind {net.spec.kind!r} works on a space: {why}")
    warnings.warn(f"structure-free mode: {why}. Each tensor is read on its own.", stacklevel=3)
    return None, f"none (structure-free mode): {why}"


class _Engine:
    """Flat buffers of all parameters, and the net on them. Built at the first step, and again
    after a group was added or a state was loaded."""

    def __init__(self, owner: LearnedOptimizer) -> None:
        pairs = owner._named()
        self.params = [p for _, p in pairs]
        self.names = [name for name, _ in pairs]
        self.net, spec = owner.net, owner.net.spec
        self.layout = Layout.of({f"{i}": p for i, p in enumerate(self.params)})
        self.layout = Layout(tuple(self.names), self.layout.shapes)
        device = self.params[0].device if self.params else torch.device("cpu")
        tables = Tables.of(spec, self.layout, owner.space)
        self.buffers = Buffers(tables, spec.decays, device)
        self.stream: Stream | Structured
        if spec.structured and owner.space is not None:
            self.stream = Structured(spec, self.layout, owner.space)
        else:
            self.stream = Stream(owner.net, tables, device)
        self.rows = [self.layout.views(row) for row in self.buffers.rows]
        self.narrow = [i for i, p in enumerate(self.params) if p.dtype in _NARROW]
        self._adopt(owner)

    def _adopt(self, owner: LearnedOptimizer) -> None:
        """Copy the state that there is into the buffers, and make views of them the state."""
        b, k = self.buffers, len(self.net.spec.decays)
        squares = self.layout.views(b.square)
        for i, (p, square) in enumerate(zip(self.params, squares, strict=True)):
            views = {_STEP: b.steps[i], _MOMENTA: self.layout.views(b.rows[2:])[i],
                     _SQUARE: square}
            if p.dtype in _NARROW:
                views[_MASTER] = p.detach().float()
            known = owner.state.get(p, {})
            for what, view in views.items():
                if what in known:
                    self._fit(i, what, known[what], view, k)
                    view.copy_(known[what])
            owner.state[p] = views

    def _fit(self, i: int, what: str, value: Tensor, view: Tensor, k: int) -> None:
        if value.shape != view.shape:
            raise MetanetError(f"state {what!r} of parameter {self.names[i]} has shape "
                               f"{tuple(value.shape)}, expected {tuple(view.shape)}; it is of "
                               "another network")

    def step(self, owner: LearnedOptimizer) -> None:
        """Read gradients, propose, guard, write."""
        idle = [i for i, p in enumerate(self.params) if p.grad is None]
        if len(idle) == len(self.params):
            return
        if not self._read(owner, idle):
            return
        kept = self._keep(idle)
        observe(self.buffers, self.net.spec.decays, self.net.spec.square)
        found = self._propose()
        factors = self._factors(found, owner.guard)
        self._restore(kept)
        self._write(owner, factors, set(idle))

    def _read(self, owner: LearnedOptimizer, idle: list[int]) -> bool:
        """Parameters and gradients into the buffers; whether the gradients are finite."""
        values = list(self.params)
        for i in self.narrow:
            values[i] = self._master(owner, i)
        torch._foreach_copy_(self.rows[0], values)
        skip = set(idle)
        grads, places = [], []
        for i, p in enumerate(self.params):
            if i in skip:
                self.rows[1][i].zero_()
                continue
            grad = p.grad
            if grad is None or grad.is_sparse:
                raise MetanetError(f"the gradient of {self.names[i]} is sparse; learned "
                                   "optimizers read dense ones: make the layer with sparse=False")
            grads.append(grad)
            places.append(self.rows[1][i])
        torch._foreach_copy_(places, grads)
        for at, group in self._groups(owner):
            if group["maximize"]:
                self.rows[1][at].neg_()
        if owner.guard is not None and not bool(self.buffers.rows[1].sum().isfinite()):
            owner.guard.skipped += 1
            return False
        return True

    def _master(self, owner: LearnedOptimizer, i: int) -> Tensor:
        """The float32 copy of a narrow parameter; what was changed outside is taken over."""
        p = self.params[i]
        master: Tensor = owner.state[p][_MASTER]
        master.copy_(torch.where(master.to(p.dtype) == p, master, p.float()))
        return master

    def _groups(self, owner: LearnedOptimizer) -> list[tuple[int, dict[str, Any]]]:
        found: list[tuple[int, dict[str, Any]]] = []
        for group in owner.param_groups:
            found += [(len(found) + i, group) for i in range(len(group["params"]))]
        return found

    def _keep(self, idle: list[int]) -> list[tuple[Tensor, Tensor]]:
        """State of parameters without a gradient, which a step must not change."""
        b = self.buffers
        kept = []
        for i in idle:
            part = slice(self.layout.starts[i], self.layout.starts[i] + self.layout.sizes[i])
            kept += [(v, v.clone()) for v in (b.rows[2:, part], b.square[part], b.steps[i])]
        return kept

    def _restore(self, kept: list[tuple[Tensor, Tensor]]) -> None:
        for view, value in kept:
            view.copy_(value)

    def _propose(self) -> Proposal:
        b = self.buffers
        if isinstance(self.stream, Stream):
            return self.stream.propose(b)
        state = State(b.rows[None, 2:], b.square[None], b.steps[None])
        theta = self.net.theta.to(b.rows.device)[None]
        raw, base = self.stream.direction(theta, b.rows[None, 0], b.rows[None, 1], state)
        b.raw.copy_(raw[0])
        b.adam.copy_(base[0])
        own, length = (self.layout.mean(x * x)[0].sqrt() for x in (raw, base))
        return Proposal(b.raw, b.adam, length, own, torch.zeros_like(own))

    def _factors(self, found: Proposal, guard: Guard | None) -> list[float]:
        """What to multiply each tensor of ``raw`` by; replaces directions that misbehave."""
        plain = self.net.spec.structured and self.net.spec.base == "momentum"
        told = torch.stack([found.length, found.own, found.log]).tolist()
        raws, adams = self.layout.views(found.raw), self.layout.views(found.adam)
        along = [0.0] * len(raws)
        if guard is not None:
            along = torch.stack([torch.dot(r.flatten(), a.flatten()) for r, a in zip(
                raws, adams, strict=True)]).tolist()
        factors = []
        for i, (length, own, log) in enumerate(zip(*told, strict=True)):
            fine = isfinite(length + own + log) and own > 0
            factor = (1.0 if plain else BASE * length / own * exp(
                max(-LOG_MOST, min(log, LOG_MOST)))) if fine else 0.0
            if guard is not None:
                bad = not (fine and along[i] >= 0 and guard.learned)
                if bad and length > 0:
                    guard.replaced += 1
                    raws[i].copy_(adams[i]).nan_to_num_(0.0, 0.0, 0.0)
                    size = float(raws[i].square().mean().sqrt())
                    factor = 1.0 if plain else BASE * length / size if size else 0.0
                factor *= guard.trust
            factors.append(factor)
        return factors

    def _write(self, owner: LearnedOptimizer, factors: list[float], idle: set[int]) -> None:
        steps, decays = [], []
        for i, group in self._groups(owner):
            rate = 0.0 if i in idle else float(group["lr"])
            steps.append(rate * factors[i])
            decays.append(1 - rate * BASE * group["weight_decay"])
        raws = self.layout.views(self.buffers.raw)
        torch._foreach_mul_(raws, steps)
        busy = [i for i in range(len(raws)) if i not in idle]
        values = [owner.state[p][_MASTER] if p.dtype in _NARROW else p for p in self.params]
        chosen = [values[i] for i in busy]
        if any(decay != 1 for decay in decays):
            torch._foreach_mul_(chosen, [decays[i] for i in busy])
        torch._foreach_sub_(chosen, [raws[i] for i in busy])
        for i in self.narrow:
            if i not in idle:
                self.params[i].copy_(values[i])
