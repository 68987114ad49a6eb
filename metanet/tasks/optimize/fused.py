"""The per-entry rule as two compiled kernels: what ``LearnedOptimizer(…, compiled=True)`` runs.

``torch.compile`` makes one loop of each: the first takes the gradient into momenta and mean square
and sums what the second needs, the second runs the whole small net in registers. Parameters and
gradients are read where they are. A tensor is a matrix of its first axis and all others; shapes are
symbolic, so that two matrices and two vectors are all that is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metanet.errors import MetanetError
from metanet.tasks.optimize.guard import Steps
from metanet.tasks.optimize.layout import Layout
from metanet.tasks.optimize.rule import CLIP, GATE, TINY, corrections, scale
from metanet.tasks.optimize.spec import Net

# Whole nets stay in one loop: nothing between the inputs and the outputs is put into memory.
_ONE_LOOP: dict[str, Any] = {"realize_reads_threshold": 10_000, "realize_opcount_threshold": 10_000,
             "realize_acc_reads_threshold": 10_000,
             "cpp.enable_floating_point_contract_flag": "fast"}  # a product and a sum are one step


@dataclass(frozen=True, eq=False)
class _Held:
    """State of one tensor as matrices ``[r, c]``: momenta, mean square."""

    momenta: tuple[Tensor, ...]
    square: Tensor


def _seen(p: Tensor, g: Tensor, m0: Tensor, m1: Tensor, m2: Tensor, v: Tensor,
          decays: tuple[float, ...], square: float) -> tuple[Tensor, Tensor]:
    """Momenta and mean square after a gradient, in place. Sums over rows ``[7, r]`` of the squares
    of p, g, momenta and Adam's direction without its correction, and of v; of columns of v."""
    for m, beta in zip((m0, m1, m2), decays, strict=True):
        m.lerp_(g, 1 - beta)
    v.mul_(square).addcmul_(g, g, value=1 - square)
    adam = m0 * (v + TINY).rsqrt()
    return torch.stack([x.sum(1) for x in (p * p, g * g, m0 * m0, m1 * m1, m2 * m2,
                                           adam * adam, v)]), v.sum(0)


def _answer(p: Tensor, g: Tensor, m0: Tensor, m1: Tensor, m2: Tensor, v: Tensor, rows: Tensor,
            columns: Tensor, s: Tensor, w1: Tensor, w2: Tensor, w3: Tensor
            ) -> tuple[Tensor, Tensor, Tensor]:
    """The net on every entry: direction, and sums over rows of its square and of it with Adam's.

    ``s``: reciprocal root mean squares of the five rows, three corrections, root of the mean of v.
    The last column of ``w1``, ``w2``, ``w3`` are biases.
    """
    inverse = (v + TINY).rsqrt()
    adam = m0 * inverse * s[5]
    x = [*(value * s[i] for i, value in enumerate((p, g, m0, m1, m2))),
         g * inverse, adam, m1 * inverse * s[6], m2 * inverse * s[7],
         (1 + inverse * s[8]).reciprocal(), rows[:, None], columns[None]]
    gate, summand = _linear(w3, _relu(_linear(w2, _relu(_linear(w1, x)))))
    raw = adam * gate.clamp(-GATE, GATE).exp() + summand.clamp(-CLIP, CLIP)
    return raw, (raw * raw).sum(1), (raw * adam).sum(1)


def _linear(w: Tensor, x: Sequence[Tensor]) -> list[Tensor]:
    found = []
    for i in range(w.shape[0]):
        value = w[i, len(x)] + w[i, 0] * x[0]
        for j in range(1, len(x)):
            value = value + w[i, j] * x[j]
        found.append(value)
    return found


def _relu(x: Sequence[Tensor]) -> list[Tensor]:
    return [torch.relu(value) for value in x]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True, fullgraph=True, options=_ONE_LOOP)


