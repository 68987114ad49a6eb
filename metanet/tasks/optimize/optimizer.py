"""LearnedOptimizer: a ``torch.optim.Optimizer`` whose rule was learned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metanet.errors import MetanetError
from metanet.symmetry import WeightSpace, infer
from metanet.tasks.optimize.engine import NARROW, Engine
from metanet.tasks.optimize.guard import Guard
from metanet.tasks.optimize.shipped import named
from metanet.tasks.optimize.spec import Net


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
        compiled: run the net as kernels of ``torch.compile`` (needs a C++ compiler, and half a
            minute at the first step); for nets of kind ``element``.

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
                 example_inputs: Any = None, compiled: bool = False) -> None:
        if not lr >= 0 or not weight_decay >= 0:
            raise MetanetError(f"lr={lr} and weight_decay={weight_decay} must not be negative")
        self.net = net if isinstance(net, Net) else named(net)
        self.guard = Guard() if guard else None
        self.compiled = compiled
        module = params if isinstance(params, nn.Module) else None
        given = params.named_parameters() if isinstance(params, nn.Module) else params
        self._engine: Engine | None = None
        super().__init__(given, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})
        self.space, self.structure = _structure(self.net, module, space, example_inputs)
        self._check()

    # ------------------------------------------------------------ parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch."""
        super().add_param_group(param_group)
        self._engine = None

    def _check(self) -> None:
        for name, p in self.named():
            if p.is_complex() or not p.is_floating_point():
                raise MetanetError(f"parameter {name} is {p.dtype}; learned optimizers train real "
                                   "floating-point numbers. Train torch.view_as_real of it")
        if len({p.device for _, p in self.named()}) > 1:
            raise MetanetError("the parameters are on several devices; make one optimizer for "
                               "each device")

    def named(self) -> list[tuple[str, Tensor]]:
        """Names and parameters, in the order of the groups."""
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
            self._engine = Engine(self)
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
        params = [p for _, p in self.named()]
        for key, state in state_dict["state"].items():
            p = params[int(key)]
            self.state[p] = {what: value.detach().to(p.device, torch.float32, copy=True)
                             for what, value in state.items()}
        if self.guard is not None and learned.get("guard"):
            self.guard = Guard(**learned["guard"])
        self._engine = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("net", "guard", "space", "structure", "compiled")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._engine = None

    def memory(self) -> int:
        """Bytes that the state and the buffers take at most, parameters and gradients left out."""
        n = sum(p.numel() for _, p in self.named())
        narrow = sum(p.numel() for _, p in self.named() if p.dtype in NARROW)
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
