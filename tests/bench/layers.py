"""Layers beside their peers: ``python -m tests.bench.layers [--peers DIR] [--jax PYTHON]``.

Every system is timed in a process of its own, one after the other, at one thread, in CPU seconds
(median of at least nine calls, after two). Ours calls ``keep_freed_memory``, as ``metanet train``
does; peers run as they come and once more with the same setting (``MALLOC_…``).
DIR holds one checkout per peer, named OWNER+NAME; PYTHON is an
interpreter with jax and flax. Where a peer is absent its recorded figure stands, marked ``*``: that
was another machine, so no ratio is printed for it. The first line is what this machine's core does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
UNF, NG = "AllanYangZhou+universal_neural_functional", "mkofinas+neural-graphs"
DWS, NFN, SCALE = "AvivNavon+DWSNets", "AllanYangZhou+nfn", "jkalogero+scalegmn"

# What metanet.nn.keep_freed_memory does: freed memory stays with the process.
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}


@dataclass(frozen=True)
class Row:
    """What is compared; ``recorded`` are forward and forward+backward of the peer elsewhere."""

    name: str
    ours: str
    peer: str | None = None
    case: str = "inr"
    checkout: str = ""
    recorded: tuple[float, float] | None = None


ROWS = (
    Row("UNF, 3 layers x 32, all axes free", "unf_free", "unf_jax", "inr", UNF, (1721, 483)),
    Row("UNF, 3 layers x 32, hidden only", "unf", "unf_jax", "inr", UNF, (1721, 483)),
    Row("UNF, 4 layers x 64, hidden only", "unf64"),
    Row("UNF, 4 layers x 64, all axes free", "unf64_free"),
    Row("DWS preset, max, 5 layers x 32", "dws_max", "dws_sab", "inr", DWS, (100, 46)),
    Row("DWS preset, mean, 5 layers x 32", "dws", "dws", "inr", DWS),
    Row("GMN d32, 4 layers, mean", "gmn", "ng_gnn", "inr", NG, (71, 22)),
    Row("GMN d32, 4 layers, mean, two messages, gelu", "gmn_full", "ng_gnn", "inr", NG, (71, 22)),
    Row("NG-T d64, 4 layers, 8 heads", "ngt", "ng_t", "inr", NG, (10.5, 3.3)),
    Row("ScaleGMN d128, 4 layers, signs", "scale", "scalegmn", "inr", SCALE, (11, 4.0)),
    Row("CNN zoo, UNF 3 layers x 32", "cnn", "unf_jax", "cnn", UNF, (2510, 661)),
    Row("CNN zoo, UNF 3 layers x 32", "cnn", "nfn", "cnn", NFN, (470, 170)),
    Row("CNN zoo, UNF 3 layers x 32", "cnn", "ng_gnn", "cnn", NG, (105, 43)),
    Row("wide, UNF 3 layers x 32", "wide", "unf_jax", "wide", UNF, (42.2, 17.9)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--jax", help="interpreter with jax and flax")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--python", default=sys.executable,
                        help="interpreter with what the PyTorch peers need (hydra, einops)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        ours(options.one)
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}; "
          + words(run([sys.executable, "-m", "tests.bench.layers", "--one", "roofline"])))
    print("| | ours fwd / f+b | peer as it comes | ratio | peer with memory kept | ratio | "
          "MB ours / peer | start s ours / peer |")
    print("|---|---|---|---|---|---|---|---|")
    done: dict[tuple[str, ...], list[dict[str, Any] | None]] = {}
    for row in (row for row in ROWS if options.only in row.name):
        mine = run([sys.executable, "-m", "tests.bench.layers", "--one", row.ours])
        key = (row.peer or "", row.case)
        if key not in done:
            done[key] = [peer(row, options, keep) for keep in (False, True)]
        print(line(row, mine or {}, *done[key]), flush=True)
    print("nets per CPU-second; MB: growth of the peak over build, forward and training steps of "
          "one batch\n* recorded on another machine")


def words(row: dict[str, Any] | None) -> str:
    """A row as words."""
    return ", ".join(f"{key} {value}" for key, value in (row or {}).items())


def run(command: list[str], keep: bool = True) -> dict[str, Any] | None:
    """The JSON on the last line of a command, or None if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent.parent,
                          check=False, env=os.environ | (KEEP if keep else {}))
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)
        return None
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def peer(row: Row, options: argparse.Namespace, keep: bool) -> dict[str, Any] | None:
    """Figures of the peer of a row, if it can be run."""
    peers, jax = options.peers, options.jax
    if row.peer is None or peers is None or not (peers / row.checkout).is_dir():
        return None
    place = str(peers / row.checkout)
    if row.peer == "unf_jax":
        script = str(HERE / "layer_unf_jax.py")
        return run([jax, script, row.case, place], keep) if jax else None
    return run([options.python, "-m", "tests.bench.layer_peers", row.peer, row.case, place], keep)


def line(
    row: Row, mine: dict[str, Any], other: dict[str, Any] | None, kept: dict[str, Any] | None
) -> str:
    """One line of the table; ``kept`` is the peer with the setting of ours."""
    cells = [row.name, f"{mine['fwd']:.0f} / {mine['fb']:.0f}"]
    if other and kept:
        for name, figures in ((f"{row.peer} ", other), ("", kept)):
            cells += [f"{name}{figures['fwd']:.0f} / {figures['fb']:.0f}",
                      f"{mine['fwd'] / figures['fwd']:.2f} / {mine['fb'] / figures['fb']:.2f}"]
        cells += [f"{mine['mb']:.0f} / {other['mb']:.0f}",
                  f"{mine['start']:.2f} / {other['start']:.1f}"]
    else:
        known = row.recorded
        cells += [f"{row.peer} {known[0]:.0f} / {known[1]:.0f} *" if known else "", "", "", "",
                  f"{mine['mb']:.0f}", f"{mine['start']:.2f}"]
    return "| " + " | ".join(cells) + " |"


