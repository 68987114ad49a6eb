"""Optimizers that are networks over weights, beside the same net on each entry alone.

``python -m tests.bench.weight_optimizers --data DIR -o DIR``: ``unf``, ``gmn`` and ``mlp`` (the
same inputs, outputs, width and depth, no weight sees another) are trained in turn on each task and
measured on that task from starts and with batches of their own, AdamW beside. Everybody's step size
is the best of several, chosen on another start. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from metanet.tasks.optimize.bench import TUNING_SEED
from metanet.tasks.optimize.families import TRAINING
from metanet.tasks.optimize.meta import Training
from metanet.tasks.optimize.recipe import Recipe
from metanet.tasks.optimize.rivals import GRID
from metanet.tasks.optimize.spec import Net
from metanet.tasks.optimize.trial import trial
from metanet.tasks.optimize.unseen import Unseen
from tests.bench.kept import kept

KINDS, TASKS = ("unf", "gmn", "mlp"), ("rnn-digits", "cnn-digits")
STEPS, STARTS = 200, 5
FACTORS = GRID[3:]
RECIPE = Recipe(kind="unf", hidden=16, depth=3, estimator="first-order", steps=150, truncation=20,
                pairs=2, horizon=(50, 200), lr=0.003)


def final(task: str, name: str, lr: float | None, seed: int, nets: dict[str, Net],
          source: str | None) -> float:
    """Final loss of one training."""
    item = Unseen(TRAINING[task], STEPS, 0.0)
    found = trial(item, name, lr, seed, nets, source).final
    return found if found is not None else 10.0


def measured(task: str, name: str, lrs: list[float], nets: dict[str, Net], source: str | None
             ) -> dict:
    """Final losses with the step size that is best on another start."""
    tried = {lr: final(task, name, lr, TUNING_SEED, nets, source) for lr in lrs}
    best = min(tried, key=lambda lr: tried[lr])
    start = time.process_time()
    losses = [final(task, name, best, seed, nets, source) for seed in range(STARTS)]
    return {"losses": losses, "lr": best, "weights": 0, "meta_seconds": 0,
            "seconds": (time.process_time() - start) / STARTS}


def learned(recipe: Recipe, out: Path, source: str | None) -> dict:
    """Train a net and measure it."""
    net = Training(recipe, out, source).run()
    found = measured(recipe.tasks[0], recipe.kind, [*FACTORS], {recipe.kind: net}, source)
    return found | {"weights": len(net.theta), "meta_seconds": net.about["cpu_seconds"]}


def rows_of(task: str, told: argparse.Namespace) -> dict[str, list[dict]]:
    """Optimizer → one result for each meta-seed."""
    def adam() -> dict:
        return measured(task, "adamw", [1e-3 * f for f in GRID], {}, told.data)

    def of_seed(kind: str, seed: int) -> dict:
        recipe = replace(RECIPE, kind=kind, tasks=(task,), seed=seed, base=told.base)
        folder = told.out / recipe.key
        return kept(folder.with_suffix(".json"), lambda: learned(recipe, folder, told.data))

    rows = {kind: [of_seed(kind, seed) for seed in range(told.seeds)] for kind in told.kinds}
    return {"AdamW, tuned": [kept(told.out / f"{task}-adamw.json", adam)], **rows}


def show(task: str, rows: dict[str, list[dict]]) -> None:
    """Lines of the table, and each net beside ``mlp``."""
    for name, found in rows.items():
        means = [mean(one["losses"]) for one in found]
        cells = [", ".join(f"{m:.4f}" for m in means),
                 ", ".join(f"{one['lr']:.2g}" for one in found), f"{found[0]['weights']:,}",
                 f"{mean(o['meta_seconds'] for o in found):.0f}",
                 f"{mean(o['seconds'] for o in found):.1f}"]
        print(f"| {task} | {name} | {mean(means):.4f} | {' | '.join(cells)} |")
    for other in {"unf", "gmn"} & rows.keys() if "mlp" in rows else ():
        ratio = np.log([o["losses"] for o in rows[other]]) - np.log(
            [o["losses"] for o in rows["mlp"]])
        picks = np.random.default_rng(0).integers(STARTS, size=(2000, STARTS))
        low, high = np.percentile(ratio.mean(0)[picks].mean(1), [2.5, 97.5])
        print(f"| {task} | {other} minus mlp, log | {ratio.mean():+.3f} | {low:+.3f} to "
              f"{high:+.3f} over starts | | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the data sets")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TRAINING, default=[*TASKS])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--base", choices=("adam", "momentum"), default="adam",
                        help="what the nets are residuals on")
    parser.add_argument("--seeds", type=int, default=2, help="of meta-training")
    told = parser.parse_args()
    torch.set_num_threads(1)
    told.out.mkdir(parents=True, exist_ok=True)
    print("| task | optimizer | final loss | of each meta-seed | step size | weights | CPU s of "
          "meta-training | of a training |\n|---|---|---|---|---|---|---|---|")
    for task in told.tasks:
        show(task, rows_of(task, told))


if __name__ == "__main__":
    main()
