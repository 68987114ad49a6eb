"""The guard: where a learned step misbehaves, Adam's is taken.

Per tensor: a direction that is not finite, points against Adam's, or is far longer than it, is
replaced. For the whole network: a step whose gradients are not finite is left out; and where the
losses that the caller tells (a closure, or ``step(loss=…)``) rise far above what they were, steps
become shorter and are Adam's, until the losses are back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

HISTORY = 32


@dataclass
class Guard:
    """What the guard remembers; all of it is in the optimizer's state.

    Attributes:
        trust: share of the learned step that is taken, 1 while all is well.
        losses: the last losses that were told, oldest first.
        replaced: tensors whose learned direction was replaced, so far.
        skipped: steps left out for gradients that were not finite.
        alarms: times that a loss was not finite or far too high.
    """

    trust: float = 1.0
    losses: list[float] = field(default_factory=list)
    replaced: int = 0
    skipped: int = 0
    alarms: int = 0

    def told(self, loss: float) -> None:
        """Take note of a loss."""
        known = sorted(self.losses)
        if len(known) >= 8:
            middle, low = known[len(known) // 2], known[0]
            bound = middle + 2 * abs(middle) + 3 * (middle - low)
        else:
            bound = 10 * max(map(abs, known), default=float("inf"))
        if not isfinite(loss) or loss > bound:
            self.alarms += 1
            self.trust = max(self.trust / 2, 1 / 16)
        else:
            self.trust = min(self.trust * 1.05, 1.0)
        if isfinite(loss) and loss <= bound:
            self.losses = [*self.losses, loss][-HISTORY:]

    @property
    def learned(self) -> bool:
        """Whether learned directions are taken at all."""
        return self.trust > 0.4

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)
