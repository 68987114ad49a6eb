"""One training of one unseen task by one optimizer, and everything that is measured of it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metanet.tasks.optimize.inner import Sampler
from metanet.tasks.optimize.optimizer import LearnedOptimizer
from metanet.tasks.optimize.rivals import rival
from metanet.tasks.optimize.spec import Net
from metanet.tasks.optimize.unseen import Unseen

TAIL = 10
_BEFORE = 200


@dataclass(frozen=True)
class Trial:
    """What one training gave.

    Attributes:
        final: mean loss of the last ten batches; None where it was not finite.
        reached: steps until the mean of ten losses was at the target, or None; ``seconds_to``: CPU
            seconds until then.
        seconds: CPU seconds of all steps. step_ms: median of the optimizer's own step.
        memory: bytes of the optimizer's state.
        failed: not finite, or no better than at the start.
        curve: loss of every step.
    """

    final: float | None
    reached: int | None
    seconds_to: float | None
    seconds: float
    step_ms: float
    memory: int
    failed: bool
    curve: tuple[float, ...]


def network(item: Unseen, seed: int, source: str | None) -> nn.Module:
    """The module at its start; for fine-tuning, trained on the other data set before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10_000 + seed)
        module = item.task.make()
        if item.start is None:
            return module
        task = type(item.task)("before", item.start, item.task.side, item.task.make)
        sampler = Sampler(task, torch.Generator().manual_seed(seed), source)
        optimizer = AdamW(module.parameters(), lr=2e-3)
        for _ in range(_BEFORE):
            x, y = sampler.draw()
            optimizer.zero_grad()
            task.loss(module(x), y).backward()
            optimizer.step()
        last: Any = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
        last.reset_parameters()
        return module


def maker(name: str, lr: float | None, nets: dict[str, Net], example: Any
          ) -> Callable[[nn.Module], Optimizer]:
    """How an optimizer of the benchmark is made: a rival by its name, or one of the nets."""
    if name in nets:
        def learned(module: nn.Module) -> Optimizer:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # structure-free mode is in the result
                return LearnedOptimizer(module, nets[name], lr=lr or 1.0, example_inputs=example)

        return learned
    chosen = rival(name)
    return lambda module: chosen.make(module, lr if lr is not None else chosen.lr)


def trial(item: Unseen, name: str, lr: float | None, seed: int, nets: dict[str, Net],
          source: str | None = None, steps: int | None = None) -> Trial:
    """Train once with a cosine schedule to zero.

    Args:
        item: the task. name: of a rival, or of one of ``nets``. lr: None: its usual one.
        seed: of start and batches: the same for all optimizers.
        nets: learned nets by name. source: of the data. steps: instead of the task's.
    """
    module, total = network(item, seed, source), steps or item.steps
    sampler = Sampler(item.task, torch.Generator().manual_seed(77 + seed), source)
    sampler.choose()
    example = sampler.draw()[0][:5]
    optimizer = maker(name, lr, nets, example)(module)
    schedule = LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * min(t / total, 1))) / 2)
    losses, spent, own = [], 0.0, []
    reached: tuple[int, float] | None = None
    module.train()
    for step in range(total):
        x, y = sampler.draw()
        start = time.process_time()
        optimizer.zero_grad()
        loss = item.task.loss(module(x), y)
        loss.backward()
        before = time.process_time()
        optimizer.step()
        own.append(time.process_time() - before)
        schedule.step()
        spent += time.process_time() - start
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        tail = losses[-TAIL:]
        if reached is None and len(tail) == TAIL and sum(tail) / TAIL <= item.target:
            reached = step + 1, spent
    final = sum(losses[-TAIL:]) / TAIL if math.isfinite(losses[-1]) else None
    return Trial(final, reached[0] if reached else None, reached[1] if reached else None, spent,
                 sorted(own)[len(own) // 2] * 1e3, memory_of(optimizer),
                 final is None or final >= losses[0],
                 tuple(round(value, 5) if math.isfinite(value) else -1.0 for value in losses))


def memory_of(optimizer: Optimizer) -> int:
    """Bytes of state; of learned ones with all buffers."""
    if isinstance(optimizer, LearnedOptimizer):
        return optimizer.memory()
    return sum(value.numel() * value.element_size() for state in optimizer.state.values()
               for value in state.values() if isinstance(value, torch.Tensor))
