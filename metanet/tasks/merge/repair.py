"""Repair: averaged neurons vary less than those of their parents; put that right, layer by layer.

* ``bn``: running statistics of batch norms measured anew.
* ``rescale``: each neuron's deviation becomes the interpolated deviation of its parents (Qu and
  Horvath, 2024, arXiv 2402.05966: this does most of the work).
* ``repair``: mean and deviation (Jordan et al., "REPAIR", ICLR 2023).
* ``least-squares``: each layer's weights are fitted to the interpolated outputs of its parents,
  held near the average by a ridge (Nasery et al., "PLeaS", 2024, arXiv 2407.02447).
* ``closed``: no data: each neuron's incoming weights get back the norm that averaging took.

All but the last run the parents and the merged model in step on unlabelled inputs; what is
measured at one layer has all corrections before it. Maps are folded into the weights; a shift that
has no bias to go to is kept apart in ``shifts`` and added when the model is run here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint.names import no_such
from metanet.errors import MetanetError
from metanet.tasks.merge.data import fitted
from metanet.tasks.merge.layers import Layer, along, columns, layers, moments
from metanet.tasks.merge.layers import rows as rows_of
from metanet.tasks.merge.runner import Hook, Runner, State, as_float
from metanet.trace.program import Op, Program

KINDS = ("none", "closed", "bn", "rescale", "repair", "least-squares")
_FLOOR = 1e-4
_ROWS = 32768
RIDGE = 0.01
"""Ridge of the least squares, as a share of the mean square of a layer's inputs."""


@dataclass(frozen=True, eq=False)
class Repaired:
    """A merged model after repair.

    ``shifts`` (weight's name → vector) are not in ``state``; ``layers`` were corrected, ``skipped``
    could not be (tied or grouped weights). Run it with ``outputs``.
    """

    state: dict[str, Tensor]
    method: str
    layers: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    def outputs(self, runner: Runner, x: Tensor) -> Tensor:
        """First output of the network for all rows."""
        if not self.shifts:
            return runner.outputs(self.state, x)
        places = layers(runner.program(next(runner.batches(x))))
        return runner.outputs(self.state, x, _shifting(places, self.shifts))


def _shifting(places: Mapping[int, Layer], shifts: Mapping[str, Tensor]) -> Hook:
    def hook(at: int, op: Op, args: list[tuple[Any, ...]], outs: list[Any]) -> list[Any]:
        layer = places.get(at)
        if layer is None or layer.name not in shifts:
            return outs
        return [out + along(shifts[layer.name], out, layer.channel) for out in outs]

    return hook


def mix(a: State, b: State, t: float) -> dict[str, Tensor]:
    """``(1 - t) a + t b`` for floating tensors, in single precision; others are those of ``a``."""
    out = {}
    for name, tensor in a.items():
        both = tensor.is_floating_point() and name in b
        out[name] = torch.lerp(as_float(tensor), as_float(b[name]), t) if both else tensor
    return out


def repair(
    runner: Runner, a: State, b: State, merged: State, x: Tensor | None, *, method: str = "repair",
    t: float = 0.5,
) -> Repaired:
    """Correct a merged model.

    Args:
        runner: the network.
        a: one parent.
        b: the other parent, already aligned to ``a``.
        merged: what lies between them.
        x: inputs without labels; at most one batch is used. None for ``closed`` and ``none``.
        method: one of ``KINDS``.
        t: where ``merged`` lies between ``a`` (0) and ``b`` (1).

    Raises:
        MetanetError: unknown method, or inputs are missing.
    """
    if method not in KINDS:
        raise MetanetError(no_such("repair", method, KINDS))
    if method == "none":
        return Repaired(dict(merged), method)
    if method == "closed":
        return closed(runner.program(runner.sample), a, b, merged, t)
    if x is None:
        raise MetanetError(f"repair {method!r} measures activations: give inputs (--calib FILE), "
                           "or repair 'closed'")
    batch = next(runner.batches(fitted(x, runner.sample)))
    work = _Work(runner, runner.program(batch), merged, method, t)
    runner.lockstep([a, b, merged], batch, work.hook)
    return Repaired(work.state, method, tuple(work.done), tuple(work.skipped), work.shifts)


