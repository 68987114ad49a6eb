"""Layers on a space: batches of weights in, batches of weights (or invariants) out."""

from __future__ import annotations

from metanet.nn.basis import Basis, basis
from metanet.nn.checks import assert_equivariant
from metanet.nn.dws import DWSLinear
from metanet.nn.encoding import Encoding
from metanet.nn.gmn import GMNLayer
from metanet.nn.latent import Embed, Unembed, latent
from metanet.nn.pointwise import BlockNorm, ChannelLinear, LayerNorm, Pointwise, Residual
from metanet.nn.pool import InvariantPool
from metanet.nn.unf import Term, UNFLinear

__all__ = [
    "Basis",
    "BlockNorm",
    "ChannelLinear",
    "DWSLinear",
    "Embed",
    "Encoding",
    "GMNLayer",
    "InvariantPool",
    "LayerNorm",
    "Pointwise",
    "Residual",
    "Term",
    "UNFLinear",
    "Unembed",
    "assert_equivariant",
    "basis",
    "latent",
]
