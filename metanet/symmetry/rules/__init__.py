"""How operations carry symmetry: one function for each class of operations.

``rule`` registers a rule for your own operation or module.
"""

from __future__ import annotations

# importing a file registers its rules
from metanet.symmetry.rules import (  # noqa: F401
    algebra,
    attention,
    block,
    contract,
    lookup,
    norm,
    pointwise,
    rare,
    recurrent,
    reduce,
    scatter,
    shape,
    source,
)
from metanet.symmetry.rules.context import Context, Refusal, Value
from metanet.symmetry.rules.registry import Coverage, coverage, forget, rule

__all__ = ["Context", "Coverage", "Refusal", "Value", "coverage", "forget", "rule"]
