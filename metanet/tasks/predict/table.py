"""From fits to the rows of a table: means over seeds, intervals, paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from metanet.tasks.predict import metrics
from metanet.tasks.predict.data import Array, Part, Task
from metanet.tasks.predict.rows.base import ROWS

AGAINST = ("statistics", "norm-line")
_CLUSTERS = "repo"


@dataclass(frozen=True)
class Scored:
    """What a split is scored on.

    Attributes:
        y: targets ``[N]``.
        strata: ranks are compared within each.
        clusters: of members that are no independent draws, or None.
    """

    y: Array
    strata: Array
    clusters: Array | None = None

    @classmethod
    def of(cls, part: Part) -> Scored:
        """A part: members of one repository are a cluster."""
        return cls(part.y, part.strata, part.info[_CLUSTERS].astype(str)
                   if _CLUSTERS in part.info else None)

    @classmethod
    def together(cls, many: Sequence[Scored]) -> Scored:
        """Several as one; each has strata (and clusters) of its own."""
        if len(many) == 1:
            return many[0]
        clusters = [_own(k, s.clusters) for k, s in enumerate(many) if s.clusters is not None]
        return cls(np.concatenate([s.y for s in many]),
                   np.concatenate([_own(k, s.strata) for k, s in enumerate(many)]),
                   np.concatenate(clusters) if len(clusters) == len(many) else None)


def _own(number: int, names: Array) -> Array:
    return np.array([f"{number}/{name}" for name in names.tolist()])


def summarise(stage: str, task: Task, tests: Mapping[str, Sequence[Scored]],
              done: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One dictionary per row and split.

    Args:
        stage: name of the board and its cut.
        task: what was learned.
        tests: name of a split → what was scored: one for each fold, or one that is the same for
            every seed.
        done: name of a row → its fits, one for each seed.
    """
    out = []
    for split, parts in tests.items():
        scored = Scored.together(parts)
        found = {name: [np.array(fit["predictions"][split]) for fit in fits]
                 for name, fits in done.items()}
        rows = [_row(stage, split, name, fits, parts, scored, found[name])
                for name, fits in done.items()]
        joined = {name: _joined(each, len(parts)) for name, each in found.items()}
        for other in AGAINST:
            _compare(rows, joined, scored, other)
        if task.goal.column == "metrics.test_accuracy":
            rows.append(_ceiling(stage, split, scored, task))
        out += rows
    return out


def _joined(found: Sequence[Array], folds: int) -> list[Array]:
    """Predictions of all folds as one array; of a part that all seeds share, one per seed."""
    return [np.concatenate(found[:folds])] if folds > 1 else list(found)


def _row(stage: str, split: str, name: str, fits: Sequence[Mapping[str, Any]],
         parts: Sequence[Scored], scored: Scored, found: Sequence[Array]) -> dict[str, Any]:
    every = [metrics.scores(f, p.y, p.strata) for f, p in zip(found, cycle(parts))]
    lead = next(iter(every[0]))
    low, high = metrics.interval(_joined(found, len(parts)), scored.y, scored.strata,
                                 clusters=scored.clusters)
    scores = {key: [e[key] for e in every] for key in every[0]}
    row = ROWS[name]
    return {
        "model": name, "title": row.title, "track": row.track, "stage": stage, "split": split,
        "metric": lead, "mean": _mean(scores[lead]), "sd": _sd(scores[lead]), "low": low,
        "high": high, "seeds": len(fits), "folds": len(parts), "trials": fits[0]["trials"],
        "seconds": float(np.mean([fit["seconds"] for fit in fits])),
        "memory": max((fit["memory"] or 0 for fit in fits), default=0) or None,
        "parameters": fits[0]["parameters"], "n": len(scored.y),
        "scores": {key: {"mean": _mean(v), "sd": _sd(v)} for key, v in scores.items()},
        "coverage": _mean([fit["coverage"][split] for fit in fits if fit["interval"]]),
        "setting": fits[0]["setting"], "attribution": fits[0].get("attribution")}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values and np.isfinite(values).all() else None


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else 0.0


def _compare(rows: Sequence[dict[str, Any]], found: Mapping[str, Sequence[Array]],
             scored: Scored, other: str) -> None:
    """Paired differences from one row, Holm over the rows of the split."""
    if other not in found:
        return
    tests = {}
    for row in rows:
        if row["model"] != other:
            tests[row["model"]] = metrics.difference(
                found[row["model"]], found[other], scored.y, scored.strata,
                clusters=scored.clusters)
    adjusted = metrics.holm({name: test.p for name, test in tests.items()})
    for row in rows:
        if row["model"] in tests:
            test = tests[row["model"]]
            row[f"against_{other.replace('-', '_')}"] = {
                "difference": test.value, "low": test.low, "high": test.high, "p": test.p,
                "p_holm": adjusted[row["model"]], "above": test.above}


def _ceiling(stage: str, split: str, scored: Scored, task: Task) -> dict[str, Any]:
    """What a perfect predictor of the true accuracy could reach, given how many images measured
    it.
    """
    from metanet.tasks.predict.images import tested_on

    n = tested_on(task.recipe["data"]["name"]) if "data" in task.recipe else 10_000
    value = metrics.ceiling(scored.y, n, scored.strata)
    return {"model": "ceiling", "title": "ceiling set by the noise of the targets", "track": "-",
            "stage": stage, "split": split, "metric": "tau", "mean": value, "sd": None,
            "low": None, "high": None, "seeds": 0, "trials": 0, "seconds": 0.0, "memory": None,
            "folds": 1, "parameters": 0, "n": len(scored.y), "scores": {}, "coverage": None,
            "setting": {}, "attribution": None}
