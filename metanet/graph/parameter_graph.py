"""ParameterGraph: neurons as node sets, tensors as dense typed blocks between them.

A node set is a group (fibred: ``[*over, n]`` nodes) or a fixed axis (inputs, outputs). A block with
two ends is a dense set of edges, with one end a feature of nodes (a bias, a norm), with none a
global number, with more a set of hyperedges. Nothing is turned into an edge list unless asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metanet.graph.batch import Source
from metanet.graph.pack import join, split
from metanet.symmetry import Block, Digit, WeightSpace
from metanet.symmetry.action import check, passed_through

if TYPE_CHECKING:
    from networkx import MultiDiGraph
    from torch_geometric.data import Data, HeteroData


@dataclass(frozen=True, slots=True)
class NodeSet:
    """Neurons of a group, or the indices of a fixed axis (kind ``fixed``)."""

    name: str
    kind: str
    shape: tuple[int, ...]  # (*sizes of over, n)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class End:
    """One end of a block: digits that name a node (bases first), and which side it is on."""

    nodes: str
    digits: tuple[int, ...]
    out: bool


@dataclass(frozen=True, slots=True)
class EdgeSet:
    """A block: its ends, the digits that are features (kernel taps, gates), its values.

    ``values`` has the block's own digits ``[*digits]`` and the checkpoint's dtype.
    """

    name: str
    tensor: str
    ends: tuple[End, ...]
    features: tuple[int, ...]
    values: Tensor

    @property
    def n_edges(self) -> int:
        """Edges of an edge list: one per entry between two nodes; hyperedges one per end."""
        entries = prod(self.values.shape) // prod(self.values.shape[i] for i in self.features)
        return entries * (1 if len(self.ends) == 2 else len(self.ends) if self.ends[2:] else 0)


@dataclass(frozen=True)
class ParameterGraph:
    """Node sets and edge sets of one checkpoint; build it with ``from_checkpoint``."""

    space: WeightSpace
    node_sets: Mapping[str, NodeSet]
    edge_sets: Mapping[str, EdgeSet]
    names: tuple[str, ...]
    extras: Mapping[str, Tensor]

    @classmethod
    def from_checkpoint(cls, space: WeightSpace, checkpoint: Source) -> ParameterGraph:
        """The graph of a checkpoint, state dict or module; values share its memory.

        Raises:
            SpaceMismatch: if the tensors do not fit the space.
        """
        state = checkpoint if isinstance(checkpoint, Mapping) else checkpoint.state_dict()
        check(space, state)
        nodes = {group.label: NodeSet(group.label, group.kind, _shape(space, group.label))
                 for group in space.normal_groups}
        edges: dict[str, EdgeSet] = {}
        owned = {space.owner(k): v for k, v in state.items()
                 if k in space.tensors or k in space.aliases}
        for name in space.tensors:
            values = split(space, name, owned[name])
            for block in space.blocks(name):
                ends, features = _ends(space, block, nodes)
                edges[block.name] = EdgeSet(block.name, name, ends, features, values[block.name])
        extras = {name: state[name] for name in passed_through(space, state)}
        return cls(space, nodes, edges, tuple(state), extras)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors again, bit for bit, in the checkpoint's order; aliases stay tied."""
        blocks = {name: edge.values for name, edge in self.edge_sets.items()}
        owned = {name: join(self.space, name, blocks) for name in self.space.tensors}
        return {name: self.extras[name] if name in self.extras else owned[self.space.owner(name)]
                for name in self.names}

    @property
    def n_nodes(self) -> int:
        """Neurons and fixed indices."""
        return sum(nodes.size for nodes in self.node_sets.values())

    @property
    def n_edges(self) -> int:
        """Edges that an edge list would hold."""
        return sum(edge.n_edges for edge in self.edge_sets.values())

    def __repr__(self) -> str:
        return (f"ParameterGraph({len(self.node_sets)} node sets, {self.n_nodes:,} nodes, "
                f"{len(self.edge_sets)} blocks, {self.n_edges:,} edges)")

    def _repr_html_(self) -> str:
        from metanet.graph.files import inline_svg

        return f"<p><code>{self!r}</code></p>{inline_svg(self)}"

    def to_pyg(self, max_edges: int = 5_000_000) -> Data:
        """A homogeneous torch_geometric graph; see ``metanet.graph.pyg``."""
        from metanet.graph.pyg import to_pyg

        return to_pyg(self, max_edges)

    def to_hetero(self, max_edges: int = 5_000_000) -> HeteroData:
        """A torch_geometric graph with a node type per node set and an edge type per block."""
        from metanet.graph.pyg import to_hetero

        return to_hetero(self, max_edges)

    def to_networkx(self, level: str = "tensor", max_edges: int = 200_000) -> MultiDiGraph[Any]:
        """A networkx graph at level ``tensor``, ``group`` or ``neuron``; see ``graph.nx``."""
        from metanet.graph.nx import to_networkx

        return to_networkx(self, level, max_edges)


def _shape(space: WeightSpace, label: str) -> tuple[int, ...]:
    group = space.group(label)
    return (*(space.group(base).size for base in group.over), group.size)


def _ends(space: WeightSpace, block: Block, nodes: dict[str, NodeSet]
          ) -> tuple[tuple[End, ...], tuple[int, ...]]:
    """Ends of a block; fixed axes become node sets on the way.

    A base is part of the node that is fibred over it. Fixed digits are ends where they fill an
    in- or out-axis, else features.
    """
    meta = space.tensor_meta(block.tensor)
    absorbed = {base for digit in block.digits for base in digit.bases}
    ends, features = [], []
    for i, digit in enumerate(block.digits):
        out = digit.axis in meta.out_axes or digit.axis not in meta.in_axes
        if digit.label is not None:
            if i not in absorbed:
                ends.append(End(digit.label, (*digit.bases, i), out))
            continue
        alone = sum(other.axis == digit.axis for other in block.digits) == 1
        if alone and digit.axis in (*meta.out_axes, *meta.in_axes):
            name = _fixed_nodes(space, block, digit, out, nodes)
            ends.append(End(name, (i,), out))
        else:
            features.append(i)
    return tuple(ends), tuple(features)


def _fixed_nodes(space: WeightSpace, block: Block, digit: Digit, out: bool,
                 nodes: dict[str, NodeSet]) -> str:
    """Node set of a fixed axis; blocks of one tensor, and a weight and its bias, share it."""
    stem = block.tensor.rpartition(".")[0] or block.tensor
    name = f"{stem}:{'out' if out else 'in'}"
    if len({_summand(other, digit.axis) for other in space.blocks(block.tensor)}) > 1:
        name = f"{name}#{_summand(block, digit.axis)}"
    while name in nodes and nodes[name] != NodeSet(name, "fixed", (digit.size,)):
        name += f":{digit.size}"
    nodes[name] = NodeSet(name, "fixed", (digit.size,))
    return name


def _summand(block: Block, axis: int) -> str:
    """Number of the summand of an axis that a block lies in."""
    _, several, which = block.name[len(block.tensor):].partition("#")
    return which.split(".")[axis] if several else ""
