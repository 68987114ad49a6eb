"""Part 3: two networks of different seeds, averaged as they are and after alignment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from metanet.report import Block, Note, Section, Table, Text, lines
from metanet.symmetry import WeightSpace, match
from metanet.tasks.demo.data import Digits, Images
from metanet.tasks.demo.mlp import Weights, accuracy, cosine, outputs
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
    """The two paths, how near the nets are before and after alignment, and how they were trained:
    accuracies on the training images, and epochs.
    """

    naive: Path
    aligned: Path
    cosine: float
    cosine_aligned: float
    trained: tuple[float, float]
    epochs: int


def meet(space: WeightSpace, a: Weights, b: Weights, data: Digits, epochs: int) -> Met:
    """Interpolate between two nets, without and with matching ``b`` to ``a`` by weights alone.

    Args:
        space: of both nets.
        a: weights in float64.
        b: weights of a net of another seed.
        data: the paths are scored on ``test``.
        epochs: that both nets were trained for.
    """
    aligned = match(a, b, space).element.apply(b)
    trained = accuracy(a, data.train), accuracy(b, data.train)
    return Met(walk(a, b, data.test), walk(a, aligned, data.test), cosine(a, b),
               cosine(a, aligned), trained, epochs)


def walk(a: Weights, b: Weights, test: Images) -> Path:
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
        _verdict(met),
        Text(f"Both nets are trained alike (AdamW, learning rate 1e-3, weight decay 1, "
             f"{met.epochs} epochs, to {percent(min(met.trained))} of the training images or "
             f"more); only the seed differs. Their cosine is {met.cosine:.3f} as they are and "
             f"{met.cosine_aligned:.3f} aligned."),
    ]
    return Section("3 Meet", "May two nets trained from different seeds be averaged? Their neurons "
                   "stand in different order. Here is the line from one to the other, as they are "
                   "and with the second one brought into the order of the first.", blocks)


def _verdict(met: Met) -> Note:
    """What the two midpoints show, good or bad."""
    ends = min(met.naive.accuracy[0], met.naive.accuracy[-1])
    naive, aligned = met.naive.midpoint[1], met.aligned.midpoint[1]
    told = (f"The naive average loses {100 * (ends - naive):.1f} points of accuracy against the "
            f"worse of the two nets, the aligned one {100 * (ends - aligned):.1f}.")
    return Note(told, "good" if aligned > naive and ends - aligned < 0.03 else "bad")
