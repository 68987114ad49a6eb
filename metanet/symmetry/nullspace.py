"""Whole-number vectors in the null space of a matrix of derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64]

_RANK = 1e-9
"""Singular values below this share of the largest count as zero; eps in a norm leaves 1e-7."""
_WHOLE = 1e-6
_LARGEST = 4


def latest_scaling(matrix: Matrix, reads: Sequence[int]) -> list[int | None] | None:
    """A vector in the null space, in whole numbers, that is -1 where the neurons are read.

    Of several the one that begins latest. None stands for a place that has no effect; the whole is
    None where there is no such vector.

    Args:
        matrix: [rows, places], the places in the order in which the network uses them.
        reads: which places read the neurons.
    """
    norms = np.linalg.norm(matrix, axis=0)
    largest = norms.max(initial=0.0)
    used = np.flatnonzero(norms > _RANK * largest)
    reading = np.flatnonzero(np.isin(used, list(reads)))
    if largest == 0 or len(matrix) < len(used) or not np.isfinite(matrix).all():
        return None
    _, values, rows = np.linalg.svd(matrix[:, used] / norms[used], full_matrices=True)
    values = np.concatenate([values, np.zeros(len(used) - len(values))])
    null = _reduced(rows[values <= _RANK * values[0]] / norms[used], reading.tolist())
    if not len(null) or (not len(reading) and len(null) > 1):
        return None
    weights, *_ = np.linalg.lstsq(null[:, reading].T, -np.ones(len(reading)), rcond=None)
    found = weights @ null if len(reading) else null[0]
    before = null[np.abs(null[:, reading]).max(axis=1, initial=0.0) < _WHOLE]
    for row in before if len(reading) else ():  # what happens before the reading can be undone
        first = int(np.flatnonzero(np.abs(row) > _WHOLE)[0])
        found = found - found[first] * row / row[first]
    whole = np.round(found)
    if (np.abs(found[reading] + 1).max(initial=0.0) > _WHOLE or np.abs(found - whole).max() > _WHOLE
            or np.abs(whole).max() > _LARGEST):
        return None
    vector: list[int | None] = [None] * matrix.shape[1]
    for at, exponent in zip(used, whole, strict=True):
        vector[at] = int(exponent)
    return vector


def _reduced(matrix: Matrix, first: Sequence[int]) -> Matrix:
    """Row echelon form, pivots taken from the columns ``first`` and then from the left."""
    rows: Matrix = matrix / np.abs(matrix).max(axis=1, initial=1e-300, keepdims=True)
    row = 0
    rest = [column for column in range(rows.shape[1]) if column not in set(first)]
    for column in (*first, *rest):
        if row == len(rows):
            break
        pivot = row + int(np.abs(rows[row:, column]).argmax())
        if abs(rows[pivot, column]) < _WHOLE:
            rows[row:, column] = 0
            continue
        rows[[row, pivot]] = rows[[pivot, row]]
        rows[row] /= rows[row, column]
        others = [k for k in range(len(rows)) if k != row]
        rows[others] -= rows[others, column, None] * rows[row]
        row += 1
    return rows[:row]
