"""What all systems of ``reading`` share: the clock, the order of the members, the scores.

Imports numpy alone, so that every interpreter can run it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Array = Any
POINTS = 6


def standard(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Every entry minus its mean over the training members, by its deviation."""
    out = dict(arrays)
    for key in [k for k in arrays if k.startswith("train/") and not k.endswith("/y")]:
        name = key.partition("/")[2]
        mean, spread = arrays[key].mean(0), arrays[key].std(0) + 1e-7
        for part in ("train", "val", "test"):
            out[f"{part}/{name}"] = ((arrays[f"{part}/{name}"] - mean) / spread).astype(np.float32)
    return out


class Race:
    """CPU seconds of a process since its first batch, less those that scoring took."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.off, self.start = seconds, 0.0, 0.0
        self.points: list[dict[str, float]] = []
        self.best = -1.0

    def now(self) -> float:
        """Seconds that count."""
        return time.process_time() - self.off

    def batches(self, n: int, size: int) -> Iterator[tuple[Array, float]]:
        """Rows in a new order every epoch, and epochs so far, until the time is over."""
        rng, seen = np.random.default_rng(0), 0
        self.off = self.start = time.process_time()
        while True:
            order = rng.permutation(n)
            for i in range(0, n - size + 1, size):
                if self.now() >= self.seconds:
                    return
                yield order[i:i + size], seen / n
                seen += size

    def due(self) -> bool:
        """Whether it is time for another point of the curve."""
        return self.now() >= self.seconds * (len(self.points) + 1) / POINTS

    def score(self, epochs: float, accuracy: Callable[[str], float]) -> None:
        """A point: test accuracy at the best validation accuracy so far."""
        start, seconds = time.process_time(), self.now()
        val = accuracy("val")
        test = accuracy("test") if val > self.best else self.points[-1]["test"]
        self.best = max(self.best, val)
        self.points.append({"seconds": seconds, "epochs": epochs, "val": val, "test": test,
                            "start": self.start})
        self.off += time.process_time() - start

    def torch(self, net: Any, optimiser: Any, logits: Callable[[str, Array], Any],
              y: Mapping[str, Array], batch: int) -> list[dict[str, float]]:
        """Train a network of PyTorch until the time is over."""
        import torch

        def accuracy(part: str) -> float:
            net.eval()
            with torch.no_grad():
                found = [logits(part, np.arange(i, min(i + 64, len(y[part])))).argmax(1).numpy()
                         for i in range(0, len(y[part]), 64)]
            net.train()
            return float((np.concatenate(found) == y[part]).mean())

        net.train()
        epochs = 0.0
        for rows, epochs in self.batches(len(y["train"]), batch):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(logits("train", rows),
                                                     torch.from_numpy(y["train"][rows]))
            loss.backward()
            optimiser.step()
            if self.due():
                self.score(epochs, accuracy)
        self.score(epochs, accuracy)
        return self.points
