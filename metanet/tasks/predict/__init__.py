"""Predicting from weights: tasks, rows of tables, suites, and predictors that can be trusted."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded on first use. public name -> module of this package that defines it
_LAZY = {
    "Board": "suites",
    "Budget": "rows",
    "Cut": "data",
    "Goal": "data",
    "MetanetClassifier": "estimator",
    "MetanetRegressor": "estimator",
    "Options": "bench",
    "Part": "data",
    "Plan": "loop",
    "Predictor": "predictor",
    "Predictors": "predictor",
    "SUITES": "suites",
    "Task": "data",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"metanet.tasks.predict.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'metanet.tasks.predict' has no attribute {name!r}")
