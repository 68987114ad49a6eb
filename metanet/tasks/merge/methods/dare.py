"""DARE: drop elements of task vectors at random and rescale the rest (Yu et al. 2023, arXiv
2311.03099), then add them up (``dare_linear``) or elect signs as TIES does (``dare_ties``).

Which elements are dropped depends on the seed, the name of the tensor and the place of the model
in the recipe, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from metanet.tasks.merge.methods.base import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    Block,
    Method,
    Stack,
    Values,
    combine,
    normalized,
    switch,
)
from metanet.tasks.merge.methods.ties import add_agreed


def dropped(stack: Stack, values: Values) -> Iterator[tuple[list[Block], Block]]:
    """Task vectors with elements dropped and rescaled, and the base, by block."""
    dice = [stack.generator(i) for i in range(len(stack.models))]
    densities = values.of("density")
    for deltas, base in stack.with_base():
        for delta, density, rng in zip(deltas, densities, dice, strict=True):
            if density < 1:
                delta.mul_(torch.rand(delta.shape, generator=rng) < density)
            if values.whole["rescale"] and density > 0:
                delta.div_(density)
        yield deltas, base


def _linear(stack: Stack, values: Values) -> Iterator[Block]:
    weights = values.of("weight")
    if values.whole["normalize"]:
        weights = normalized(weights, "dare_linear")
    for deltas, base in dropped(stack, values):
        yield base.add_(combine(deltas, weights), alpha=float(values.whole["lambda"]))


def _ties(stack: Stack, values: Values) -> Iterator[Block]:
    weights, normalize = values.of("weight"), bool(values.whole["normalize"])
    for deltas, base in dropped(stack, values):
        yield add_agreed(base, deltas, weights, normalize, float(values.whole["lambda"]))


_TAKES = (WEIGHT, DENSITY, LAMBDA, switch("rescale", True), switch("normalize", False))
DARE_LINEAR = Method("dare_linear", _linear, _TAKES, base=True, random=True,
                     source="Yu et al. 2023, arXiv 2311.03099")
DARE_TIES = Method("dare_ties", _ties, _TAKES, base=True, random=True,
                   source="Yu et al. 2023, arXiv 2311.03099; Yadav et al. 2023, arXiv 2306.01708")
