"""Readers on wider networks than they learned from: ``python -m tests.bench.width -o DIR``.

Small classifiers of the digits of scikit-learn, [64, h, h, 10], whose hyper-parameters differ:
readers learn test accuracy from h = 8, 12, 16, 24; h = 32 stops training and decides between
settings; h = 512 is only scored on. All rows see the same members. The zoos are built in DIR with
the factory of ``metanet zoo build``, every fit is kept there, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from metanet.zoo.build import build
from torch import Tensor, nn
from torch.func import functional_call

from metanet.graph import WeightBatch
from metanet.nn import keep_freed_memory
from metanet.nn.encoding import fan_in
from metanet.symmetry import WeightSpace
from metanet.tasks.predict import features, metrics
from metanet.tasks.predict.data import ACCURACY, Part, Task, load
from metanet.tasks.predict.loop import Plan, train
from metanet.tasks.predict.nets import MetanetReader, Reader
from metanet.tasks.predict.normal import Normal
from metanet.tasks.predict.rows.neural import larger
from metanet.tasks.predict.trust import shuffled
from metanet.tasks.predict.wiring import wiring
from tests.bench.kept import kept

RECIPE = """factory: net
about: Perceptrons of one width on the digits of scikit-learn.
n: 160
arch: mlp
data: {{name: digits, side: 8}}
seed: {seed}
members:
  width: {width}
  lr: {{log_uniform: [0.0005, 0.02]}}
  steps: {{log_integer: [20, 160]}}
  weight_decay: {{log_uniform: [0.0001, 0.3]}}
  optimizer: {{choice: [adam, sgd]}}
  init_scale: {{log_uniform: [0.5, 2]}}
  fraction: {{choice: [0.05, 0.1, 0.25, 1.0]}}
  label_noise: {{uniform: [0, 0.5]}}
