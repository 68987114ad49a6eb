"""Narrow to wide: ``python -m tests.bench.width [-o OUT.json]``.

Classifiers of the digits of scikit-learn (64 → width → 10, ReLU, Adam): step size, steps, share
of the images and wrong labels are drawn anew for each. Predictors of their accuracy learn from
widths of at most 32 and are scored on 512 to 1024: 16 to 32 times the widest that they have seen.
Kendall's τ within each width, averaged; paired bootstrap over the wide networks.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from torch import Tensor, nn

from metanet.graph import WeightBatch
from metanet.models import MixedMetanet
from metanet.nn import keep_freed_memory
from metanet.symmetry import infer
from metanet.tasks.predict import features, metrics
from metanet.tasks.predict.data import ACCURACY

NARROW, WIDE = (8, 12, 16, 24, 32), (512, 768, 1024)
Array = Any


@dataclass(frozen=True, eq=False)
class Nets:
    """Networks of one width with their test accuracies."""

    width: int
    batch: WeightBatch
    y: Array


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test images ``[n, 64]`` in [0, 1] with labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x = torch.from_numpy(found.data[order] / 16).float()
    y = torch.from_numpy(found.target[order])
    return x[:1000], y[:1000], x[1000:], y[1000:]


def made(width: int, n: int, seed: int) -> Nets:
    """Train n networks of a width side by side; those whose steps are over rest."""
    rng, torch_rng = np.random.default_rng([seed, width]), torch.Generator().manual_seed(seed)
    x, y, held, held_y = digits()
    steps = np.sort(np.exp(rng.uniform(np.log(10), np.log(200), n)).astype(int))[::-1].copy()
    lr = torch.from_numpy(np.exp(rng.uniform(np.log(3e-4), np.log(2e-2), n))).float()
    used = (np.exp(rng.uniform(np.log(0.05), 0, n)) * len(x)).astype(int)
    noise = rng.choice([0.0, 0.0, 0.2, 0.4], n)
    wrong = torch.from_numpy(np.where(rng.random((n, len(y))) < noise[:, None],
                                      rng.integers(10, size=(n, len(y))), y.numpy()))
    bounds = ((width, 64), 64), ((width,), 64), ((10, width), width), ((10,), width)
    p = [(torch.rand(n, *shape, generator=torch_rng) * 2 - 1) / fan ** 0.5
         for shape, fan in bounds]
    moments = [[torch.zeros_like(v) for v in p] for _ in range(2)]
    for step in range(int(steps[0])):
        k = int((steps > step).sum())
        rows = torch.from_numpy((rng.random((k, 32)) * used[:k, None]).astype(int))
        _step([v[:k] for v in p], [[m[:k] for m in ms] for ms in moments], x[rows],
              wrong[:k].gather(1, rows), lr[:k], step + 1)
    with torch.no_grad():
        right = torch.cat([(_run([v[i:i + 16] for v in p], held).argmax(2) == held_y)
                           for i in range(0, n, 16)])
    space = infer(nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)),
                  (torch.rand(2, 64),))
    states = [dict(zip(("0.weight", "0.bias", "2.weight", "2.bias"), one, strict=True))
              for one in zip(*p, strict=True)]
    return Nets(width, WeightBatch.stack(space, states), right.double().mean(1).numpy())


def _run(p: list[Tensor], x: Tensor) -> Tensor:
    x = x.expand(len(p[0]), *x.shape[-2:])
    hidden = torch.baddbmm(p[1].unsqueeze(1), x, p[0].transpose(1, 2)).relu()
    return torch.baddbmm(p[3].unsqueeze(1), hidden, p[2].transpose(1, 2))


def _step(p: list[Tensor], moments: list[list[Tensor]], x: Tensor, y: Tensor, lr: Tensor,
          step: int) -> None:
    leaves = [v.requires_grad_() for v in (v.detach() for v in p)]
    found = _run(leaves, x)
    loss = nn.functional.cross_entropy(found.flatten(0, 1), y.flatten(), reduction="sum")
    grads = torch.autograd.grad(loss / x.shape[1], leaves)
    for v, g, m, s in zip(p, grads, *moments, strict=True):
        m.lerp_(g, 0.1)
        s.lerp_(g.square(), 0.001)
        rate = lr.reshape(-1, *[1] * (v.ndim - 1)) / (1 - 0.9 ** step)
        v -= rate * m / ((s / (1 - 0.999 ** step)).sqrt() + 1e-8)


# ------------------------------------------------------------ predictors


def trees(train: list[Nets], test: list[Nets], seed: int) -> Array:
    """The row that ignores width: its statistics, boosted."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    x = np.concatenate([features.width_free(n.batch).numpy() for n in train])
    y = np.concatenate([ACCURACY.forward(n.y) for n in train])
    model = HistGradientBoostingRegressor(max_leaf_nodes=8, learning_rate=0.05, max_iter=200,
                                          early_stopping=True, random_state=seed).fit(x, y)
    return np.concatenate([model.predict(features.width_free(n.batch).numpy()) for n in test])


