"""The per-entry rule, fast: in place, in blocks that stay in the cache, one network at a time.

Features are rows of one small matrix that is filled and multiplied block by block, so that memory
is read and written once. Small tensors share a block; their scales are then looked up per entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from metanet.tasks.optimize.pools import IN, OUT, Pools
from metanet.tasks.optimize.rule import (
    CLIP,
    GATE,
    TINY,
    Tables,
    corrections,
    own_table,
    scale,
    shared_table,
)
from metanet.tasks.optimize.spec import Net

BLOCK = 32768


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a net proposes, per entry and per tensor.

    Attributes:
        raw: direction, of any length, ``[n]``.
        adam: Adam's direction, ``[n]``.
        length, own: root mean squares of ``adam`` and of ``raw`` in each tensor, ``[T]``.
        log: logarithm of the factor on Adam's length, ``[T]``.
    """

    raw: Float[Tensor, " n"]
    adam: Float[Tensor, " n"]
    length: Float[Tensor, " T"]
    own: Float[Tensor, " T"]
    log: Float[Tensor, " T"]


class Buffers:
    """Flat state of one network: rows p, g and momenta ``[2 + k, n]``, mean square, steps."""

    def __init__(self, tables: Tables, decays: tuple[float, ...], device: torch.device) -> None:
        n = tables.layout.total
        self.rows = torch.zeros(2 + len(decays), n, device=device)
        self.square = torch.zeros(n, device=device)
        self.steps = torch.zeros(len(tables.layout.sizes), device=device)
        self.adam, self.inverse = torch.empty_like(self.square), torch.empty_like(self.square)
        self.raw = torch.empty_like(self.square)


def observe(buffers: Buffers, decays: tuple[float, ...], square: float) -> None:
    """Momenta and mean square after the gradient in ``rows[1]``, in place."""
    n = len(buffers.square)
    for start in range(0, n, 2 * BLOCK):
        part = slice(start, start + 2 * BLOCK)
        g = buffers.rows[1, part]
        for momentum, beta in zip(buffers.rows[2:], decays, strict=True):
            momentum[part].lerp_(g, 1 - beta)
        v = buffers.square[part].mul_(square).addcmul_(g, g, value=1 - square)
        torch.add(v, TINY, out=buffers.inverse[part]).rsqrt_()
        torch.mul(buffers.rows[2, part], buffers.inverse[part], out=buffers.adam[part])
    buffers.steps += 1