"""
LEARNED, HELD, WIDE = (8, 12, 16, 24), 32, 512
# Width and seed of every zoo: its networks. The second of width 512 makes up for those at chance.
ZOOS = {(8, 8): 160, (12, 12): 160, (16, 16): 160, (24, 24): 160, (32, 32): 200, (512, 512): 510,
        (512, 513): 40}
LRS = (4e-3, 1.5e-3)
REFERENCE = "per-layer statistics that ignore width, boosted"
Array = Any


@dataclass(frozen=True, eq=False)
class Members:
    """Members of several widths, in the place of ``loop.Examples``: their batches one by one."""

    parts: tuple[Part, ...]
    y: Tensor

    @classmethod
    def of(cls, found: Sequence[tuple[Task, Part]], z: Array) -> Members:
        return cls(tuple(part for _, part in found), torch.from_numpy(z).float()[:, None])

    @property
    def batch(self) -> list[WeightBatch]:
        return [part.batch for part in self.parts if len(part)]

    @property
    def context(self) -> Tensor:
        return torch.zeros(len(self), 0)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor) -> Members:
        rows, start, parts = rows.sort().values, 0, []
        for part in self.parts:
            own = rows[(rows >= start) & (rows < start + len(part))] - start
            parts.append(part[own.numpy()])
            start += len(part)
        return Members(tuple(parts), self.y[rows])


class Even(nn.Module):
    """Weights times the square root of their fan-in: of one size at every width."""

    def __init__(self, space: WeightSpace) -> None:
        super().__init__()
        self.factors = {block.name: fan_in(space, name) ** 0.5 for name in space.tensors
                        for block in space.blocks(name)}

    def forward(self, batch: WeightBatch) -> WeightBatch:
        return batch.with_blocks({k: x * self.factors[k] for k, x in batch.blocks.items()})


class AnyWidth(nn.Module):
    """One reader at every width: no shape of its parameters depends on the size of a group."""

    def __init__(self, readers: Mapping[WeightSpace, Reader]) -> None:
        super().__init__()
        self.net = next(iter(readers.values()))
        self._twins = dict(readers)  # not modules of this one: they lend their code alone
        shapes = [{k: v.shape for k, v in r.state_dict().items()} for r in readers.values()]
        if any(found != shapes[0] for found in shapes):
            raise ValueError("parameters of this reader depend on the width of what it reads")

    def measure(self, batches: Sequence[WeightBatch], context: Tensor) -> None:
        """Scales of the inputs: means over the widths."""
        states = []
        for batch in batches:
            twin = self._twins[batch.space]
            twin.measure(batch, torch.zeros(len(batch), 0))
            states.append({k: v.clone() for k, v in twin.named_buffers()})
        for name, value in self.net.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.stack([state[name] for state in states]).mean(0))

    def forward(self, batches: Sequence[WeightBatch], context: Tensor) -> Tensor:
        state = self.net.state_dict(keep_vars=True)
        return torch.cat([functional_call(self._twins[b.space].train(self.training), state,
                                          (b, torch.zeros(len(b), 0))) for b in batches])


READERS: dict[str, Callable[[WeightSpace], nn.Module]] = {
    "UNF": lambda space: MetanetReader(space, 1, kind="unf", width=8, depth=3),
    "GMN, forward schedule": lambda space: MetanetReader(space, 1, kind="gmn", width=8, depth=2,
                                                         schedule="forward"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--least", type=float, default=1.0, help="share of the sizes of the zoos")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    sets = Sets.built(options.out, options.least)
    found = {**trees(sets, options), **readers(sets, options)}
    found |= flagship(sets, found)
    report(sets, found, options.out)


# ------------------------------------------------------------ the members


@dataclass(frozen=True, eq=False)
class Sets:
    """What is learned from, what decides, and what is scored on; with targets as logits."""

    learned: tuple[tuple[Task, Part], ...]
    held: tuple[tuple[Task, Part], ...]
    wide: tuple[tuple[Task, Part], ...]
    census: Mapping[str, int]

    @classmethod
    def built(cls, out: Path, share: float) -> Sets:
        found: dict[int, tuple[tuple[Task, Part], ...]] = {}
        out.mkdir(parents=True, exist_ok=True)
        for (width, seed), n in ZOOS.items():
            recipe = out / f"mlp-{seed}.yaml"
            recipe.write_text(RECIPE.format(width=width, seed=seed), encoding="utf-8")
            task = load(build(str(recipe), out / f"zoo-{seed}", n=max(40, round(share * n)),
                              workers=1), ACCURACY)
            # Widths are the split: all parts of one width stand on one side of it.
            members = tuple((task, part) for part in task.parts.values())
            found[width] = found.get(width, ()) + members
            print(f"h = {width}: {dict(task.census)}, accuracies "
                  f"{np.quantile(truth(members), (0, .25, .5, .75, 1)).round(2)}", flush=True)
        census = {f"h = {width}": len(truth(members)) for width, members in found.items()}
        return cls(tuple(x for w in LEARNED for x in found[w]), found[HELD], found[WIDE], census)


def truth(found: Sequence[tuple[Task, Part]]) -> Array:
    return np.concatenate([part.y for _, part in found])


def logits(found: Sequence[tuple[Task, Part]]) -> Array:
    return ACCURACY.forward(truth(found))


def tau(predicted: Array, found: Sequence[tuple[Task, Part]]) -> float:
    return metrics.tau(np.asarray(predicted), truth(found))


# ------------------------------------------------------------ trees


@lru_cache(maxsize=16)
def normal(task: Task) -> Normal:
    return Normal(larger(task))


TABLES: dict[str, Callable[[Mapping[str, Array]], Sequence[Array]]] = {
    REFERENCE: lambda x: [x["width-free"]],
    "weight statistics, boosted": lambda x: [x["statistics"]],
    "wiring, boosted": lambda x: [x["width-free"], x["wiring"]],
    # What a wider network has only because it is wider drops out.
    "wiring less that of shuffled entries, boosted":
        lambda x: [x["width-free"], x["wiring"] - x["shuffled"]],
}


@torch.no_grad()
def numbers(found: Sequence[tuple[Task, Part]]) -> dict[str, Array]:
    """Columns of the tables; wiring of weights without the freedom of scales."""
    rows: dict[str, list[Tensor]] = {}
    for task, part in found:
        for piece in torch.arange(len(part)).split(16):
            free = normal(task)(part.batch[piece])
            for name, value in (("width-free", features.width_free(part.batch[piece])),
                                ("statistics", features.statistics(part.batch[piece])),
                                ("wiring", wiring(free)), ("shuffled", wiring(shuffled(free)))):
                rows.setdefault(name, []).append(value)
    return {name: np.nan_to_num(torch.cat(value).numpy()) for name, value in rows.items()}


def trees(sets: Sets, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Boosted trees per table and seed; random trees beside them, for the flagship."""
    from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor

    def fitted(x: Mapping[str, Array], seed: int) -> dict[str, Any]:
        start = time.process_time()
        boosted = HistGradientBoostingRegressor(
            max_iter=300, early_stopping=True, n_iter_no_change=20, max_leaf_nodes=8,
            learning_rate=0.05, max_features=0.3, random_state=seed)
        boosted.fit(x["learned"], logits(sets.learned), X_val=x["held"], y_val=logits(sets.held))
        forest = ExtraTreesRegressor(200, min_samples_leaf=2, max_features=0.3, random_state=seed)
        forest.fit(x["learned"], logits(sets.learned))
        return {"seconds": time.process_time() - start,
                **{f"{kind}{part}": model.predict(x[part]).tolist() for part in ("held", "wide")
                   for kind, model in (("", boosted), ("forest ", forest))}}

    paths = {name: [options.out / "fits" / f"table-{number}-{seed}.json"
                    for seed in range(options.seeds)] for number, name in enumerate(TABLES)}
    x = {} if all(path.exists() for some in paths.values() for path in some) else {
        part: numbers(getattr(sets, part)) for part in ("learned", "held", "wide")}
    out = {}
    for name, make in TABLES.items():
        table = {part: np.concatenate(make(columns), 1) for part, columns in x.items()}
        out[name] = [kept(path, partial(fitted, table, seed))
                     for seed, path in enumerate(paths[name])]
        said(name, out[name], sets)
    return out


