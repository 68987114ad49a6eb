"""Weighted averages of weights (model soups: Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Iterator

from metanet.tasks.merge.methods.base import (
    WEIGHT,
    Block,
    Method,
    Stack,
    Values,
    combine,
    normalized,
    switch,
)


def _linear(stack: Stack, values: Values) -> Iterator[Block]:
    weights = values.of("weight")
    if values.whole["normalize"]:
        weights = normalized(weights, "linear")
    for blocks in stack.blocks():
        yield combine(blocks, weights)


LINEAR = Method("linear", _linear, (WEIGHT, switch("normalize", True)),
                source="Wortsman et al. 2022, arXiv 2203.05482")