def mixed(train: list[Nets], test: list[Nets], seed: int, epochs: int) -> Array:
    """A MixedMetanet: message passing whose weights belong to no width."""
    torch.manual_seed(seed)
    rng, net = np.random.default_rng(seed), MixedMetanet(width=16, depth=2)
    every = np.concatenate([ACCURACY.forward(n.y) for n in train])
    mean, scale = every.mean(), every.std()
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-2)
    steps = [(k, rows) for k, n in enumerate(train) for rows in np.array_split(
        np.arange(len(n.y)), max(1, len(n.y) // 16))]
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=epochs * len(steps),
                                               pct_start=0.1)
    orders = [rng.permutation(len(n.y)) for n in train]
    for _ in range(epochs):
        for at in rng.permutation(len(steps)):
            k, rows = steps[at]
            pick = torch.from_numpy(orders[k][rows])
            wanted = (ACCURACY.forward(train[k].y[pick.numpy()]) - mean) / scale
            loss = nn.functional.mse_loss(net(train[k].batch[pick])[:, 0],
                                          torch.from_numpy(wanted).float())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            plan.step()
    net.eval()
    with torch.no_grad():
        return np.concatenate([net(n.batch[i:i + 8])[:, 0].double().numpy() for n in test
                               for i in range(0, len(n.y), 8)]) * scale + mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=510, help="wide networks")
    parser.add_argument("--narrow", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    start = time.process_time()
    train = [_able(made(w, options.narrow // len(NARROW), 0)) for w in NARROW]
    test = [_able(made(w, options.n // len(WIDE), 1)) for w in WIDE]
    y = np.concatenate([n.y for n in test])
    strata = np.concatenate([np.full(len(n.y), n.width) for n in test])
    print(f"{sum(len(n.y) for n in train)} narrow, {len(y)} wide, accuracies "
          f"{np.quantile(y, [0, .25, .5, .75, 1]).round(3).tolist()}, "
          f"{time.process_time() - start:.0f} s", flush=True)
    found = {"squared weight norm, ascending": [np.concatenate(
        [features.squared_norm(n.batch).numpy()[:, 0] for n in test])]}
    for seed in range(options.seeds):
        found.setdefault("statistics that ignore width, boosted", []).append(
            trees(train, test, seed))
        found.setdefault("MixedMetanet", []).append(mixed(train, test, seed, options.epochs))
        found.setdefault("both, averaged", []).append(
            sum(found[k][seed] for k in list(found)[1:3]) / 2)
    report(found, y, strata, options.out, time.process_time() - start)


def _able(nets: Nets) -> Nets:
    keep = np.flatnonzero(nets.y >= (ACCURACY.least or 0))
    return Nets(nets.width, nets.batch[torch.from_numpy(keep)], nets.y[keep])


def report(found: dict[str, list[Array]], y: Array, strata: Array, out: Path | None,
           seconds: float) -> None:
    """Print a table, and write it as JSON."""
    other, rows = found["statistics that ignore width, boosted"], []
    for name, many in found.items():
        tau = [metrics.tau(f, y, strata) for f in many]
        test = metrics.difference(many, other, y, strata)
        rows.append({"row": name, "tau": float(np.mean(tau)), "sd": float(np.std(tau)),
                     "difference": test.value, "low": test.low, "high": test.high})
        print(f"| {name} | {np.mean(tau):.3f} ± {np.std(tau):.3f} | {test.value:+.3f} "
              f"[{test.low:.3f}, {test.high:.3f}] |")
    print(f"{seconds:.0f} CPU seconds")
    if out:
        out.write_text(json.dumps({"n": len(y), "rows": rows, "seconds": seconds}),
                       encoding="utf-8")


if __name__ == "__main__":
    main()
