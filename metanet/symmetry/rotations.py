"""Orthogonal matrices of the kinds ``O``, ``O1`` and ``SO``: random, nearest, checked."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float64

from metanet.errors import SymmetryError

Matrix = Float64[np.ndarray, "n n"]
Matrices = Float64[np.ndarray, "*over n n"]

_ROUNDING = 1e-8


def procrustes(kind: str, gain: Matrix) -> tuple[Matrix, float]:
    """The matrix of a kind with the largest ``<matrix, gain>``, and that product.

    The polar factor (Schönemann, "A generalized solution of the orthogonal Procrustes problem",
    1966); for ``O1`` in the plane across the ones, for ``SO`` with the weakest direction turned
    over where the polar factor is a reflection.
    """
    if kind == "O1":
        rest = across_ones(len(gain))
        inner, found = procrustes("O", rest.T @ gain @ rest)
        return rest @ inner @ rest.T + 1 / len(gain), found + float(gain.mean() * len(gain))
    left, sizes, right = np.linalg.svd(gain)
    if kind == "SO" and np.linalg.det(left) * np.linalg.det(right) < 0:
        left[:, -1] *= -1
        sizes[-1] *= -1
    return left @ right, float(sizes.sum())


def random_rotation(kind: str, size: int, rng: np.random.Generator) -> Matrix:
    """Uniform (Haar) among the matrices of a kind."""
    if kind == "O1":
        rest = across_ones(size)
        kept: Matrix = rest @ random_rotation("O", size - 1, rng) @ rest.T + 1 / size
        return kept
    columns, corner = np.linalg.qr(rng.standard_normal((size, size)))
    found: Matrix = columns * np.where(np.diagonal(corner) < 0, -1.0, 1.0)
    if kind == "SO" and size and np.linalg.det(found) < 0:
        found[:, 0] *= -1
    return found


@cache
def across_ones(size: int) -> Float64[np.ndarray, "n m"]:
    """An orthonormal basis of what is orthogonal to the ones: ``[n, n - 1]``."""
    mirror = np.eye(size)[0] - size**-0.5
    length = float(mirror @ mirror)
    house = np.eye(size) - 2 * np.outer(mirror, mirror) / length if length else np.eye(size)
    return np.ascontiguousarray(house[:, 1:])


def checked_rotations(label: str, kind: str, shape: tuple[int, ...], value: object) -> Matrices:
    """Matrices ``[*over, n, n]`` of a kind; by default they turn nothing.

    Raises:
        SymmetryError: another shape, or a matrix that is not of the kind.
    """
    n = shape[-1]
    if value is None:
        return np.broadcast_to(np.eye(n), (*shape, n)).copy()
    found = np.array(value, dtype=np.float64)
    if found.shape != (*shape, n) or not np.isfinite(found).all():
        raise SymmetryError(f"values of {label!r} of kind {kind} must be finite matrices of shape "
                            f"{(*shape, n)}, not {found.shape}")
    error = float(np.abs(found @ found.swapaxes(-1, -2) - np.eye(n)).max(initial=0.0))
    if kind == "O1":
        error = max(error, float(np.abs(found.sum(-1) - 1).max(initial=0.0)))
    if error > _ROUNDING or (kind == "SO" and (np.linalg.det(found) < 0).any()):
        raise SymmetryError(f"values of {label!r} are not matrices of kind {kind}: orthogonal"
                            + {"O1": ", and keeping the ones", "SO": ", without a reflection"
                               }.get(kind, "") + f" (off by {error:.1e})")
    return found
