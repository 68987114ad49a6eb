"""Mixtures of experts of transformers, run as one batched product while they are recorded.

Their default sorts tokens by expert, which shows the order of the entries and so hides every
symmetry behind it. The batched form is the same function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

_SWITCH, _BATCHED = "_experts_implementation", "batched_mm"


def batch_experts(config: Any) -> None:
    """Choose batched products in a config that has the choice and takes it."""
    if hasattr(config, _SWITCH):
        with suppress(AttributeError, ValueError):
            setattr(config, _SWITCH, _BATCHED)


@contextmanager
def batched_experts(module: nn.Module) -> Iterator[None]:
    """Within it every part that has the choice uses batched products; restored afterwards."""
    parts = [getattr(part, "config", None) for part in module.modules()]
    configs: dict[int, Any] = {id(c): c for c in parts if getattr(c, _SWITCH, None) is not None}
    before = {key: getattr(config, _SWITCH) for key, config in configs.items()}
    try:
        for config in configs.values():
            batch_experts(config)
        yield
    finally:
        for key, config in configs.items():
            setattr(config, _SWITCH, before[key])
