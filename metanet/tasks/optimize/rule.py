"""The per-entry rule as plain functions: batched over replicas, differentiable, nothing in place.

What a learned optimizer is trained with, and what the fast path (``stream``) is held against. All
buffers are flat ``[R, n]``: R replicas of one layout, each with weights of its own or all with one.

An entry sees its value, gradient and three momenta, each over its root mean square in its tensor;
gradient and momenta over the root of the mean square v of the gradient (Adam's directions); v
beside the mean of its tensor, its row and its column; and in ``context`` the statistics of the
neurons at both its ends, over all tensors that touch them. Two hidden layers give a factor and a
summand for Adam's direction; a second small net per tensor gives the length. No feature is of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from metanet.tasks.optimize.layout import Layout
from metanet.tasks.optimize.pools import IN, OUT, Pools
from metanet.tasks.optimize.spec import BASE, LEAST, LOG_MOST, Spec

TINY = 1e-16
CLIP = 10.0
GATE = 2.0


@dataclass(frozen=True)
class State:
    """Momenta ``[R, k, n]``, mean square ``[R, n]``, steps per tensor ``[R, T]``."""

    momenta: Float[Tensor, "R k n"]
    square: Float[Tensor, "R n"]
    steps: Float[Tensor, "R T"]

    @classmethod
    def zero(cls, spec: Spec, layout: Layout, like: Tensor) -> State:
        """At the start, for parameters ``[R, n]``."""
        k = len(spec.decays)
        return cls(like.new_zeros(len(like), k, layout.total), torch.zeros_like(like),
                   like.new_zeros(len(like), len(layout.sizes)))

    def detach(self) -> State:
        """Without history."""
        return State(self.momenta.detach(), self.square.detach(), self.steps)


@dataclass(frozen=True, eq=False)
class Tables:
    """What a rule needs to know about a network."""

    layout: Layout
    own: Pools
    shared: Pools | None = None

    @classmethod
    def of(cls, spec: Spec, layout: Layout, space: object = None) -> Tables:
        """Tables of a layout; a space only where the net reads neurons.

        Without a space, the neurons of ``context`` are rows and columns of each tensor.
        """
        shared = Pools(layout, space) if spec.kind == "context" else None  # type: ignore[arg-type]
        return cls(layout, Pools(layout), shared)


def observe(spec: Spec, g: Tensor, state: State) -> State:
    """Momenta and mean square after one more gradient."""
    momenta = torch.stack([m.lerp(g, 1 - beta) for m, beta in zip(
        state.momenta.unbind(1), spec.decays, strict=True)], 1)
    square = state.square.lerp(g * g, 1 - spec.square)
    return State(momenta, square, state.steps + 1)


def corrections(spec: Spec, steps: Float[Tensor, "*R T"]) -> Float[Tensor, "*R k T"]:
    """Factors that make ``momentum · rsqrt(v)`` free of the bias of the start."""
    steps = steps.clamp(min=1)  # a tensor that never had a gradient
    root = (1 - spec.square ** steps).sqrt()
    return torch.stack([root / (1 - beta ** steps) for beta in spec.decays], -2)


def update(spec: Spec, theta: Float[Tensor, "R m"], tables: Tables, p: Float[Tensor, "R n"],
           g: Float[Tensor, "R n"], state: State) -> Float[Tensor, "R n"]:
    """What is to be subtracted from the parameters at ``lr=1``; ``state`` has seen ``g``."""
    layout, w = tables.layout, spec.unpack(theta)
    inverse = (state.square + TINY).rsqrt()
    fixes = corrections(spec, state.steps)
    mean = layout.mean(state.square)
    rows = torch.cat([p[:, None], g[:, None], state.momenta], 1)
    rms = (layout.mean(rows * rows) + TINY).sqrt()
    own = torch.cat([torch.ones_like(fixes[:, :1]), fixes], 1)
    ways = rows[:, 1:] * inverse[:, None] * layout.spread(own)
    adam = ways[:, 1]
    shared = None if tables.shared is None else \
        shared_table(spec, tables.shared, state.square, mean, adam, ways[:, -1], p)
    features = torch.cat([
        rows * layout.spread(1 / rms),
        ways,
        (1 + inverse * layout.spread((mean + TINY).sqrt())).reciprocal()[:, None],
        around(tables, state.square, mean, shared)], 1)
    hidden = torch.relu(w["w1"] @ features + w["b1"])
    hidden = torch.relu(w["w2"] @ hidden + w["b2"])
    gate, summand = (w["w3"] @ hidden + w["b3"]).unbind(1)
    raw = adam * gate.clamp(-GATE, GATE).exp() + summand.clamp(-CLIP, CLIP)
    length = (layout.mean(adam * adam) + TINY).sqrt()
    own_length = (layout.mean(raw * raw) + TINY).sqrt()
    told = None
    if tables.shared is not None and shared is not None and spec.messages:
        told = tables.shared.tensors(shared)
    factor = BASE * length / own_length * scale(
        spec, w, layout, rms, mean, fixes, length, told).exp()
    return raw * layout.spread(factor)


def around(tables: Tables, square: Tensor, mean: Tensor, shared: Tensor | None
           ) -> Float[Tensor, "R c n"]:
    """Features of rows and columns, and of the neurons at both ends."""
    table = own_table(tables.own, square, mean)
    found = [table[:, side].index_select(-1, tables.own.ids[side])[:, None]
             for side in (OUT, IN)]
    if tables.shared is not None and shared is not None:
        found += [shared.index_select(-1, ids) for ids in tables.shared.ids]
    return torch.cat(found, 1)


def own_table(pools: Pools, square: Tensor, mean: Tensor) -> Float[Tensor, "R 2 S"]:
    """Half the logarithm of the mean of v of each row and column, over that of its tensor."""
    found = pools.means(square, 1 / (mean + TINY), 1.0)
    return (found.clamp(min=TINY).log() / 2).clamp(-CLIP, CLIP)


def shared_table(spec: Spec, pools: Pools, square: Tensor, mean: Tensor, adam: Tensor,
                 slow: Tensor, p: Tensor) -> Float[Tensor, "R 3 S"]:
    """Per neuron, over all that touches it.

    Design 1: v over what enters, v over what leaves (each relative to the mean of its tensor),
    Adam's square over both. Design 2: logarithms of the mean square of Adam's direction and of the
    same of the slowest momentum (how steady gradients are), and the cosine of weights and Adam's
    direction (whether the weights shrink). Entries of the out side enter a neuron.
    """
    counts = pools.counts.sum(0).clamp(min=1)
    both = pools.sums(adam * adam).sum(1) / counts
    if not spec.messages:
        return torch.cat([own_table(pools, square, mean), both[:, None].clamp(max=CLIP)], 1)
    long, along, size = (pools.sums(value).sum(1) / counts
                         for value in (slow * slow, p * adam, p * p))
    shrinks = along * (both * size + TINY).rsqrt()
    return torch.stack([(both + 1e-4).log() / 3, (long + 1e-4).log() / 3, shrinks], 1)


def scale(spec: Spec, w: dict[str, Tensor], layout: Layout, rms: Tensor, mean: Tensor,
          fixes: Tensor, length: Tensor, told: Tensor | None = None) -> Float[Tensor, "R T"]:
    """Logarithm of the factor on the length of Adam's step, per tensor.

    From the size of the parameters, the length of Adam's direction, how much of the gradient
    survives averaging (three spans), the number of entries, whether it is a vector, and what is
    ``told`` of its neurons ``[R, c, T]``. On matrices wider than those that the net was trained
    on, less in proportion; never more than ``reach`` allows.
    """
    known = tensor_facts(layout, rms).expand(len(rms), -1, -1)
    survives = rms[:, 2:] * fixes / (mean + TINY).sqrt()[:, None]
    features = torch.cat([(rms[:, :1] + 1e-4).log() / 3, (length + 1e-4).log()[:, None],
                          (survives + 1e-4).log(), known, *([] if told is None else [told])], 1)
    hidden = torch.relu(w["s1"] @ features + w["c1"])
    found = (w["s2"] @ hidden + w["c2"])[:, 0].clamp(-LOG_MOST, LOG_MOST)
    if spec.width:
        wide = [log(max(width / spec.width, 1.0)) for width in layout.widths]
        found = found - torch.tensor(wide, dtype=found.dtype, device=found.device)
    if spec.reach:
        found = found.minimum((spec.reach * rms[:, 0].clamp(min=LEAST) / (BASE * length)).log())
    return found


def tensor_facts(layout: Layout, like: Tensor) -> Float[Tensor, "1 2 T"]:
    """Logarithm of the number of entries, and whether a tensor has at most one axis."""
    sizes = [log(max(size, 1)) / 5 - 1 for size in layout.sizes]
    flat = [float(len(shape) < 2) for shape in layout.shapes]
    return torch.tensor([[sizes, flat]], dtype=like.dtype, device=like.device)
