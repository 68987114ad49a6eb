"""Scores, their intervals, and tests between rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from metanet.tasks.predict.data import Array

RESAMPLES = 2000
"""So many that p-values of a table of twenty rows can be small after Holm's adjustment."""


def tau(found: Array, true: Array, strata: Array | None = None, top: bool = False) -> float:
    """Kendall's τ-b within each stratum, averaged with the strata's sizes as weights.

    Args:
        found: predictions ``[N]``.
        true: targets ``[N]``.
        strata: their strata; one by default.
        top: only the better half of each stratum, by the targets.

    Returns:
        τ-b, 0 where predictions are all equal, NaN without two different targets.
    """
    from scipy.stats import kendalltau

    names = np.zeros(len(true), int) if strata is None else np.asarray(strata)
    total, weight = 0.0, 0
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        if top:
            rows = rows[true[rows] >= np.median(true[rows])]
        if len(rows) < 2 or np.ptp(true[rows]) == 0:
            continue
        value = 0.0 if np.ptp(found[rows]) == 0 else float(
            kendalltau(found[rows], true[rows]).statistic)
        total, weight = total + len(rows) * value, weight + len(rows)
    return total / weight if weight else float("nan")


def r2(found: Array, true: Array) -> float:
    """Share of the variance that is explained."""
    spread = float(np.square(true - true.mean()).sum())
    return 1 - float(np.square(found - true).sum()) / spread if spread else float("nan")


def accuracy(found: Float[np.ndarray, "N c"], true: Array) -> float:
    """Share of members whose most likely class is right."""
    return float((found.argmax(1) == true).mean())


def log_loss(found: Float[np.ndarray, "N c"], true: Array) -> float:
    """Mean negative logarithm of the probability of the right class."""
    return float(-np.log(np.clip(found[np.arange(len(true)), true], 1e-12, 1)).mean())


def scores(found: Array, true: Array, strata: Array) -> dict[str, float]:
    """All scores of one fit; the first is the one that tables lead with."""
    if found.ndim == 2:
        return {"accuracy": accuracy(found, true), "log_loss": log_loss(found, true)}
    return {"tau": tau(found, true, strata), "tau_top": tau(found, true, strata, top=True),
            "r2": r2(found, true), "mae": float(np.abs(found - true).mean())}


def lead(found: Array, true: Array, strata: Array) -> float:
    """The score that tables lead with: accuracy of classes, τ of numbers."""
    return accuracy(found, true) if found.ndim == 2 else tau(found, true, strata)


@dataclass(frozen=True)
class Difference:
    """One row's lead score minus another's, on the same resamples of the test members.

    Attributes:
        value: the difference.
        low, high: 95 % interval of a paired bootstrap.
        p: two-sided p-value of the bootstrap.
        above: share of the resamples in which it is positive.
    """

    value: float
    low: float
    high: float
    p: float
    above: float


def difference(one: Sequence[Array], other: Sequence[Array], true: Array, strata: Array, *,
               clusters: Array | None = None, seed: int = 0, resamples: int = RESAMPLES
               ) -> Difference:
    """Paired bootstrap over members, or over clusters of them.

    Args:
        one, other: predictions of each seed; their scores are averaged.
        true, strata: of the members.
        clusters: members with equal entries are drawn together (of a repository, one is drawn).
    """
    counts = _counts(seed, len(true), clusters, resamples)
    sides = [np.mean([_leads(f, true, strata, counts) for f in side], 0) for side in (one, other)]
    found = sides[0] - sides[1]
    found = found[np.isfinite(found)]
    every = [float(np.mean([lead(f, true, strata) for f in side])) for side in (one, other)]
    if not len(found):
        return Difference(every[0] - every[1], float("nan"), float("nan"), 1.0, 0.5)
    low, high = np.quantile(found, [0.025, 0.975])
    above, below = float((found > 0).mean()), float((found < 0).mean())
    p = min(1.0, 2 * (min(1 - above, 1 - below) * len(found) + 1) / (len(found) + 1))
    return Difference(every[0] - every[1], float(low), float(high), p,
                      above + (1 - above - below) / 2)


