"""Populations of networks: a store of weights with an index, splits, and a gate against leaks.

Imported as ``metanet.zoo``. Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

# public name -> module that defines it
_LAZY = {
    "Zoo": "store",
    "Member": "members",
    "Entry": "members",
    "Selection": "selection",
    "ZooBatch": "batch",
    "Card": "card",
    "Layout": "layout",
    "SplitReport": "splits",
    "ZooVerification": "verify",
    "GateReport": "leaks",
    "ingest": "ingest",
    "pull": "hub",
    "push": "hub_push",
    "Pulled": "hub_record",
    "ZooStream": "stream",
}
_MODULES = ("data",)

__all__ = [*_LAZY, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"metanet.zoo.{_LAZY[name]}"), name)
        globals()[name] = value  # a submodule of the same name must not shadow it
        return value
    if name in _MODULES:
        return importlib.import_module(f"metanet.zoo.{name}")
    raise AttributeError(f"module 'metanet.zoo' has no attribute {name!r}")
