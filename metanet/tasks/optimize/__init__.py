"""Learned optimizers: nets that step, how they are trained, and how they are measured."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded on first use. public name -> module of this package that defines it
_LAZY = {
    "LearnedOptimizer": "optimizer",
    "Net": "spec",
    "Spec": "spec",
    "fresh": "spec",
    "fresh_structured": "structured",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"metanet.tasks.optimize.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'metanet.tasks.optimize' has no attribute {name!r}")