# ---------------------------------------------------------------- ours


def space_text(layout: list[int], free: bool) -> str:
    """An MLP: hidden neurons permuted, or (``free``) inputs and outputs too."""
    last = len(layout) - 1
    axes = [f"g{i}" if free or 0 < i < last else f"{n}!" for i, n in enumerate(layout)]
    groups = [f"group g{i} = S({n})" for i, n in enumerate(layout) if axes[i] == f"g{i}"]
    tensors = [text for i in range(last)
               for text in (f"w{i}: {axes[i + 1]} {axes[i]}", f"b{i}: {axes[i + 1]}")]
    return "\n".join(["space v1", *groups, *tensors])


def ours(name: str) -> None:
    """Time one system of ours; what a subprocess does."""
    import torch

    from tests.bench.measure import peak_mb, report

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if name == "roofline":
        roofline()
        return
    layout, n, taps = {"cnn": ([1, 16, 16, 16, 10], 64, 9), "wide": ([2, 128, 128, 128, 3], 16, 1)
                       }.get(name, ([2, 32, 32, 1], 64, 1))
    base = peak_mb()
    start = time.process_time()
    net, batch = build(name, layout, n, taps)

    @torch.no_grad()
    def infer() -> None:
        net(batch)

    infer()
    started = time.process_time() - start

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(batch).square().mean().backward()

    report(n, infer, step, base, start=started,
           parameters=sum(p.numel() for p in net.parameters()))


def build(name: str, layout: list[int], n: int, taps: int) -> tuple[Any, Any]:
    """A net with an invariant head, and a batch for it."""
    import torch
    from torch import nn

    from metanet.graph import WeightBatch
    from metanet.nn import (
        DWSLinear,
        Embed,
        GMNLayer,
        InvariantPool,
        NGTLayer,
        Pointwise,
        ScaleGMNLayer,
        UNFLinear,
    )
    from metanet.symmetry import WeightSpace

    free = name.endswith("_free") or name in ("cnn", "wide")
    text = space_text(layout, free)
    space = WeightSpace.parse(text.replace("= S(", "= signed(") if name == "scale" else text)
    batch = WeightBatch(space, {b.name: torch.randn(n, *b.shape, taps)
                                for t in space.tensors for b in space.blocks(t)})
    layers: list[nn.Module] = []
    if name.startswith("gmn"):
        width, embed = 32, Embed(space, taps, 32)
        home, frozen = embed.space_out, "batch"
        how: dict[str, Any] = {} if name == "gmn_full" else {"messages": 1, "activation": "relu"}
        layers = [embed, *(GMNLayer(home, width, frozen=frozen, **how) for _ in range(4))]
    elif name in ("ngt", "scale"):
        width = 64 if name == "ngt" else 128
        embed = Embed(space, taps, width)
        home, frozen = embed.space_out, "batch"
        layers = [embed, *(NGTLayer(home, width, heads=8) if name == "ngt" else
                           ScaleGMNLayer(home, width) for _ in range(4))]
    elif name.startswith("dws"):
        home, frozen, width = space, "auto", 32
        reduce = "max" if name == "dws_max" else "mean"
        for i in range(5):
            layers += [DWSLinear(space, width if i else taps, width, reduce=reduce),
                       Pointwise(space, width, torch.relu_)]
    else:
        home, frozen = space, "auto"
        width, depth = (64, 4) if name.startswith("unf64") else (32, 3)
        for i in range(depth):
            layers += [UNFLinear(space, width if i else taps, width),
                       Pointwise(space, width, torch.relu_)]
    pool = InvariantPool(home, width, ("mean",), frozen=frozen)
    outputs = 1 if name == "cnn" else 10
    return nn.Sequential(*layers, pool, nn.Linear(pool.c_out, 128), nn.ReLU(),
                         nn.Linear(128, outputs)), batch


def roofline() -> None:
    """Print what a core does: products, copies, small operations."""
    import torch

    from tests.bench.measure import cpu_seconds

    a, x = torch.randn(1024, 1024), torch.randn(64 * 1024, 32)
    w, big, tiny = torch.randn(32, 32), torch.randn(2 ** 25), torch.randn(8)
    to = torch.empty_like(big)

    def many() -> None:
        for _ in range(1000):
            tiny.add(1)

    rows: dict[str, Callable[[], float]] = {
        "torch": lambda: float(torch.__version__.split("+")[0].rsplit(".", 1)[0]),
        "sgemm GFLOP/s": lambda: 2 * 1024 ** 3 / cpu_seconds(lambda: a @ a) / 1e9,
        "sgemm of [65536, 32] x [32, 32]": lambda: 2 * x.numel() * 32 / cpu_seconds(
            lambda: x @ w) / 1e9,
        "copy GB/s": lambda: 8 * big.numel() / cpu_seconds(lambda: to.copy_(big)) / 1e9,
        "small operation us": lambda: cpu_seconds(many) * 1e3,
    }
    print(json.dumps({key: round(work(), 2) for key, work in rows.items()}))


if __name__ == "__main__":
    main()
