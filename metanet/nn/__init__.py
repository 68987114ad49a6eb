"""Layers on a space: batches of weights in, batches of weights (or invariants) out."""

from __future__ import annotations

from metanet.nn.basis import Basis, basis
from metanet.nn.checks import assert_equivariant
from metanet.nn.unf import Term, UNFLinear

__all__ = ["Basis", "Term", "UNFLinear", "assert_equivariant", "basis"]
