"""Edge lists of a ParameterGraph, under a budget: what PyG, networkx and files are made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from metanet.errors import SymmetryError
from metanet.graph.pack import compute_dtype
from metanet.graph.parameter_graph import EdgeSet, End, ParameterGraph


@dataclass(frozen=True)
class EdgeList:
    """Edges from one node set to another with their values (kernel taps, gates) as features."""

    block: str
    source: str
    target: str
    index: Int[Tensor, "2 e"]
    values: Float[Tensor, "e f"]


def check_budget(graph: ParameterGraph, max_edges: int) -> None:
    """Refuse edge lists that are too long.

    Raises:
        SymmetryError: with the count, the budget and what to do instead.
    """
    if graph.n_edges > max_edges:
        raise SymmetryError(
            f"the graph has {graph.n_edges:,} edges between neurons, more than the budget of "
            f"{max_edges:,}. Take to_networkx(level='tensor') or level='group', which do not grow "
            f"with width, or raise max_edges")


def dtype_of(graph: ParameterGraph) -> torch.dtype:
    """One float dtype for all values."""
    return compute_dtype({name: edge.values for name, edge in graph.edge_sets.items()})


def edge_lists(graph: ParameterGraph) -> Iterator[EdgeList]:
    """All edges, block by block, from in-ends to out-ends.

    A hyperedge becomes a node of its own, of the set named as its block, with an edge from each
    in-end and one to each out-end.
    """
    dtype = dtype_of(graph)
    for edge in graph.edge_sets.values():
        if len(edge.ends) < 2:
            continue
        values = rows(edge).to(dtype)
        places = [node_index(graph, edge, end) for end in edge.ends]
        if len(edge.ends) == 2:
            target, source = _directed(edge)
            index = torch.stack([places[source], places[target]])
            yield EdgeList(edge.name, edge.ends[source].nodes, edge.ends[target].nodes, index,
                           values)
            continue
        own = torch.arange(len(values))
        for end, place in zip(edge.ends, places, strict=True):
            pair = (edge.name, end.nodes) if end.out else (end.nodes, edge.name)
            index = torch.stack([own, place] if end.out else [place, own])
            yield EdgeList(edge.name, *pair, index, values)


def hyper_sets(graph: ParameterGraph) -> dict[str, int]:
    """Blocks of more than two ends → number of hyperedges."""
    return {name: edge.n_edges // len(edge.ends) for name, edge in graph.edge_sets.items()
            if len(edge.ends) > 2}


def node_features(graph: ParameterGraph) -> dict[str, Float[Tensor, "n f"]]:
    """Features of each node set: its vectors (biases, norms) side by side, in block order."""
    dtype = dtype_of(graph)
    found: dict[str, list[Tensor]] = {name: [] for name in graph.node_sets}
    for edge in graph.edge_sets.values():
        if len(edge.ends) == 1:
            end = edge.ends[0]
            value = rows(edge).to(dtype)
            order = node_index(graph, edge, end).argsort()
            found[end.nodes].append(value[order])
    return {name: torch.cat(parts, -1) if parts else torch.zeros(graph.node_sets[name].size, 0,
                                                                 dtype=dtype)
            for name, parts in found.items()}


def global_features(graph: ParameterGraph) -> Float[Tensor, "1 f"]:
    """Numbers of the blocks without ends."""
    parts = [e.values.reshape(1, -1).to(dtype_of(graph)) for e in graph.edge_sets.values()
             if not e.ends]
    return torch.cat(parts, -1) if parts else torch.zeros(1, 0, dtype=dtype_of(graph))


def rows(edge: EdgeSet) -> Tensor:
    """Values ``[entries, features]``: feature digits last, the others in order."""
    kept = [i for i in range(edge.values.ndim) if i not in edge.features]
    width = prod(edge.values.shape[i] for i in edge.features)
    return edge.values.permute(*kept, *edge.features).reshape(-1, width)


def node_index(graph: ParameterGraph, edge: EdgeSet, end: End) -> Int[Tensor, " entries"]:
    """Flat node of every entry (in the order of ``rows``) at this end."""
    kept = [i for i in range(edge.values.ndim) if i not in edge.features]
    sizes = [edge.values.shape[i] for i in kept]
    flat = torch.zeros(sizes, dtype=torch.int64)
    for digit, size in zip(end.digits, graph.node_sets[end.nodes].shape, strict=True):
        shape = [size if i == digit else 1 for i in kept]
        flat = flat * size + torch.arange(size).reshape(shape)
    return flat.reshape(-1)


def _directed(edge: EdgeSet) -> tuple[int, int]:
    """Which of two ends is the target and which the source."""
    first, second = edge.ends
    return (1, 0) if second.out and not first.out else (0, 1)
