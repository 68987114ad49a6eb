"""ProductWalk: states of neurons from products of the weights and their neighbours' states.

A neuron gets ``h ← MLP[means of its weights, Σ_j e_j ⊗ h_j / √n]``: all products of the channels
of an edge with those of the neuron behind it, one matrix product for each block (matrix-product
messages, as in transferable graph metanetworks), taken layer after layer of the network from its
inputs on (arXiv 2607.02166). Sums of messages ``act(e + h)`` have to learn such products; edges
need no states of their own here, so this is also the cheapest of the layers. Nothing is known of
the members' own functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from string import ascii_letters

import torch
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.basis import Basis, Pattern, Piece, discrete, matchings, node_basis, node_signature
from metanet.nn.grid import Slot, grids
from metanet.nn.latent import GLOBAL, node_name, node_space
from metanet.nn.order import levels
from metanet.nn.reduce import Reductions, to_sorted
from metanet.nn.unf import check_input, short
from metanet.symmetry import WeightSpace


@dataclass(frozen=True)
class Product:
    """A block seen by one node set through another: ``edge[…] state[…] → target[…]``.

    Attributes:
        block: whose weights are multiplied.
        kept: slots of the block that stay (of both node sets, bases included).
        source: label of the neurons whose states are multiplied.
        equation: of ``einsum``; the sum runs over the source's own slots.
        count: numbers that are summed.
    """

    block: str
    pattern: Pattern
    kept: frozenset[int]
    source: str
    equation: str
    count: int


class ProductWalk(nn.Module):
    """From weights to states of neurons and of the whole network.

    Blocks ``[N, *factors, c_in]`` → states ``[N, *over, n, c]`` of every group, on the space
    ``node_space(space)``.

    Args:
        space: of the input.
        c_in: channels in (times the folded fixed indices of each block).
        c: channels of the states.
        rounds: how often all neurons are visited. In the first, each sees states of what feeds it
            alone; in later ones those of all its neighbours, and its own.
        rank: channels that the edges of a block are brought to before they are multiplied, where
            they have more.
        dropout: within each visit.

    Raises:
        SymmetryError: for a number below 1, or a dropout outside [0, 1).
    """

    coupled = True

    def __init__(self, space: WeightSpace, c_in: int, c: int, rounds: int = 1, rank: int = 16,
                 dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise SymmetryError(f"ProductWalk(dropout={dropout}): must be in [0, 1)")
        for name, value in (("c_in", c_in), ("c", c), ("rounds", rounds), ("rank", rank)):
            if value < 1:
                raise SymmetryError(f"ProductWalk({name}={value}): must be at least 1")
        self.space, self.space_out, self.c_in, self.c_out = space, node_space(space), c_in, c
        self.basis, self.rank, self.dropout = node_basis(space), rank, dropout
        self.states = tuple(self.space_out.tensors)
        self.narrow = nn.ParameterDict({
            str(i): torch.randn(grid.width * c_in, rank) / sqrt(grid.width * c_in)
            for i, grid in enumerate(self.basis.grids.values()) if grid.width * c_in > rank})
        labels = [group.label for group in space.normal_groups]
        found = grids(self.space_out)
        self._places = {"": (GLOBAL, ())} | {label: (node_name(label), _own_order(
            found[node_name(label)].slots)) for label in labels}
        order = [label for level in levels(space) for label in level if label in labels]
        self._route = (*order, "") * rounds
        self.visits = nn.ModuleList(
            _Visit(self, label, tuple(order[:i] if turn == 0 else order), turn > 0)
            for turn in range(rounds) for i, label in enumerate((*order, "")))

    def edge_width(self, block: str) -> int:
        """Channels of the edges of a block in products."""
        return min(self.basis.grids[block].width * self.c_in, self.rank)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c_in]`` → states."""
        check_input(self.space, self.c_in, batch)
        plain, narrow = {}, {}
        for i, (name, grid) in enumerate(self.basis.grids.items()):
            value = grid.fold(batch.blocks[name])
            plain[name] = Reductions(value)
            narrow[name] = Reductions(value @ self.narrow[str(i)]) if str(i) in self.narrow \
                else plain[name]
        states: dict[str, Tensor] = {}
        for label, visit in zip(self._route, self.visits, strict=True):
            states[label] = visit(plain, narrow, states)
        blocks = {name: to_sorted(states[label], order)
                  for label, (name, order) in self._places.items()}
        return WeightBatch(self.space_out, {name: blocks[name] for name in self.states},
                           batch.names)

    def __repr__(self) -> str:
        return (f"ProductWalk({short(self.space)} -> states, {self.c_in} -> {self.c_out}, "
                f"{len(self.visits)} visits, rank {self.rank})")


