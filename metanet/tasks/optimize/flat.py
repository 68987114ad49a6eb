"""State of all parameters in flat buffers, and a net of any kind on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metanet.errors import MetanetError
from metanet.symmetry import WeightSpace
from metanet.tasks.optimize.guard import Steps
from metanet.tasks.optimize.layout import Layout
from metanet.tasks.optimize.rule import State, Tables
from metanet.tasks.optimize.spec import Net
from metanet.tasks.optimize.stream import Buffers, Proposal, Stream, observe
from metanet.tasks.optimize.structured import Structured


class Flat:
    """Buffers and a net.

    Args:
        net: of any kind. layout: of the parameters. space: of the network, where the net reads it.
        device: of the parameters.
    """

    def __init__(self, net: Net, layout: Layout, space: WeightSpace | None, device: torch.device
                 ) -> None:
        self.net, self.layout = net, layout
        tables = Tables.of(net.spec, layout, space)
        self.buffers = Buffers(tables, net.spec.decays, device)
        self.stream: Stream | Structured
        if not net.spec.structured:
            self.stream = Stream(net, tables, device)
        elif space is not None:
            self.stream = Structured(net.spec, layout, space)
        else:
            raise MetanetError(f"a net of kind {net.spec.kind!r} works on a space")
        self.rows = [layout.views(row) for row in self.buffers.rows]

    def views(self, i: int) -> dict[str, Tensor]:
        """State of parameter ``i``: momenta, mean square, number of steps."""
        momenta = {f"momentum{k}": row[i] for k, row in enumerate(self.rows[2:])}
        return {"step": self.buffers.steps[i], **momenta,
                "square": self.layout.views(self.buffers.square)[i]}

    def propose(self, values: Sequence[Tensor], grads: Mapping[int, Tensor]) -> Steps:
        """Directions of the parameters that have a gradient, in the order of ``grads``.

        Args:
            values: float32 values of all parameters. grads: number of a parameter → gradient.
        """
        b, busy = self.buffers, list(grads)
        idle = [i for i in range(len(values)) if i not in grads]
        torch._foreach_copy_(self.rows[0], list(values))
        torch._foreach_copy_([self.rows[1][i] for i in busy], list(grads.values()))
        kept = []
        for i in idle:  # their state must not change
            self.rows[1][i].zero_()
            kept += [(v, v.clone()) for v in self.views(i).values()]
        observe(b, self.net.spec.decays, self.net.spec.square)
        found = self._propose()
        for view, value in kept:
            view.copy_(value)
        raws, adams = self.layout.views(found.raw), self.layout.views(found.adam)
        along = torch.stack([torch.dot(raws[i].flatten(), adams[i].flatten()) for i in busy])
        return Steps([raws[i] for i in busy], found.length[busy], found.own[busy],
                     found.log[busy], along)

    def base(self, i: int) -> Tensor:
        """What the direction of a parameter is a residual on."""
        return self.layout.views(self.buffers.adam)[i]

    def _propose(self) -> Proposal:
        b = self.buffers
        if isinstance(self.stream, Stream):
            return self.stream.propose(b)
        state = State(b.rows[None, 2:], b.square[None], b.steps[None])
        theta = self.net.theta.to(b.rows.device)[None]
        raw, base = self.stream.direction(theta, b.rows[None, 0], b.rows[None, 1], state)
        b.raw.copy_(raw[0])
        b.adam.copy_(base[0])
        own, length = (self.layout.mean(x * x)[0].sqrt() for x in (raw, base))
        return Proposal(b.raw, b.adam, length, own, torch.zeros_like(own))
