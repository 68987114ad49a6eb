"""From fits to the rows of a table: means over seeds, intervals, paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metanet.tasks.predict import metrics
from metanet.tasks.predict.data import Array, Part, Task
from metanet.tasks.predict.rows.base import ROWS

AGAINST = ("statistics", "norm")
_CLUSTERS = "repo"


def summarise(stage: str, task: Task, tests: Mapping[str, Part],
              done: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One dictionary per row and split.

    Args:
        stage: name of the board and its cut.
        task: what was learned.
        tests: name of a split → members that were scored.
        done: name of a row → its fits.
    """
    out = []
    for split, part in tests.items():
        found = {name: [np.array(fit["predictions"][split]) for fit in fits]
                 for name, fits in done.items()}
        clusters = part.info[_CLUSTERS].astype(str) if _CLUSTERS in part.info else None
        rows = [_row(stage, split, name, fits, part, found[name], clusters)
                for name, fits in done.items()]
        for other in AGAINST:
            _compare(rows, found, part, other, clusters)
        if task.goal.column == "metrics.test_accuracy":
            rows.append(_ceiling(stage, split, part, task))
        out += rows
    return out


def _row(stage: str, split: str, name: str, fits: Sequence[Mapping[str, Any]], part: Part,
         found: Sequence[Array], clusters: Array | None) -> dict[str, Any]:
    every = [metrics.scores(f, part.y, part.strata) for f in found]
    lead = next(iter(every[0]))
    low, high = metrics.interval(found, part.y, part.strata, clusters=clusters)
    scores = {key: [e[key] for e in every] for key in every[0]}
    row = ROWS[name]
    return {
        "model": name, "title": row.title, "track": row.track, "stage": stage, "split": split,
        "metric": lead, "mean": _mean(scores[lead]), "sd": _sd(scores[lead]), "low": low,
        "high": high, "seeds": len(fits), "trials": fits[0]["trials"],
        "seconds": float(np.mean([fit["seconds"] for fit in fits])),
        "memory": max((fit["memory"] or 0 for fit in fits), default=0) or None,
        "parameters": fits[0]["parameters"], "n": len(part),
        "scores": {key: {"mean": _mean(v), "sd": _sd(v)} for key, v in scores.items()},
        "coverage": _mean([fit["coverage"][split] for fit in fits if fit["interval"]]),
        "setting": fits[0]["setting"], "attribution": fits[0].get("attribution")}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values and np.isfinite(values).all() else None


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else 0.0


def _compare(rows: Sequence[dict[str, Any]], found: Mapping[str, Sequence[Array]], part: Part,
             other: str, clusters: Array | None) -> None:
    """Paired differences from one row, Holm over the rows of the split."""
    if other not in found:
        return
    tests = {}
    for row in rows:
        if row["model"] != other:
            tests[row["model"]] = metrics.difference(found[row["model"]], found[other], part.y,
                                                     part.strata, clusters=clusters)
    adjusted = metrics.holm({name: test.p for name, test in tests.items()})
    for row in rows:
        if row["model"] in tests:
            test = tests[row["model"]]
            row[f"against_{other}"] = {
                "difference": test.value, "low": test.low, "high": test.high, "p": test.p,
                "p_holm": adjusted[row["model"]], "above": test.above}


def _ceiling(stage: str, split: str, part: Part, task: Task) -> dict[str, Any]:
    """What a perfect predictor of the true accuracy could reach, given how many images measured
    it.
    """
    from metanet.tasks.predict.images import tested_on

    n = tested_on(task.recipe["data"]["name"]) if "data" in task.recipe else 10_000
    value = metrics.ceiling(part.y, n, part.strata)
    return {"model": "ceiling", "title": "ceiling set by the noise of the targets", "track": "-",
            "stage": stage, "split": split, "metric": "tau", "mean": value, "sd": None,
            "low": None, "high": None, "seeds": 0, "trials": 0, "seconds": 0.0, "memory": None,
            "parameters": 0, "n": len(part), "scores": {}, "coverage": None, "setting": {},
            "attribution": None}
