"""torch_geometric views of a ParameterGraph (the only file that imports torch_geometric)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F

from metanet.errors import SymmetryError
from metanet.graph.batch import WeightBatch
from metanet.graph.edges import (
    check_budget,
    dtype_of,
    edge_lists,
    global_features,
    hyper_sets,
    node_features,
)
from metanet.graph.parameter_graph import ParameterGraph
from metanet.symmetry import Block, WeightSpace

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data, HeteroData

Ends: TypeAlias = Callable[[WeightSpace, Block], list[tuple[str, tuple[int, ...], int]]]
Roles: TypeAlias = Callable[[WeightSpace, str], int]


def flat_arrays(graph: ParameterGraph, max_edges: int) -> dict[str, Tensor]:
    """One homogeneous graph as plain tensors.

    Returns:
        ``x [n, f]`` (vectors of each node, zero-padded), ``node_set [n]``, ``edge_index [2, e]``,
        ``edge_attr [e, f]`` (kernel taps and gates, zero-padded), ``edge_set [e]``, ``u [1, f]``.
        Numbers in ``node_set`` and ``edge_set`` count ``set_names`` and the graph's edge sets.
    """
    check_budget(graph, max_edges)
    features = list(node_features(graph).values())
    features += [torch.zeros(n, 0, dtype=dtype_of(graph)) for n in hyper_sets(graph).values()]
    names, starts = set_names(graph), [0]
    for value in features:
        starts.append(starts[-1] + len(value))
    start = dict(zip(names, starts, strict=False))
    lists = list(edge_lists(graph))
    blocks = list(graph.edge_sets)
    empty = torch.zeros(2, 0, dtype=torch.int64)
    shifts = [torch.tensor([[start[e.source]], [start[e.target]]]) for e in lists]
    index = [e.index + shift for e, shift in zip(lists, shifts, strict=True)]
    sets = [torch.full((e.index.shape[1],), blocks.index(e.block)) for e in lists]
    return {
        "x": _padded(features, dtype_of(graph)),
        "node_set": torch.cat([torch.full((len(v),), i) for i, v in enumerate(features)]
                              or [empty[0]]),
        "edge_index": torch.cat([empty, *index], 1),
        "edge_attr": _padded([e.values for e in lists], dtype_of(graph)),
        "edge_set": torch.cat([empty[0], *sets]),
        "u": global_features(graph),
    }


def set_names(graph: ParameterGraph) -> list[str]:
    """Names of the node sets in the order of ``node_set``: groups, fixed axes, hyperedges."""
    return [*graph.node_sets, *hyper_sets(graph)]


def to_pyg(graph: ParameterGraph, max_edges: int) -> Data:
    """``Data`` with the arrays of ``flat_arrays``, ``node_set_names`` and ``edge_set_names``.

    Raises:
        SymmetryError: if there are more than ``max_edges`` edges.
    """
    arrays = flat_arrays(graph, max_edges)
    from torch_geometric.data import Data

    return Data(**arrays, num_nodes=len(arrays["x"]), node_set_names=set_names(graph),
                edge_set_names=list(graph.edge_sets))


def to_hetero(graph: ParameterGraph, max_edges: int) -> HeteroData:
    """``HeteroData``: a node type per node set, an edge type ``(source, block, target)`` per block.

    Raises:
        SymmetryError: if there are more than ``max_edges`` edges.
    """
    check_budget(graph, max_edges)
    from torch_geometric.data import HeteroData

    data = HeteroData()
    for name, value in node_features(graph).items():
        data[name].x = value
    for name, n in hyper_sets(graph).items():
        data[name].x = torch.zeros(n, 0, dtype=dtype_of(graph))
    for edges in edge_lists(graph):
        data[edges.source, edges.block, edges.target].edge_index = edges.index
        data[edges.source, edges.block, edges.target].edge_attr = edges.values
    data.u = global_features(graph)
    return data


def _padded(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    width = max((part.shape[1] for part in parts), default=0)
    wide = [F.pad(part, (0, width - part.shape[1])) for part in parts]
    return torch.cat(wide) if wide else torch.zeros(0, width, dtype=dtype)


# ------------------------------------------------------------ batches that mix architectures


def mixed_graph(batches: Sequence[WeightBatch], states: Callable[[WeightSpace], dict[str, str]],
                ends: Ends, role: Roles, max_edges: int = 5_000_000) -> Data:
    """All members of batches of any spaces as one torch_geometric batch of graphs.

    Args:
        batches: of spaces that hold node and global states, all with equally many channels.
        states: group label (empty: global) → tensor of its states.
        ends: node set, digits and relation of every permutable digit of a block.
        role: number of the role of a tensor.

    Returns:
        ``entry [E, c]`` states of numbers, their ``role [E]`` and member ``entry_batch [E]``;
        ``x [n, c]`` states of nodes and ``x_batch [n]``; ``u [N, c]``; and the incidence of
        nodes and numbers, ``node [I]``, ``place [I]`` and ``relation [I]``: a number has one
        incidence per digit, however many (hyperedges need no nodes of their own).

    Raises:
        SymmetryError: if there are more than ``max_edges`` numbers.
    """
    total = sum(value.numel() // batch.channels for batch in batches
                for value in batch.blocks.values())
    if total > max_edges:
        raise SymmetryError(f"the graphs have {total:,} numbers, more than the budget of "
                            f"{max_edges:,}; take the dense path, or raise max_edges")
    from torch_geometric.data import Batch, Data

    class Mixed(Data):  # type: ignore[misc]
        """Says by how much indices grow when graphs are joined."""

        def __inc__(self, key: str, value: object, *args: object, **kwargs: object) -> int:
            return {"node": len(self.x), "place": len(self.entry)}.get(key, 0)

    graphs = []
    for batch in batches:
        fixed = _structure(batch.space, states(batch.space), ends, role, batch.device)
        for i in range(len(batch)):
            parts = {key: torch.cat([batch.blocks[name][i].reshape(-1, batch.channels)
                                     for name in names]) for key, names in fixed[1].items()}
            graphs.append(Mixed(**parts, **fixed[0], num_nodes=len(parts["x"])))
    return Batch.from_data_list(graphs, follow_batch=["x", "entry"])


def _structure(space: WeightSpace, states: dict[str, str], ends: Ends, role: Roles,
               device: torch.device) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """What all members of a space share: incidences and roles, and the order of the blocks."""
    order: dict[str, list[str]] = {"x": [], "entry": [], "u": [states[""]]}
    starts, n_nodes, n_entries = {}, 0, 0
    for label, name in states.items():
        if label:
            starts[label] = n_nodes
            n_nodes += prod(space.tensors[name].shape)
            order["x"].append(name)
    node, place, relation, roles = [], [], [], []
    for name in space.tensors:
        for block in space.blocks(name) if name not in states.values() else ():
            size = prod(block.shape)
            order["entry"].append(block.name)
            roles.append(torch.full((size,), role(space, name)))
            for label, digits, number in ends(space, block):
                flat = torch.zeros(block.shape, dtype=torch.int64)
                for digit in digits:
                    shape = [block.shape[digit] if i == digit else 1
                             for i in range(len(block.shape))]
                    flat = flat * block.shape[digit] + torch.arange(shape[digit]).reshape(shape)
                node.append(starts[label] + flat.reshape(-1))
                place.append(n_entries + torch.arange(size))
                relation.append(torch.full((size,), number))
            n_entries += size
    none = torch.zeros(0, dtype=torch.int64)
    fixed = {"node": node, "place": place, "relation": relation, "role": roles}
    return {key: torch.cat([none, *parts]).to(device) for key, parts in fixed.items()}, order


def dense_batches(data: Data, batches: Sequence[WeightBatch],
                  states: Callable[[WeightSpace], dict[str, str]]) -> list[WeightBatch]:
    """Inverse of ``mixed_graph``: the states of a graph, in the shape of these batches."""
    found, at = [], {"x": 0, "entry": 0, "u": 0}
    for batch in batches:
        held = states(batch.space)
        nodes = [name for label, name in held.items() if label]
        entries = [b.name for name in batch.space.tensors if name not in held.values()
                   for b in batch.space.blocks(name)]
        members: dict[str, list[Tensor]] = {name: [] for name in batch.blocks}
        for _ in range(len(batch)):
            for key, names in (("x", nodes), ("entry", entries), ("u", [held[""]])):
                for name in names:
                    shape = batch.blocks[name].shape[1:-1]
                    rows = data[key][at[key]:at[key] + prod(shape)]
                    members[name].append(rows.reshape(*shape, -1))
                    at[key] += prod(shape)
        found.append(batch.with_blocks({k: torch.stack(v) for k, v in members.items()}))
    return found


def mean_by(value: Tensor, index: Tensor, n: int) -> Tensor:
    """``[n, c]``: mean of the rows of each index, zero where there are none."""
    from torch_geometric.utils import scatter

    found: Tensor = scatter(value, index, 0, n, reduce="mean")
    return found


def with_states(data: Data, **states: Tensor) -> Data:
    """The same graph with other states."""
    found: Data = data.clone()
    for key, value in states.items():
        found[key] = value
    return found