class _Work:
    """One pass of three models in step: parents and the merged model that is being corrected."""

    def __init__(
        self, runner: Runner, program: Program, merged: State, method: str, t: float
    ) -> None:
        self.places = layers(program)
        self.names = _known_names(program, merged)
        self.method, self.t = method, t
        self.state = dict(merged)
        self.shifts: dict[str, Tensor] = {}
        self.done: list[str] = []
        self.skipped: list[str] = []

    def hook(self, at: int, op: Op, args: list[tuple[Any, ...]], outs: list[Any]) -> list[Any]:
        layer = self.places.get(at)
        if layer is None:
            return outs
        if layer.kind == "norm":
            found = self._norm(layer, op, args[2], outs[2])
        elif self.method == "bn" or layer.normed:
            return outs
        elif self.method == "least-squares":
            found = self._fit(layer, op, args[2], outs)
        else:
            found = self._affine(layer, outs)
        self.done.append(layer.name)
        return [outs[0], outs[1], found]

    # ------------------------------------------------------------ the corrections

    def _norm(self, layer: Layer, op: Op, args: tuple[Any, ...], out: Any) -> Any:
        """Statistics of the merged model's own activations, and the output with them."""
        mean, deviation = moments(args[0], 1)
        self._put(layer.mean, mean)
        self._put(layer.var, deviation.square())
        places = list(args)
        places[3], places[4] = mean.to(args[0].dtype), deviation.square().to(args[0].dtype)
        return op.function(*places, **dict(op.kwargs))

    def _affine(self, layer: Layer, outs: list[Any]) -> Tensor:
        (mean_a, dev_a), (mean_b, dev_b), (mean, dev) = (
            moments(out, layer.channel) for out in outs)
        target = torch.lerp(dev_a, dev_b, self.t)
        floor = max(_FLOOR * float(target.max()), 1e-30)
        scale = torch.where(dev > floor, target / dev.clamp_min(floor), torch.ones_like(dev))
        shift = torch.zeros_like(scale)
        if self.method == "repair":
            shift = torch.lerp(mean_a, mean_b, self.t) - scale * mean
        self._fold(layer, scale, shift)
        out: Tensor = outs[2]
        return out * along(scale, out, layer.channel) + along(shift, out, layer.channel)

    def _fit(self, layer: Layer, op: Op, args: tuple[Any, ...], outs: list[Any]) -> Tensor:
        weight = self.state[self.names[str(layer.weight)]]
        x = columns(layer, op, args[layer.input], weight)
        if x is None:
            self.skipped.append(layer.name)
            return self._affine(layer, outs)
        out: Tensor = outs[2]
        residual = torch.lerp(outs[0], outs[1], self.t) - out
        step, shift = _ridge(x, rows_of(residual, layer.channel), layer.bias is not None)
        turned = step if layer.out == 0 else step.T
        self._put(layer.weight, as_float(weight).double() + turned.reshape(weight.shape))
        if layer.bias is not None:
            bias = self.state[self.names[layer.bias]]
            self._put(layer.bias, bias.double() + shift)
        change = x @ step.T.to(x.dtype) + shift.to(x.dtype)
        return out + _unrows(change, out, layer.channel)

    # ------------------------------------------------------------ folding

    def _fold(self, layer: Layer, scale: Tensor, shift: Tensor) -> None:
        weight = self.state[self.names[str(layer.weight)]]
        self._put(layer.weight, weight.double() * along(scale, weight, layer.out).double())
        if layer.bias is not None:
            bias = self.state[self.names[layer.bias]]
            self._put(layer.bias, bias.double() * scale + shift)
        elif bool(shift.any()):
            self.shifts[layer.name] = shift.float()

    def _put(self, name: str | None, value: Tensor) -> None:
        known = self.names[str(name)]
        self.state[known] = value.to(as_float(self.state[known]).dtype)


