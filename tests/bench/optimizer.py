"""Speed of the learned step beside Adam's: ``python -m tests.bench.optimizer [--out FILE]``.

With ``--compiled`` the compiled step stands beside, with ``--pylo DIR`` (a checkout of
Belilovsky-Lab/pylo) the step of its plain PyTorch form of Celo2, a rule of the same size.

CPU seconds at one thread, medians, all systems in one process and interleaved, so that what else
the machine does falls on all of them alike. Two figures: the optimizer's step alone on a model of a
million parameters beside fused Adam, and a whole training step at batch 128 beside AdamW. The same
rule written out without blocks and buffers (every feature of every entry in memory) stands beside.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from metanet.tasks.optimize import LearnedOptimizer, fresh
from metanet.tasks.optimize.layout import Layout
from metanet.tasks.optimize.rule import State, Tables, observe, update
from metanet.tasks.optimize.spec import Net


def model() -> nn.Sequential:
    """A multilayer perceptron 784-800-450-10: 992,960 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 800), nn.ReLU(), nn.Linear(800, 450), nn.ReLU(),
                         nn.Linear(450, 10))


def filled(module: nn.Module) -> nn.Module:
    """With gradients of random numbers."""
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    return module


def plain(net: Net) -> Callable[[], None]:
    """The rule without blocks: all features of all entries at once."""
    module = filled(model())
    layout = Layout.of(dict(module.named_parameters()))
    tables = Tables.of(net.spec, layout)
    held = [torch.zeros(1, layout.total)]
    states = [State.zero(net.spec, layout, held[0])]

    @torch.no_grad()
    def step() -> None:
        p = layout.pack([q.detach()[None] for q in module.parameters()], 1)
        g = layout.pack([q.grad[None] for q in module.parameters() if q.grad is not None], 1)
        states[0] = observe(net.spec, g, states[0])
        change = update(net.spec, net.theta[None], tables, p, g, states[0])
        for q, value in zip(module.parameters(), layout.views(change[0]), strict=True):
            q.sub_(value)

    return step


def pylo(folder: Path) -> Callable[[], object]:
    """The step of PyLO's plain Celo2 with fresh weights, read from a checkout, not installed."""
    for name in ("pylo", "pylo.models", "pylo.optim"):  # its own doors import what is not needed
        module = types.ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = module
    made = importlib.import_module("pylo.optim.CELO2_naive").CELO2_naive
    optimizer = made(filled(model()).parameters(), orthogonalize=False, hf_key=None)
    step: Callable[[], object] = optimizer.step
    return step


def steps(compiled: bool = False, peer: Path | None = None) -> dict[str, Callable[[], object]]:
    """The optimizers' steps alone."""
    made: dict[str, Callable[[], object]] = {}
    made["fused Adam"] = torch.optim.Adam(filled(model()).parameters(), fused=True).step
    made["AdamW (foreach)"] = torch.optim.AdamW(filled(model()).parameters(), foreach=True).step
    for kind in ("element", "context"):
        optimizer = LearnedOptimizer(filled(model()), fresh(kind))
        made[f"learned, {kind}"] = optimizer.step
    if compiled:
        made["learned, element, compiled"] = LearnedOptimizer(
            filled(model()), fresh(), compiled=True).step
    made["the same rule without blocks"] = plain(fresh())
    if peer is not None:
        made["PyLO's Celo2, plain"] = pylo(peer)
    return made


def trainings(compiled: bool = False) -> dict[str, Callable[[], object]]:
    """Whole training steps at batch 128."""
    x, y = torch.randn(128, 784), torch.randint(10, (128,))
    made: dict[str, Callable[[], object]] = {}

    def step_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        def step() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()

        return step

    module = model()
    made["training step, AdamW"] = step_of(module, torch.optim.AdamW(module.parameters()))
    for kind, fused in (("element", False), ("context", False), ("element", True)):
        if compiled or not fused:
            module = model()
            name = f"training step, learned, {kind}{', compiled' * fused}"
            made[name] = step_of(module, LearnedOptimizer(module, fresh(kind), compiled=fused))
    return made


def measure(made: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each, in turns."""
    found: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 2):
        for name, step in made.items():
            start = time.process_time()
            step()
            if turn >= 2:
                found[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--pylo", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    alone = measure(steps(chosen.compiled, chosen.pylo), chosen.rounds)
    whole = measure(trainings(chosen.compiled), chosen.rounds)
    rows = [{"what": name, "ms": ms, "ratio": ms / alone["fused Adam"]}
            for name, ms in alone.items()]
    rows += [{"what": name, "ms": ms, "ratio": ms / whole["training step, AdamW"]}
             for name, ms in whole.items()]
    document = {"parameters": sum(p.numel() for p in model().parameters()),
                "torch": torch.__version__, "rows": rows}
    if chosen.out:
        chosen.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    for row in rows:
        print(f"{row['what']:32} {row['ms']:8.2f} ms  {row['ratio']:6.2f}")


if __name__ == "__main__":
    main()
