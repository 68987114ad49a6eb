"""The Karcher mean of the models' directions, at the mean of their lengths.

The point of the sphere with the least sum of squared angles (Karcher 1977; algorithm A1 of Buss
and Fillmore 2001, doi 10.1145/502122.502124).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from metanet.tasks.merge.methods.base import Block, Method, Parameter, Stack, Values, normalized
from metanet.tasks.merge.methods.sphere import degenerate, directions, gram, mean, spread


def _karcher(stack: Stack, values: Values) -> Iterator[Block]:
    weights, products = np.array(normalized(values.of("weight"), "karcher")), gram(stack)
    if degenerate(products):
        yield from spread(stack, weights)
        return
    cosines, lengths = directions(products)
    point = mean(cosines, weights, int(values.whole["max_iter"]), float(values.whole["tol"]))
    yield from spread(stack, point / lengths * (weights @ lengths))


KARCHER = Method("karcher", _karcher,
                 (Parameter("weight", 1.0, each=True, low=0.0),
                  Parameter("max_iter", 100, kind=int, low=1, high=10_000),
                  Parameter("tol", 1e-9, low=0.0)),
                 models=(2, 1 << 16), element_wise=False,
                 source="Karcher 1977; Buss and Fillmore 2001, doi 10.1145/502122.502124")
