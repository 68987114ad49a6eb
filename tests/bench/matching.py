"""Weight matching beside its peers: ``python -m tests.bench.matching --peers DIR``.

DIR holds checkouts of themrzmaster/git-re-basin-pytorch and snimu/rebasin, named OWNER+NAME;
``--python`` is an interpreter with torch, scipy and torchview. The nets are the first one's VGG16,
its ResNet-20 (GroupNorm) and the MLP of its specification, so that it runs as it comes. Each system
is timed in a process of its own at one thread, in CPU seconds (median of ``--repeat`` calls).
``ratio`` is ``|a - g b|² / |a - b|²`` over all parameters: less is better. Ours: ``one start`` is
the start of the peers (the identity), ``default`` what ``match`` does (two starts), ``equal time``
the best of as many starts as fit into the time of the peer that came closest; snimu's seconds hold
its tracing, ``snimu / ours`` ours, too (imports are outside on all sides).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.bench.matching_peer import network, ratio

CASES = ("mlp random", "mlp planted", "mlp trained", "resnet20x1 random", "resnet20x4 random",
         "resnet20x4 planted", "resnet20x8 random", "vgg16 random", "vgg16 planted")
PEERS = {"pt": "themrzmaster/git-re-basin-pytorch", "snimu": "snimu/rebasin"}
_SLOW = {("snimu", "vgg16 random"), ("snimu", "resnet20x8 random")}  # minutes and more per call


def nets(case: str, peers: Path, folder: Path) -> Path:
    """Two nets of a case in one folder, and the shape of an input."""
    from metanet import infer

    arch, data = case.split()
    out = folder / case.replace(" ", "-")
    out.mkdir()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module, shape = network(arch, peers)
        if data == "trained":
            trained(module, seed)
        found.append({k: v.detach().clone() for k, v in module.state_dict().items()})
    if data == "planted":
        moved = infer(module.eval(), torch.randn(2, *shape)).random(0).apply(found[0])
        rng = torch.Generator().manual_seed(0)
        found[1] = {k: noisy(k, v, rng) for k, v in moved.items()}
    for name, state in zip("ab", found, strict=True):
        save_file({k: v.contiguous() for k, v in state.items()}, out / f"{name}.safetensors")
    return out


def noisy(name: str, value: Tensor, rng: torch.Generator) -> Tensor:
    """Noise of .3 deviations on learned tensors."""
    if not value.is_floating_point() or value.numel() < 2 or "running" in name:
        return value
    return value + 0.3 * value.std() * torch.randn(value.shape, generator=rng)


def trained(module: nn.Module, seed: int) -> None:
    """20 epochs of Adam on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    x = nn.functional.interpolate(x, size=28, mode="bilinear")
    y = torch.tensor(labels)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(20):
        for index in torch.randperm(1437, generator=rng).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()


def ours(case: str, peers: Path, folder: Path, repeat: int, budget: float) -> dict:
    """Our rows of a case: seconds and ratios."""
    from metanet import infer
    from metanet.symmetry.element import GroupElement
    from metanet.symmetry.matching import match

    infer(nn.Linear(2, 3), torch.randn(5, 2))  # what tracing imports is imported
    module, shape = network(case.split()[0], peers)
    a, b = (load_file(folder / f"{name}.safetensors") for name in "ab")
    start = time.process_time()
    space = infer(module.eval(), torch.randn(2, *shape))
    traced = time.process_time() - start
    first = GroupElement(space)
    one, same = timed(lambda: match(a, b, space, init=first), repeat)
    both, default = timed(lambda: match(a, b, space), repeat)
    begun, best, count = time.process_time(), default.element, 2
    gain = default.objective
    while (time.process_time() - begun) + both < budget and count < 500:
        found = match(a, b, space, restarts=2, seed=count, init=best)
        count += 1
        if found.objective > gain:
            best, gain = found.element, found.objective
    return {"traced": traced, "one": one, "default": both, "starts": count,
            "ratio": ratio(a, b, same.element.apply(b)),
            "default_ratio": ratio(a, b, default.element.apply(b)),
            "best_ratio": ratio(a, b, best.apply(b))}


def timed(work: Callable[[], object], repeat: int) -> tuple[float, object]:
    """Median CPU seconds of a call, and its last result."""
    seconds, found = [], None
    for _ in range(repeat):
        start = time.process_time()
        found = work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), found


def process(python: str, *words: object) -> dict:
    """The row that a process prints on its last line."""
    done = subprocess.run([python, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:120] if done.stderr else "killed"}
    return json.loads(done.stdout.splitlines()[-1])


def table(told: argparse.Namespace) -> None:
    print("| nets | ours, one start | ours, default | tracing | pt | snimu | pt / ours | "
          "snimu / ours | ratio: ours one, default, equal time (starts) | pt | snimu |")
    print("|" + "---|" * 11, flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for case in (c for c in CASES if told.only in c):
            folder = nets(case, told.peers, Path(temporary))
            rows = {who: {"failed": "minutes"} if (who, case) in _SLOW else process(
                told.python, Path(__file__).with_name("matching_peer.py"), who, case, told.peers,
                folder, told.repeat) for who in PEERS}
            closest = min((r for r in rows.values() if "cpu" in r), key=lambda r: r["ratio"])
            mine = process(sys.executable, "-m", "tests.bench.matching", "--peers", told.peers,
                           "--case", case, "--folder", folder, "--repeat", told.repeat,
                           "--budget", closest["cpu"])
            print(line(case, mine, rows), flush=True)


def line(case: str, mine: dict, rows: dict[str, dict]) -> str:
    """A row of the table."""
    if "failed" in mine:
        raise SystemExit(f"{case}: {mine['failed']}")
    pt, snimu = rows["pt"], rows["snimu"]
    seconds = [f"{r['cpu']:.3f}" if "cpu" in r else r["failed"] for r in (pt, snimu)]
    times = [f"{pt['cpu'] / mine['one']:.1f}" if "cpu" in pt else "",
             f"{snimu['cpu'] / (mine['one'] + mine['traced']):.1f}" if "cpu" in snimu else ""]
    worth = [f"{r['ratio']:.4f}" if "ratio" in r else "" for r in (pt, snimu)]
    own = (f"{mine['ratio']:.4f}, {mine['default_ratio']:.4f}, {mine['best_ratio']:.4f} "
           f"({mine['starts']})")
    cells = [case, f"{mine['one']:.3f}", f"{mine['default']:.3f}", f"{mine['traced']:.2f}",
             *seconds, *times, own, *worth]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeat", type=int, default=3)
    for name, kind in (("case", str), ("folder", Path), ("budget", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    told = parser.parse_args()
    torch.set_num_threads(1)
    if told.case:
        print(json.dumps(ours(told.case, told.peers, told.folder, told.repeat, told.budget)))
    else:
        table(told)


if __name__ == "__main__":
    main()