def _known_names(program: Program, state: State) -> dict[str, str]:
    """The program's name of a tensor → the model's."""
    found = {}
    for name in program.tensors:
        owner = program.aliases.get(name, name)
        names = (name, owner, *(a for a, o in program.aliases.items() if o == owner))
        found[name] = next((known for known in names if known in state), name)
    return found


def _ridge(x: Tensor, residual: Tensor, shift: bool) -> tuple[Tensor, Tensor]:
    """Weights ``[out, in]`` (and a shift) that explain a residual, held small."""
    count, (n, m) = len(x), (x.shape[1], residual.shape[1])
    mean_x, mean_r = torch.zeros(n).double(), torch.zeros(m).double()
    gram, cross = torch.zeros(n, n).double(), torch.zeros(n, m).double()
    for rows, targets in zip(x.split(_ROWS), residual.split(_ROWS), strict=True):
        wide, goal = rows.double(), targets.double()
        gram += wide.T @ wide / count
        cross += wide.T @ goal / count
        mean_x += wide.sum(0) / count
        mean_r += goal.sum(0) / count
    size = float(gram.diagonal().mean()) * RIDGE + 1e-12
    if not shift:
        mean_x, mean_r = torch.zeros_like(mean_x), torch.zeros_like(mean_r)
    gram -= torch.outer(mean_x, mean_x)
    cross -= torch.outer(mean_x, mean_r)
    gram.diagonal().add_(size)
    step = torch.linalg.solve(gram, cross).T
    return step, mean_r - step @ mean_x


def _unrows(found: Tensor, like: Tensor, channel: int) -> Tensor:
    """A value again, from ``[rows, channels]``."""
    shape = like.movedim(channel, -1).shape
    return found.reshape(shape).movedim(-1, channel)


# ---------------------------------------------------------------- without data


def closed(program: Program, a: State, b: State, merged: State, t: float) -> Repaired:
    """Scale each neuron of each linear map so that its incoming weights have the parents' norm.

    With inputs of equal statistics, a neuron's deviation is proportional to that norm; the same
    factor goes to its bias. Layers that are normalised afterwards need it not.
    """
    state, done = dict(merged), []
    names = _known_names(program, merged)
    for layer in layers(program).values():
        if layer.kind == "norm" or layer.normed:
            continue
        name = names[str(layer.weight)]
        sizes = [_norms(w[name], layer.out) for w in (a, b, merged)]
        scale = torch.lerp(sizes[0], sizes[1], t) / sizes[2].clamp_min(1e-30)
        scale = torch.where(sizes[2] > 1e-30, scale, torch.ones_like(scale))
        weight = as_float(state[name])
        state[name] = (weight.double() * along(scale, weight, layer.out).double()).to(weight.dtype)
        if layer.bias is not None:
            bias = as_float(state[names[layer.bias]])
            state[names[layer.bias]] = (bias.double() * scale).to(bias.dtype)
        done.append(layer.name)
    return Repaired(state, "closed", tuple(done))


def _norms(weight: Tensor, out: int) -> Tensor:
    rows = weight.double().movedim(out, 0).reshape(weight.shape[out], -1)
    return rows.square().sum(1).sqrt()


# ---------------------------------------------------------------- temperature


def temperature(loss: Callable[[float], float], low: float = 0.05, high: float = 20.0) -> float:
    """The factor on the logits that makes a loss smallest, by golden section on its logarithm."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = math.log(low), math.log(high)
    while right - left > 1e-3:
        step = ratio * (right - left)
        if loss(math.exp(right - step)) <= loss(math.exp(left + step)):
            right = left + step
        else:
            left = right - step
    return math.exp((left + right) / 2)
