"""Two convolutions with pooling, flatten, Linear layers: LeNet-5 and its kin on MNIST."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import SpaceMismatch, TraceError
from metanet.trace.archs.chain import Layer, collect, ordered, place
from metanet.trace.archs.header import Header, quoted
from metanet.trace.archs.registry import Request, architecture
from metanet.trace.inputs import batch_of

_WHAT = "a LeNet (convolutions, then Linear layers)"


@dataclass(frozen=True)
class Plan:
    """Layers in order, padding of the convolutions, side of the square input image."""

    convs: list[Layer]
    linears: list[Layer]
    padding: tuple[int, ...]
    side: int


class LeNet(nn.Module):
    """conv, ReLU, 2x2 max pool (twice); flatten; Linear layers with ReLU between.

    ReLU and max pooling commute exactly, so files trained with either order are this function.
    Dropout and a final log-softmax, which some authors add, change neither classes nor symmetry.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        for layer, padding in zip(plan.convs, plan.padding, strict=True):
            outs, ins, side, _ = layer.shape
            conv = nn.Conv2d(ins, outs, side, padding=padding, bias=layer.bias,
                             device="meta")
            place(self, layer.prefix, conv)
        for layer in plan.linears:
            outs, ins = layer.shape
            place(self, layer.prefix, nn.Linear(ins, outs, layer.bias, device="meta"))
        # underscored, because names of the file share this namespace
        self._convs_ = [layer.prefix for layer in plan.convs]
        self._linears_ = [layer.prefix for layer in plan.linears]

    def forward(self, x: Float[Tensor, "N c h w"]) -> Float[Tensor, "N k"]:
        """Class scores (logits) of images."""
        for prefix in self._convs_:
            x = F.max_pool2d(F.relu(self.get_submodule(prefix)(x)), 2)
        x = x.flatten(1)
        for prefix in self._linears_[:-1]:
            x = F.relu(self.get_submodule(prefix)(x))
        out: Tensor = self.get_submodule(self._linears_[-1])(x)
        return out


def _layers(header: Header, linears: int) -> tuple[list[Layer], list[Layer]]:
    layers = collect(header, _WHAT, (2, 4))
    convs = ordered([layer for layer in layers if len(layer.shape) == 4], _WHAT)
    dense = ordered([layer for layer in layers if len(layer.shape) == 2], _WHAT)
    if len(convs) != 2 or len(dense) != linears:
        raise TraceError(
            f"{header.source} is not {_WHAT}: expected 2 convolutions and {linears} Linear layers, "
            f"found {len(convs)} and {len(dense)}"
        )
    return convs, dense


def _places(convs: list[Layer], first: Layer) -> int:
    """Side of the square of places that each channel of the last convolution has at the flatten."""
    channels, columns = convs[-1].shape[0], first.shape[1]
    side = math.isqrt(columns // channels) if channels else 0
    if side < 1 or columns != channels * side * side:
        raise SpaceMismatch(
            f"tensor {quoted(first.weight)}: expected {channels} channels times a square number of "
            f"columns after {quoted(convs[-1].weight)}, found shape {first.shape}"
        )
    return side


def _after(side: int, convs: list[Layer], padding: tuple[int, ...]) -> int:
    for layer, pad in zip(convs, padding, strict=True):
        side = (side + 2 * pad - layer.shape[2] + 1) // 2
    return side


def _fit(convs: list[Layer], places: int, wanted: int | None) -> tuple[int, tuple[int, ...]]:
    """Input side and paddings that leave ``places``: valid convolutions first, 28 before 32."""
    same = tuple(layer.shape[2] // 2 for layer in convs)
    paddings = [(0, 0), same, (same[0], 0), (0, same[1])]
    sides = [wanted] if wanted else [28, 32]
    for padding in paddings:
        for side in sides:
            if _after(side, convs, padding) == places:
                return side, padding
    if wanted:
        raise SpaceMismatch(
            f"images of side {wanted} do not give the {places} x {places} places per channel that "
            f"the first Linear layer's columns need; leave the side out: --arch lenet"
        )
    side = places
    for layer in reversed(convs):
        side = 2 * side + layer.shape[2] - 1
    return side, (0, 0)


def _plan(header: Header, linears: int, wanted: int | None = None) -> Plan:
    convs, dense = _layers(header, linears)
    for layer in convs:
        if layer.shape[2] != layer.shape[3]:
            raise TraceError(f"tensor {quoted(layer.weight)}: expected a square kernel, found "
                             f"shape {layer.shape}")
    side, padding = _fit(convs, _places(convs, dense[0]), wanted)
    return Plan(convs, dense, padding, side)


def _build(plan: Plan) -> tuple[nn.Module, tuple[Tensor]]:
    return LeNet(plan), (batch_of(plan.convs[0].shape[1], plan.side, plan.side),)


@architecture("lenet", argument="[SIDE]")
def lenet(request: Request) -> tuple[nn.Module, tuple[Tensor]]:
    """LeNet-5 like: two convolutions and three Linear layers, input side solved or ``lenet:32``."""
    if request.argument and not request.argument.isdecimal():
        raise TraceError(f"lenet:SIDE needs a whole number, got {quoted(request.argument)}")
    return _build(_plan(request.file, 3, int(request.argument or 0) or None))


@architecture("mnist-cnn21k")
def cnn21k(request: Request) -> tuple[nn.Module, tuple[Tensor]]:
    """conv k5, pool, ReLU (twice), flatten, fc, ReLU, fc on 28x28 images (10, 20, 50, 10)."""
    return _build(_mnist(request, 2))


@architecture("mnist-lenet45k")
def lenet45k(request: Request) -> tuple[nn.Module, tuple[Tensor]]:
    """conv k5, ReLU, pool (twice), flatten, three fc on 28x28 images (8, 16, 128, 64, 10)."""
    return _build(_mnist(request, 3))


def _mnist(request: Request, linears: int) -> Plan:
    plan = _plan(request.file, linears, 28)
    for layer in plan.convs:
        if layer.shape[2:] != (5, 5):
            raise SpaceMismatch(
                f"tensor {quoted(layer.weight)} does not fit architecture {request.name!r}: "
                f"expected a 5x5 kernel, found shape {layer.shape}"
            )
    return plan
