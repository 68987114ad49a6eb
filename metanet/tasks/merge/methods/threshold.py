"""The k-th largest magnitude of a tensor that is seen in blocks, exactly, without sorting it.

A sample says between which magnitudes the k-th should be: one pass counts what is above and keeps
what is between, and of that little the k-th is selected. Where the sample misled, a histogram is
counted first: magnitudes order as their bit patterns do, so the upper 16 bits are a bin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from metanet.errors import MetanetError
from metanet.tasks.merge.methods.base import Block

SAMPLE = 1 << 15
_FEW = 1 << 17  # so many are kept whole
_BINS = 1 << 15
_SIGMAS = 4.0
Passes = Callable[[], Iterator[Sequence[Block]]]
Range = tuple[float, float]


def keep_count(numel: int, density: float) -> int:
    """How many elements a density keeps: the nearest whole number, halves up, at least one."""
    return max(1, min(numel, int(numel * density + 0.5))) if density > 0 else 0


def thresholds(passes: Passes, counts: Sequence[int], numel: int,
               sample: Sequence[Block] = ()) -> list[float]:
    """The ``counts[i]``-th largest magnitude of vector i: 0 where all are kept, inf where none.

    ``passes()`` starts a fresh walk over the blocks of all vectors, of ``numel`` elements each;
    ``sample`` has some elements of each, and decides nothing but how quick it is.
    """
    if not numel or all(k in (0, numel) for k in counts):
        return [0.0 if k else float("inf") for k in counts]
    guess: list[Range] | None = None
    if numel <= _FEW:
        guess = [(0.0, float("inf"))] * len(counts)
    elif sample:
        guess = [_guess(part, k / numel) for part, k in zip(sample, counts, strict=True)]
    found = None if guess is None else _kth(passes, counts, numel, guess)
    if found is None:
        found = _kth(passes, counts, numel, _histogram(passes, counts))
    if found is None:
        raise MetanetError("the tensors changed while they were read; merge again")
    return found


def _guess(sample: Block, density: float) -> Range:
    """Magnitudes between which the k-th largest is, but for very bad luck."""
    ordered = np.sort(np.abs(sample.numpy()))[::-1]
    spread = _SIGMAS * sqrt(density * (1 - density) / len(ordered)) + 1 / len(ordered)
    ends = [round((density + sign * spread) * len(ordered)) for sign in (1, -1)]
    low = 0.0 if ends[0] >= len(ordered) else float(ordered[ends[0]])
    return low, float("inf") if ends[1] <= 0 else float(ordered[ends[1]])


def _histogram(passes: Passes, counts: Sequence[int]) -> list[Range]:
    """The bins that hold the k-th largest, by their ends."""
    held = [np.zeros(_BINS, np.int64) for _ in counts]
    for blocks in passes():
        for total, block in zip(held, blocks, strict=True):
            bits: Any = block.float().abs().view(torch.int32) >> 16
            total += np.bincount(bits.numpy(), minlength=_BINS)
    return [_bin(total, k) for total, k in zip(held, counts, strict=True)]


def _bin(total: npt.NDArray[np.int64], k: int) -> Range:
    at = _BINS - 1 - int(np.searchsorted(np.cumsum(total[::-1]), k))
    ends = np.array([at, at + 1], np.uint32) << 16
    low, high = (float(end) for end in ends.astype(np.uint32).view(np.float32))
    return low, high if high == high else float("inf")


def _kth(passes: Passes, counts: Sequence[int], numel: int, ranges: Sequence[Range]
         ) -> list[float] | None:
    """The thresholds, if they lie in these ranges."""
    above = [0 for _ in counts]
    inside: list[list[npt.NDArray[Any]]] = [[] for _ in counts]
    for blocks in passes():
        for i, (block, (low, high)) in enumerate(zip(blocks, ranges, strict=True)):
            size = np.abs(block.numpy())
            mask = size <= high
            above[i] += len(size) - int(np.count_nonzero(mask))  # what is no number is large
            mask &= size >= low
            inside[i].append(size[mask])
    out = []
    for k, larger, parts in zip(counts, above, inside, strict=True):
        values, wanted = np.concatenate(parts), k - larger
        if k in (0, numel):
            out.append(0.0 if k else float("inf"))
        elif not 0 < wanted <= len(values):
            return None
        else:
            out.append(float(np.partition(values, len(values) - wanted)[len(values) - wanted]))
    return out
