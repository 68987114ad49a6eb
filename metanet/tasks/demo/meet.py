"""Part 3: two networks of different seeds, averaged as they are and after alignment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metanet.report import Block, Section, Table, Text, lines
from metanet.symmetry import WeightSpace, match
from metanet.tasks.demo.data import Images
from metanet.tasks.demo.mlp import cosine, outputs
from metanet.tasks.demo.words import percent

POINTS = 25


@dataclass(frozen=True)
class Path:
    """Loss and accuracy along a straight line from one net to another, ends included."""

    t: list[float]
    loss: list[float]
    accuracy: list[float]

    @property
    def barrier(self) -> float:
        """Largest excess of the loss over the straight line between the losses of the ends."""
        first, last = self.loss[0], self.loss[-1]
        return max(loss - (1 - t) * first - t * last
                   for t, loss in zip(self.t, self.loss, strict=True))

    @property
    def midpoint(self) -> tuple[float, float]:
        """Loss and accuracy of the average of the two nets."""
        middle = len(self.t) // 2
        return self.loss[middle], self.accuracy[middle]


@dataclass(frozen=True)
class Met:
    """The two paths, and how near the nets are before and after alignment."""

    naive: Path
    aligned: Path
    cosine: float
    cosine_aligned: float


def meet(space: WeightSpace, a: dict[str, Tensor], b: dict[str, Tensor], test: Images) -> Met:
    """Interpolate between two nets, without and with matching ``b`` to ``a`` by weights alone."""
    aligned = match(a, b, space).element.apply(b)
    return Met(walk(a, b, test), walk(a, aligned, test), cosine(a, b), cosine(a, aligned))


def walk(a: dict[str, Tensor], b: dict[str, Tensor], test: Images) -> Path:
    """Loss and accuracy at 25 points between two nets."""
    times = torch.linspace(0, 1, POINTS).tolist()
    losses, accuracies = [], []
    for t in times:
        logits = outputs({name: torch.lerp(a[name], b[name], t) for name in a}, test.x)
        losses.append(float(F.cross_entropy(logits, test.y)))
        accuracies.append(float((logits.argmax(1) == test.y).double().mean()))
    return Path(times, losses, accuracies)


def section(met: Met) -> Section:
    """The part of the page."""
    naive, aligned = met.naive, met.aligned
    rows = [["net of seed A", f"{naive.loss[0]:.3f}", percent(naive.accuracy[0]), ""],
            ["net of seed B", f"{naive.loss[-1]:.3f}", percent(naive.accuracy[-1]), ""]]
    rows += [[f"midpoint, {name}", f"{path.midpoint[0]:.3f}", percent(path.midpoint[1]),
              f"{path.barrier:.3f}"] for name, path in (("naive", naive), ("aligned", aligned))]
    series = [("naive", naive), ("aligned", aligned)]
    blocks: list[Block] = [
        lines([("Loss", "cross-entropy", {name: (path.t, path.loss) for name, path in series}),
               ("Accuracy", "accuracy", {name: (path.t, path.accuracy) for name, path in series})],
              "from net A (0) to net B (1)",
              "Loss and accuracy along the line between two nets, naive and aligned",
              "Held-out digits, 25 points. Alignment looks at the weights only."),
        Table(["", "loss", "accuracy", "loss barrier"], rows, numbers=frozenset({1, 2, 3}),
              strong=frozenset({3}),
              caption="Barrier: largest excess of the loss over the straight line between the "
                      "ends."),
        Text(f"Both nets are trained alike, to the end (AdamW, learning rate 1e-3, weight decay "
             f"1); only the seed differs. Their cosine is {met.cosine:.3f} as they are and "
             f"{met.cosine_aligned:.3f} aligned."),
    ]
    return Section("3 Meet", "Two nets trained from different seeds compute nearly the same, with "
                   "their neurons in different order. Averaging them as they are ruins both; in "
                   "one order it does not.", blocks)