class _Visit(nn.Module):
    """One node set (or, without a label, the whole network) takes what it sees."""

    def __init__(self, walk: ProductWalk, label: str, sources: tuple[str, ...], again: bool
                 ) -> None:
        super().__init__()
        self.label, self.again = label, again
        signature = node_signature(walk.space, label) if label else ()
        bucket = walk.basis.by_signature.get(signature)
        self.means: tuple[Piece, ...] = bucket.features if bucket else ()
        self.products = products(walk.basis, label, sources)
        widths = [walk.basis.grids[p.block].width * walk.c_in for p in self.means]
        widths += [walk.edge_width(p.block) * walk.c_out for p in self.products]
        inputs = sum(widths) + (2 * walk.c_out if again else 0)
        c = walk.c_out
        self.net = nn.Sequential(nn.Linear(inputs, c), nn.LayerNorm(c), nn.GELU(),
                                 nn.Dropout(walk.dropout), nn.Linear(c, c))

    def forward(self, plain: dict[str, Reductions], narrow: dict[str, Reductions],
                states: dict[str, Tensor]) -> Tensor:
        """``[N, *nodes, c]``."""
        found = [plain[p.block].ordered(p.pattern, p.order) for p in self.means]
        for p in self.products:
            edges = narrow[p.block].get(p.pattern, p.kept)
            value = torch.einsum(p.equation, edges, states[p.source])
            found.append(value.flatten(-2) / sqrt(p.count))
        if not self.again:
            new: Tensor = self.net(torch.cat(found, -1))
            return new
        own = states[self.label]
        whole = states[""].reshape(len(own), *[1] * (own.ndim - 2), -1).expand_as(own)
        more: Tensor = self.net(torch.cat([*found, own, whole], -1))
        return own + more


def products(basis: Basis, label: str, sources: tuple[str, ...]) -> tuple[Product, ...]:
    """All ways in which neurons of a group (or the whole network) see others through a block."""
    found: list[Product | None] = []
    for name, grid in basis.grids.items():
        places, pattern = range(len(grid.slots)), discrete(grid.slots)
        targets = [i for i in places if grid.slots[i].label == label] if label else [None]
        found += [_product(name, pattern, grid.sizes, target, source)
                  for target in targets for source in places
                  if source != target and grid.slots[source].label in sources]
    return tuple(one for one in found if one is not None)


def _product(block: str, pattern: Pattern, sizes: tuple[int, ...],
             target: int | None, source: int) -> Product | None:
    given = _order(pattern, source)
    taken = _order(pattern, target) if target is not None else ()
    gone = [i for i in given if i not in taken]
    if not gone:  # the source is a base of the target: its states are no neighbours
        return None
    kept = frozenset((*given, *taken))
    edges, heard, out = ("".join(ascii_letters[3 + i] for i in order)
                         for order in (sorted(kept), given, taken))
    return Product(block, pattern, kept, pattern.labels[source], f"a{edges}b,a{heard}c->a{out}bc",
                   prod(sizes[i] for i in gone))


def _own_order(slots: Sequence[Slot]) -> tuple[int, ...]:
    """The order of the axes of states, for the block that holds them."""
    return matchings(discrete(slots), range(len(slots)))[1][0]


def _order(pattern: Pattern, place: int) -> tuple[int, ...]:
    """A slot with its bases, in the order of the axes of its states."""
    return matchings(pattern, sorted({*pattern.bases[place], place}))[1][0]
