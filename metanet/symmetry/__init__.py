"""WeightSpace and its group: the type, the action, inference, proof, canonical form, matching."""

from __future__ import annotations

import importlib
from typing import Any

from metanet.symmetry.axis import Axis, Fixed, Occ, Prod, Sum
from metanet.symmetry.group import Group
from metanet.symmetry.layout import Block, Digit
from metanet.symmetry.meta import Frozen, GroupMeta, Meta, TensorMeta, Unsupported, Wire
from metanet.symmetry.space import TensorSpec, WeightSpace

# What needs torch or scipy is loaded on first use: the type and its text form need neither.
_LAZY = {
    "Canonical": "canonicalise",
    "canonical": "canonicalise",
    "GroupElement": "element",
    "Match": "matching",
    "distance": "matching",
    "match": "matching",
    "infer": "infer",
    "rule": "rules",
    "Resolved": "resolve",
    "resolve": "resolve",
    "Verification": "verify",
    "verify": "verify",
    "Resized": "resize",
}

__all__ = [
    "Axis",
    "Block",
    "Digit",
    "Fixed",
    "Frozen",
    "Group",
    "GroupMeta",
    "Meta",
    "Occ",
    "Prod",
    "Sum",
    "TensorMeta",
    "TensorSpec",
    "Unsupported",
    "WeightSpace",
    "Wire",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"metanet.symmetry.{_LAZY[name]}"), name)
        # A submodule of the same name (infer, verify, …) must not shadow the function.
        globals()[name] = value
        return value
    raise AttributeError(f"module 'metanet.symmetry' has no attribute {name!r}")
