"""Accuracy at equal time: ``python -m tests.bench.reading ZOO --peers DIR [--jax PYTHON]``.

Every system learns which digit the coordinate networks of one zoo show, from the same members in
the same parts, in a process of its own, at one thread, for the same CPU seconds of training:
start-up and compilation stand beside, scoring does not count. No augmentation, on neither side.
Peers run their own layers with the sizes, the optimizer and the step size of their own trainer;
ours the rows ``dws``, ``gmn`` and ``unf`` of the tables with their first setting. A point of a
curve is the test accuracy at the best validation accuracy so far.
DIR holds one checkout per peer, named OWNER+NAME; PYTHON is an interpreter with jax and flax.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch

from tests.bench.clock import Race, standard

HERE = Path(__file__).resolve().parent
UNF, NG, DWS = ("AllanYangZhou+universal_neural_functional", "mkofinas+neural-graphs",
                "AvivNavon+DWSNets")
SYSTEMS = (("DWS, ours", "dws", ""), ("DWS, its authors'", "peer_dws", DWS),
           ("DWS, its authors', set layers with means", "peer_dws_mean", DWS),
           ("GMN, ours", "gmn", ""), ("neural-graphs (PNA), its authors'", "peer_ng", NG),
           ("UNF, ours", "unf", ""), ("UNF, its authors' (JAX)", "peer_unf", UNF))
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--jax", help="interpreter with jax and flax")
    parser.add_argument("--python", default=sys.executable,
                        help="interpreter with what the PyTorch peers need (hydra, einops)")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--only", default="", help="systems whose name holds this")
    parser.add_argument("-o", "--out", type=Path,
                        help="JSON of all curves; what stands there is not run again")
    parser.add_argument("--plot", type=Path, help="SVG of all curves")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        ours(options.one, options.zoo, options.seconds)
        return
    found: dict[str, Any] = {}
    if options.out and options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, **arrays(options.zoo))
        print("| system | accuracy at a quarter | a half | all of the time | epochs | start s |\n"
              "|---|---|---|---|---|---|")
        for title, name, checkout in SYSTEMS:
            command = _command(name, checkout, data, options) if options.only in title else None
            points = found.get(title) or (run(command) if command else None)
            if points:
                found[title] = points
                print(line(title, points), flush=True)
                if options.out:
                    options.out.write_text(json.dumps(found), encoding="utf-8")
    if options.plot:
        plot(found, options.plot)


def _command(name: str, checkout: str, data: Path, options: argparse.Namespace
             ) -> list[str] | None:
    seconds = str(options.seconds)
    if not checkout:
        return [sys.executable, "-m", "tests.bench.reading", str(options.zoo), "--seconds", seconds,
                "--one", name]
    place = options.peers / checkout if options.peers else None
    if place is None or not place.is_dir():
        return None
    if name == "peer_unf":
        script = str(HERE / "reading_unf_jax.py")
        return [options.jax, script, str(data), seconds, str(place)] if options.jax else None
    return [options.python, "-m", "tests.bench.reading_peers", name, str(data), seconds, str(place)]


def run(command: list[str]) -> list[dict[str, float]] | None:
    """The points that a system prints as JSON on its last line."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent.parent,
                          check=False, env=os.environ | KEEP)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)
        return None
    points: list[dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return points


def line(title: str, points: list[dict[str, float]]) -> str:
    """What a curve reaches after a quarter, a half and all of the time."""
    end = points[-1]["seconds"]
    marks = [[p for p in points if p["seconds"] <= share * end + 1e-9] for share in (.25, .5, 1)]
    cells = [f"{m[-1]['test']:.3f}" if m else "-" for m in marks]
    last = points[-1]
    return f"| {title} | {' | '.join(cells)} | {last['epochs']:.1f} | {last['start']:.0f} |"


def plot(found: dict[str, Any], place: Path) -> None:
    """Test accuracy over CPU seconds, one panel per kind of layer."""
    import matplotlib as mpl
    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "metanet", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
    for ax, kind in zip(axes, ("DWS", "GMN", "UNF"), strict=True):
        for title, points in found.items():
            if title.startswith(kind) or (kind == "GMN" and title.startswith("neural-graphs")):
                ax.plot([0, *(p["seconds"] for p in points)], [.1, *(p["test"] for p in points)],
                        "o-" if "ours" in title else "s--", markersize=3, label=title)
        ax.set(xlabel="CPU seconds", title=kind, ylim=(0, 1.4 * max(
            p["test"] for points in found.values() for p in points)))  # the legend stands above
        ax.legend(fontsize=7, loc="upper left")
    axes[0].set_ylabel("test accuracy")
    figure.tight_layout()
    figure.savefig(place, metadata={"Date": None})


# ------------------------------------------------------------ the members, and our side


def task_of(zoo: Path) -> Any:
    """The first fold of the suite's split."""
    from metanet.zoo import Zoo

    from metanet.tasks.predict.data import LABEL, Cut, load

    return load(Zoo.open(zoo), LABEL, Cut("iid", "image", folds=5))


def arrays(zoo: Path) -> dict[str, np.ndarray[Any, Any]]:
    """``PART/w0`` ``[n, in, out]``, ``PART/b0`` ``[n, out]`` and ``PART/y`` of train, val, test."""
    task = task_of(zoo)
    out: dict[str, np.ndarray[Any, Any]] = {}
    for name in ("train", "val", "test"):
        part = task.parts[name]
        for i in range(3):
            out[f"{name}/w{i}"] = part.batch.blocks[f"seq.{i}.weight"].reshape(
                len(part), *task.space.tensors[f"seq.{i}.weight"].shape).numpy().transpose(0, 2, 1)
            out[f"{name}/b{i}"] = part.batch.blocks[f"seq.{i}.bias"].reshape(len(part), -1).numpy()
        out[f"{name}/y"] = part.y
    return standard(out)


def ours(name: str, zoo: Path, seconds: float) -> None:
    """A row of the tables, trained by the same few lines as the peers."""
    torch.set_num_threads(1)
    from metanet.nn import keep_freed_memory
    from metanet.tasks.predict.rows import ROWS, Budget

    keep_freed_memory()
    task = task_of(zoo)
    torch.manual_seed(0)
    race, row = Race(seconds), ROWS[name]
    reader = row.make(task, Budget(), row.settings[0])
    reader.augment = torch.nn.ModuleList()
    reader.measure(task.parts["train"].batch, task.parts["train"].context)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=row.settings[0]["lr"])

    def logits(part: str, rows: np.ndarray[Any, Any]) -> torch.Tensor:
        pick = torch.from_numpy(rows)
        return reader(task.parts[part].batch[pick], task.parts[part].context[pick])

    y = {k: p.y for k, p in task.parts.items()}
    print(json.dumps(race.torch(reader, optimiser, logits, y, batch=16)))


if __name__ == "__main__":
    main()
