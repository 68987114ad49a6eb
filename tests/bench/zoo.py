"""How fast zoos are made: ``python -m tests.bench.zoo [inr|cnn] [--images FILE.npz]``.

All ways are timed in turn in one run, at one thread, in CPU seconds; the figure is the median over
the rounds. On a shared machine only the ratios mean anything. Without an npz with ``x_train`` the
images are the digits of scikit-learn, enlarged: they are smoother than MNIST, so PSNR is higher.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from metanet.zoo import fit_net, nets
from metanet.zoo.engine import Local
from metanet.zoo.fit_inr import INR, Fit, fit, grid
from metanet.zoo.recipe import load
from torch import Tensor, nn

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["inr", "cnn"])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--nets", type=int, default=64, help="for the distributions of PSNR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = pictures(options.images, max(options.nets, 64))
    if options.what != "cnn":
        inr(x, options.nets)
    if options.what != "inr":
        cnn(x)


def pictures(path: Path | None, n: int) -> Tensor:
    """Images ``[n, 28, 28]`` in [0, 1], shuffled by a fixed seed: packs are sorted by class."""
    if path is None:
        from sklearn.datasets import load_digits

        small = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 16
        x = F.interpolate(small, size=28, mode="bilinear").squeeze(1).numpy()
    else:
        x = np.load(path)["x_train"].astype(np.float32) / 255
    return torch.from_numpy(x[np.random.default_rng(0).permutation(len(x))[:n]])


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def medians(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU seconds of each way, timed in turn after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, work in ways.items():
            seconds = cpu(work)
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(found) for name, found in times.items()}


def say(**row: object) -> None:
    print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v
                      for k, v in row.items()}), flush=True)


# ------------------------------------------------------------ coordinate networks


def loop(start: dict[str, Tensor], picture: Tensor, steps: int, lr: float) -> float:
    """The published way: one network, autograd, torch's Adam. Returns the mean squared error."""
    module = nets.Coordinates((2, 32, 32, 1))
    module.load_state_dict(start)
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    x, y = grid(28, 28), picture.reshape(-1, 1)
    criterion = nn.MSELoss()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = criterion(module(x), y)
        loss.backward()
        optimizer.step()
        loss.item()
    with torch.no_grad():
        return float(criterion(module(x), y))


def inr(x: Tensor, count: int) -> None:
    net, steps = INR(), 60
    starts = [net.init(torch.Generator().manual_seed(i), "dws") for i in range(count)]
    targets, where = x[:count].reshape(count, -1, 1), grid(28, 28)
    plain = replace(load("inr-mnist").fit, stop_psnr=None)
    quick = load("inr-mnist-fast").fit

    def ours(n: int) -> Callable[[], object]:
        how = replace(plain, steps=steps)
        return lambda: fit(net, how, starts[:n], where, targets[:n])

    ways = {"loop": lambda: loop(starts[0], x[0], steps, plain.lr),
            **{f"ours, chunks of {n}": ours(n) for n in (4, 8, 16)}}
    found = medians(ways)
    per_net = {name: seconds / steps / int(name.split()[-1] if "of" in name else 1)
               for name, seconds in found.items()}
    for name, seconds in per_net.items():
        say(bench="inr, equal steps", way=name, ms_per_step=1e3 * seconds,
            inr_per_cpu_second_at_1000_steps=1 / (1000 * seconds),
            times_loop=per_net["loop"] / seconds)
    psnrs(net, starts, where, targets, plain, quick, per_net["loop"])
    one = loop(starts[0], x[0], plain.steps, plain.lr)
    same = float(fit(net, plain, starts[:1], where, targets[:1]).mse[0])
    say(bench="inr, the same iterates", loop_psnr=decibel(one), ours_psnr=decibel(same))


def psnrs(net: INR, starts: list[dict[str, Tensor]], where: Tensor, targets: Tensor, plain: Fit,
          quick: Fit, loop_step: float) -> None:
    """Distributions of PSNR; the loop's own are those of the same steps by our kernel."""
    rows = {"the loop's recipe": plain,
            "the loop's recipe, lr x 2": replace(plain, lr=2 * plain.lr),
            "fast, 150 steps": replace(quick, steps=150), f"fast, {quick.steps} steps": quick}
    for name, how in rows.items():
        errors: list[float] = []
        start = time.process_time()
        for at in range(0, len(starts), 8):
            errors += fit(net, how, starts[at:at + 8], where, targets[at:at + 8]).mse.tolist()
        seconds = (time.process_time() - start) / len(starts)
        found = np.array([decibel(mse) for mse in errors])
        low, quarter, middle, rest, high = np.quantile(found, [0, 0.25, 0.5, 0.75, 1])
        say(bench="inr, PSNR", recipe=name, nets=len(found), least=low, quarter=quarter,
            median=middle, three_quarters=rest, most=high, cpu_seconds_per_net=seconds,
            times_loop=1000 * loop_step / seconds)


def decibel(mse: float) -> float:
    return float(-10 * np.log10(mse))


# ------------------------------------------------------------ classifiers


def _batch() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(640, 1, 28, 28, generator=rng), torch.randint(10, (640,), generator=rng)


def cnn_loop(steps: int) -> None:
    """The plain loop: torch's module and torch's Adam."""
    x, y = _batch()
    module = nets.build(nets.Shape("small-cnn", 28, 16, 1, "relu"))
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    for step in range(steps):
        rows = slice(64 * (step % 10), 64 * (step % 10) + 64)
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        loss.item()


def cnn_ours(steps: int) -> float:
    """A run as recipes make it; returns the CPU seconds that it took."""
    start = time.process_time()
    x, y = _batch()
    module = nets.build(nets.Shape("small-cnn", 28, 16, 1, "relu"))
    plan = fit_net.Plan("adam", 1e-3, 0.0, 64, steps, (steps,))
    seen = fit_net.Images(x, y, torch.arange(len(x)), 0.1, 0.3)
    fit_net.train(module, plan, seen, torch.Generator().manual_seed(0))
    return time.process_time() - start


def cnn(x: Tensor) -> None:
    del x
    steps = 60
    found = medians({"loop": lambda: cnn_loop(steps), "ours": lambda: cnn_ours(steps)})
    for name, seconds in found.items():
        say(bench="small CNN, batch 64 at 28 x 28", way=name, steps_per_cpu_second=steps / seconds,
            times_loop=found["loop"] / seconds)
    each, jobs, rate = 100, 40, steps / found["loop"]
    start = time.perf_counter()
    busy = sum(Local(2).map(cnn_ours, [each] * jobs))
    wall = time.perf_counter() - start
    say(bench="small CNN, two processes", steps=each * jobs, wall_seconds=wall, cpu_seconds=busy,
        steps_per_cpu_second=each * jobs / busy, times_loop_per_core=each * jobs / busy / rate,
        load_average=os.getloadavg()[0])


if __name__ == "__main__":
    main()
