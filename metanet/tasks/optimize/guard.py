"""The guard: where a learned step misbehaves, Adam's is taken.

Per tensor: a direction that is not finite, points against Adam's, or is far longer than it, is
replaced. For the whole network: a step whose gradients are not finite is left out; and where the
losses that the caller tells (a closure, or ``step(loss=…)``) rise far above what they were, steps
become shorter and are Adam's, until the losses are back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import exp, isfinite
from typing import Any

from jaxtyping import Float
from torch import Tensor

from metanet.tasks.optimize.spec import BASE, LOG_MOST

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


@dataclass(frozen=True, eq=False)
class Steps:
    """What a net proposes for the tensors that have a gradient.

    Attributes:
        raws: directions, of any length.
        length, own: root mean squares of Adam's directions and of the net's, ``[T]``.
        log: logarithm of the factor on Adam's length, ``[T]``.
        along: inner product of the net's direction and Adam's, ``[T]``.
    """

    raws: list[Tensor]
    length: Float[Tensor, " T"]
    own: Float[Tensor, " T"]
    log: Float[Tensor, " T"]
    along: Float[Tensor, " T"]


def settle(told: Sequence[Sequence[float]], guard: Guard | None, plain: bool = False
           ) -> tuple[list[float], list[int]]:
    """What to multiply each direction by, and the tensors whose direction is to be replaced.

    Args:
        told: per tensor the length of Adam's direction, that of the net's, the logarithm of the
            factor on the first, and the inner product of the two directions.
        guard: None: nothing is replaced. plain: directions have their length already.
    """
    factors, bad = [], []
    for i, (length, own, log, along) in enumerate(told):
        fine = isfinite(length + own + log) and own > 0
        factor = (1.0 if plain else BASE * length / own * exp(
            min(log, LOG_MOST))) if fine else 0.0
        if guard is not None and not (fine and along >= 0 and guard.learned) and length > 0:
            guard.replaced += 1
            bad.append(i)
            factor = 1.0
        factors.append(factor * (guard.trust if guard is not None else 1.0))
    return factors, bad
