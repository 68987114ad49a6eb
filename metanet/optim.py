"""``metanet.optim``: the public door to ``metanet.tasks.optimize``."""

from __future__ import annotations

from metanet.tasks.optimize.optimizer import LearnedOptimizer
from metanet.tasks.optimize.spec import Net, Spec, fresh
from metanet.tasks.optimize.structured import fresh_structured

__all__ = ["LearnedOptimizer", "Net", "Spec", "fresh", "fresh_structured"]
