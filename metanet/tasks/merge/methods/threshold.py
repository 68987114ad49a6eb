"""The k-th largest magnitude of a tensor that is seen in blocks, exactly, without sorting it.

Magnitudes order as their bit patterns do. One pass counts the upper 16 bits of every magnitude;
that finds the bin that holds the k-th; a second pass sorts that bin alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from metanet.tasks.merge.methods.base import Block

_BINS = 1 << 15
Passes = Callable[[], Iterator[Sequence[Block]]]


def keep_count(numel: int, density: float) -> int:
    """How many elements a density keeps: the nearest whole number, halves up, at least one."""
    return max(1, min(numel, int(numel * density + 0.5))) if density > 0 else 0


def _bins(block: Block) -> npt.NDArray[np.int16]:
    """Sign-less upper bits of float32, which grow with the magnitude."""
    upper: npt.NDArray[np.int16] = block.float().numpy().view(np.int16)[1::2]
    return upper & np.int16(0x7FFF)


def thresholds(passes: Passes, counts: Sequence[int]) -> list[float]:
    """The ``counts[i]``-th largest magnitude of vector i: 0 where all are kept, inf where none.

    ``passes()`` starts a fresh walk over the blocks of all vectors.
    """
    held = [np.zeros(_BINS, np.int64) for _ in counts]
    for blocks in passes():
        for total, block in zip(held, blocks, strict=True):
            total += np.bincount(_bins(block), minlength=_BINS)
    found = [_bin(total, k) for total, k in zip(held, counts, strict=True)]
    inside: list[list[Block]] = [[] for _ in counts]
    for blocks in passes():
        for kept, block, place in zip(inside, blocks, found, strict=True):
            if place is not None:
                mask = torch.from_numpy(_bins(block) == place[0])
                kept.append(block[mask].abs())
    return [_kth(parts, place, k, int(total.sum())) for parts, place, k, total
            in zip(inside, found, counts, held, strict=True)]


def _bin(total: npt.NDArray[np.int64], k: int) -> tuple[int, int] | None:
    """(bin that holds the k-th largest, how many of it are wanted), or None for all or none."""
    if not 0 < k < total.sum():
        return None
    above = np.cumsum(total[::-1])
    at = int(np.searchsorted(above, k))
    return _BINS - 1 - at, k - (int(above[at - 1]) if at else 0)


def _kth(parts: Sequence[Block], place: tuple[int, int] | None, k: int, numel: int) -> float:
    if place is None:
        return 0.0 if k >= numel else float("inf")
    values = torch.cat(list(parts))
    return float(torch.topk(values, place[1], sorted=False).values.min())
