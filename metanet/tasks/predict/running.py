"""``metanet train`` and ``evaluate``: one reader on one zoo, resumable, stored as a predictor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metanet.checkpoint.names import no_such
from metanet.errors import MetanetError
from metanet.graph import WeightBatch
from metanet.tasks.predict import metrics
from metanet.tasks.predict.attribution import attribution
from metanet.tasks.predict.data import (
    ACCURACY,
    LABEL,
    LOSS,
    Cut,
    Goal,
    Part,
    Task,
    as_files,
    load,
)
from metanet.tasks.predict.loop import LOG, STATE, Plan, start_processes
from metanet.tasks.predict.normal import Normal
from metanet.tasks.predict.predictor import Predictor
from metanet.tasks.predict.rows import ROWS, Budget, Fitted, row, suiting
from metanet.tasks.predict.rows.neural import Model, fit_reader, larger
from metanet.tasks.predict.trust import Familiar, Interval, errors_of

GOALS = {"accuracy": ACCURACY, "label": LABEL, "loss": LOSS}
RESULT = "result.json"


def goal_of(name: str) -> Goal:
    """``accuracy``, ``label``, ``loss``, or a column of the index."""
    if name in GOALS:
        return GOALS[name]
    if "." not in name:
        raise MetanetError(f"{no_such('task', name, GOALS)}, or name a column such as "
                           "metrics.train_accuracy")
    return Goal(name)


def learnable() -> list[str]:
    """Rows that train a reader, which can be stored."""
    return [name for name, one in ROWS.items() if one.make is not None]


def train_run(task: Task, model: str, out: Path, *, plan: Plan | None = None,
              setting: Mapping[str, Any] | None = None, budget: Budget | None = None,
              force: bool = False, stop_after: int | None = None,
              progress: Callable[[int, int], None] | None = None) -> dict[str, Any] | None:
    """Train, or go on where a run was stopped, and store the predictor.

    Args:
        task: with members; activations that it names are hidden, as files do not name theirs.
        model: name of a row that learns a reader.
        out: folder of the run.
        plan: of the training; the setting's step size where it is not given.
        setting: of the row; by default its first.
        budget: of the row; its width counts.
        force: drop what stands in the folder.
        stop_after: epochs after which to stop, for a run in several calls.
        progress: called with (epochs done, epochs at most).

    Returns:
        The document that is also ``OUT/result.json``; None where it stopped before the end.

    Raises:
        MetanetError: for a row that cannot be stored, or another run in the folder.
    """
    found = suiting(model, task)
    if found.make is None:
        raise MetanetError(f"the row {model!r} has no reader to store; it runs in `metanet bench`. "
                           f"Readers are {', '.join(learnable())}")
    task = as_files(task)
    chosen, size = dict(setting or found.settings[0]), budget or Budget()
    plan = plan or Plan(epochs=size.epochs, batch_size=size.batch_size, patience=size.patience,
                        lr=chosen["lr"])
    _claim(out, task, model, chosen, size, plan, force)
    rank, _ = start_processes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        reader = found.make(task, size, chosen)
    fitted = fit_reader(task, reader, plan, out, stop_after, progress)
    if stop_after is not None and not _over(fitted, plan):
        return None
    if rank:
        return None
    predictor = assembled(task, fitted, model, chosen, size)
    predictor.save(out)
    document = evaluated(predictor, task, fitted)
    (out / RESULT).write_text(json.dumps(document), encoding="utf-8")
    return document


def _over(fitted: Fitted, plan: Plan) -> bool:
    done = [point["val"] for point in fitted.curve]
    tired = plan.patience is not None and len(done) - 1 - int(np.argmin(done)) >= plan.patience
    return len(done) >= plan.epochs or tired


def _claim(out: Path, task: Task, model: str, setting: Mapping[str, Any], budget: Budget,
           plan: Plan, force: bool) -> None:
    told = json.dumps({"task": task.name, "goal": asdict(task.goal), "cut": asdict(task.cut),
                       "model": model, "setting": dict(setting), "width": budget.width,
                       "plan": asdict(plan)}, sort_keys=True)
    path = out / "plan.json"
    if path.exists() and path.read_text(encoding="utf-8") != told:
        if not force:
            raise MetanetError(f"{out}: holds another run; name another folder, or replace it with "
                               "--force")
        for name in (STATE, LOG, RESULT):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(told, encoding="utf-8")


def assembled(task: Task, fitted: Fitted, model: str, setting: Mapping[str, Any], budget: Budget
              ) -> Predictor:
    """A trained row with its interval and its flag, from the calibration part."""
    calib = task.parts["calib"]
    errors = errors_of(fitted.predict(calib), calib.y, task.goal.forward)
    trained: Model = fitted.model
    familiar = Familiar.fit(*(_shown(task, trained, task.parts[p].batch)
                              for p in ("train", "calib")))
    about = {"parts": {k: len(p) for k, p in task.parts.items()}, "census": dict(task.census),
             "parameters": fitted.parameters, "curve": [dict(point) for point in fitted.curve]}
    return Predictor(task, trained, model, setting, budget, Interval.of(errors), familiar, about)


@torch.no_grad()
def _shown(task: Task, model: Model, batch: WeightBatch) -> WeightBatch:
    """Members as training shows them, without the freedom of signs and scales."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in model.reader.augment:
            batch = step.train()(batch)
            step.eval()
    found: WeightBatch = Normal(larger(task))(batch)
    return found


def evaluated(predictor: Predictor, task: Task, fitted: Fitted | None = None) -> dict[str, Any]:
    """Scores, coverage and flags on the test part."""
    part = task.parts["test"]
    found = predictor.model(part)
    values = found if found.ndim == 2 else task.goal.back(found)
    errors = errors_of(values, part.y, task.goal.forward)
    document = {
        "name": task.name, "model": predictor.row, "track": row(predictor.row).track,
        "goal": task.goal.column, "split": task.cut.name, "n": len(part),
        "scores": metrics.scores(values, part.y, part.strata),
        "coverage": float((errors <= predictor.interval.width).mean()),
        "level": predictor.interval.level,
        "flagged": float((predictor.distance(part.batch) > predictor.familiar.threshold).mean()),
        "parameters": predictor.about.get("parameters"), "census": dict(task.census),
        "curve": list(predictor.about.get("curve", ())), "true": part.y.tolist(),
        "predicted": (values.argmax(1) if values.ndim == 2 else values).tolist(),
        "ids": list(part.ids)}
    if fitted is not None:
        document["attribution"] = attribution(fitted, task)
    return document


def evaluate_run(run: Path, zoo: Any, *, limit: int | None = None) -> dict[str, Any]:
    """Scores of a stored predictor on the test part of a zoo, split as it was for training."""
    predictor = Predictor.load(run)
    told = predictor.task
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8")) if (
        run / "plan.json").exists() else {}
    cut = Cut(**{**plan["cut"], "test": tuple(plan["cut"]["test"]) if plan["cut"]["test"]
                 else None}) if "cut" in plan else Cut()
    task = as_files(load(zoo, told.goal, cut, limit=limit))
    if task.space != told.space:
        raise MetanetError(f"{zoo.path}: its members have another space than the predictor reads")
    return evaluated(predictor, task)


def part_of(task: Task, name: str) -> Part:
    """A part by its name."""
    if name not in task.parts:
        raise MetanetError(f"no part {name!r}; there are {', '.join(task.parts)}")
    return task.parts[name]
