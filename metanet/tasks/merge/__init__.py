"""Merging: align models, move them, repair and combine them, and tell kin from strangers."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

# Loaded on first use. public name -> module of this package that defines it
_LAZY = {
    "Alignment": "alignment",
    "Barrier": "barrier",
    "Certificate": "alignment",
    "Folded": "fold",
    "Kinship": "related",
    "Learned": "learned",
    "MergeReport": "merging",
    "Plan": "plan",
    "Recipe": "recipe",
    "Repaired": "repair",
    "Runner": "runner",
    "Samples": "data",
    "align": "align",
    "barrier": "barrier",
    "fold": "fold",
    "learn": "learned",
    "merge": "merging",
    "plan": "plan",
    "read_recipe": "recipe_file",
    "related": "related",
    "repair": "repair",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"metanet.tasks.merge.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'metanet.tasks.merge' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps ``metanet.tasks.merge.align`` the function, whatever submodule is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
