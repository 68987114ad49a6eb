"""metanet: networks as data.

Checkpoints in, their exact symmetry group out, and what can be built on that. Names are loaded on
first use, so that ``import metanet`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

from metanet.errors import (
    CheckpointError,
    HubError,
    MetanetError,
    SpaceMismatch,
    SymmetryError,
    TraceError,
    ZooError,
)

__version__ = "0.1.0"

# public name -> module that defines it
_LAZY = {
    "Checkpoint": "metanet.checkpoint",
    "open": "metanet.checkpoint",
    "WeightSpace": "metanet.symmetry",
    "Group": "metanet.symmetry",
    "GroupElement": "metanet.symmetry",
    "TensorSpec": "metanet.symmetry",
    "infer": "metanet.symmetry",
    "verify": "metanet.symmetry",
    "match": "metanet.symmetry",
    "distance": "metanet.symmetry",
    "rule": "metanet.symmetry",
    "Alignment": "metanet.tasks.merge",
    "align": "metanet.tasks.merge",
    "merge": "metanet.tasks.merge",
    "MergeReport": "metanet.tasks.merge",
    "related": "metanet.tasks.merge",
    "MetanetRegressor": "metanet.tasks.predict",
    "MetanetClassifier": "metanet.tasks.predict",
    "WeightBatch": "metanet.graph",
    "ParameterGraph": "metanet.graph",
}
_ROOMS = ("checkpoint", "trace", "symmetry", "graph", "nn", "models", "report", "tasks", "testing",
          "zoo", "optim")

__all__ = [
    "CheckpointError",
    "HubError",
    "MetanetError",
    "SpaceMismatch",
    "SymmetryError",
    "TraceError",
    "ZooError",
    *_LAZY,
    *_ROOMS,
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"metanet.{name}")
    raise AttributeError(f"module 'metanet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_ROOMS])
