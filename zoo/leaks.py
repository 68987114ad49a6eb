"""The leak gate: what must not tell the class of a network, must not be able to.

A population whose order, training length or initialisation tells the label makes every method that
reads weights look good. Classifiers try it: on step-0 weights, on (index, chunk), on (steps, final
loss), and on weights with shuffled labels. Each must stay within the band of chance.

The band is that of a permutation test: predictions of held-out groups (views of one image are one
group) are scored against labels permuted between the groups of a fold. Every fold is predicted from
the folds before it only: were two folds to predict each other, mutual neighbours would be right or
wrong together and the band too narrow. Over all checks together a clean zoo fails with a
probability of ``ALPHA`` (Holm, Scandinavian J. Stat. 6, 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64
from metanet.zoo.features import Table, order_table, step_zero_tables, training_table, weight_tables
from metanet.zoo.index import Column, resolve
from metanet.zoo.links import joined, links

from metanet.checkpoint.names import printable
from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.store import Zoo

ALPHA = 0.05  # probability that a clean zoo fails any check
PERMUTATIONS = 1999
_FOLDS = (0, 0, 1, 2, 3, 4)  # fold 0, of two shares, is for training only
MAX_CLASSES, LEAST = 50, 40  # members that a check needs at least
_USUAL = ("config.label", "config.class", "config.target")
_BINS = 4  # a label of many numbers is cut into quartiles


@dataclass(frozen=True)
class Check:
    """One classifier on one kind of evidence.

    Attributes:
        label: the column that it tries to tell.
        evidence: what it was given.
        classifier: ``logistic``, ``boosting`` or ``neighbour``.
        members: how many members it saw.
        accuracy, chance: held out; mean over groups.
        band: 95 % of chance.
        p: one-sided, of this check alone; ``p_all`` after Holm over all checks.
        ok: whether it stays within chance, at 5 % over all checks.
        reason: why this column may tell the class, where the card of the zoo says so.
    """

    label: str
    evidence: str
    classifier: str
    members: int
    accuracy: float
    chance: float
    band: tuple[float, float]
    p: float
    p_all: float = 1.0
    ok: bool = True
    reason: str | None = None

    def __str__(self) -> str:
        found = (f"{self.evidence} tells {self.label}: {self.classifier} is right for "
                 f"{self.accuracy:.3f} of {self.members} members, chance {self.chance:.3f} "
                 f"(95 % band {self.band[0]:.3f} to {self.band[1]:.3f}, p = {self.p_all:.4f})")
        return found if self.reason is None else f"{found}; declared: {self.reason}"


@dataclass(frozen=True)
class GateReport:
    """All checks, and what could not be checked and why."""

    checks: tuple[Check, ...]
    skipped: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether every check stays within chance."""
        return all(check.ok for check in self.checks)

    @property
    def leaks(self) -> tuple[Check, ...]:
        """The checks that fail."""
        return tuple(check for check in self.checks if not check.ok)


def gate(zoo: Zoo, labels: Sequence[str] | None = None, seed: int = 0) -> GateReport:
    """Run the leak gate.

    Args:
        zoo: the zoo.
        labels: columns that hold a class; by default those of the zoo's card, else
            ``config.label``. A column of many numbers is cut into quartiles; only the order of
            the members is then checked.
        seed: of folds, permutations and classifiers; the gate is deterministic.

    Raises:
        ZooError: for a label that is no column.
    """
    columns = zoo.columns
    names = labels if labels is not None else zoo.card.labels or \
        [name for name in _USUAL if name in columns]
    checks: list[Check] = []
    skipped: dict[str, str] = {}
    for name in names:
        column = resolve(columns, name)
        _check_label(zoo, column, seed, checks, skipped)
    if not names:
        skipped["classifiers"] = "no column is declared to hold a class (labels in zoo.json)"
    return GateReport(tuple(_holm(checks)), skipped)


def _check_label(zoo: Zoo, column: Column, seed: int, checks: list[Check],
                 skipped: dict[str, str]) -> None:
    label, binned = _label(zoo, column)
    groups = _groups(zoo, label)
    tables = [order_table(zoo)]
    if not binned:
        tables += [training_table(zoo), *step_zero_tables(zoo, seed)]
        tables += [replace(t, shuffled=True) for t in weight_tables(zoo, seed)]
    for table in tables:
        where = f"{table.evidence} → {column.name}"
        if table.missing is not None:
            skipped[where] = table.missing
            continue
        here = table.places[label[table.places] >= 0]
        if len(np.unique(label[here])) < 2 or len(here) < LEAST:
            skipped[where] = (f"{len(here)} members with {len(np.unique(label[here]))} classes are "
                              f"too few; it needs {LEAST} with 2")
            continue
        keep = label[table.places] >= 0
        found = _classify(column.name, table, table.values[keep], label[here], groups[here], seed)
        reason = _declared(zoo, table)
        checks += [replace(check, reason=reason) for check in found]


