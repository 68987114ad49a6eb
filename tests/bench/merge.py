"""Tables of merging on real pairs: ``python -m tests.bench.merge --wild --mnist --related``.

The recipe is fixed here and was written down before any of the tables was made: one alignment per
pair (default of ``metanet.align`` with unlabelled inputs), then each repair, none chosen by hand.
Parents, the naive average (its logits scaled to fit the calibration inputs, too) and the ensemble
stand beside. Test labels score and decide nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor, nn

import metanet
from metanet.symmetry.resolve import built
from metanet.tasks.merge import Runner, Samples, align, barrier, related
from metanet.tasks.merge.align import Judge
from metanet.tasks.merge.data import normalized
from metanet.tasks.merge.repair import mix, repair, temperature
from metanet.tasks.merge.scores import against, ensemble, scored

CALIB = 2000
FIXES = ("rescale", "repair", "least-squares")
FAMILIES = {"cnn21k": ("std", (0.1307, 0.3081)), "lenet45k": ("half", (0.5, 0.5))}
WIDTHS = (784, 400, 200, 100, 10)
State = dict[str, Tensor]


def mnist(data: Path, pair: tuple[float, ...]) -> tuple[Samples, Samples, Samples]:
    """Calibration inputs without labels, training images, test images."""
    with np.load(data / "mnist" / "mnist.npz") as found:
        x, y = torch.from_numpy(found["x_train"]), torch.from_numpy(found["y_train"]).long()
        tx, ty = torch.from_numpy(found["x_test"]), torch.from_numpy(found["y_test"]).long()
    train = Samples(normalized(x.float() / 255, pair), y).shuffled(0)
    test = Samples(normalized(tx.float() / 255, pair), ty)
    return Samples(train.x[:CALIB]), train, test


def wild(data: Path, family: str, least: float = 0.98) -> dict[str, State]:
    """Nets of one family and normalisation, one per repository, at least so accurate."""
    norm, _ = FAMILIES[family]
    folder, repos, found = data / f"wild_mnist_{family}", set(), {}
    for row in json.loads((folder / "manifest.json").read_text(encoding="utf-8")):
        if row["best_norm"] == norm and row["test_acc_best"] >= least and row["repo"] not in repos:
            repos.add(row["repo"])
            found[row["file"]] = metanet.open(folder / row["file"]).state_dict()
    return found


def midpoint(runner: Runner, a: State, b: State, calib: Samples, test: Samples) -> dict[str, tuple]:
    """Loss and accuracy of every way to make one model out of two."""
    def score(outputs: Tensor) -> tuple[float, float]:
        found = scored(outputs, test.y)
        return found.loss, found.accuracy

    ends = [runner.outputs(state, test.x) for state in (a, b)]
    judge = Judge(runner, a, b, calib)
    target = ensemble(judge.of_a, judge.of_b, 0.5, judge.kind)
    naive = mix(a, b, 0.5)
    small = runner.outputs(naive, calib.x)
    heat = temperature(lambda f: against(small * f, target, judge.kind))
    row = {"parent A": score(ends[0]), "parent B": score(ends[1]),
           "naive": score(runner.outputs(naive, test.x)),
           "naive, calibrated": score(heat * runner.outputs(naive, test.x)),
           "ensemble": score(ensemble(ends[0], ends[1], 0.5, judge.kind))}
    by_weights = align(a, b, runner=runner, method="weights", restarts=1, certify=False)
    row["weight matching"] = score(
        runner.outputs(mix(a, by_weights.apply(b), 0.5), test.x))
    found = align(a, b, runner=runner, calib=calib)
    moved = found.apply(b)
    row["aligned"] = score(runner.outputs(mix(a, moved, 0.5), test.x))
    worth = {}
    for fix in FIXES:
        model = repair(runner, a, moved, mix(a, moved, 0.5), calib.x, method=fix)
        row[fix] = score(model.outputs(runner, test.x))
        worth[fix] = judge.loss(model.outputs(runner, calib.x))
    row["chosen on calibration inputs"] = row[min(worth, key=lambda k: worth[k])]
    return row


def wild_table(data: Path, family: str, limit: int | None) -> Iterator[dict]:
    nets = wild(data, family)
    calib, _, test = mnist(data, FAMILIES[family][1])
    module, inputs = built(data / f"wild_mnist_{family}" / next(iter(nets)), f"mnist-{family}")
    runner = Runner(module, example_inputs=inputs)
    for a, b in list(itertools.combinations(nets, 2))[:limit]:
        start = time.process_time()
        row = midpoint(runner, nets[a], nets[b], calib, test)
        yield {"pair": [a, b], "seconds": time.process_time() - start, "scores": row}


def summary(title: str, rows: list[dict]) -> list[str]:
    """A Markdown table of means over pairs."""
    count = len(rows)
    lines = [f"### {title}: {count} pairs, {CALIB} calibration inputs without labels", "",
             "| | accuracy, mean | worst pair | loss, mean |", "|---|---|---|---|"]
    for name in rows[0]["scores"]:
        found = np.array([row["scores"][name] for row in rows])
        lines.append(f"| {name} | {found[:, 1].mean():.4f} | {found[:, 1].min():.4f} | "
                     f"{found[:, 0].mean():.4f} |")
    return [*lines, "", f"{np.mean([r['seconds'] for r in rows]):.1f} CPU-s per pair.", ""]


# ---------------------------------------------------------------- nets of our own


class MLP(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for ins, outs in itertools.pairwise(WIDTHS):
            layers += [nn.Linear(ins, outs, bias=False), nn.ReLU()]
        super().__init__(*layers[:-1])


def train(net: nn.Module, samples: Samples, epochs: int, seed: int, lr: float = 1e-3) -> State:
    """Adam, batches of 200, cosine schedule."""
    rng = torch.Generator().manual_seed(seed)
    live = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(live, lr=lr)
    steps = epochs * (len(samples) // 200)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for index in torch.randperm(len(samples), generator=rng)[: len(samples) // 200 * 200
                                                                 ].split(200):
            optimizer.zero_grad()
            F.cross_entropy(net(samples.x[index]), samples.y[index]).backward()
            optimizer.step()
            schedule.step()
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def seeds(folder: Path, samples: Samples, count: int, epochs: int) -> list[State]:
    """Independent nets, kept in a folder so that they are trained once."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(count):
        path = folder / f"mlp_{seed}_{epochs}.safetensors"
        if not path.exists():
            torch.manual_seed(seed)
            state = train(MLP(), samples, epochs, seed)
            metanet.checkpoint.write_safetensors(state, path)
        found.append(metanet.open(path).state_dict())
    return found


