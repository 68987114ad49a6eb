"""Layers on a space: batches of weights in, batches of weights (or invariants) out."""

from __future__ import annotations

from metanet.nn.attention import NGTLayer
from metanet.nn.attention_pool import AttentionPool
from metanet.nn.augment import Noise, Orbit
from metanet.nn.basis import Basis, basis
from metanet.nn.checks import assert_equivariant
from metanet.nn.dropout import ChannelDropout
from metanet.nn.dws import DWSLinear
from metanet.nn.encoding import ENCODINGS, Encoding
from metanet.nn.gmn import GMNLayer
from metanet.nn.latent import Embed, Unembed, latent
from metanet.nn.memory import keep_freed_memory
from metanet.nn.mixed import MixedGMNLayer
from metanet.nn.nfn import HNPLinear, NPLinear, free_ends
from metanet.nn.pointwise import BlockNorm, ChannelLinear, LayerNorm, Pointwise, Residual
from metanet.nn.pool import InvariantPool
from metanet.nn.probes import Probes
from metanet.nn.product import ProductWalk
from metanet.nn.scale import ScaleGMNLayer
from metanet.nn.stack import Stack
from metanet.nn.unf import Term, UNFLinear

__all__ = [
    "AttentionPool",
    "Basis",
    "BlockNorm",
    "ChannelDropout",
    "ChannelLinear",
    "DWSLinear",
    "Embed",
    "Encoding",
    "ENCODINGS",
    "GMNLayer",
    "HNPLinear",
    "InvariantPool",
    "LayerNorm",
    "MixedGMNLayer",
    "NGTLayer",
    "NPLinear",
    "Noise",
    "Orbit",
    "Pointwise",
    "Probes",
    "ProductWalk",
    "Residual",
    "ScaleGMNLayer",
    "Stack",
    "Term",
    "Unembed",
    "UNFLinear",
    "assert_equivariant",
    "basis",
    "free_ends",
    "keep_freed_memory",
    "latent",
]