def said(name: str, fits: Sequence[Mapping[str, Any]], sets: Sets) -> None:
    h, w = (np.mean([tau(fit[part], found) for fit in fits])
            for part, found in (("held", sets.held), ("wide", sets.wide)))
    print(f"{name}: tau {h:.3f} at {HELD}, {w:.3f} at {WIDE}", flush=True)


# ------------------------------------------------------------ readers


def readers(sets: Sets, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every reader with the step size that is best at width 32, once per seed."""
    out: dict[str, list[dict[str, Any]]] = {}
    for number, (name, make) in enumerate(READERS.items()):
        fits: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            lrs = (fits[0]["lr"],) if fits else LRS
            fits.append(kept(options.out / "fits" / f"reader-{number}-{seed}.json",
                             partial(read, sets, make, options.epochs, lrs, seed)))
        out[name] = fits
        said(f"{name}, lr {fits[0]['lr']}", fits, sets)
    return out


def read(sets: Sets, make: Callable[[WeightSpace], nn.Module], epochs: int,
         lrs: Sequence[float], seed: int) -> dict[str, Any]:
    """Train a reader with every step size; the predictions of the one that is best at width 32."""
    best: dict[str, Any] = {}
    for lr in lrs:
        start = time.process_time()
        net = trained(sets, make, Plan(epochs=epochs, batch_size=32, lr=lr, patience=8, seed=seed))
        found = {"lr": lr, "seconds": time.process_time() - start, "net": net,
                 "parameters": sum(p.numel() for p in net.net.parameters()),
                 "held": list(answers(net, sets.held))}
        if not best or tau(found["held"], sets.held) > tau(best["held"], sets.held):
            best = found
    net = best.pop("net")
    return {**best, "wide": list(answers(net, sets.wide))}


def trained(sets: Sets, make: Callable[[WeightSpace], nn.Module], plan: Plan) -> AnyWidth:
    """One reader, whose twins read all widths."""
    tasks = {task.space: task for task, _ in (*sets.learned, *sets.held, *sets.wide)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        net = AnyWidth({space: Reader(make(space), [normal(task), Even(space)])
                        for space, task in tasks.items()})
    z = logits(sets.learned)
    given, held = (Members.of(found, (logits(found) - z.mean()) / z.std())
                   for found in (sets.learned, sets.held))
    train(net, given, held, plan)  # type: ignore[arg-type]
    return net


@torch.no_grad()
def answers(net: nn.Module, found: Sequence[tuple[Task, Part]]) -> Iterator[float]:
    """Predictions, in units of the learned targets."""
    net.eval()
    for _, part in found:
        for rows in torch.arange(len(part)).split(8):
            yield from net([part.batch[rows]], torch.zeros(len(rows), 0))[:, 0].tolist()


# ------------------------------------------------------------ the flagship, and the table


def flagship(sets: Sets, found: Mapping[str, list[dict[str, Any]]]
             ) -> dict[str, list[dict[str, Any]]]:
    """A reader and trees (boosted and random), averaged: which of each, and by what share, is what
    ranks the members of width 32 best.
    """
    choices = [(reader, name, share) for reader in READERS for name in list(TABLES)[2:]
               for share in (0.0, 0.25, 0.5, 0.75, 1.0)]

    def mixed(choice: tuple[str, str, float], seed: int, part: str) -> Array:
        reader, name, share = choice
        ends = [np.array(x) for x in (found[reader][seed][part], found[name][seed][part],
                                      found[name][seed]["forest " + part])]
        units = [(x - x.mean()) / (x.std() + 1e-12) for x in ends]
        return share * units[0] + (1 - share) * (units[1] + units[2]) / 2

    fits = []
    for seed in range(len(found[REFERENCE])):
        ranks = [tau(mixed(choice, seed, "held"), sets.held) for choice in choices]
        best = choices[int(np.argmax(ranks))]
        fits.append({"choice": best, "seconds": 0.0, **{
            part: mixed(best, seed, part).tolist() for part in ("held", "wide")}})
        print(f"flagship W, seed {seed}: {best}")
    return {"flagship W": fits}


def report(sets: Sets, found: Mapping[str, list[dict[str, Any]]], out: Path) -> None:
    """A table in Markdown, and the same as JSON."""
    y, rows = truth(sets.wide), []
    strata = np.zeros(len(y), int)
    print(f"\n| row | Kendall τ at h = {HELD} | at h = {WIDE} (mean ± sd) | minus the width-free "
          "row, 95 % interval | p | seconds |\n|---|---|---|---|---|---|")
    base = [np.array(fit["wide"]) for fit in found[REFERENCE]]
    for name, fits in found.items():
        wide = [np.array(fit["wide"]) for fit in fits]
        test = metrics.difference(wide, base, y, strata)
        values = [tau(x, sets.wide) for x in wide]
        held = float(np.mean([tau(fit["held"], sets.held) for fit in fits]))
        seconds = float(np.mean([fit["seconds"] for fit in fits]))
        rows.append({"row": name, "held": held, "tau": values, "difference": test.value,
                     "low": test.low, "high": test.high, "p": test.p, "seconds": seconds,
                     "choice": fits[0].get("choice")})
        told = "–" if name == REFERENCE else f"{test.value:+.3f} [{test.low:.3f}, {test.high:.3f}]"
        p = "–" if name == REFERENCE else f"{test.p:.3f}"
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        print(f"| {name} | {held:.3f} | {np.mean(values):.3f}{spread} | {told} | {p} | "
              f"{seconds:.0f} |")
    (out / "result.json").write_text(json.dumps({"members": dict(sets.census), "rows": rows}),
                                     encoding="utf-8")


if __name__ == "__main__":
    main()