def flat(samples: Samples) -> Samples:
    return Samples(samples.x.flatten(1), samples.y)


def mnist_table(data: Path, folder: Path, pairs: int, epochs: int) -> Iterator[dict]:
    calib, training, test = (flat(s) for s in mnist(data, (0.1307, 0.3081)))
    nets = seeds(folder, training, 2 * pairs, epochs)
    runner = Runner(MLP(), example_inputs=torch.randn(3, 784))
    for a, b in zip(nets[::2], nets[1::2], strict=True):
        start = time.process_time()
        row = midpoint(runner, a, b, calib, test)
        found = barrier(a, b, test, calib, runner=runner, fixes=FIXES[1:])
        kept = {name: path.barrier for name, path in found.variants.items()}
        yield {"seconds": time.process_time() - start, "scores": row, "barriers": kept,
               "repaired": found.variants["repaired"].told["repair"]}


def barriers(rows: list[dict]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row["barriers"])
    lines = ["| path of 25 points | loss barrier, mean | largest |", "|---|---|---|"]
    for name in names:
        found = [row["barriers"][name] for row in rows if name in row["barriers"]]
        lines.append(f"| {name} | {np.mean(found):.4f} | {max(found):.4f} |")
    return [*lines, "", f"repaired is {', '.join(r['repaired'] for r in rows)} per pair.", ""]


# ---------------------------------------------------------------- kinship


