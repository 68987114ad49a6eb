"""networkx views of a ParameterGraph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metanet.errors import SymmetryError
from metanet.graph.edges import check_budget, edge_lists, hyper_sets, node_features
from metanet.graph.parameter_graph import NodeSet, ParameterGraph

if TYPE_CHECKING:
    from networkx import MultiDiGraph

LEVELS = ("tensor", "group", "neuron")


def to_networkx(graph: ParameterGraph, level: str = "tensor", max_edges: int = 200_000
                ) -> MultiDiGraph[Any]:
    """A directed graph, from inputs to outputs.

    Args:
        level: ``tensor``: node sets and tensors, an edge where a tensor reads or feeds a node set;
            ``group``: node sets, an edge per block between two of them; ``neuron``: every neuron,
            an edge per entry, at most ``max_edges``.

    Raises:
        SymmetryError: for an unknown level, or more edges than the budget.
    """
    if level not in LEVELS:
        raise SymmetryError(f"level={level!r} is not known; known are {', '.join(LEVELS)}")
    if level == "neuron":
        return _neurons(graph, max_edges)
    import networkx

    made: MultiDiGraph[Any] = networkx.MultiDiGraph()
    for nodes in graph.node_sets.values():
        made.add_node(nodes.name, part="nodes", **_describe(nodes))
    for edge in graph.edge_sets.values():
        shape = "x".join(map(str, edge.values.shape))
        if level == "tensor":
            tensor = f"tensor {edge.tensor}"
            size = "x".join(map(str, graph.space.tensors[edge.tensor].shape))
            made.add_node(tensor, part="tensor", shape=size)
            for end in edge.ends:
                pair = (tensor, end.nodes) if end.out else (end.nodes, tensor)
                if not made.has_edge(*pair, edge.name):
                    made.add_edge(*pair, edge.name, block=edge.name)
            continue
        outs = [end.nodes for end in edge.ends if end.out]
        ins = [end.nodes for end in edge.ends if not end.out]
        if len(edge.ends) > 1 and not (outs and ins):  # both on one side: first is the target
            names = [end.nodes for end in edge.ends]
            outs, ins = names[:1], names[1:]
        for target in outs:
            for source in ins:
                made.add_edge(source, target, edge.name, tensor=edge.tensor, shape=shape)
    return made


def _describe(nodes: NodeSet) -> dict[str, Any]:
    return {"kind": nodes.kind, "size": nodes.shape[-1], "nodes": nodes.size}


def _neurons(graph: ParameterGraph, max_edges: int) -> MultiDiGraph[Any]:
    check_budget(graph, max_edges)
    import networkx

    made: MultiDiGraph[Any] = networkx.MultiDiGraph()
    for name, features in node_features(graph).items():
        for i, row in enumerate(features.tolist()):
            made.add_node(f"{name}[{i}]", part=name, kind=graph.node_sets[name].kind, values=row)
    for name, n in hyper_sets(graph).items():
        made.add_nodes_from((f"{name}[{i}]" for i in range(n)), part=name, kind="hyperedge")
    for edges in edge_lists(graph):
        for (a, b), row in zip(edges.index.T.tolist(), edges.values.tolist(), strict=True):
            made.add_edge(f"{edges.source}[{a}]", f"{edges.target}[{b}]", block=edges.block,
                          values=row)
    return made
