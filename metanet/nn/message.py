"""One step over the edges of a block: message, what nodes collect of it, and the gated update.

``m = act(W·e + Σ parts)``; the nodes get means (sums, maxima, deviations) of ``m``; the edges
become ``e + (W_v·m) ⊙ σ(W_g·m)``. Written as one autograd function that walks over a few members
at a time, so that what is as large as the block is read and written once and all between stays in
the cache. The backward pass keeps ``e`` and one tensor of the width of the messages (with gelu and
silu two), and computes the gates again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from metanet.nn.basis import Pattern
from metanet.nn.engine import join
from metanet.nn.reduce import Reductions, combine, diagonal, from_sorted

AGGREGATES = ("mean", "sum", "max", "std")
_EPS = 1e-5
_CACHE = 1 << 22  # bytes that four tensors of a chunk may take

Kept: TypeAlias = frozenset[int]
Parts: TypeAlias = dict[Pattern, list[tuple[Kept, Tensor]]]


@dataclass(frozen=True)
class Activation:
    """A function, its gradient, and whether that needs the output rather than the input."""

    apply: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    into: Callable[..., Tensor] | None = None  # (x, out=…); None: ``apply`` works in place

    @property
    def by_output(self) -> bool:
        """Whether the gradient needs the output, so that the input may be overwritten."""
        return self.into is None


_aten = torch.ops.aten
# All act on fresh tensors; relu's gradient needs its output only, so it may work in place.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(F.gelu, _aten.gelu_backward, _aten.gelu.out),
    "relu": Activation(torch.relu_, lambda g, y: _aten.threshold_backward(g, y, 0)),
    "silu": Activation(F.silu, _aten.silu_backward, _aten.silu.out),
}


class Messages:
    """Reductions of the messages of one block, by pattern, kept classes and aggregate.

    Args:
        value: the messages ``[N, *slots, h]``, or None if all that is asked for is ``known``.
        known: reductions over the discrete pattern that were computed on the way.
    """

    def __init__(self, value: Tensor | None, known: dict[tuple[str, Kept], Tensor],
                 sizes: Sequence[int]) -> None:
        self.value, self.known, self.sizes = value, known, tuple(sizes)
        self._memo: dict[str, Reductions] = {}

    def ordered(self, pattern: Pattern, order: Sequence[int], how: str) -> Tensor:
        """``[N, *kept classes in this order, h]``."""
        kept = frozenset(order)
        if how == "sum":
            gone = [i for i in range(len(pattern.classes)) if i not in kept]
            count = prod([self.sizes[pattern.classes[i][0]] for i in gone])  # a list: torch.compile
            return self.ordered(pattern, order, "mean") * count
        if how == "std":
            mean = self.ordered(pattern, order, "mean")
            square = self.ordered(pattern, order, "square")
            return ((square - mean.square()).relu() + _EPS).sqrt()
        if (how, kept) in self.known:
            return from_sorted(self.known[how, kept], order)
        if how not in self._memo and self.value is not None:
            self._memo[how] = _reductions(self.value, how)
        return self._memo[how].ordered(pattern, order)


def _reductions(value: Tensor, how: str) -> Reductions:
    return Reductions(value.square() if how == "square" else value,
                      "max" if how == "max" else "mean")


def wanted(pieces: Iterable[tuple[Pattern, Sequence[int]]], aggregate: Sequence[str]
           ) -> tuple[tuple[str, Kept], ...]:
    """What ``step`` is to reduce for these pieces of a block (all of the discrete pattern)."""
    hows = dict.fromkeys(h for how in aggregate for h in {
        "mean": ("mean",), "sum": ("mean",), "max": ("max",), "std": ("mean", "square")}[how])
    kept = dict.fromkeys(frozenset(order) for _, order in pieces)
    return tuple((how, keep) for how in hows for keep in kept)


def message(value: Tensor, weight: Tensor, parts: Parts, whole: Pattern, act: Activation
            ) -> Tensor:
    """``act(value @ weight + Σ parts)`` for parts of any patterns, ``[N, *slots, h]``."""
    total = join(value, weight, parts.get(whole, []))
    for pattern, terms in parts.items():
        for part in combine(terms, len(pattern.classes)) if pattern is not whole else ():
            diagonal(total, pattern).add_(part)
    return act.apply(total)


def gated(value: Tensor, messages: Tensor, weight: Tensor) -> Tensor:
    """``value + (m @ W_v) ⊙ σ(m @ W_g)``; ``weight`` holds the gates first, then the values."""
    # glu wants the values first and the gates behind them.
    return F.glu(messages @ weight.roll(weight.shape[1] // 2, 1), -1) + value


@dataclass(frozen=True)
class _Plan:
    kept: tuple[Kept, ...]                  # of the parts
    reduce: tuple[tuple[str, Kept], ...]
    act: Activation
    pattern: Pattern
    grad: bool                              # whether a backward pass may follow


def step(value: Tensor, weight: Tensor, out: Tensor | None, parts: Sequence[tuple[Kept, Tensor]],
         reduce: tuple[tuple[str, Kept], ...], act: Activation, pattern: Pattern
         ) -> tuple[Tensor | None, dict[tuple[str, Kept], Tensor]]:
    """The fused step.

    Args:
        value: edges ``[N, *slots, k]``.
        weight: ``[k, h]``.
        out: gates and values ``[h, 2k]``, or None if the edges are not updated.
        parts: kept slots and ``[N or 1, *kept slots, h]``.
        reduce: of ``wanted``.
        pattern: the discrete pattern of the block.

    Returns:
        New edges (if ``out``), and the reductions ``[N, *kept slots, h]``.
    """
    plan = _Plan(tuple(kept for kept, _ in parts), reduce, act, pattern, torch.is_grad_enabled())
    found: tuple[Tensor, ...] = EdgeStep.apply(  # type: ignore[no-untyped-call]
        plan, value, weight, out, *(part for _, part in parts))
    new = found[0] if out is not None else None
    return new, dict(zip(reduce, found[out is not None:], strict=True))


def _chunks(value: Tensor, width: int) -> list[slice]:
    one = value[0].numel() // value.shape[-1] * max(width, value.shape[-1]) * value.element_size()
    size = max(1, _CACHE // (4 * max(one, 1)))
    return [slice(i, i + size) for i in range(0, len(value), size)]


def _sum(parts: Sequence[Tensor], rows: slice, total: Tensor) -> Tensor:
    """Write the broadcast sum of these rows of the parts to ``total [n, *slots, h]``."""
    own = [part if len(part) == 1 else part[rows] for part in parts]
    if len(own) == 1:
        return total.copy_(own[0])
    torch.add(own[0].expand(total.shape), own[1], out=total)
    for part in own[2:]:
        total += part
    return total


class EdgeStep(torch.autograd.Function):
    """See ``step``; inputs are the plan, the edges, the two matrices and the parts."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, value: Tensor, weight: Tensor, out: Tensor | None,
                *parts: Tensor) -> tuple[Tensor, ...]:
        """New edges (if ``out``) and reductions."""
        value = value.contiguous()
        rank, (k, h) = value.ndim - 2, weight.shape
        keep = plan.grad and any(ctx.needs_input_grad)
        small = combine(zip(plan.kept, parts, strict=True), rank)
        shape = value.shape[1:-1]
        new = torch.empty_like(value) if out is not None else None
        found = [value.new_empty(len(value), *(shape[i] for i in sorted(kept)), h)
                 for _, kept in plan.reduce]
        saved = value.new_empty(*value.shape[:-1], h) if keep else None
        # The messages themselves come back only through gates, deviations and maxima.
        both = keep and not plan.act.by_output and (
            out is not None or any(how != "mean" for how, _ in plan.reduce))
        acted = torch.empty_like(saved) if saved is not None and both else None
        gates = out[:, :k].contiguous() if out is not None else None
        lifts = out[:, k:].contiguous() if out is not None else None
        for rows in _chunks(value, h):
            own = value[rows]
            total = own.new_empty(*own.shape[:-1], h) if saved is None else saved[rows]
            _sum(small, rows, total).view(-1, h).addmm_(own.view(-1, k), weight)
            if acted is not None and plan.act.into is not None:
                m = plan.act.into(total, out=acted[rows])
            else:
                m = plan.act.apply(total)
            _reduce(plan, m, found, rows)
            if new is not None and gates is not None and lifts is not None:
                flat = m.view(-1, h)
                gate = (flat @ gates).sigmoid_()
                torch.addcmul(own.view(-1, k), flat @ lifts, gate, out=new[rows].view(-1, k))
        ctx.plan, ctx.lead = plan, tuple(len(part) for part in parts)
        maxima = [f for f, (how, _) in zip(found, plan.reduce, strict=True) if how == "max"]
        ctx.save_for_backward(value, weight, out, saved, acted, *maxima)
        return (*(() if new is None else (new,)), *found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the edges, the matrices and the parts."""
        plan: _Plan = ctx.plan
        value, weight, out, saved, acted, *maxima = ctx.saved_tensors
        k, h = weight.shape
        d_new = gradients[0].contiguous() if out is not None else None
        arrived = gradients[out is not None:]
        d_value = torch.empty_like(value)
        d_weight = torch.zeros_like(weight)
        d_out = None if out is None else (out.new_zeros(h, k), out.new_zeros(h, k))
        sizes = value.shape[1:-1]
        d_parts = [value.new_zeros(lead, *(sizes[i] for i in sorted(kept)), h)
                   for lead, kept in zip(ctx.lead, plan.kept, strict=True)]
        for rows in _chunks(value, h):
            own, pre = value[rows], saved[rows]
            m = pre if acted is None else acted[rows]
            d_m = _spread(plan, m, arrived, maxima, rows)
            if d_new is not None and d_out is not None:
                _gate_back(m.view(-1, h), d_new[rows].view(-1, k), out, d_m.view(-1, h), d_out)
            d_pre = plan.act.back(d_m, pre)
            flat = d_pre.view(-1, h)
            d_weight.addmm_(own.view(-1, k).T, flat)
            into = d_value[rows].view(-1, k)
            if d_new is None:
                torch.mm(flat, weight.T, out=into)
            else:
                torch.addmm(d_new[rows].view(-1, k), flat, weight.T, out=into)
            sums = Reductions(d_pre, "sum")
            for into, kept, lead in zip(d_parts, plan.kept, ctx.lead, strict=True):
                part = sums.get(plan.pattern, kept)
                if lead == 1:
                    into += part.sum(0, keepdim=True)
                else:
                    into[rows] = part
        joined = None if d_out is None else torch.cat(d_out, -1)
        return (None, d_value, d_weight, joined, *d_parts)


def _reduce(plan: _Plan, m: Tensor, found: Sequence[Tensor], rows: slice) -> None:
    """Write the reductions of these members' messages."""
    memo: dict[str, Reductions] = {}
    for into, (how, kept) in zip(found, plan.reduce, strict=True):
        if how not in memo:
            memo[how] = _reductions(m, how)
        into[rows] = memo[how].get(plan.pattern, kept)


def _spread(plan: _Plan, m: Tensor, arrived: Sequence[Tensor], maxima: Sequence[Tensor],
            rows: slice) -> Tensor:
    """Gradient that comes back to the messages from what was reduced of them."""
    rank = m.ndim - 2
    means: list[tuple[Kept, Tensor]] = []
    squares: list[tuple[Kept, Tensor]] = []
    tops = iter(maxima)
    d_m: Tensor | None = None
    for gradient, (how, kept) in zip(arrived, plan.reduce, strict=True):
        if how == "max":
            top, own = (_full(t[rows], kept, rank) for t in (next(tops), gradient))
            hit = (m == top).to(m.dtype)
            gone = [1 + i for i in range(rank) if i not in kept]
            share = own / hit.sum(gone, keepdim=True) if gone else own
            d_m = hit * share if d_m is None else d_m.addcmul_(hit, share)
        else:
            count = prod(m.shape[1 + i] for i in range(rank) if i not in kept)
            if how == "mean":
                means.append((kept, gradient[rows] / count))
            else:
                squares.append((kept, gradient[rows] * (2 / count)))
    for part in combine(means, rank):
        d_m = part.expand(m.shape).contiguous() if d_m is None else d_m.add_(part)
    for part in combine(squares, rank):
        d_m = m * part if d_m is None else d_m.addcmul_(m, part)
    return torch.zeros_like(m) if d_m is None else d_m


def _full(value: Tensor, kept: Kept, rank: int) -> Tensor:
    for i in range(rank):
        if i not in kept:
            value = value.unsqueeze(1 + i)
    return value


def _gate_back(m: Tensor, d_new: Tensor, out: Tensor, d_m: Tensor,
               d_out: tuple[Tensor, Tensor]) -> None:
    """The gated update backwards: adds to ``d_m`` and to the gradients of gates and values."""
    k = out.shape[1] // 2
    gates, lifts = out[:, :k], out[:, k:]
    gate = (m @ gates).sigmoid_()
    d_gate = _aten.sigmoid_backward((m @ lifts).mul_(d_new), gate)
    d_lift = gate.mul_(d_new)
    d_m.addmm_(d_lift, lifts.T).addmm_(d_gate, gates.T)
    d_out[0].addmm_(m.T, d_gate)
    d_out[1].addmm_(m.T, d_lift)