def kin(nets: list[State], samples: Samples, space: metanet.WeightSpace) -> Iterator[dict]:
    """Copies that are kin: fine-tuned, permuted, partly retrained; p-values."""
    for number, state in enumerate(nets[:3]):
        tuned = MLP()
        tuned.load_state_dict(state)
        fine = train(tuned, samples, 1, 100 + number)
        part = MLP()
        part.load_state_dict(state)
        torch.manual_seed(200 + number)
        for layer in list(part)[-3:]:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        partly = train(part, samples, 1, 300 + number)
        copies = {"fine-tuned for an epoch": fine, "permuted": state, "fine-tuned, permuted": fine,
                  "last two layers drawn anew, all retrained": partly,
                  "last two layers drawn anew, all retrained, permuted": partly}
        for name, copy in copies.items():
            moved = space.random(number).apply(copy) if "permuted" in name else copy
            found = related(state, moved, space)
            yield {"copy": name, "log10_p": found.log10_p, "order_p": found.order_p,
                   "orbit_p": found.orbit_p}


def related_table(data: Path, folder: Path, pairs: int, epochs: int) -> dict:
    _, training, _ = (flat(s) for s in mnist(data, (0.1307, 0.3081)))
    nets = seeds(folder, training, 2 * pairs, epochs)
    space = metanet.infer(MLP(), torch.randn(3, 784))
    found: dict = {"independent": {}}
    sets = {"mlp seeds": (nets, space)}
    for family in FAMILIES:
        chosen = wild(data, family, least=0.9)
        if family == "cnn21k":
            for copy in ("net_02.pth", "net_22.pth"):  # of one initial seed with net_00
                chosen.pop(copy, None)
        module, inputs = built(data / f"wild_mnist_{family}" / next(iter(chosen)),
                               f"mnist-{family}")
        sets[f"wild {family}"] = (list(chosen.values()), metanet.infer(module, inputs))
    for name, (models, where) in sets.items():
        p = [related(a, b, where, seed=i).p_value
             for i, (a, b) in enumerate(itertools.combinations(models, 2))]
        found["independent"][name] = {"pairs": len(p), "p": p, "ks_p": kstest(p, "uniform").pvalue,
                                      "smallest": min(p)}
    found["kin"] = list(kin(nets, training, space))
    return found


def kinship(found: dict) -> list[str]:
    lines = ["### Independent pairs", "", "| | pairs | KS p against uniform | smallest p |",
             "|---|---|---|---|"]
    for name, row in found["independent"].items():
        lines.append(f"| {name} | {row['pairs']} | {row['ks_p']:.3f} | {row['smallest']:.4f} |")
    lines += ["", "### Kin", "", "| copy of an MNIST MLP | log10 p, three nets |", "|---|---|"]
    for name in dict.fromkeys(row["copy"] for row in found["kin"]):
        shown = ", ".join(f"{r['log10_p']:.1f}" for r in found["kin"] if r["copy"] == name)
        lines.append(f"| {name} | {shown} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("wild", "mnist", "related"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--nets", type=Path, default=Path("/tmp/metanet-merge-nets"))
    parser.add_argument("--family", choices=[*FAMILIES], action="append")
    parser.add_argument("--limit", type=int, help="pairs per family")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    torch.set_num_threads(1)
    document: dict = {}

    def kept(rows: list[dict], row: dict) -> None:
        """Rows are written as they come, for a table takes long."""
        rows.append(row)
        if told.json is not None:
            told.json.write_text(json.dumps(document, indent=1), encoding="utf-8")

    for family in (told.family or FAMILIES) if told.wild else ():
        rows = document.setdefault("wild", {})[family] = []
        for row in wild_table(told.data, family, told.limit):
            kept(rows, row)
        print("\n".join(summary(f"Wild {family}", rows)), flush=True)
    if told.mnist:
        rows = document["mnist"] = []
        for row in mnist_table(told.data, told.nets, told.pairs, told.epochs):
            kept(rows, row)
        print("\n".join([*summary("MNIST MLP 784-400-200-100-10, no biases", rows),
                         *barriers(rows)]), flush=True)
    if told.related:
        document["related"] = related_table(told.data, told.nets, told.pairs, told.epochs)
        print("\n".join(kinship(document["related"])), flush=True)
    if told.json is not None:
        told.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
