"""Task vectors added to a base model (Ilharco et al. 2022, arXiv 2212.04089)."""

from __future__ import annotations

from collections.abc import Iterator

from metanet.tasks.merge.methods.base import (
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


def _task_arithmetic(stack: Stack, values: Values) -> Iterator[Block]:
    weights = values.of("weight")
    if values.whole["normalize"]:
        weights = normalized(weights, "task_arithmetic")
    weights = [w * float(values.whole["lambda"]) for w in weights]
    for deltas, base in stack.with_base():
        yield base.add_(combine(deltas, weights))


TASK_ARITHMETIC = Method("task_arithmetic", _task_arithmetic,
                         (WEIGHT, LAMBDA, switch("normalize", False)), base=True,
                         source="Ilharco et al. 2022, arXiv 2212.04089")
