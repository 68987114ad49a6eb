"""torch_geometric views of a ParameterGraph (the only file that imports torch_geometric)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from metanet.graph.edges import (
    check_budget,
    dtype_of,
    edge_lists,
    global_features,
    hyper_sets,
    node_features,
)
from metanet.graph.parameter_graph import ParameterGraph

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data, HeteroData


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
