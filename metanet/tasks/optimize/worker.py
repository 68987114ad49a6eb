"""A worker: replicas of one inner task, unrolled together under weights of their own.

Replica i and replica ``pairs + i`` are one antithetic pair: same start, same batches, same horizon.
Episodes begin at random places of their schedule, so that workers do not march in step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from metanet.errors import MetanetError
from metanet.symmetry import WeightSpace, infer
from metanet.tasks.optimize.inner import Sampler, Task
from metanet.tasks.optimize.layout import Layout
from metanet.tasks.optimize.recipe import Recipe
from metanet.tasks.optimize.rule import State, Tables, observe, update
from metanet.tasks.optimize.spec import Spec
from metanet.tasks.optimize.structured import Structured

_WORST = log(10.0)


@dataclass(frozen=True, eq=False)
class Unroll:
    """What a truncation gave: the meta-loss of every replica ``[R]``, and the last raw losses."""

    meta: Float[Tensor, " R"]
    last: Float[Tensor, " R"]


class Worker:
    """Replicas of one task.

    Args:
        task: which. spec: of the net. recipe: of the training.
        replicas: how many; an even number where they are antithetic pairs.
        paired: whether the second half repeats the first half's starts and batches.
        seed: of the worker. source: of the data.
    """

    def __init__(self, task: Task, spec: Spec, recipe: Recipe, replicas: int, paired: bool,
                 seed: int, source: str | None = None) -> None:
        self.task, self.spec, self.recipe, self.paired = task, spec, recipe, paired
        self.own = replicas // 2 if paired else replicas
        self.generator = torch.Generator().manual_seed(seed)
        self.samplers = [Sampler(task, self.generator, source) for _ in range(self.own)]
        self.module = self._module()
        named = dict(self.module.named_parameters())
        self.layout = Layout.of(named)
        space = self._space()
        self.tables = Tables.of(spec, self.layout, space)
        self.structured = Structured(spec, self.layout, space) if spec.structured and space \
            else None
        self.p = torch.zeros(replicas, self.layout.total)
        self.state = State.zero(spec, self.layout, self.p)
        self.facts = torch.ones(4, replicas)  # step, horizon, first loss, factor of the storage
        self.pull = vmap(grad_and_value(self._loss))
        for i in range(self.own):
            self.reset(i, anywhere=True)

    def _module(self) -> nn.Module:
        seed = int(torch.randint(2 ** 31, (1,), generator=self.generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.task.make()

    def _space(self) -> WeightSpace | None:
        """The space, where the net reads one; inferred from the module and a few examples."""
        if self.spec.kind == "element":
            return None
        x = self.samplers[0].draw()[0][:5]
        space = infer(self.module, x)
        if not space.groups:
            raise MetanetError(f"task {self.task.name}: no neurons were found, so a "
                               f"{self.spec.kind} net has nothing to read")
        return space

    def _loss(self, p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.task.loss(functional_call(self.module, p, (x,)), y)

    # ------------------------------------------------------------ episodes

    def reset(self, i: int, anywhere: bool = False) -> None:
        """A new episode for replica i and its twin; ``anywhere``: at a random step of it."""
        low, high = self.recipe.horizon
        u = torch.rand(3, generator=self.generator).tolist()
        horizon = round(low * (high / low) ** u[0])
        small, large = self.recipe.reparam
        factor = small * (large / small) ** u[1]
        self.samplers[i].choose()
        start = self.layout.pack([p.detach() for p in self._module().parameters()])
        for j in self._twins(i):
            self.p[j] = start / factor
            for part in (self.state.momenta, self.state.square, self.state.steps):
                part[j] = 0
            step = int(u[2] * horizon) if anywhere else 0
            self.facts[:, j] = torch.tensor([step, horizon, float("nan"), factor])

    def _twins(self, i: int) -> tuple[int, ...]:
        return (i, self.own + i) if self.paired else (i,)

    def fresh_episodes(self) -> list[int]:
        """Begin anew where an episode is over; which replicas did."""
        over = [i for i in range(self.own) if self.facts[0, i] >= self.facts[1, i]]
        for i in over:
            self.reset(i)
        return [j for i in over for j in self._twins(i)]

    # ------------------------------------------------------------ steps

    def unroll(self, theta: Float[Tensor, "Q m"], steps: int) -> Unroll:
        """So many steps of all replicas under ``theta`` (one row for all, or one for each).

        Differentiable in ``theta`` where gradients are on; the state is left without history.
        """
        p, state = self.p, self.state
        losses, weights = [], []
        for _ in range(steps):
            self.facts = self.facts.clone()  # what the graph holds must not change
            step, horizon, first, factor = self.facts.clone()
            x, y = self._draw()
            g, loss = self._pull(p, factor[:, None], x, y)
            known = loss.detach().nan_to_num(_WORST, _WORST, _WORST)
            self.facts[2] = torch.where(first.isnan(), known, first)
            state = observe(self.spec, g, state)
            rate = (1 + torch.cos(pi * (step / horizon).clamp(max=1))) / 2
            p = p - rate[:, None] * self._step(theta, p, g, state)
            losses.append(self._squeeze(loss))
            weights.append(1 + self.recipe.late * (step / horizon).clamp(max=1) ** 2)
            self.facts[0] += 1
        self.p, self.state = p.detach(), state.detach()
        weight = torch.stack(weights)
        return Unroll((torch.stack(losses) * weight).sum(0) / weight.sum(0), known)

    def _pull(self, p: Tensor, factor: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient in the stored parameters ``[R, n]`` and loss ``[R]``.

        To first order the gradient is given, and the loss a linear function of the parameters.
        """
        given = self.recipe.estimator == "first-order"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not given):
            values = self.layout.views(p * factor)
            grads, loss = self.pull(dict(zip(self.layout.names, values, strict=True)), x, y)
            g = self.layout.pack(list(grads.values()), 1) * factor
            g = g.nan_to_num(0.0, 0.0, 0.0).clamp(-1e4, 1e4)
        if given:
            loss = loss + (g * (p - p.detach())).sum(1)
        return g, loss

    def _step(self, theta: Tensor, p: Tensor, g: Tensor, state: State) -> Tensor:
        if self.structured is not None:
            return self.structured.update(theta, p, g, state)
        return update(self.spec, theta, self.tables, p, g, state)

    def _squeeze(self, loss: Tensor) -> Tensor:
        """Logarithm of the loss over the first one, with a floor; bounded."""
        first = self.facts[2]
        floor = self.recipe.floor * first
        value = ((loss + floor) / (first + floor)).clamp(min=1e-6).log()
        return value.nan_to_num(_WORST, _WORST, _WORST).clamp(max=_WORST)

    def _draw(self) -> tuple[Tensor, Tensor]:
        drawn = [sampler.draw() for sampler in self.samplers]
        x, y = (torch.stack([d[i] for d in drawn]) for i in (0, 1))
        return (torch.cat([x, x]), torch.cat([y, y])) if self.paired else (x, y)

    # ------------------------------------------------------------ state

    def tensors(self) -> dict[str, Tensor]:
        """All that a worker goes on from."""
        return {"p": self.p, "momenta": self.state.momenta, "square": self.state.square,
                "steps": self.state.steps, "facts": self.facts,
                "images": torch.tensor([s.image for s in self.samplers]),
                "generator": self.generator.get_state()}

    def restore(self, found: dict[str, Tensor]) -> None:
        """Inverse of ``tensors``."""
        self.p, self.facts = found["p"].clone(), found["facts"].clone()
        self.state = State(*(found[k].clone() for k in ("momenta", "square", "steps")))
        for sampler, image in zip(self.samplers, found["images"].tolist(), strict=True):
            sampler.image = int(image)
        self.generator.set_state(found["generator"])

    def about(self) -> dict[str, Any]:
        """In plain data."""
        return {"task": self.task.name, "parameters": self.layout.total,
                "replicas": len(self.p)}