class Fused:
    """All parameters of an optimizer, each with state of its own, and the compiled net on them.

    Args:
        net: of kind ``element``. layout: of the parameters. device: theirs.

    Raises:
        MetanetError: for a net that reads more than an entry and its tensor.
    """

    def __init__(self, net: Net, layout: Layout, device: torch.device) -> None:
        self.net = net
        if self.net.spec.kind != "element":
            raise MetanetError(f"compiled=True is for nets of kind 'element', not "
                               f"{self.net.spec.kind!r}; leave it out")
        self.layout = layout
        w = {k: v[0] for k, v in self.net.spec.unpack(self.net.theta.to(device)[None]).items()}
        self.scale = {k: v[None] for k, v in w.items()}
        w1, self.w2, self.w3 = (torch.cat([w[f"w{i}"], w[f"b{i}"]], 1) for i in (1, 2, 3))
        # A vector is one row, but its entries count as rows: these two features change places.
        order = [*range(10), 11, 10, 12]
        self.w1 = (w1, w1[:, order].contiguous())
        self.steps = torch.zeros(len(layout.sizes), device=device)
        self.held = []
        for size, shape in zip(layout.sizes, layout.shapes, strict=True):
            rows = shape[0] if len(shape) > 1 else 1
            *momenta, square = (torch.zeros(rows, size // max(rows, 1), device=device)
                                for _ in range(len(net.spec.decays) + 1))
            self.held.append(_Held(tuple(momenta), square))
        self.seen, self.answer = _compiled(_seen), _compiled(_answer)

    def views(self, i: int) -> dict[str, Tensor]:
        """State of parameter ``i``, in its shape: momenta, mean square, number of steps."""
        shape, held = self.layout.shapes[i], self.held[i]
        momenta = {f"momentum{k}": m.view(shape) for k, m in enumerate(held.momenta)}
        return {"step": self.steps[i], **momenta, "square": held.square.view(shape)}

    def propose(self, values: Sequence[Tensor], grads: Mapping[int, Tensor]) -> Steps:
        """Directions of the parameters that have a gradient, in the order of ``grads``.

        Args:
            values: float32 values of all parameters. grads: number of a parameter → gradient.
        """
        busy = list(grads)
        told = {i: self._observe(i, values[i], g) for i, g in grads.items()}
        self.steps[busy] += 1
        sizes = torch.tensor([self.layout.sizes[i] for i in busy], device=self.steps.device)
        sums = torch.stack([told[i][0].sum(1) for i in busy], 1) / sizes
        rms, mean = (sums[:5] + TINY).sqrt(), sums[6]
        fixes = corrections(self.net.spec, self.steps[busy])
        length = (sums[5] * fixes[0] ** 2 + TINY).sqrt()
        part = Layout(tuple(self.layout.names[i] for i in busy),
                      tuple(self.layout.shapes[i] for i in busy))
        log = scale(self.net.spec, self.scale, part, rms[None], mean[None],
                    fixes[None], length[None])[0]
        scales = torch.cat([1 / rms, fixes, (mean + TINY).sqrt()[None]])
        raws, ends = [], []
        for at, i in enumerate(busy):
            raw, *end = self._answer(i, values[i], grads[i], told[i], scales[:, at], mean[at])
            raws.append(raw.view(self.layout.shapes[i]))
            ends.append(torch.stack([e.sum() for e in end]))
        own, along = torch.stack(ends, 1)
        return Steps(raws, length, (own / sizes + TINY).sqrt(), log, along)

    def base(self, i: int) -> Tensor:
        """Adam's direction of a parameter, up to its length."""
        held = self.held[i]
        return (held.momenta[0] * (held.square + TINY).rsqrt()).view(self.layout.shapes[i])

    def _observe(self, i: int, p: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        held, spec = self.held[i], self.net.spec
        found: tuple[Tensor, Tensor] = self.seen(
            _matrix(p.detach()), _matrix(g.float()), *held.momenta, held.square, spec.decays,
            spec.square)
        return found

    def _answer(self, i: int, p: Tensor, g: Tensor, told: tuple[Tensor, Tensor], scales: Tensor,
                mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        held, vector = self.held[i], p.ndim < 2
        r, c = held.square.shape
        rows, columns = (((x / n / (mean + TINY)).clamp(min=TINY).log() / 2).clamp(-CLIP, CLIP)
                         for x, n in ((told[0][6], c), (told[1], r)))
        found: tuple[Tensor, Tensor, Tensor] = self.answer(
            _matrix(p.detach()), _matrix(g.float()), *held.momenta, held.square,
            torch.zeros_like(rows) if vector else rows, columns, scales, self.w1[vector],
            self.w2, self.w3)
        return found


def _matrix(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1) if value.ndim > 1 else value.reshape(1, -1)
