"""GMNLayer: message passing on dense typed blocks, no edge lists.

After graph metanetworks (arXiv 2312.04501) and neural graphs (arXiv 2403.12143), on the blocks of
any space: a block of k slots is a set of hyperedges between k node sets, one per group; a fibred
group has nodes ``[*over, n]``. A message is ``act(W_e·e + Σ_j W_j·h_j + W_g·u)`` with the node and
global parts computed once per node and broadcast; nodes collect means (and sums, maxima,
deviations, as in PNA, arXiv 2004.05718) of it. Slots have weights of their own, so several places
of a group in one tensor are told apart, and (in blocks of up to four slots) so are its diagonals.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.basis import Basis, Piece, node_basis, node_signature
from metanet.nn.latent import GLOBAL, node_name
from metanet.nn.message import (
    ACTIVATIONS,
    AGGREGATES,
    Activation,
    Kept,
    Messages,
    Parts,
    gated,
    message,
    step,
    wanted,
)
from metanet.nn.order import levels
from metanet.nn.reduce import Reductions, to_sorted
from metanet.nn.unf import check_input, short
from metanet.symmetry import WeightSpace

SCHEDULES = ("parallel", "forward")


def matrix(rows: int, columns: int, zero: bool = False) -> nn.Parameter:
    """A weight of variance 1/rows, or zero."""
    return nn.Parameter(torch.zeros(rows, columns) if zero
                        else torch.randn(rows, columns) / sqrt(rows))


class NodeSet(nn.Module):
    """The states of one group's neurons (or the global state): what they get and what they give.

    Args:
        incoming: reductions of messages to these nodes.
        outgoing: places of blocks that these nodes are broadcast to.
        state: where the batch holds the states, if it does.
        widths: channels of the states and of the messages.
        first: whether states are given to the first messages.
        second: whether they are given to second messages.
    """

    def __init__(self, incoming: tuple[Piece, ...], outgoing: tuple[Piece, ...],
                 state: Piece | None, widths: tuple[int, int], act: Activation,
                 aggregate: tuple[str, ...], first: bool, second: bool) -> None:
        super().__init__()
        c, hidden = widths
        self.act, self.aggregate, self.hidden = act, aggregate, hidden
        self.incoming, self.outgoing, self.state = incoming, outgoing, state
        held = state is not None
        self.collect = matrix(len(incoming) * len(aggregate) * hidden, hidden)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.own = matrix(c, hidden) if held else None
        self.context = matrix(c, hidden)
        self.update = matrix(hidden, c, zero=held)
        self.before = matrix(c, len(outgoing) * hidden) if first else None
        self.after = matrix(c, len(outgoing) * hidden) if second else None

    def read(self, batch: WeightBatch) -> Tensor | None:
        """The states ``[N, *nodes in canonical order, c]`` that a batch holds."""
        if self.state is None:
            return None
        held = Reductions(batch.blocks[self.state.block])
        return held.ordered(self.state.pattern, self.state.order)

    def write(self, blocks: dict[str, Tensor], state: Tensor | None) -> None:
        """Put the states back where they were read."""
        if self.state is not None and state is not None:
            blocks[self.state.block] = to_sorted(state, self.state.order)

    def step(self, messages: dict[str, Messages], state: Tensor | None,
             context: Tensor | None) -> Tensor:
        """New states from messages, old states and the global state ``[N, c]``."""
        found = [messages[p.block].ordered(p.pattern, p.order, how)
                 for p in self.incoming for how in self.aggregate]
        value = torch.cat(found, -1) @ self.collect + self.bias
        if state is not None and self.own is not None:
            value = value + state @ self.own
        if context is not None:
            shape = (context.shape[0], *(1,) * (value.ndim - 2), -1)
            value = value + (context @ self.context).reshape(shape)
        new = self.act.apply(value) @ self.update
        return new if state is None else state + new

    def give(self, parts: dict[str, Parts], state: Tensor | None, weight: Tensor | None) -> None:
        """Add these nodes' share of the messages to the parts of the blocks."""
        if state is None or weight is None:
            return
        mixed = state @ weight
        for i, piece in enumerate(self.outgoing):
            if piece.block in parts:
                value = to_sorted(mixed.narrow(-1, i * self.hidden, self.hidden), piece.order)
                parts[piece.block].setdefault(piece.pattern, []).append((piece.survivors, value))


