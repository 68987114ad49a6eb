"""WeightBatch and ParameterGraph: checkpoints in the factored view, and as graphs."""

from __future__ import annotations

import importlib
from typing import Any

from metanet.graph.batch import WeightBatch

# Loaded on first use.
_LAZY = {
    "EdgeSet": "parameter_graph",
    "NodeSet": "parameter_graph",
    "ParameterGraph": "parameter_graph",
    "export": "files",
}

__all__ = ["WeightBatch", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"metanet.graph.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'metanet.graph' has no attribute {name!r}")
