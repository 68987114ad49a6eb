"""Kendall's τ-b and R² with bootstrap intervals, and the ceiling that label noise puts on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % percentile interval over resampled members."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """How well a prediction ranks (τ) and hits (R²)."""

    tau: Estimate
    r2: Estimate


def score(predicted: Array, true: Array, *, resamples: int = 1000, seed: int = 0) -> Score:
    """Both figures on a held-out split.

    Args:
        predicted: ``[n]``; a constant prediction has τ = 0.
        true: ``[n]``.
        resamples: bootstrap samples of members.
        seed: of the bootstrap; the same samples for every row of a table.
    """
    counts = _resamples(len(true), resamples, seed)
    tau, r2 = _taus(predicted, true, counts), _r2s(predicted, true, counts)
    return Score(_estimate(tau), _estimate(r2))


def difference(one: Array, other: Array, true: Array, *, resamples: int = 1000, seed: int = 0
               ) -> Estimate:
    """τ of one prediction minus τ of another, both on the same resamples of members."""
    counts = _resamples(len(true), resamples, seed)
    return _estimate(_taus(one, true, counts) - _taus(other, true, counts))


def _resamples(n: int, resamples: int, seed: int) -> Float[np.ndarray, "r n"]:
    """How often each member is drawn; first all members once."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n)), drawn])


def _estimate(values: Array) -> Estimate:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


def _taus(a: Array, b: Array, counts: Float[np.ndarray, "r n"]) -> Array:
    """τ-b of every resample: a pair drawn w_i · w_j times counts that often."""
    sign_a, sign_b = (np.sign(x[:, None] - x[None, :]) for x in (a, b))

    def total(pairs: Array) -> Array:
        out: Array = ((counts @ pairs) * counts).sum(1)
        return out

    untied = np.sqrt(total(sign_a**2) * total(sign_b**2))
    both: Array = np.divide(total(sign_a * sign_b), untied, out=np.zeros(len(counts)),
                            where=untied > 0)
    return both


def _r2s(predicted: Array, true: Array, counts: Float[np.ndarray, "r n"]) -> Array:
    n = counts.sum(1)
    spread: Array = counts @ true**2 / n - (counts @ true / n) ** 2
    found: Array = 1 - (counts @ (predicted - true) ** 2 / n) / spread
    return found


@dataclass(frozen=True)
class Ceiling:
    """What a perfect predictor would reach, since the target itself is measured on few images.

    ``tau`` and ``r2``: the measured accuracy stands for the true one, and is measured again on as
    many test images drawn with replacement (means over resamples). ``halves``: τ between the
    accuracies on two disjoint halves of the test images, a pessimistic figure, since both sides
    are noisy and use half the images.
    """

    tau: float
    r2: float
    halves: float


def ceiling(correct: Bool[Tensor, "m images"], *, resamples: int = 200, seed: int = 0) -> Ceiling:
    """The label-noise ceiling of a table whose target is an accuracy.

    Args:
        correct: which test images each held-out member gets right.
        resamples: how often the images are drawn again.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    hits = correct.numpy().astype(np.float64)
    n, once = hits.shape[1], np.ones((1, len(hits)))
    measured = hits.mean(1)
    taus, r2s, halves = [], [], []
    for _ in range(resamples):
        again = hits @ generator.multinomial(n, np.full(n, 1 / n)) / n
        taus.append(_taus(measured, again, once)[0])
        r2s.append(_r2s(measured, again, once)[0])
        order = generator.permutation(n)
        first, second = hits[:, order[: n // 2]].mean(1), hits[:, order[n // 2 :]].mean(1)
        halves.append(_taus(first, second, once)[0])
    return Ceiling(*(float(np.mean(x)) for x in (taus, r2s, halves)))
