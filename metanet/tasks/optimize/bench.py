"""The benchmark: every unseen task, every optimizer, usual and tuned; resumable."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from metanet.checkpoint.names import printable
from metanet.errors import MetanetError, ZooError
from metanet.tasks.optimize.held import HELD
from metanet.tasks.optimize.inner import check_data
from metanet.tasks.optimize.rivals import GRID, RIVALS, rival
from metanet.tasks.optimize.spec import Net
from metanet.tasks.optimize.trial import Trial, trial
from metanet.tasks.optimize.unseen import UNSEEN, VERSION, Unseen

TUNING_SEED = 100
LISTED = {**UNSEEN, **HELD}
"""The tasks that can be run by name; without names, the unseen ones alone."""


@dataclass(frozen=True, eq=False)
class Options:
    """What to run.

    Attributes:
        out: folder of the results; finished trials are kept.
        nets: learned nets by name.
        tasks, rivals: names; all by default. seeds: how many.
        tune: whether rivals are tuned, over seven step sizes, on a start and batches of their own.
        steps: instead of each task's, for small sizes.
        source: of the data.
    """

    out: Path
    nets: Mapping[str, Net] = field(default_factory=dict)
    tasks: tuple[str, ...] = tuple(UNSEEN)
    rivals: tuple[str, ...] = tuple(RIVALS)
    seeds: int = 3
    tune: bool = True
    steps: int | None = None
    source: str | None = None


def bench(options: Options, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run what is not there yet; writes ``OUT/result.json`` after every task.

    Raises:
        MetanetError: for an unknown task or rival, or a folder of another plan.
    """
    strange = [name for name in options.tasks if name not in LISTED]
    if strange:
        raise MetanetError(f"no unseen task {strange[0]!r}; there are {', '.join(LISTED)}")
    for name in options.rivals:
        rival(name)
    _claim(options)
    absent: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for name in options.tasks:
        item = LISTED[name]
        try:
            check_data((item.task.data, *([item.start] if item.start else [])), options.source)
        except ZooError as error:
            absent[name] = str(error)
            say(f"{name}: left out, {item.task.data} is not there")
            continue
        rows += list(_task(item, options, say))
        _write(options.out / "result.json", json.dumps(document(rows, options, absent), indent=1))
    found = document(rows, options, absent)
    _write(options.out / "result.json", json.dumps(found, indent=1))
    return found


def _claim(options: Options) -> None:
    plan = json.dumps({"version": VERSION, "steps": options.steps,
                       "nets": {k: v.hash for k, v in options.nets.items()}}, sort_keys=True)
    path = options.out / "plan.json"
    if path.exists():
        told, now = json.loads(path.read_text(encoding="utf-8")), json.loads(plan)
        nets = told.get("nets")
        if not isinstance(nets, dict) or any(nets.get(k, v) != v for k, v in now["nets"].items()) \
                or (told.get("version"), told.get("steps")) != (now["version"], now["steps"]):
            raise MetanetError(f"{printable(str(options.out))}: holds other results, of other nets "
                               "or another size; name another folder")
        plan = json.dumps({**now, "nets": {**nets, **now["nets"]}}, sort_keys=True)
    options.out.mkdir(parents=True, exist_ok=True)
    _write(path, plan)


def _task(item: Unseen, options: Options, say: Callable[[str], None]
          ) -> Iterator[dict[str, Any]]:
    """Rows of one task: nets as they come, rivals as they come, rivals tuned."""
    for name in options.nets:
        yield _row(item, name, "as it comes", None, options, say)
    for name in options.rivals:
        yield _row(item, name, "usual", RIVALS[name].lr, options, say)
    for name in options.rivals if options.tune else ():
        tried = {}
        for factor in GRID:
            found = _trial(item, name, RIVALS[name].lr * factor, TUNING_SEED, options)
            tried[RIVALS[name].lr * factor] = float("inf") if found.final is None else found.final
        best = min(tried, key=lambda lr: tried[lr])
        yield {**_row(item, name, "tuned", best, options, say),
               "edge": best in (min(tried), max(tried))}


