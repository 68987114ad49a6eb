"""MixedGMNLayer: message passing whose weights know no architecture.

Where ``GMNLayer`` has weights for every block of one space, this layer has weights for every *role*
of a tensor and side of an axis (graph metanetworks, arXiv 2312.04501): one set of weights reads
any space, and batches that mix architectures. Blocks stay dense; fixed digits (inputs, kernel taps)
are further edges side by side. ``metanet.graph.pyg`` has the same arithmetic on edge lists.

For an entry with state e, of role ρ, whose digits name nodes v on sides r, and global state u:

    m = act(W_ρ e + b_ρ + Σ_(v,r) V_(ρ,r) h_v + U_ρ u)
    e ← e + (L_ρ m) ⊙ σ(G_ρ m)
    h_v ← h_v + T act(Σ_(ρ,r) A_(ρ,r) mean_(entries of v by ρ, r) m + O h_v + C u + b)
    u ← u + T' act(Σ_ρ B_ρ mean_(entries of role ρ) m + O' u + b')
"""

from __future__ import annotations

from functools import lru_cache
from math import prod, sqrt
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.latent import GLOBAL, latent, node_name
from metanet.nn.message import ACTIVATIONS
from metanet.symmetry import Block, Meta, TensorMeta, WeightSpace

if TYPE_CHECKING:
    from torch_geometric.data import Data

ROLES = ("weight", "bias", "norm_weight", "norm_bias", "running_mean", "running_var", "embedding",
         "slope", "other")
"""Roles with weights of their own; what is none of them shares those of ``other``."""
SIDES = ("out", "in", "out_base", "in_base")
"""What a digit is to its block: a neuron of an out- or in-axis, or what that is fibred over."""

Relation: TypeAlias = int
"""Number of (role, side): ``role * len(SIDES) + side``."""


def typed(space: WeightSpace) -> WeightSpace:
    """``latent`` with no digit folded and with the meta of the space: roles, sides, depths."""
    metas = tuple((block.name, space.tensor_meta(name)) for name in space.tensors
                  for block in space.blocks(name))
    return _typed(space, metas)


@lru_cache(maxsize=256)
def _typed(space: WeightSpace, metas: tuple[tuple[str, TensorMeta], ...]) -> WeightSpace:
    found = latent(space, "batch")
    return WeightSpace(found.normal_groups, found.tensors, meta=Meta(dict(metas)))


def states_of(space: WeightSpace) -> dict[str, str]:
    """Group label (empty for the global state) → tensor of a typed space that holds its states.

    Raises:
        SpaceMismatch: if the space is not one of ``typed``.
    """
    found = {group.label: node_name(group.label) for group in space.normal_groups}
    found[""] = GLOBAL
    for name in found.values():
        if name not in space.tensors:
            raise SpaceMismatch(f"the space holds no states {name!r}; bring the batch into "
                                f"metanet.nn.mixed.typed(space)")
    return found


def role_of(space: WeightSpace, tensor: str) -> int:
    """Number of the role of a tensor."""
    role = space.tensor_meta(tensor).role
    return ROLES.index(role if role in ROLES else "other")


def ends_of(space: WeightSpace, block: Block) -> list[tuple[str, tuple[int, ...], Relation]]:
    """Node set, digits (bases first) and relation of every permutable digit of a block."""
    meta = space.tensor_meta(block.tensor)
    bases = {base for digit in block.digits for base in digit.bases}
    found = []
    for place, digit in enumerate(block.digits):
        if digit.label is not None:
            out = digit.axis in meta.out_axes or digit.axis not in meta.in_axes
            side = SIDES.index(("out" if out else "in") + ("_base" if place in bases else ""))
            relation = role_of(space, block.tensor) * len(SIDES) + side
            found.append((digit.label, (*digit.bases, place), relation))
    return found