class GMNLayer(nn.Module):
    """Messages between edge, node and global states, both directions, gated residual updates.

    Args:
        space: input and output are batches of this space. On a latent space (``nn.latent``) the
            tensors ``@label`` and ``@`` are the node and global states; on any other space states
            live within the layer only.
        c: channels in and out.
        hidden: width of the messages; by default ``c``.
        frozen: see ``metanet.nn.grid``.
        messages: 2: the edges are updated by second messages, which hold the new states; 1: by
            the messages that the nodes get, which takes two thirds of the time and needs a latent
            space (the next layer's messages then bring the states to the edges).
        activation: of messages and states: ``gelu``, ``relu`` or ``silu``; relu is the fastest.
        aggregate: what nodes collect of messages: any of ``mean``, ``sum``, ``max``, ``std``.
        schedule: ``parallel``: all nodes at once; ``forward``: one layer of the network after the
            other, from the inputs on, so that news pass through the whole depth in one layer (the
            time is up to twice that of ``parallel``).

    At initialisation the layer is the identity (zero-init residual).

    Raises:
        SymmetryError: if the space has no tensor besides states, for an unknown option, or if
            ``messages=1`` on a space without states.
    """

    coupled = True

    def __init__(self, space: WeightSpace, c: int, hidden: int | None = None,
                 frozen: str = "auto", activation: str = "gelu", messages: int = 2,
                 aggregate: Sequence[str] = ("mean",), schedule: str = "parallel") -> None:
        super().__init__()
        _check(activation, tuple(aggregate), schedule)
        self.act, self.aggregate = ACTIVATIONS[activation], tuple(aggregate)
        self.space, self.c_in, self.c_out, self.hidden = space, c, c, hidden or c
        self.basis, self.messages = node_basis(space, frozen), messages
        self.schedule = schedule
        states = states_held(space, self.basis)
        _check_messages(space, states, messages)
        self.edges = tuple(name for name in self.basis.grids if name not in states.values())
        if not self.edges:
            raise SymmetryError("the space holds nothing but states, so there is no message")
        self.edge_in, self.edge_bias, self.edge_out = (nn.ParameterList() for _ in range(3))
        for name in self.edges:
            width = self.basis.grids[name].width * c
            self.edge_in.append(matrix(width, self.hidden))
            self.edge_bias.append(nn.Parameter(torch.zeros(self.hidden)))
            # First half: gates; second half: values, zero at first.
            gates, values = matrix(self.hidden, width), matrix(self.hidden, width, zero=True)
            self.edge_out.append(nn.Parameter(torch.cat([gates.data, values.data], -1)))
        labels = [group.label for group in space.normal_groups]
        self.nodes = nn.ModuleList(self._node_set(label, states.get(label)) for label in labels)
        # The global state is the node set without a group: every block gives it one mean.
        self.root = self._node_set("", states.get(""))
        self.order = tuple(tuple(1 + labels.index(label) for label in level) for level in
                           (levels(space) if schedule == "forward" else (tuple(labels),)))
        scalars = self.basis.by_signature[()].terms
        self._whole = {p.block: p.pattern for p in scalars if p.pattern.discrete}
        self._diagonal = {p.block for bucket in self.basis.buckets
                          for p in bucket.features if not p.pattern.discrete}

    def _node_set(self, label: str, held: str | None) -> NodeSet:
        bucket = self.basis.by_signature[node_signature(self.space, label) if label else ()]
        state = next((p for p in bucket.terms if p.block == held and p.pattern.discrete), None)
        incoming = tuple(p for p in bucket.features if p.block in self.edges)
        outgoing = tuple(p for p in bucket.terms if p.block in self.edges)
        # A state that appears on the way is given on where nodes are updated one after the other.
        first = state is not None or (self.schedule == "forward" and label != "")
        return NodeSet(incoming, outgoing, state, (self.c_in, self.hidden), self.act,
                       self.aggregate, first, self.messages > 1)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → ``[N, *factors, c]``."""
        check_input(self.space, self.c_in, batch)
        grids = self.basis.grids
        values = {name: grids[name].fold(batch.blocks[name]) for name in self.edges}
        sets: list[NodeSet] = [self.root, *self.nodes]
        states = [nodes.read(batch) for nodes in sets]
        context = states[0]
        steps = [(*level,) for level in self.order]
        if self.schedule == "parallel":
            steps = [(0, *steps[0])]
        else:
            steps.append((0,))
        once = self.messages == 1
        changed: dict[str, Tensor] = {}
        for at in steps:
            last = at is steps[-1]
            seen, changed = self._pass(values, [(s, x, s.before) for s, x in zip(
                sets, states, strict=True)], [sets[i] for i in at], gate=once and last)
            new = {i: sets[i].step(seen, states[i], context) for i in at}
            states = [new.get(i, state) for i, state in enumerate(states)]
        if not once:
            _, changed = self._pass(values, [(s, x, s.after) for s, x in zip(
                sets, states, strict=True)], [], gate=True)
        blocks = dict(batch.blocks)
        for name, value in changed.items():
            blocks[name] = grids[name].unfold(value)
        for nodes, state in zip(sets, states, strict=True):
            nodes.write(blocks, state)
        return batch.with_blocks(blocks)

    def _pass(self, values: dict[str, Tensor],
              givers: list[tuple[NodeSet, Tensor | None, Tensor | None]],
              takers: list[NodeSet], gate: bool
              ) -> tuple[dict[str, Messages], dict[str, Tensor]]:
        """Messages of all blocks that the takers (or, with ``gate``, the edges) need."""
        pieces: dict[str, list[Piece]] = {}
        for nodes in takers:
            for piece in nodes.incoming:
                pieces.setdefault(piece.block, []).append(piece)
        parts: dict[str, Parts] = {name: {} for name in self.edges if gate or name in pieces}
        for nodes, state, weight in givers:
            nodes.give(parts, state, weight)
        seen: dict[str, Messages] = {}
        changed: dict[str, Tensor] = {}
        for number, name in enumerate(self.edges):
            if name in parts:
                seen[name], new = self._block(number, values[name], parts[name],
                                              pieces.get(name, []), gate)
                if new is not None:
                    changed[name] = new
        return seen, changed

    def _block(self, number: int, value: Tensor, parts: Parts, pieces: list[Piece], gate: bool
               ) -> tuple[Messages, Tensor | None]:
        name, sizes = self.edges[number], value.shape[1:-1]
        whole, weight, out = self._whole[name], self.edge_in[number], self.edge_out[number]
        constant: tuple[Kept, Tensor] = (frozenset(), self.edge_bias[number].unsqueeze(0))
        terms: list[tuple[Kept, Tensor]] = [constant, *parts.get(whole, ())]
        plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(value.device.type)
        if not plain and name not in self._diagonal:
            reduce = wanted(((p.pattern, p.order) for p in pieces), self.aggregate)
            new, known = step(value, weight, out if gate else None, terms, reduce, self.act, whole)
            return Messages(None, known, sizes), new
        found = message(value, weight, {**parts, whole: terms}, whole, self.act)
        return Messages(found, {}, sizes), gated(value, found, out) if gate else None

    def __repr__(self) -> str:
        return (f"GMNLayer({short(self.space)} -> {short(self.space)}, {self.c_in} -> "
                f"{self.c_out}, hidden {self.hidden}, {len(self.nodes)} node sets, "
                f"{'+'.join(self.aggregate)}, {self.schedule})")


def _check(activation: str, aggregate: tuple[str, ...], schedule: str) -> None:
    for what, value, known in (("activation", activation, tuple(ACTIVATIONS)),
                               ("schedule", schedule, SCHEDULES)):
        if value not in known:
            raise SymmetryError(f"{what}={value!r} is not known; known are {', '.join(known)}")
    if not aggregate or not set(aggregate) <= set(AGGREGATES):
        raise SymmetryError(f"aggregate={aggregate!r} must be some of {', '.join(AGGREGATES)}")


def _check_messages(space: WeightSpace, states: dict[str, str], messages: int) -> None:
    if messages not in (1, 2):
        raise SymmetryError(f"messages={messages!r} is not known; known are 1 and 2")
    bare = [group.label for group in space.normal_groups if group.label not in states]
    if messages == 1 and bare:
        raise SymmetryError(f"messages=1, but the space holds no states of group {bare[0]!r}; "
                            f"work on nn.latent(space), or take messages=2")


def states_held(space: WeightSpace, seen: Basis) -> dict[str, str]:
    """Group label (empty for the global state) → the tensor that holds its states, if one does."""
    found = {}
    for group in space.normal_groups:
        grid = seen.grids.get(node_name(group.label))
        labels = sorted([group.label, *group.over])
        if grid and not grid.folded and sorted(s.label for s in grid.slots) == labels:
            found[group.label] = grid.block.name
    if GLOBAL in seen.grids and not seen.grids[GLOBAL].block.digits:
        found[""] = GLOBAL
    return found
