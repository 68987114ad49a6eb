"""Spherical linear interpolation of two models (Shoemake 1985, doi 10.1145/325334.325242).

The angle is that between both tensors as vectors; the coefficients apply to the vectors as they
are. Parallel tensors, and such without direction, are interpolated linearly, which is the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import acos, sin

import numpy as np

from metanet.tasks.merge.methods.base import Block, Method, Parameter, Stack, Values
from metanet.tasks.merge.methods.sphere import degenerate, directions, gram, spread

_PARALLEL = 1e-6


def coefficients(cosine: float, t: float) -> tuple[float, float]:
    """Factors of the first and of the second vector at ``t``."""
    angle = acos(cosine)
    if sin(angle) < _PARALLEL:
        return 1 - t, t
    return sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)


def _slerp(stack: Stack, values: Values) -> Iterator[Block]:
    t, products = float(values.whole["t"]), gram(stack)
    cosine = 1.0 if degenerate(products) else float(directions(products)[0][0, 1])
    yield from spread(stack, np.array(coefficients(cosine, t)))


SLERP = Method("slerp", _slerp, (Parameter("t", None, low=0.0, high=1.0),), models=(2, 2),
               source="Shoemake 1985, doi 10.1145/325334.325242", element_wise=False)
