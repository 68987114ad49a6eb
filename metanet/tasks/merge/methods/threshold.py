"""The k-th largest magnitude of a tensor that is seen in blocks, exactly, without sorting it.

Magnitudes order as their bit patterns do, so the 16 bits of a bfloat16 are a bin. A sample says
between which bins the k-th should be: one pass counts what is above and keeps what is between.
Where the sample misled, all bins are counted first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import sqrt

import numpy as np
import numpy.typing as npt
import torch

from metanet.errors import MetanetError
from metanet.tasks.merge.methods.base import Block

SAMPLE = 1 << 16
_BINS = 1 << 15
_SIGMAS = 5.0
Passes = Callable[[], Iterator[Sequence[Block]]]
Range = tuple[int, int]


def keep_count(numel: int, density: float) -> int:
    """How many elements a density keeps: the nearest whole number, halves up, at least one."""
    return max(1, min(numel, int(numel * density + 0.5))) if density > 0 else 0


def _bins(block: Block) -> npt.NDArray[np.int16]:
    """Bin of every magnitude: rounding to bfloat16 keeps the order."""
    bits: npt.NDArray[np.int16] = block.to(torch.bfloat16).view(torch.int16).numpy()
    return bits & np.int16(0x7FFF)


def thresholds(passes: Passes, counts: Sequence[int], numel: int,
               sample: Sequence[Block] = ()) -> list[float]:
    """The ``counts[i]``-th largest magnitude of vector i: 0 where all are kept, inf where none.

    ``passes()`` starts a fresh walk over the blocks of all vectors, of ``numel`` elements each;
    ``sample`` has some elements of each, and decides nothing but how quick it is.
    """
    if not numel or all(k in (0, numel) for k in counts):
        return [0.0 if k else float("inf") for k in counts]
    if sample:
        guess = [_guess(part, k / numel) for part, k in zip(sample, counts, strict=True)]
        found = _kth(passes, counts, numel, guess)
        if found is not None:
            return found
    held = [np.zeros(_BINS, np.int64) for _ in counts]
    for blocks in passes():
        for total, block in zip(held, blocks, strict=True):
            total += np.bincount(_bins(block), minlength=_BINS)
    exact = [_bin(total, k) for total, k in zip(held, counts, strict=True)]
    found = _kth(passes, counts, numel, exact)
    if found is None:
        raise MetanetError("the tensors changed while they were read; merge again")
    return found


def _guess(sample: Block, density: float) -> Range:
    """Bins between which the k-th largest is, but for very bad luck."""
    ordered = np.sort(_bins(sample))[::-1]
    spread = _SIGMAS * sqrt(density * (1 - density) / len(ordered)) + 1 / len(ordered)
    ends = [round((density + sign * spread) * len(ordered)) for sign in (1, -1)]
    low = 0 if ends[0] >= len(ordered) else int(ordered[ends[0]])
    return low, _BINS - 1 if ends[1] <= 0 else int(ordered[ends[1]])


def _bin(total: npt.NDArray[np.int64], k: int) -> Range:
    """The bin that holds the k-th largest."""
    at = _BINS - 1 - int(np.searchsorted(np.cumsum(total[::-1]), k))
    return at, at


def _kth(passes: Passes, counts: Sequence[int], numel: int, ranges: Sequence[Range]
         ) -> list[float] | None:
    """The thresholds, if they lie in these ranges of bins."""
    above = [0 for _ in counts]
    inside: list[list[Block]] = [[] for _ in counts]
    for blocks in passes():
        for i, (block, (low, high)) in enumerate(zip(blocks, ranges, strict=True)):
            bins = _bins(block)
            above[i] += int(np.count_nonzero(bins > high))
            mask = (bins >= low) & (bins <= high)
            inside[i].append(block[torch.from_numpy(mask)].abs())
    out = []
    for k, larger, parts in zip(counts, above, inside, strict=True):
        values, wanted = torch.cat(parts), k - larger
        if k in (0, numel):
            out.append(0.0 if k else float("inf"))
        elif not 0 < wanted <= len(values):
            return None
        else:
            out.append(float(torch.topk(values, wanted, sorted=False).values.min()))
    return out
