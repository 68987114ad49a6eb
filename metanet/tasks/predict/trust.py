"""When a prediction can be trusted: conformal intervals, and a flag for what training never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from metanet.graph import WeightBatch
from metanet.tasks.predict import features
from metanet.tasks.predict.data import Array

LEVEL = 0.9
_KEPT = 0.99
_FLOOR = 1e-3
_NEVER = 1e12


@dataclass(frozen=True)
class Interval:
    """Half width of intervals on the learned scale, or the threshold of sets of classes.

    Valid for members that are exchangeable with those it was made from (split conformal
    prediction, Vovk et al. 2005): then ``level`` of the intervals hold the target.

    Attributes:
        width: of a number, its half width; of classes, the greatest 1 − p of one that is listed.
        level: share of intervals that hold the target.
        n: members it was made from.
    """

    width: float
    level: float
    n: int

    @classmethod
    def of(cls, errors: Float[np.ndarray, " n"], level: float = LEVEL) -> Interval:
        """From errors of members that were neither trained on nor chosen by."""
        n = len(errors)
        rank = ceil((n + 1) * level)
        width = float("inf") if rank > n else float(np.sort(errors)[rank - 1])
        return cls(width, level, n)


def errors_of(found: Array, true: Array, forward: Any) -> Array:
    """What :meth:`Interval.of` takes: distance on the learned scale, or 1 − p of the class."""
    if found.ndim == 2:
        return np.asarray(1 - found[np.arange(len(true)), true])
    return np.asarray(np.abs(forward(found) - forward(true)))


class Familiar:
    """How far weights are from those that a predictor was trained on.

    Distance (Mahalanobis, in the principal directions) of statistics and spectra of the tensors;
    members of the training zoo exceed the threshold in 1 % of cases. What these numbers cannot
    tell, such as other data of the same look, stays unseen.
    """

    def __init__(self, mean: Array, scale: Array, directions: Array, threshold: float) -> None:
        self.mean, self.scale, self.directions = mean, scale, directions
        self.threshold = threshold

    @classmethod
    def fit(cls, train: WeightBatch, calib: WeightBatch) -> Familiar:
        """From the training part, with the threshold of the calibration part."""
        x = table(train)
        deviation = x.std(0)
        # What never differs tells nothing, and its last bits shall not.
        mean, scale = x.mean(0), np.where(deviation > 1e-8, deviation, _NEVER)
        z = (x - mean) / scale
        _, s, vt = np.linalg.svd(z, full_matrices=False)
        spread = s / np.sqrt(max(len(x) - 1, 1))
        keep = np.cumsum(spread**2) <= _KEPT * float((spread**2).sum()) + 1e-12
        keep[: min(2, len(keep))] = True
        directions = (vt[keep] / np.maximum(spread[keep], _FLOOR)[:, None]).T
        found = cls(mean, scale, directions, 0.0)
        held = np.sort(found.distance(calib))
        found.threshold = float(held[min(len(held) - 1, ceil(0.99 * (len(held) + 1)) - 1)])
        return found

    def distance(self, batch: WeightBatch) -> Float[np.ndarray, " N"]:
        """Distance from the middle of the training part, in root mean squares."""
        z = np.clip((table(batch) - self.mean) / self.scale, -1e3, 1e3)
        return np.asarray(np.sqrt(np.square(z @ self.directions).mean(1)))

    def strange(self, batch: WeightBatch) -> Bool[np.ndarray, " N"]:
        """Which members are flagged."""
        return self.distance(batch) > self.threshold

    def to_arrays(self) -> dict[str, Array]:
        """Arrays to store."""
        return {"mean": self.mean, "scale": self.scale, "directions": self.directions,
                "threshold": np.array(self.threshold)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Familiar:
        """From stored arrays."""
        return cls(arrays["mean"], arrays["scale"], arrays["directions"],
                   float(arrays["threshold"].reshape(())))


def table(batch: WeightBatch) -> Float[np.ndarray, "N d"]:
    """Statistics and spectra of every tensor."""
    found = torch.cat([features.statistics(batch), features.width_free(batch),
                       features.spectra(batch)], 1)
    return np.asarray(np.nan_to_num(found.numpy(), nan=0.0, posinf=1e6, neginf=-1e6).clip(
        -1e6, 1e6))


def shuffled(batch: WeightBatch, seed: int = 0) -> WeightBatch:
    """Strangers for a test of the flag: every tensor's entries in another order."""
    rng = torch.Generator().manual_seed(seed)
    blocks = {}
    for name, x in batch.blocks.items():
        flat = x.reshape(len(x), -1, x.shape[-1])
        order = torch.rand(flat.shape[:2], generator=rng).argsort(1)
        blocks[name] = flat.gather(1, order.unsqueeze(-1).expand_as(flat)).reshape(x.shape)
    return batch.with_blocks(blocks)


def scaled(batch: WeightBatch, factor: float) -> WeightBatch:
    """Strangers for a test of the flag: all weights times a factor."""
    return batch.with_blocks({name: x * factor for name, x in batch.blocks.items()})