def interval(found: Sequence[Array], true: Array, strata: Array, *, clusters: Array | None = None,
             seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % bootstrap interval of the lead score, averaged over seeds."""
    counts = _counts(seed, len(true), clusters, resamples)
    drawn = np.mean([_leads(f, true, strata, counts) for f in found], 0)
    if not np.isfinite(drawn).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _counts(seed: int, n: int, clusters: Array | None, resamples: int
            ) -> Float[np.ndarray, "r n"]:
    """How often each resample draws each member."""
    return _drawn(seed, n, None if clusters is None else tuple(clusters.tolist()), resamples)


@lru_cache(maxsize=2)
def _drawn(seed: int, n: int, clusters: tuple[str, ...] | None, resamples: int) -> Array:
    """The same for all rows of a table, which makes their comparison paired."""
    rng = np.random.default_rng(seed)
    out = np.zeros((resamples, n))
    if clusters is None:
        drawn = rng.integers(n, size=(resamples, n))
    else:
        names = np.array(clusters)
        rows = [np.flatnonzero(names == name) for name in np.unique(names)]
        which = rng.integers(len(rows), size=(resamples, len(rows)))
        sizes = np.array([len(r) for r in rows])[which]
        starts = np.cumsum([0, *(len(r) for r in rows[:-1])])[which]
        drawn = np.concatenate(rows)[starts + (rng.random(which.shape) * sizes).astype(int)]
    np.add.at(out, (np.arange(resamples)[:, None], drawn), 1)
    return out


def _leads(found: Array, true: Array, strata: Array, counts: Float[np.ndarray, "r n"]) -> Array:
    """The lead score of every resample: quadratic forms of the counts give τ-b with its ties."""
    if found.ndim == 2:
        return np.asarray(counts @ (found.argmax(1) == true) / counts.sum(1))
    total, weight = np.zeros(len(counts)), np.zeros(len(counts))
    for name in np.unique(strata):
        rows = np.flatnonzero(strata == name)
        w = counts[:, rows]
        f, y = (np.sign(v[rows][:, None] - v[rows][None]) for v in (found, true))
        both, own, real = (((w @ m) * w).sum(1) for m in (f * y, f * f, y * y))
        known = real > 0
        value = np.where(own > 0, both / np.sqrt(np.maximum(own * real, 1e-30)), 0.0)
        n = w.sum(1) * known
        total, weight = total + n * value, weight + n
    return np.where(weight > 0, total / np.maximum(weight, 1), np.nan)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm 1979)."""
    order = sorted(p, key=lambda name: p[name])
    out, worst = {}, 0.0
    for i, name in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - i) * p[name]))
        out[name] = worst
    return {name: out[name] for name in p}


def auroc(inside: Array, outside: Array) -> float:
    """Probability that a stranger has the higher score of the two; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([inside, outside]))[len(inside):]
    n, m = len(outside), len(inside)
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def ceiling(true: Array, n: int, strata: Array, *, seed: int = 0, resamples: int = 100) -> float:
    """τ between accuracies and the same accuracies measured again on n other images.

    Accuracies are shrunk towards their mean by the share of their variance that is sampling noise
    first: the spread of the measured ones is wider than that of the true ones.
    """
    noise = float((true * (1 - true) / n).mean())
    spread = float(true.var())
    keep = max(0.0, 1 - noise / spread) if spread else 0.0
    real = np.clip(true.mean() + np.sqrt(keep) * (true - true.mean()), 0, 1)
    rng = np.random.default_rng(seed)
    return float(np.mean([tau(real, rng.binomial(n, real) / n, strata)
                          for _ in range(resamples)]))
