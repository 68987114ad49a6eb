"""Time and memory as nets grow: ``python -m tests.bench.scaling [--plot FILE.svg]``.

Wide: MLPs of 1e3 to 1e7 numbers, two layers of 8 channels. Deep: the shape of GPT-2 with 1 to 12
blocks, and the real 124M one; one layer, exact, by low rank and by role. Every row is a process of
its own, at one thread, CPU seconds (median), MB above what the interpreter held before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (31, 100, 315, 999, 3161)
DEEP = tuple((blocks, mixing, False) for blocks in (1, 4, 12)
             for mixing in ("exact", "lowrank", "role"))


def run(*options: str) -> dict[str, Any]:
    """The JSON that a child prints."""
    # Freed memory stays with the process, so that large blocks are not all page faults.
    keep = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
    done = subprocess.run([sys.executable, "-m", "tests.bench.scaling", *options], cwd=ROOT,
                          capture_output=True, text=True, check=True, env=os.environ | keep)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def timed(net: Any, batch: Any, train: bool) -> dict[str, float]:
    """Median seconds of forward passes, and of training steps."""
    import torch

    from tests.bench.measure import cpu_seconds, peak_mb

    def infer() -> None:
        with torch.no_grad():
            net(batch)

    def step() -> None:
        net.zero_grad(set_to_none=True)
        out = net(batch)
        torch.stack([v.square().mean() for v in out.blocks.values()]).sum().backward()

    found = {"forward": cpu_seconds(infer, 5, 1), "forward_mb": peak_mb()}
    if train:
        found |= {"step": cpu_seconds(step, 3, 1), "step_mb": peak_mb()}
    return found


def draw(space: Any, n: int) -> Any:
    """A random batch of one channel."""
    import torch

    from metanet.graph import WeightBatch
    return WeightBatch(space, {b.name: torch.randn(n, *b.shape, 1) for t in space.tensors
                               for b in space.blocks(t)})


def wide(width: int) -> dict[str, float]:
    """Two UNF layers of 8 channels on [2, width, width, 1]."""
    import torch
    from torch import nn

    from metanet.nn import Pointwise, UNFLinear
    from metanet.symmetry import WeightSpace
    from tests.bench.layers import space_text
    from tests.bench.measure import peak_mb

    base = peak_mb()
    space = WeightSpace.parse(space_text([2, width, width, 1], False))
    n = max(1, 1000 // width) ** 2
    net = nn.Sequential(UNFLinear(space, 1, 8), Pointwise(space, 8, torch.relu_),
                        UNFLinear(space, 8, 8))
    found = timed(net, draw(space, n), True)
    scale = {"forward": n, "step": n, "forward_mb": 1, "step_mb": 1}
    return {"parameters": space.n_parameters, "members": n,
            **{k: (v - base if k.endswith("mb") else v) / scale[k] for k, v in found.items()}}


def deep(blocks: int, mixing: str, real: bool) -> dict[str, float]:
    """One layer of 8 channels on a narrow GPT-2 (4 members), or of one channel on the real one."""
    sys.path.insert(0, str(ROOT / "tests"))
    from deep_spaces import gpt2

    from metanet.nn import UNFLinear
    from tests.bench.measure import peak_mb

    base, start = peak_mb(), time.process_time()
    space = gpt2(blocks) if real else gpt2(blocks, 64, 4, 256, 64)
    layer = UNFLinear(space, 1, 1 if real else 8, mixing=mixing)
    started = time.process_time() - start
    found = timed(layer, draw(space, 1 if real else 4), not real)
    return {"parameters": space.n_parameters, "terms": layer.n_terms, "start": started,
            "weights": sum(w.numel() for w in (*layer.weights, *layer.first.values())),
            **{k: v - base if k.endswith("mb") else v for k, v in found.items()}}


def plot(rows: list[dict[str, float]], place: Path) -> None:
    """Seconds per net over parameters, on logarithmic axes."""
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.5, 3))
    x = [row["parameters"] for row in rows]
    for key, name in (("forward", "forward"), ("step", "forward + backward")):
        axes.loglog(x, [row[key] for row in rows], "o-", label=name)
    axes.loglog(x, [rows[-1]["forward"] * v / x[-1] for v in x], ":", color="gray", label="linear")
    axes.set_xlabel("parameters per net")
    axes.set_ylabel("CPU seconds per net")
    axes.legend()
    figure.tight_layout()
    figure.savefig(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        import torch
        torch.set_num_threads(1)
        kind, *rest = options.one
        print(json.dumps(wide(int(rest[0])) if kind == "wide" else
                         deep(int(rest[0]), rest[1], rest[2] == "True")))
        return
    print("| parameters | members | ns per parameter fwd / f+b | MB per net fwd / f+b |\n"
          "|---|---|---|---|")
    rows = [run("--one", "wide", str(width)) for width in WIDTHS]
    for r in rows:
        each = 1e9 / r["parameters"]
        print(f"| {r['parameters']:,} | {r['members']} | {r['forward'] * each:.0f} / "
              f"{r['step'] * each:.0f} | {r['forward_mb'] / r['members']:.2f} / "
              f"{r['step_mb'] / r['members']:.2f} |", flush=True)
    if options.plot:
        plot(rows, options.plot)
    print("\n| blocks | mixing | parameters | terms | weights | start s | CPU s fwd / f+b | MB |\n"
          "|---|---|---|---|---|---|---|---|")
    for blocks, mixing, real in (*DEEP, (12, "role", True)):
        r = run("--one", "deep", str(blocks), mixing, str(real))
        step = f"{r['step']:.2f}" if "step" in r else "-"
        print(f"| {blocks} | {mixing} | {r['parameters']:,} | {r['terms']:,} | {r['weights']:,} | "
              f"{r['start']:.2f} | {r['forward']:.2f} / {step} | "
              f"{r.get('step_mb', r['forward_mb']):.0f} |", flush=True)


if __name__ == "__main__":
    main()
