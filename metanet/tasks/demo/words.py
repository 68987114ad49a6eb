"""Numbers as people read them."""

from __future__ import annotations

from metanet.tasks.demo.scores import Estimate


def count(number: int) -> str:
    """270,896 as ``271 thousand``, 646,981,632 as ``647 million``; small numbers in full."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= 10 * size or (number >= size and size > 1e3):
            return f"{number / size:.3g} {word}"
    return f"{number:,}"


def percent(share: float) -> str:
    """0.9637 as ``96.4 %``."""
    return f"{100 * share:.1f} %"


def interval(estimate: Estimate) -> str:
    """Value and 95 % interval, such as ``0.71 [0.65, 0.76]``."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
