"""The layers of a recorded program whose outputs an affine map can be folded into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metanet.trace.program import Op, Program, Ref

_LINEAR = {"aten.linear": (0, 1, 2), "aten.addmm": (1, 2, 0)}
_CONV = frozenset({"aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"})
_NORM = frozenset({"aten.batch_norm", "aten.native_batch_norm", "aten.cudnn_batch_norm",
                   "aten._native_batch_norm_legit_no_training"})


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation with weights.

    ``kind`` is ``linear``, ``conv`` or ``norm``; names are the program's. ``out`` is the axis of
    the weight that counts the outputs, ``channel`` that of the value, ``input`` the place of the
    data among the arguments. ``mean`` and ``var`` name the running statistics of a norm;
    ``normed`` tells that a norm takes the output at once.
    """

    at: int
    kind: str
    weight: str | None
    bias: str | None
    out: int
    channel: int
    input: int
    mean: str | None = None
    var: str | None = None
    normed: bool = False

    @property
    def name(self) -> str:
        """Name for reports and tables."""
        return self.weight or self.bias or self.mean or f"operation {self.at}"


def layers(program: Program) -> dict[int, Layer]:
    """Number of an operation → its layer. Weights that several operations use are left out."""
    names = {s.ref.index: s.name for s in program.sources if s.name in program.tensors}
    owners = {i: program.aliases.get(n, n) for i, n in names.items()}
    made = {op.out.index: op for op in program.ops}
    uses = Counter(owners[ref.index] for op in program.ops for ref in op.refs()
                   if ref.index in owners)
    found: dict[int, Layer] = {}
    for at, op in enumerate(program.ops):
        layer = layer_of(at, op, names, made)
        if layer is not None and all(
            name is None or uses[program.aliases.get(name, name)] == 1
            for name in (layer.weight, layer.bias)
        ):
            found[at] = layer
    return _normed(program, found)


def layer_of(
    at: int, op: Op, names: Mapping[int, str], made: Mapping[int, Op]
) -> Layer | None:
    """One operation as a layer, for names of the sources and the operations by their outputs."""
    def name(place: int) -> str | None:
        ref = op.args[place] if place < len(op.args) else op.kwargs.get("bias")
        return names.get(ref.index) if isinstance(ref, Ref) else None

    if op.family in _LINEAR:
        data, weight, bias = _LINEAR[op.family]
        ref = op.args[weight]
        found, out = name(weight), 0 if op.family == "aten.linear" else 1
        if found is None and isinstance(ref, Ref) and ref.index in made:
            turned = made[ref.index]  # a transposed view of the weight
            first = turned.args[0] if turned.args else None
            if turned.family in ("aten.t", "aten.transpose") and isinstance(first, Ref):
                found, out = names.get(first.index), 1 - out
        return None if found is None else Layer(at, "linear", found, name(bias), out, -1, data)
    if op.family in _CONV and name(1) is not None:
        if op.family == "aten.convolution" and len(op.args) > 6 and op.args[6]:
            return None  # transposed: outputs are the second axis, per group
        return Layer(at, "conv", name(1), name(2), 0, 1, 0)
    if op.family in _NORM and name(3) is not None and name(4) is not None:
        return Layer(at, "norm", name(1), name(2), 0, 1, 0, name(3), name(4))
    return None


def _normed(program: Program, found: dict[int, Layer]) -> dict[int, Layer]:
    users: dict[int, list[int]] = {}
    for at, op in enumerate(program.ops):
        for ref in op.refs():
            users.setdefault(ref.index, []).append(at)
    for at, layer in found.items():
        after = users.get(program.ops[at].out.index, [])
        if layer.kind != "norm" and after and all(
                program.ops[i].family in _NORM for i in after):
            found[at] = replace(layer, normed=True)
    return found


def columns(layer: Layer, op: Op, x: Tensor, weight: Tensor) -> Tensor | None:
    """What each output of a linear or plain 2-d convolution sums over: ``[rows, fan-in]``.

    None for other shapes (grouped, dilated by strings, 1-d and 3-d convolutions).
    """
    if layer.kind == "linear":
        return x.reshape(-1, x.shape[-1])
    if x.ndim != 4 or op.family not in ("aten.conv2d", "aten.convolution"):
        return None
    rest = _conv_arguments(op)
    if rest is None or rest["groups"] != 1 or weight.shape[1] != x.shape[1]:
        return None
    patches = F.unfold(x, weight.shape[2:], rest["dilation"], rest["padding"], rest["stride"])
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _conv_arguments(op: Op) -> dict[str, Any] | None:
    names = ["stride", "padding", "dilation", "groups"]
    found: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    values = list(op.args[3:])
    if op.family == "aten.convolution":  # stride, padding, dilation, transposed, …, groups
        values = [*values[:3], *values[5:6]]
    found.update(zip(names, values, strict=False))
    found.update({k: v for k, v in op.kwargs.items() if k in names})
    if isinstance(found["padding"], str):
        return None
    return {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in found.items()}


def rows(value: Tensor, channel: int) -> Tensor:
    """A value as ``[rows, channels]``."""
    return value.movedim(channel, -1).reshape(-1, value.shape[channel])


def along(vector: Tensor, value: Tensor, channel: int) -> Tensor:
    """A vector of channels laid along its axis of a value, for broadcasting."""
    shape = [1] * value.ndim
    shape[channel] = -1
    return vector.to(value.dtype).reshape(shape)


def moments(value: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, in double precision."""
    kept = channel % value.ndim
    over = [i for i in range(value.ndim) if i != kept]
    variance, mean = torch.var_mean(value.double(), dim=over, correction=0)
    return mean, variance.clamp_min(0).sqrt()
