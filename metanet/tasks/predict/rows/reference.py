"""Reference rows: what one gets without a network that reads weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from metanet.tasks.predict import features
from metanet.tasks.predict.data import Array, Part, Task
from metanet.tasks.predict.rows.base import Budget, Fitted, Row, Setting, constant, register
from metanet.tasks.predict.trust import table as summary
from metanet.tasks.predict.wiring import wiring

Table = Callable[[Part], Array]
_ROUNDS = 300
"""Of boosting at most, whatever the budget of readers: validation stops it, and it is cheap."""
# Depth and pace of the trees: as many as any budget asks for.
_BOOSTING = ({"max_leaf_nodes": 8, "learning_rate": 0.05},
             {"max_leaf_nodes": 31, "learning_rate": 0.05},
             {"max_leaf_nodes": 8, "learning_rate": 0.1, "max_features": 0.3},
             {"max_leaf_nodes": 4, "learning_rate": 0.05, "max_features": 0.3})


def _with_context(table: Table) -> Table:
    """The context beside it: what readers know of the architecture, every row knows."""
    return lambda part: np.concatenate([table(part), part.context.numpy()], 1)


def _norm(part: Part) -> Array:
    return features.squared_norm(part.batch).numpy()


def _statistics(part: Part) -> Array:
    return features.statistics(part.batch).numpy()


def _width_free(part: Part) -> Array:
    return features.width_free(part.batch).numpy()


def wired(part: Part) -> Array:
    """Statistics, spectra and wiring: all that trees can be given of weights alone."""
    return np.concatenate([summary(part.batch), wiring(part.batch).numpy()], 1)


def _hyper(part: Part) -> Array:
    return part.hyper


def _both(part: Part) -> Array:
    return np.concatenate([_statistics(part), part.hyper], 1)


def boosted(table: Table) -> Callable[[Task, Budget, Setting, int], Fitted]:
    """Gradient boosting of a table of numbers."""

    def fit(task: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
        train, val = task.parts["train"], task.parts["val"]
        model = _boosting(task, setting, seed)
        x, held = (np.nan_to_num(table(part)) for part in (train, val))
        if not x.shape[1]:
            return Fitted(lambda part: constant(task, len(part)))
        model.fit(x, _target(task, train), X_val=held, y_val=_target(task, val))
        if task.goal.kind == "classification":
            return Fitted(lambda part: _spread(model, model.predict_proba(
                np.nan_to_num(table(part))), task.classes))
        return Fitted(lambda part: task.goal.back(model.predict(np.nan_to_num(table(part)))))

    return fit


def forest(table: Table) -> Callable[[Task, Budget, Setting, int], Fitted]:
    """Extremely randomised trees on a table of numbers (Geurts et al. 2006)."""

    def fit(task: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

        kind = ExtraTreesClassifier if task.goal.kind == "classification" else ExtraTreesRegressor
        train = task.parts["train"]
        model = kind(200, min_samples_leaf=2, max_features=0.3, random_state=seed)
        model.fit(np.nan_to_num(table(train)), _target(task, train))
        if task.goal.kind == "classification":
            return Fitted(lambda part: _spread(model, model.predict_proba(
                np.nan_to_num(table(part))), task.classes))
        return Fitted(lambda part: task.goal.back(model.predict(np.nan_to_num(table(part)))))

    return fit


def _target(task: Task, part: Part) -> Array:
    return part.y if task.goal.kind == "classification" else task.goal.forward(part.y)


def _boosting(task: Task, setting: Mapping[str, Any], seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if task.goal.kind == "classification" \
        else HistGradientBoostingRegressor
    n = len(task.parts["train"])
    return kind(max_iter=_ROUNDS, early_stopping=True, n_iter_no_change=20, random_state=seed,
                min_samples_leaf=min(20, max(2, n // 20)), **setting)


def _spread(model: Any, found: Array, classes: int) -> Array:
    """Probabilities of all classes, also of those that training did not show."""
    out = np.zeros((len(found), classes))
    out[:, model.classes_.astype(int)] = found
    return out


def _line(task: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
    """Ranks as the norm itself: ascending accuracy, whatever the zoo says of its sign.

    That weights grow while a network learns is known beforehand, and holds where a zoo of bad
    step sizes teaches the opposite.
    """
    train, up = task.parts["train"], -1 if task.goal.link == "log" else 1
    slope, _ = np.polyfit(_norm(train)[:, 0], task.goal.forward(train.y), 1)
    slope, start = up * abs(slope), task.goal.forward(train.y).mean()
    middle = _norm(train).mean()
    return Fitted(lambda part: task.goal.back(start + slope * (_norm(part)[:, 0] - middle)), 2)


def _mean(task: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
    return Fitted(lambda part: constant(task, len(part)))


def _has_hyper(task: Task) -> bool:
    return bool(task.hyper)


register(Row("mean", "mean", "-", _mean, seeded=False))
register(Row("norm", "squared weight norm, boosted", "W", boosted(_with_context(_norm)),
             _BOOSTING))
register(Row("norm-line", "squared weight norm, ascending", "W", _line, seeded=False,
             suits=lambda task: task.goal.kind == "regression"))
register(Row("hyper", "hyper-parameters only, boosted", "-", boosted(_hyper), _BOOSTING,
             suits=_has_hyper))
register(Row("statistics", "weight statistics, boosted", "W",
             boosted(_with_context(_statistics)), _BOOSTING))
register(Row("statistics+hyper", "weight statistics and hyper-parameters, boosted", "-",
             boosted(_both), _BOOSTING, suits=_has_hyper))
register(Row("width-free", "per-layer statistics that ignore width, boosted", "W",
             boosted(_with_context(_width_free)), _BOOSTING))
register(Row("wiring", "statistics, spectra and wiring, boosted", "W",
             boosted(_with_context(wired)), _BOOSTING))
