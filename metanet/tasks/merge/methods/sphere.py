"""Means on the sphere, computed from inner products alone.

Every point that these methods visit lies in the span of the models' directions, so one pass over
the tensors for their Gram matrix is enough, whatever the number of iterations.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from metanet.tasks.merge.methods.base import Block, Stack, combine

Array = npt.NDArray[np.float64]
_TINY = 1e-30


def gram(stack: Stack) -> Array:
    """Inner products [n, n] of the models (of their task vectors, where there is a base)."""
    n = len(stack.models)
    out = np.zeros((n, n))
    for blocks in stack.vectors():
        wide = [block.double() for block in blocks]
        for i in range(n):
            for j in range(i, n):
                out[i, j] += float(wide[i] @ wide[j])
    return np.triu(out) + np.triu(out, 1).T


def directions(products: Array) -> tuple[Array, Array]:
    """(cosines [n, n], lengths [n]) of vectors with these inner products, none of length 0."""
    lengths = np.sqrt(np.diag(products))
    return np.clip(products / np.outer(lengths, lengths), -1.0, 1.0), lengths


def degenerate(products: Array) -> bool:
    """Whether some vector has no direction."""
    return bool(np.diag(products).min() < _TINY)


def mean(cosines: Array, weights: Array, steps: int, tol: float) -> Array:
    """Coefficients [n] over unit vectors of their weighted Karcher mean.

    Starts at the normalised Euclidean mean and walks along the average of the logarithms until a
    step is shorter than ``tol`` (Karcher 1977; algorithm A1 of Buss and Fillmore 2001, doi
    10.1145/502122.502124). One step of it is the barycentre in the tangent space of the start.
    """
    here = _unit(weights.copy(), cosines)
    for _ in range(steps):
        cos = np.clip(cosines @ here, -1.0, 1.0)
        angle = np.arccos(cos)
        sin = np.sin(angle)
        stretch = weights * np.where(sin > 1e-9, angle / np.maximum(sin, 1e-9), 1.0)
        tangent = stretch - (stretch @ cos) * here
        length = float(np.sqrt(max(float(tangent @ cosines @ tangent), 0.0)))
        if length < 1e-15:
            break
        here = _unit(np.cos(length) * here + np.sin(length) / length * tangent, cosines)
        if length < tol:
            break
    return here


def _unit(point: Array, cosines: Array) -> Array:
    length = float(np.sqrt(max(float(point @ cosines @ point), 0.0)))
    return point / length if length > 1e-12 else point


def spread(stack: Stack, coefficients: Array) -> Iterator[Block]:
    """The combination of the models with these coefficients; of task vectors, added to the base."""
    factors = [float(c) for c in coefficients]
    if stack.base is None:
        for blocks in stack.blocks():
            yield combine(blocks, factors)
    else:
        for deltas, base in stack.with_base():
            yield base.add_(combine(deltas, factors))
