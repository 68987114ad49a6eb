"""Slerp of any number of models: the barycentre in the tangent space of their mean direction.

For two models it is slerp between directions, exactly. Its length is the weighted mean of the
lengths. With a base model it acts on task vectors. Formula: one step of algorithm A1 of Buss and
Fillmore 2001 (doi 10.1145/502122.502124).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from metanet.tasks.merge.methods.base import (
    WEIGHT,
    Block,
    Method,
    Stack,
    Values,
    normalized,
    switch,
)
from metanet.tasks.merge.methods.sphere import degenerate, directions, gram, mean, spread


def _multislerp(stack: Stack, values: Values) -> Iterator[Block]:
    given = values.of("weight")
    weights = np.array(normalized(given, "multislerp"))
    products = gram(stack)
    if degenerate(products):
        yield from spread(stack, weights)
        return
    cosines, lengths = directions(products)
    size = np.array(weights if values.whole["normalize_weights"] else given) @ lengths
    yield from spread(stack, mean(cosines, weights, 1, 0.0) / lengths * size)


MULTISLERP = Method("multislerp", _multislerp, (WEIGHT, switch("normalize_weights", True)),
                    base=None, models=(2, 1 << 16), element_wise=False,
                    source="Buss and Fillmore 2001, doi 10.1145/502122.502124, one step")
