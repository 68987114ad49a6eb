"""TIES: trim task vectors, elect a sign, average those that agree (Yadav et al. 2023, arXiv
2306.01708).

Trimming keeps, per tensor, the share ``density`` of greatest magnitude. Elements as large as the
smallest one kept stay, too: to choose between equals would have to go by position, and then the
result of a permuted model would not be the permuted result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    switch,
)
from metanet.tasks.merge.methods.threshold import SAMPLE, keep_count, thresholds


def add_agreed(base: Block, deltas: Sequence[Block], weights: Sequence[float], normalize: bool,
               factor: float) -> Block:
    """Base plus ``factor`` times the weighted sum of what agrees with the elected sign, or, by
    ``normalize``, the weighted mean. All blocks are overwritten."""
    for delta, weight in zip(deltas, weights, strict=True):
        if weight != 1:
            delta.mul_(weight)
    sign = deltas[0].clone()
    for delta in deltas[1:]:
        sign.add_(delta)
    # Numbers instead of truth values, which are several times slower to compute with.
    sign.sign_()
    for delta in deltas:
        delta.mul_(sign).clamp_(min=0)  # its magnitude where it agrees, else 0
    share = _share(deltas, weights) if normalize else None
    size = combine(deltas, [1.0] * len(deltas))
    if share is not None:
        size.div_(share)
    return base.addcmul_(sign, size, value=factor)


def _share(agreeing: Sequence[Block], weights: Sequence[float]) -> Block:
    """Sum of the weights of those that agree; something else than 0 where none does."""
    out = torch.sign(agreeing[0]).mul_(weights[0])
    part = torch.empty_like(out)
    for block, weight in zip(agreeing[1:], weights[1:], strict=True):
        out.add_(torch.sign(block, out=part), alpha=weight)
    least = min((w for w in weights if w), default=1.0)
    return out.clamp_(min=least) if least > 0 else out.add_(1 - out.sign().abs_())


def _ties(stack: Stack, values: Values) -> Iterator[Block]:
    weights, factor = values.of("weight"), float(values.whole["lambda"])
    counts = [keep_count(stack.numel, density) for density in values.of("density")]
    least = thresholds(stack.vectors, counts, stack.numel, stack.sample(SAMPLE))
    for deltas, base in stack.with_base():
        for delta, low in zip(deltas, least, strict=True):
            below = torch.nextafter(delta.new_tensor(low), delta.new_tensor(0.0))
            if low:
                torch.hardshrink(delta, float(below), out=delta)
        yield add_agreed(base, deltas, weights, bool(values.whole["normalize"]), factor)


TIES = Method("ties", _ties, (WEIGHT, DENSITY, LAMBDA, switch("normalize", True)), base=True,
              source="Yadav et al. 2023, arXiv 2306.01708")
