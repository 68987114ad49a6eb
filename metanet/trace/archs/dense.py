"""Chains of Linear layers: ``mlp`` and ``siren``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import TraceError
from metanet.trace.archs.chain import Layer, collect, ordered, place
from metanet.trace.archs.header import quoted
from metanet.trace.archs.registry import Request, architecture
from metanet.trace.inputs import batch_of

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu, "sigmoid": torch.sigmoid, "silu": F.silu,
    "leaky_relu": F.leaky_relu, "elu": F.elu, "softplus": F.softplus, "sin": torch.sin,
}


class Chain(nn.Module):
    """Linear layers at given names, an activation after all but the last; [N in] -> [N out]."""

    def __init__(self, layers: list[Layer], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        for layer in layers:
            outs, ins = layer.shape
            place(self, layer.prefix, nn.Linear(ins, outs, layer.bias, device="meta"))
        # underscored, because names of the file share this namespace
        self._prefixes_ = [layer.prefix for layer in layers]
        self._activation_ = activation

    def forward(self, x: Float[Tensor, "*batch c_in"]) -> Float[Tensor, "*batch c_out"]:
        """Apply the layers in turn."""
        *hidden, last = self._prefixes_
        for prefix in hidden:
            x = self._activation_(self.get_submodule(prefix)(x))
        out: Tensor = self.get_submodule(last)(x)
        return out


def _chain(
    request: Request, what: str, activation: Callable[[Tensor], Tensor]
) -> tuple[nn.Module, tuple[Tensor]]:
    layers = ordered(collect(request.file, what, (2,)), what)
    return Chain(layers, activation), (batch_of(layers[0].shape[1]),)


@architecture("mlp", argument="[ACTIVATION]")
def mlp(request: Request) -> tuple[nn.Module, tuple[Tensor]]:
    """Any chain of Linear layers; ``mlp:tanh`` and the like change ReLU to another activation."""
    name = request.argument or "relu"
    if name not in ACTIVATIONS:
        raise TraceError(f"unknown activation {quoted(name)}; choose one of "
                         f"{', '.join(ACTIVATIONS)}, as in mlp:tanh")
    return _chain(request, "a chain of Linear layers", ACTIVATIONS[name])


class Sine:
    """x -> sin(w0 x) (SIREN, Sitzmann et al. 2020)."""

    def __init__(self, w0: float) -> None:
        self.w0 = w0

    def __call__(self, x: Tensor) -> Tensor:
        """Apply."""
        return torch.sin(self.w0 * x)


@architecture("siren", argument="[W0]")
def siren(request: Request) -> tuple[nn.Module, tuple[Tensor]]:
    """Linear layers with sin(w0 x) between, w0 = 30 or as in ``siren:20``; the last is linear.

    A constant that some authors add to the output (.5 for images in [0, 1]) is left out: no
    symmetry depends on it.
    """
    try:
        w0 = float(request.argument or 30)
    except ValueError:
        w0 = math.nan
    if not math.isfinite(w0) or w0 == 0:
        raise TraceError(f"siren:W0 needs a finite number, not 0, got {quoted(request.argument)}")
    return _chain(request, "a SIREN (a chain of Linear layers)", Sine(w0))
