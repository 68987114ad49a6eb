"""The reference rows: what one gets without a network that reads weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from metanet.tasks.demo.population import Population, views
from metanet.tasks.demo.scores import score
from metanet.tasks.demo.workers import workers

Array = NDArray[np.float64]
Track = Literal["W", "D", "-"]


CHANCE = 0.15  # an accuracy below is no better than chance: with ten classes about 0.10


@dataclass(frozen=True)
class Rows:
    """Checkpoints of some members: which snapshot of which member, ``[n]`` each."""

    snapshot: NDArray[np.int64]
    member: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.member)

    def of(self, table: NDArray[Any]) -> NDArray[Any]:
        """Rows of a table ``[s, m, …]``."""
        found: NDArray[Any] = table[self.snapshot, self.member]
        return found


@dataclass(frozen=True)
class Split:
    """Checkpoints of each part; no run has checkpoints in two parts.

    ``train`` holds all checkpoints of its runs, ``validation`` and ``test`` the last ones only.
    """

    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True)
class Prediction:
    """One row: a prediction for the members of the test split.

    Args:
        name: what it is.
        track: W reads weights only, D labelled data, ``-`` neither.
        values: predicted accuracies of the test members.
        trials: settings tried, the best on the validation split kept.
        chosen: the setting kept.
    """

    name: str
    track: Track
    values: Array
    trials: int = 1
    chosen: str = ""


def usable(population: Population) -> NDArray[np.bool_]:
    """Checkpoints that are finite and better than chance, ``[s, m]``; the others are counted
    apart, for telling them from the rest is easy and would flatter every row.
    """
    found: NDArray[np.bool_] = population.finite & (population.accuracy >= CHANCE)
    return found


def split_runs(good: NDArray[np.bool_], seed: int = 0) -> Split:
    """Shuffle the runs whose end is usable and cut: 60 % train, 15 % validation, 25 % test."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(good[-1]))
    train, validation, test = np.split(order, [int(0.6 * len(order)), int(0.75 * len(order))])
    snapshot, place = np.nonzero(good[:, train])
    last = len(good) - 1
    return Split(Rows(snapshot, train[place]), *(
        Rows(np.full(len(part), last), part) for part in (validation, test)))


def weight_statistics(population: Population) -> Array:
    """Seven statistics of each of the eight tensors, ``[s, m, 56]``: mean, standard deviation and
    the five quartiles (Unterthiner et al. 2020, arXiv 2002.11448).
    """
    columns = []
    for value in views(population.weights.flatten(0, 1)).values():
        flat = value.flatten(1).double()
        quartiles = torch.quantile(flat, torch.linspace(0, 1, 5, dtype=torch.float64), dim=1).T
        columns += [flat.mean(1, keepdim=True), flat.std(1, keepdim=True), quartiles]
    found: Array = torch.cat(columns, 1).unflatten(0, population.weights.shape[:2]).numpy()
    return found


def reference_rows(population: Population, split: Split) -> Iterable[Prediction]:
    """All reference rows, weakest idea first."""
    accuracy, n = population.accuracy, len(split.test)
    ends = accuracy[-1, np.unique(split.train.member)]
    yield Prediction("mean of the training runs", "-", np.full(n, ends.mean()))
    norm = population.weights.double().square().sum(2, keepdim=True).log().numpy()
    yield _boosted("squared weight norm, boosted", "W", norm, accuracy, split)
    hyper = population.recipe.features()
    yield _boosted("hyper-parameters only, boosted", "-", hyper, accuracy, split)
    statistics = weight_statistics(population)
    yield _boosted("weight statistics, boosted", "W", statistics, accuracy, split)
    yield _boosted("statistics and hyper-parameters, boosted", "-",
                   np.concatenate([statistics, hyper], 2), accuracy, split)
    labelled = population.labelled_correct.double().mean(1).numpy()
    yield Prediction("accuracy on 100 labelled images", "D", labelled[split.test.member])


_SETTINGS = tuple({"max_depth": depth, "max_features": features}
                  for depth in (2, 4) for features in (None, "sqrt"))


def _boosted(name: str, track: Track, x: Array, y: Array, split: Split) -> Prediction:
    """Gradient boosting; of four settings the one with the best τ on the validation split."""
    train, held = split.train, split.validation
    with workers() as pool:  # trees are grown outside Python's lock
        fitted = list(pool.map(lambda setting: _fit(train.of(x), train.of(y), setting), _SETTINGS))
    taus = [score(model.predict(held.of(x)), held.of(y), resamples=1).tau.value
            for model in fitted]
    best = int(np.argmax(taus))
    return Prediction(name, track, fitted[best].predict(split.test.of(x)), len(_SETTINGS),
                      ", ".join(f"{k} {v}" for k, v in _SETTINGS[best].items()))


def _fit(x: Array, y: Array, setting: dict[str, Any]) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(n_estimators=200, learning_rate=0.05, subsample=0.7,
                                      random_state=0, **setting)
    return model.fit(x, y)