def _row(item: Unseen, name: str, how: str, lr: float | None, options: Options,
         say: Callable[[str], None]) -> dict[str, Any]:
    trials = [_trial(item, name, lr, seed, options) for seed in range(options.seeds)]
    finals = [t.final for t in trials if t.final is not None]
    reached = [t.reached for t in trials if t.reached is not None]
    seconds = [t.seconds_to for t in trials if t.seconds_to is not None]
    row = {"model": f"{name} ({how})", "optimizer": name, "how": how, "split": item.task.name,
           "metric": "final training loss", "lr": lr, "seeds": len(trials),
           "mean": mean(finals) if finals else None,
           "sd": stdev(finals) if len(finals) > 1 else None,
           "finals": [t.final for t in trials],
           "steps_to_target": mean(reached) if len(reached) == len(trials) else None,
           "seconds_to_target": mean(seconds) if len(seconds) == len(trials) else None,
           "reached": len(reached), "failures": sum(t.failed for t in trials),
           "seconds": mean(t.seconds for t in trials),
           "step_ms": mean(t.step_ms for t in trials), "memory": trials[0].memory,
           "curve": [round(float(v), 5) for v in _curve(trials)]}
    say(f"{item.task.name}: {row['model']} {row['mean'] if row['mean'] is not None else 'failed'}")
    return row


def _curve(trials: Sequence[Trial]) -> list[float]:
    """Mean loss in forty bins, over the trials that ended."""
    whole = [t.curve for t in trials if t.final is not None]
    if not whole:
        return []
    values = np.array(whole).mean(0)
    return [float(part.mean()) for part in np.array_split(values, min(40, len(values)))]


def _trial(item: Unseen, name: str, lr: float | None, seed: int, options: Options) -> Trial:
    """One training, or what is known of it."""
    tag = "own" if lr is None else f"{lr:.3g}"
    path = options.out / "trials" / item.task.name / f"{name}-{tag}-{seed}.json"
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        return Trial(**{**known, "curve": tuple(known["curve"])})
    found = trial(item, name, lr, seed, dict(options.nets), options.source, options.steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(asdict(found)))
    return found


# ------------------------------------------------------------ comparisons


def document(rows: Sequence[dict[str, Any]], options: Options, absent: Mapping[str, str]
             ) -> dict[str, Any]:
    """Everything, with comparisons of every net with every rival, and of nets with each other."""
    others = [(name, how) for name in options.rivals for how in ("usual", "tuned")]
    pairs = [(net, "as it comes", *other) for net in options.nets for other in others]
    nets = list(options.nets)
    pairs += [(b, "as it comes", a, "as it comes") for i, a in enumerate(nets)
              for b in nets[i + 1:]]
    found = [compare(rows, *pair) for pair in pairs]
    return {
        "suite": "optim", "version": VERSION, "rows": list(rows), "absent": dict(absent),
        "comparisons": [one for one in found if one is not None],
        "nets": {name: {"hash": net.hash, "about": dict(net.about)}
                 for name, net in options.nets.items()},
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
                   f"{torch.__version__}, {torch.get_num_threads()} thread",
        "command": "metanet optim bench -o OUT"}


def compare(rows: Sequence[dict[str, Any]], one: str, one_how: str, other: str, other_how: str
            ) -> dict[str, Any] | None:
    """``one`` against ``other``: share of tasks with a lower mean, and the mean difference of log
    losses, paired over tasks and seeds, with 95 % intervals over tasks (bootstrap)."""
    table = {(r["optimizer"], r["how"], r["split"]): r for r in rows}
    tasks = [r["split"] for r in rows if (r["optimizer"], r["how"]) == (one, one_how)
             and (other, other_how, r["split"]) in table]
    if not tasks:
        return None
    differences, wins = [], []
    for task in tasks:
        a, b = table[one, one_how, task], table[other, other_how, task]
        pairs = [(_log(x) - _log(y)) for x, y in zip(a["finals"], b["finals"], strict=False)]
        differences.append(float(np.mean(pairs)))
        wins.append(float(_log(a["mean"]) < _log(b["mean"])))
    rng = np.random.default_rng(0)
    picks = rng.integers(len(tasks), size=(2000, len(tasks)))

    def interval(values: list[float]) -> list[float]:
        low, high = np.percentile(np.array(values)[picks].mean(1), [2.5, 97.5])
        return [float(low), float(high)]

    return {"one": one, "other": f"{other} ({other_how})", "tasks": len(tasks),
            "wins": float(np.mean(wins)), "wins_interval": interval(wins),
            "log_ratio": float(np.mean(differences)), "log_ratio_interval": interval(differences),
            "per_task": dict(zip(tasks, differences, strict=True))}


def _log(loss: float | None) -> float:
    """Logarithm of a loss; a failure counts as a loss of 10."""
    return float(np.log(max(loss if loss is not None else 10.0, 1e-6)))


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
