"""Tails of the number of fixed points of random permutations, and exact p-values from them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64

_LONGEST = 160


def log_tail(count: int, n: int, copies: int = 1) -> float:
    """Natural log of P(at least ``count`` fixed points) of ``copies`` permutations of ``n``.

    Exact where it does not underflow; below that the bound ``copies**count / count!`` of the
    factorial moments, which is an upper bound of the tail.
    """
    if count <= 0:
        return 0.0
    if count > n * copies:
        return -math.inf
    bound = count * math.log(copies) - math.lgamma(count + 1)
    if copies == 1:
        return min(0.0, _log_sum([_log_pmf(k, n) for k in range(count, n + 1)]))
    pmf = _pmf(n, copies)
    tail = float(pmf[count:].sum()) if count < len(pmf) else 0.0
    return min(0.0, math.log(tail) if tail > 1e-12 else bound)


def _log_pmf(k: int, n: int) -> float:
    """log P(k fixed points): derangements of the rest over the factorials."""
    rest = n - k
    if rest == 1:
        return -math.inf
    share = sum((-1) ** i / math.factorial(i) for i in range(min(rest, 25) + 1))
    return math.log(share) - math.lgamma(k + 1) if share > 0 else -math.inf


def _log_sum(logs: list[float]) -> float:
    top = max(logs)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in logs))


@lru_cache(maxsize=64)
def _pmf(n: int, copies: int) -> Float64[np.ndarray, " counts"]:
    one = np.array([math.exp(_log_pmf(k, n)) for k in range(min(n, _LONGEST) + 1)])
    whole = np.ones(1)
    for _ in range(copies):
        whole = np.convolve(whole, one)[: 4 * _LONGEST + copies * 4]
    return whole


def order_log_p(
    table: Int64[np.ndarray, "copies n"], rng: np.random.Generator, draws: int = 4000
) -> tuple[int, float, float]:
    """How near rows of a table are to the identity: fixed points, rank correlation, log p.

    Under independence each row is a uniform permutation. Tables are ordered by the number of fixed
    points, ties by the mean Spearman correlation with the identity; the first has an exact tail,
    the second is ranked among random permutations with the same number.
    """
    copies, n = table.shape
    count = int((table == np.arange(n)).sum())
    rho = float(_spearman(table[None])[0])
    above, here = log_tail(count + 1, n, copies), log_tail(count, n, copies)
    draws = max(50, min(draws, int(4e6 / (copies * n))))
    drawn = rng.permuted(np.broadcast_to(np.arange(n), (draws, copies, n)), axis=-1)
    alike = drawn[(drawn == np.arange(n)).sum((1, 2)) == count]
    higher = int((_spearman(alike) >= rho - 1e-12).sum()) if len(alike) else 0
    share = (1 + higher) / (1 + len(alike))
    p_above, p_here = math.exp(above), math.exp(here)
    if p_here < 1e-250:
        return count, rho, here
    return count, rho, min(0.0, math.log(p_above + (p_here - p_above) * share))


def _spearman(tables: np.ndarray) -> np.ndarray:
    """Mean over rows of the correlation of a permutation with the identity, ``[tables]``."""
    n = tables.shape[-1]
    if n < 2 or not len(tables):
        return np.ones(len(tables))
    gap = ((tables - np.arange(n)) ** 2).sum(-1)
    return np.asarray((1 - 6 * gap / (n * (n * n - 1))).mean(-1))