def _groups(zoo: Zoo, label: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Views of one image and checkpoints of one run are one observation, of one label."""
    known = links(zoo)
    whole = joined([g for kind, g in known.groups.items() if kind != "hash"], len(label))
    return np.unique(whole * (label.max(initial=0) + 2) + label + 1, return_inverse=True)[1]


def _label(zoo: Zoo, column: Column) -> tuple[Int64[np.ndarray, " n"], bool]:
    """Class number of every member, -1 where it has none; whether numbers were binned."""
    values = zoo.query()[column.name]
    if values.dtype == object:
        has = np.array([value is not None for value in values], bool)
    else:
        has = ~np.isnan(values)
    out = np.full(len(values), -1, np.int64)
    kinds, numbers = np.unique(values[has], return_inverse=True)
    if len(kinds) <= MAX_CLASSES:
        out[has] = numbers
        return out, False
    if values.dtype == object:
        raise ZooError(f"label {printable(column.name, 80)!r} has {len(kinds)} different values; "
                       f"a class has at most {MAX_CLASSES}. Name another column")
    edges = np.quantile(values[has], np.linspace(0, 1, _BINS + 1)[1:-1])
    out[has] = np.searchsorted(edges, values[has])
    return out, True


def _declared(zoo: Zoo, table: Table) -> str | None:
    """The card's reason, where every column of the evidence may tell the class."""
    reasons = [zoo.card.intrinsic.get(name) for name in table.columns]
    return "; ".join(dict.fromkeys(map(str, reasons))) if reasons and all(reasons) else None


def _classify(label: str, table: Table, x: Float[np.ndarray, "n d"], y: Int64[np.ndarray, " n"],
              groups: Int64[np.ndarray, " n"], seed: int) -> list[Check]:
    rng = np.random.default_rng([seed, 0x6C65616B])  # never the stream that made the zoo
    x, y, groups = _thinned(x, y, groups, table.most, rng)
    if table.shuffled:
        first = np.unique(groups, return_index=True)[1]
        y = rng.permutation(y[first])[groups]
    folds = _folds(y, groups, rng)
    out = []
    for name in table.classifiers:
        right = _predict(name, x, y, folds, seed)
        out.append(_score(label, table, name, right, y, groups, folds, rng))
    return out


def _thinned(x: Float[np.ndarray, "n d"], y: Int64[np.ndarray, " n"],
             groups: Int64[np.ndarray, " n"], most: int, rng: np.random.Generator) -> Any:
    """At most ``most`` members, whole groups at a time, and groups numbered 0, 1, …."""
    order = rng.permutation(np.unique(groups))
    sizes = np.bincount(groups)[order]
    kept = order[np.cumsum(sizes) <= most] if len(groups) > most else order
    here = np.isin(groups, kept if len(kept) else order[:1])
    return x[here], y[here], np.unique(groups[here], return_inverse=True)[1]


def _folds(y: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"], rng: np.random.Generator
           ) -> Int64[np.ndarray, " n"]:
    """Fold of every member: whole groups, classes spread evenly; fold 0 is never scored."""
    first = np.unique(groups, return_index=True)[1]
    order = rng.permutation(len(first))
    order = order[np.argsort(y[first][order], kind="stable")]
    fold = np.empty(len(first), np.int64)
    turn = (np.arange(len(first)) + rng.integers(len(_FOLDS))) % len(_FOLDS)
    fold[order] = np.array(_FOLDS)[turn]
    return fold[groups]


def _predict(name: str, x: Float[np.ndarray, "n d"], y: Int64[np.ndarray, " n"],
             folds: Int64[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, " n"]:
    """Predictions of every fold from those before it; -1 in the first."""
    out = np.full_like(y, -1)
    for fold in range(1, max(_FOLDS) + 1):
        train, test = folds < fold, folds == fold
        if not test.any() or not train.any():
            continue
        kinds = np.unique(y[train])
        if len(kinds) < 2:
            out[test] = kinds[0]
        else:
            out[test] = _model(name, seed).fit(x[train], y[train]).predict(x[test])
    return out


def _model(name: str, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "boosting":
        return HistGradientBoostingClassifier(
            max_iter=20, max_leaf_nodes=15, learning_rate=0.2, early_stopping=False,
            random_state=seed)
    if name == "neighbour":
        return make_pipeline(StandardScaler(), KNeighborsClassifier(1))
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, tol=1e-3))


def _score(label: str, table: Table, name: str, predicted: Int64[np.ndarray, " n"],
           y: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"],
           folds: Int64[np.ndarray, " n"], rng: np.random.Generator) -> Check:
    """Accuracy, and where it lies among labels permuted between the groups of each fold."""
    first = np.unique(groups, return_index=True)[1]
    # votes[g, c]: share of the group's members that were taken for class c
    votes = np.zeros((len(first), int(y.max()) + 1))
    known = predicted >= 0
    np.add.at(votes, (groups[known], predicted[known]), 1.0)
    votes /= np.bincount(groups)[:, None]
    truth, fold = y[first], folds[first]
    places = [rows for f in range(1, max(_FOLDS) + 1) if len(rows := np.flatnonzero(fold == f))]
    scored = sum(map(len, places))
    accuracy = sum(float(votes[rows, truth[rows]].sum()) for rows in places) / scored
    draws = np.empty(PERMUTATIONS)
    for i in range(PERMUTATIONS):
        total = 0.0
        for rows in places:
            total += votes[rows, rng.permutation(truth[rows])].sum()
        draws[i] = total / scored
    p = (1 + int((draws >= accuracy - 1e-12).sum())) / (1 + PERMUTATIONS)
    low, high = np.quantile(draws, [0.025, 0.975])
    evidence = f"{table.evidence}, shuffled labels" if table.shuffled else table.evidence
    return Check(label, evidence, name, len(y), accuracy, float(draws.mean()),
                 (float(low), float(high)), p)


def _holm(checks: Sequence[Check]) -> list[Check]:
    """Step-down: the k-th smallest p counts against ALPHA / (m - k)."""
    order = sorted(range(len(checks)), key=lambda i: checks[i].p)
    out = list(checks)
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, checks[i].p * (len(checks) - rank)))
        fine = worst > ALPHA or checks[i].reason is not None
        out[i] = replace(checks[i], p_all=worst, ok=fine)
    return out