class MixedGMNLayer(nn.Module):
    """One step of messages on batches of any typed space, or on a graph of several.

    Args:
        c: channels in and out.
        hidden: width of the messages; by default ``c``.
        activation: ``gelu``, ``relu`` or ``silu``.

    At initialisation the layer is the identity (zero-init residual).

    Raises:
        SymmetryError: for an unknown activation.
    """

    coupled = True

    def __init__(self, c: int, hidden: int | None = None, activation: str = "gelu") -> None:
        super().__init__()
        self.c_in, self.c_out, self.hidden = c, c, hidden or c
        h, roles, relations = self.hidden, len(ROLES), len(ROLES) * len(SIDES)
        if activation not in ACTIVATIONS:
            raise SymmetryError(f"activation={activation!r} is not known; known are "
                                f"{', '.join(ACTIVATIONS)}")
        self.act = ACTIVATIONS[activation].apply
        self.edge_in, self.edge_bias = _stack(roles, c, h), _zeros(roles, h)
        self.gate, self.lift = _stack(roles, h, c), _zeros(roles, h, c)
        self.give, self.collect = _stack(relations, c, h), _stack(relations, h, h)
        self.root_give, self.root_collect = _stack(roles, c, h), _stack(roles, h, h)
        self.own, self.context, self.update = _stack(2, c, h), _stack(1, c, h), _zeros(2, h, c)
        self.bias = _zeros(2, h)

    # ------------------------------------------------------------ dense

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` of a typed space → the same shape."""
        space, blocks = batch.space, dict(batch.blocks)
        states = states_of(space)
        root = blocks[GLOBAL]
        # Relation -> node set -> sum of messages and how many there were.
        sums: dict[Relation, dict[str, list[tuple[Tensor, int]]]] = {}
        whole: dict[int, list[tuple[Tensor, int]]] = {}
        for name in space.tensors:
            if name not in states.values():
                for block in space.blocks(name):
                    message = self._message(space, block, batch.blocks, root)
                    _collect(space, block, message, sums, whole)
                    role = role_of(space, name)
                    blocks[block.name] = batch.blocks[block.name] + self._change(message, role)
        for label, name in states.items():
            if label:
                blocks[name] = self._node(label, blocks[name], sums, root)
        pooled = [_mean(whole[role]) @ self.root_collect[role] for role in sorted(whole)]
        value = torch.stack(pooled).sum(0) + root @ self.own[1] + self.bias[1]
        blocks[GLOBAL] = root + self.act(value) @ self.update[1]
        return batch.with_blocks(blocks)

    def _message(self, space: WeightSpace, block: Block, blocks: dict[str, Tensor], root: Tensor
                 ) -> Tensor:
        role, rank = role_of(space, block.tensor), len(block.shape)
        value = blocks[block.name] @ self.edge_in[role] + self.edge_bias[role]
        value = value + spread(root @ self.root_give[role], (), rank)
        for label, digits, relation in ends_of(space, block):
            value = value + spread(blocks[node_name(label)] @ self.give[relation], digits, rank)
        return self.act(value)

    def _change(self, message: Tensor, role: int) -> Tensor:
        return (message @ self.lift[role]) * (message @ self.gate[role]).sigmoid()

    def _node(self, label: str, state: Tensor,
              sums: dict[Relation, dict[str, list[tuple[Tensor, int]]]], root: Tensor) -> Tensor:
        value = state @ self.own[0] + self.bias[0]
        value = value + spread(root @ self.context[0], (), state.ndim - 2)
        for relation in sorted(sums):
            if label in sums[relation]:
                value = value + _mean(sums[relation][label]) @ self.collect[relation]
        return state + self.act(value) @ self.update[0]

    # ------------------------------------------------------------ edge lists

    def forward_graph(self, data: Data) -> Data:
        """The same on a graph of ``metanet.graph.pyg.mixed_graph``; weights and sums are equal."""
        from metanet.graph.pyg import mean_by, with_states

        x, u, entry = data.x, data.u, data.entry
        node, place, relation = data.node, data.place, data.relation
        of_entry, of_node = data.entry_batch, data.x_batch
        value = _rows(entry, self.edge_in, data.role) + self.edge_bias[data.role]
        value = value + _rows(u[of_entry], self.root_give, data.role)
        value = value.index_add(0, place, _rows(x[node], self.give, relation))
        message = self.act(value)
        gate = _rows(message, self.gate, data.role).sigmoid()
        changed = entry + _rows(message, self.lift, data.role) * gate
        got = x @ self.own[0] + self.bias[0] + (u @ self.context[0])[of_node]
        for number in relation.unique().tolist():
            here = relation == number
            mean = mean_by(message[place[here]], node[here], len(x))
            got = got + mean @ self.collect[number]
        whole = u @ self.own[1] + self.bias[1]
        for number in data.role.unique().tolist():
            here = data.role == number
            mean = mean_by(message[here], of_entry[here], len(u))
            whole = whole + mean @ self.root_collect[number]
        return with_states(data, entry=changed, x=x + self.act(got) @ self.update[0],
                           u=u + self.act(whole) @ self.update[1])

    def __repr__(self) -> str:
        return f"MixedGMNLayer(any space -> same, {self.c_in} -> {self.c_out}, {self.hidden})"


def _stack(n: int, rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(n, rows, columns) / sqrt(rows))


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


def spread(state: Tensor, digits: tuple[int, ...], rank: int) -> Tensor:
    """``[N, *nodes, h]`` → broadcastable to a block whose ``digits`` name the node."""
    order = sorted(range(len(digits)), key=lambda i: digits[i])
    state = state.permute(0, *(1 + i for i in order), state.ndim - 1)
    for digit in range(rank):
        if digit not in digits:
            state = state.unsqueeze(1 + digit)
    return state


def _collect(space: WeightSpace, block: Block, message: Tensor,
             sums: dict[Relation, dict[str, list[tuple[Tensor, int]]]],
             whole: dict[int, list[tuple[Tensor, int]]]) -> None:
    """Add a block's messages to the sums of its nodes, and to that of its role."""
    rank = message.ndim - 2
    for label, digits, relation in ends_of(space, block):
        gone = [1 + i for i in range(rank) if i not in digits]
        total = message.sum(gone) if gone else message
        order = sorted(digits)
        total = total.permute(0, *(1 + order.index(i) for i in digits), total.ndim - 1)
        count = prod([message.shape[i] for i in gone])  # a list: torch.compile
        sums.setdefault(relation, {}).setdefault(label, []).append((total, count))
    every = tuple(range(1, 1 + rank))
    total = message.sum(every) if every else message
    whole.setdefault(role_of(space, block.tensor), []).append((total, prod(block.shape)))


def _mean(sums: list[tuple[Tensor, int]]) -> Tensor:
    total = torch.stack([value for value, _ in sums]).sum(0)
    return total / max(sum([count for _, count in sums]), 1)


def _rows(value: Tensor, weights: Tensor, kind: Tensor) -> Tensor:
    """``value[i] @ weights[kind[i]]``, one product per kind."""
    out = value.new_zeros(len(value), weights.shape[-1])
    for number in kind.unique().tolist():
        here = (kind == number).nonzero()[:, 0]
        out = out.index_add(0, here, value[here] @ weights[number])
    return out
