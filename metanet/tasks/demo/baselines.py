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

Array = NDArray[np.float64]
Track = Literal["W", "D", "-"]


@dataclass(frozen=True)
class Split:
    """Members of each part, disjoint; a member is one training run."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


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


def split_members(usable: NDArray[np.bool_], seed: int = 0) -> Split:
    """Shuffle the usable members and cut: 60 % train, 15 % validation, 25 % test."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(usable))
    first, second = int(0.6 * len(order)), int(0.75 * len(order))
    return Split(order[:first], order[first:second], order[second:])


def weight_statistics(population: Population) -> Array:
    """Seven statistics of each of the eight tensors, ``[m, 56]``: mean, standard deviation and
    the five quartiles (Unterthiner et al. 2020, arXiv 2002.11448).
    """
    columns = []
    for value in views(population.weights).values():
        flat = value.flatten(1).double()
        quartiles = torch.quantile(flat, torch.linspace(0, 1, 5, dtype=torch.float64), dim=1).T
        columns += [flat.mean(1, keepdim=True), flat.std(1, keepdim=True), quartiles]
    return torch.cat(columns, 1).numpy()


def reference_rows(population: Population, split: Split) -> Iterable[Prediction]:
    """All reference rows, weakest idea first."""
    accuracy, n = population.accuracy, len(split.test)
    yield Prediction("mean of the training nets", "-", np.full(n, accuracy[split.train].mean()))
    norm = population.weights.double().square().sum(1, keepdim=True).log().numpy()
    yield _boosted("squared weight norm, boosted", "W", norm, accuracy, split)
    hyper = population.recipe.features()
    yield _boosted("hyper-parameters only, boosted", "-", hyper, accuracy, split)
    statistics = weight_statistics(population)
    yield _boosted("weight statistics, boosted", "W", statistics, accuracy, split)
    yield _boosted("statistics and hyper-parameters, boosted", "-",
                   np.concatenate([statistics, hyper], 1), accuracy, split)
    labelled = population.labelled_correct.double().mean(1).numpy()
    yield Prediction("accuracy on 100 labelled images", "D", labelled[split.test])


_SETTINGS = tuple({"learning_rate": rate, "max_leaf_nodes": leaves}
                  for rate in (0.03, 0.1) for leaves in (6, 16))


def _boosted(name: str, track: Track, x: Array, y: Array, split: Split) -> Prediction:
    """Gradient boosting; of four settings the one with the best τ on the validation split."""
    fitted = [_fit(x[split.train], y[split.train], setting) for setting in _SETTINGS]
    taus = [score(model.predict(x[split.validation]), y[split.validation], resamples=1).tau.value
            for model in fitted]
    best = int(np.argmax(taus))
    return Prediction(name, track, fitted[best].predict(x[split.test]), len(_SETTINGS),
                      ", ".join(f"{k} {v}" for k, v in _SETTINGS[best].items()))


def _fit(x: Array, y: Array, setting: dict[str, Any]) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(max_iter=200, min_samples_leaf=5, early_stopping=False,
                                          random_state=0, **setting)
    return model.fit(x, y)
