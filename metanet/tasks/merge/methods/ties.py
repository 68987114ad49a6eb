"""TIES: trim task vectors, elect a sign, average those that agree (Yadav et al. 2023, arXiv
2306.01708).

Trimming keeps, per tensor, the share ``density`` of greatest magnitude. Elements as large as the
smallest one kept stay, too: to choose between equals would have to go by position, and then the
result of a permuted model would not be the permuted result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from metanet.tasks.merge.methods.base import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    Block,
    Method,
    Stack,
    Values,
    switch,
)
from metanet.tasks.merge.methods.threshold import SAMPLE, keep_count, thresholds


def agreed(deltas: Sequence[Block], weights: Sequence[float], normalize: bool) -> Block:
    """Weighted sum of what agrees with the elected sign; by ``normalize`` a weighted mean."""
    parts = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    total = parts[0].clone()
    for part in parts[1:]:
        total.add_(part)
    # Numbers instead of truth values, which are several times slower to compute with.
    sign, out, share = total.sign_(), torch.zeros_like(total), torch.zeros_like(total)
    for part, weight in zip(parts, weights, strict=True):
        out.add_(part.mul_(sign).clamp_(min=0))  # its magnitude where it agrees, else 0
        if normalize:
            share.add_(part.sign_(), alpha=weight)
    out.mul_(sign)
    return out.div_(share.add_(1 - share.abs().sign_())) if normalize else out


def _ties(stack: Stack, values: Values) -> Iterator[Block]:
    weights, factor = values.of("weight"), float(values.whole["lambda"])
    counts = [keep_count(stack.numel, density) for density in values.of("density")]
    least = thresholds(stack.vectors, counts, stack.numel, stack.sample(SAMPLE))
    for deltas, base in stack.with_base():
        for delta, low in zip(deltas, least, strict=True):
            below = torch.nextafter(delta.new_tensor(low), delta.new_tensor(0.0))
            if low:
                delta.copy_(F.hardshrink(delta, float(below)))
        mixed = agreed(deltas, weights, bool(values.whole["normalize"]))
        yield base.add(mixed, alpha=factor)


TIES = Method("ties", _ties, (WEIGHT, DENSITY, LAMBDA, switch("normalize", True)), base=True,
              source="Yadav et al. 2023, arXiv 2306.01708")
