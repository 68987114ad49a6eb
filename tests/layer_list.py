"""Every layer, made for a space: what the equivariance tests run over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from metanet.graph import WeightBatch
from metanet.nn import (
    ENCODINGS,
    AttentionPool,
    BlockNorm,
    ChannelDropout,
    ChannelLinear,
    DWSLinear,
    Embed,
    Encoding,
    GMNLayer,
    HNPLinear,
    InvariantPool,
    LayerNorm,
    MixedGMNLayer,
    NGTLayer,
    Noise,
    NPLinear,
    Orbit,
    Pointwise,
    ProductWalk,
    Residual,
    ScaleGMNLayer,
    Stack,
    Unembed,
    UNFLinear,
    latent,
)
from metanet.nn.mixed import typed
from metanet.symmetry import WeightSpace


class OnSpace(nn.Module):
    """A layer that takes every space, on one."""

    def __init__(self, layer: nn.Module, space: WeightSpace) -> None:
        super().__init__()
        self.layer, self.space, self.c_in = layer, space, layer.c_in

    def forward(self, batch: WeightBatch) -> WeightBatch:
        return self.layer(batch)

    def __repr__(self) -> str:
        return f"OnSpace({self.layer!r})"


LAYERS: dict[str, Callable[[WeightSpace], nn.Module]] = {
    "unf": lambda s: UNFLinear(s, 2, 3),
    "unf_latent": lambda s: UNFLinear(latent(s), 2, 3, frozen="batch"),
    "unf_lowrank": lambda s: UNFLinear(s, 2, 2, mixing="lowrank", rank=3),
    "unf_role": lambda s: UNFLinear(s, 2, 2, mixing="role"),
    "np": lambda s: NPLinear(s, 2, 3),
    "hnp": lambda s: HNPLinear(s, 2, 3),
    "dws": lambda s: DWSLinear(s, 2, 3),
    "dws_max": lambda s: DWSLinear(s, 2, 2, reduce="max"),
    "gmn": lambda s: GMNLayer(s, 3),
    "gmn_hidden": lambda s: GMNLayer(s, 2, hidden=5, frozen="batch"),
    "gmn_relu": lambda s: GMNLayer(s, 3, activation="relu"),
    "gmn_once": lambda s: GMNLayer(latent(s), 3, frozen="batch", messages=1),
    "gmn_latent": lambda s: GMNLayer(latent(s), 4, frozen="batch"),
    "embed": lambda s: Embed(s, 2, 3),
    "unembed": lambda s: Unembed(s, 3, 2),
    "pool": lambda s: InvariantPool(s, 2, ("mean", "std", "max", "min")),
    "pool_role": lambda s: InvariantPool(s, 2, per="role"),
    "pointwise": lambda s: Pointwise(s, 2, torch.tanh),
    "channels": lambda s: ChannelLinear(s, 2, 3),
    "channels_shared": lambda s: ChannelLinear(s, 2, 3, shared=True),
    "layernorm": lambda s: LayerNorm(s, 3),
    "blocknorm": lambda s: BlockNorm(s, 2),
    "residual": lambda s: Residual(LayerNorm(s, 2), UNFLinear(s, 2, 2), Pointwise(s, 2)),
    "stack": lambda s: Stack(UNFLinear(s, 2, 2), Pointwise(s, 2), DWSLinear(s, 2, 2),
                             checkpoint=True),
    "encoding": lambda s: Encoding(s, 2, tuple(ENCODINGS)),
    "gmn_pna": lambda s: GMNLayer(s, 3, aggregate=("mean", "sum", "max", "std")),
    "gmn_forward": lambda s: GMNLayer(s, 3, schedule="forward", activation="silu"),
    "gmn_forward_once": lambda s: GMNLayer(latent(s), 3, frozen="batch", messages=1,
                                           schedule="forward", aggregate=("mean", "max")),
    "pool_layer": lambda s: InvariantPool(s, 2, ("mean", "sum"), per="layer"),
    "pool_attention": lambda s: AttentionPool(s, 2),
    "channel_dropout": lambda s: ChannelDropout(s, 2),
    "orbit": lambda s: Orbit(s, 2),
    "noise": lambda s: Noise(s, 2),
    "product": lambda s: ProductWalk(s, 2, 3),
    "product_twice": lambda s: ProductWalk(s, 2, 4, rounds=2, rank=1),
    "scale": lambda s: ScaleGMNLayer(latent(s), 3),
    "ngt": lambda s: NGTLayer(latent(s), 3, heads=2),
    "mixed": lambda s: OnSpace(MixedGMNLayer(2), typed(s)),
}