class Stream:
    """One per-entry net on one network.

    Args:
        net: of kind ``element`` or ``context``.
        tables: of the network.
        device: of its parameters.
    """

    def __init__(self, net: Net, tables: Tables, device: torch.device) -> None:
        self.net, self.tables, self.layout = net, tables, tables.layout
        for pools in (tables.own, tables.shared):
            if pools is not None:
                pools.to(device)
        self.owner = self.layout.owner.to(device)
        self.roots = torch.tensor(self.layout.sizes, device=device).clamp(min=1).sqrt()
        w = {k: v[0] for k, v in net.spec.unpack(net.theta.to(device)[None]).items()}
        self.scale = {k: v[None] for k, v in w.items()}
        # The last row of a matrix of features is one, so that biases cost nothing.
        self.w1, self.w2, self.w3 = (torch.cat([w[f"w{i}"], w[f"b{i}"]], 1) for i in (1, 2, 3))
        h, f = net.spec.hidden, net.spec.inputs
        size = min(BLOCK, self.layout.total)
        self.features = torch.ones(f + 1, size, device=device)
        self.first = torch.ones(h + 1, size, device=device)
        self.second = torch.ones(h + 1, size, device=device)
        self.last = torch.empty(2, size, device=device)
        self.columns = [self._grid(i) for i in range(len(self.layout.sizes))]
        self.blocks = tuple(_blocks(self.layout.sizes, self.columns, size))

    def _grid(self, i: int) -> int:
        """Columns of tensor ``i`` where each row has one neuron on the out side and each column
        one on the in side, so that their values can be laid out row by row; else 0."""
        shape, size = self.layout.shapes[i], self.layout.sizes[i]
        if len(shape) < 2 or not size or size // shape[0] > BLOCK:
            return 0
        part = slice(self.layout.starts[i], self.layout.starts[i] + size)
        for pools in (self.tables.own, self.tables.shared):
            if pools is not None:
                out, inside = pools.ids[:, part].view(2, shape[0], -1)
                if not (torch.equal(out, out[:, :1].expand_as(out))
                        and torch.equal(inside, inside[:1].expand_as(inside))):
                    return 0
        return size // shape[0]

    def propose(self, b: Buffers) -> Proposal:
        """The net's direction and length; ``b`` has seen the gradient. Overwrites ``b.raw``."""
        layout, k = self.layout, len(b.rows)
        views = [view for row in b.rows for view in layout.views(row)]
        norms = torch.stack(torch._foreach_norm(views)).view(k, -1) / self.roots
        rms = (norms * norms + TINY).sqrt()
        mean = torch.stack([v.sum() for v in layout.views(b.square)]) / self.roots ** 2
        fixes = corrections(self.net.spec, b.steps)
        length = torch.stack(torch._foreach_norm(layout.views(b.adam))) / self.roots * fixes[0]
        length = (length * length + TINY).sqrt()
        scales = torch.cat([1 / rms, torch.ones_like(mean)[None], fixes,
                            (mean + TINY).sqrt()[None]])
        own = own_table(self.tables.own, b.square[None], mean[None])[0]
        shared = self._shared(b, mean, fixes)
        told = self.tables.shared.tensors(shared[None]) \
            if shared is not None and self.tables.shared and self.net.spec.messages else None
        log = scale(self.net.spec, self.scale, layout, rms[None], mean[None],
                    fixes[None], length[None], told)[0]
        for start, stop, tensor in self.blocks:
            part = scales[:, tensor:tensor + 1] if tensor is not None else \
                scales.index_select(1, self.owner[start:stop])
            self._fill(b, (start, stop, tensor), part, own, shared)
            w1 = self.w1
            if tensor is not None:  # one scale per feature goes into the matrix
                w1 = w1.clone()
                w1[:, k:2 * k - 1] *= part[k:2 * k - 1, 0]
            self._answer(b, start, stop, w1, part[k + 1:k + 2])
        size = torch.stack(torch._foreach_norm(layout.views(b.raw))) / self.roots
        return Proposal(b.raw, b.adam, length, (size * size + TINY).sqrt(), log)

    def _shared(self, b: Buffers, mean: Tensor, fixes: Tensor) -> Tensor | None:
        """Statistics of the neurons, ``[3, S]``, where the net reads them."""
        if self.tables.shared is None:
            return None
        fast = b.adam * fixes[0].index_select(0, self.owner)
        slow = fast
        if self.net.spec.messages:
            slow = b.rows[-1] * b.inverse * fixes[-1].index_select(0, self.owner)
        return shared_table(self.net.spec, self.tables.shared, b.square[None], mean[None],
                            fast[None], slow[None], b.rows[:1])[0]

    def _fill(self, b: Buffers, block: tuple[int, int, int | None], scales: Tensor, own: Tensor,
              shared: Tensor | None) -> None:
        """Features of a block; of several tensors, the directions are scaled here."""
        start, stop, tensor = block
        x, k = self.features[:, :stop - start], len(b.rows)
        rows, inverse = b.rows[:, start:stop], b.inverse[start:stop]
        torch.mul(rows, scales[:k], out=x[:k])
        torch.mul(rows[1:], inverse, out=x[k:2 * k - 1])
        if tensor is None:
            x[k:2 * k - 1].mul_(scales[k:2 * k - 1])
        at = 2 * k - 1
        torch.mul(inverse, scales[at], out=x[at]).add_(1).reciprocal_()
        for side in (OUT, IN):
            self._ends(own[side:side + 1], self.tables.own, side, block, x[at + 1 + side:])
            if shared is not None and self.tables.shared is not None:
                self._ends(shared, self.tables.shared, side, block, x[at + 3 + 3 * side:])

    def _ends(self, table: Tensor, pools: Pools, side: int, block: tuple[int, int, int | None],
              out: Tensor) -> None:
        """Values ``[k, S]`` of the neurons at one side of a block's entries, into k rows."""
        start, stop, tensor = block
        c = self.columns[tensor] if tensor is not None else 0
        ids = pools.ids[side, start:stop]
        if c:
            few = table.index_select(1, ids[::c] if side == OUT else ids[:c])
            few = few[:, :, None] if side == OUT else few[:, None]
        for row in range(len(table)):
            if c:
                out[row].view(-1, c).copy_(few[row])
            else:
                torch.index_select(table[row], 0, ids, out=out[row])

    def _answer(self, b: Buffers, start: int, stop: int, w1: Tensor, fix: Tensor) -> None:
        """The net on the features of a block."""
        h, size = self.net.spec.hidden, stop - start
        x, first, second = (m[:, :size] for m in (self.features, self.first, self.second))
        gate, summand = torch.mm(w1, x, out=first[:h]), self.last[:, :size]
        gate.clamp_(min=0)
        torch.mm(self.w2, first, out=second[:h]).clamp_(min=0)
        torch.mm(self.w3, second, out=summand)
        gate = summand[0].clamp_(-GATE, GATE).exp_().mul_(fix[0])
        out = b.raw[start:stop]
        torch.mul(b.adam[start:stop], gate, out=out).add_(summand[1].clamp_(-CLIP, CLIP))


def _blocks(sizes: tuple[int, ...], columns: list[int], most: int
            ) -> Iterator[tuple[int, int, int | None]]:
    """(start, stop, tensor): pieces of one tensor, of whole rows where it has columns, or None and
    several whole small ones."""
    at, first, inside = 0, 0, []  # type: ignore[var-annotated]
    for i, size in enumerate(sizes):
        if at + size - first > most and at > first:
            yield first, at, inside[0] if len(inside) == 1 else None
            first, inside = at, []
        piece = most - most % columns[i] if columns[i] else most
        while size > most:
            yield at, at + piece, i
            at, size = at + piece, size - piece
            first = at
        if size:
            inside.append(i)
        at += size
    if at > first:
        yield first, at, inside[0] if len(inside) == 1 else None
