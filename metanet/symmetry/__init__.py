"""WeightSpace and its group: the type, the action, inference, proof, canonical form, matching."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from metanet.symmetry.axis import Axis, Fixed, Occ, Prod, Sum
from metanet.symmetry.group import Group
from metanet.symmetry.layout import Block, Digit
from metanet.symmetry.meta import Frozen, GroupMeta, Meta, TensorMeta, Unsupported, Wire
from metanet.symmetry.space import TensorSpec, WeightSpace

if TYPE_CHECKING:
    from metanet.symmetry.canonicalise import Canonical, canonical
    from metanet.symmetry.element import GroupElement
    from metanet.symmetry.infer import infer
    from metanet.symmetry.matching import Match, distance, match
    from metanet.symmetry.resize import Resized
    from metanet.symmetry.resolve import Resolved, resolve
    from metanet.symmetry.rules import rule
    from metanet.symmetry.verify import Verification, verify

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
    "Canonical",
    "Digit",
    "Fixed",
    "Frozen",
    "Group",
    "GroupElement",
    "GroupMeta",
    "Match",
    "Meta",
    "Occ",
    "Prod",
    "Resized",
    "Resolved",
    "Sum",
    "TensorMeta",
    "TensorSpec",
    "Unsupported",
    "Verification",
    "WeightSpace",
    "Wire",
    "canonical",
    "distance",
    "infer",
    "match",
    "resolve",
    "rule",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"metanet.symmetry.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'metanet.symmetry' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps ``metanet.symmetry.infer`` the function.

    Importing the submodule of that name would otherwise put the module in its place.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
