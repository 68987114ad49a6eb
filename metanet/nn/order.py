"""Levels of a space: its groups in the order in which a signal passes them."""

from __future__ import annotations

import networkx as nx

from metanet.symmetry import WeightSpace


def levels(space: WeightSpace) -> tuple[tuple[str, ...], ...]:
    """Labels of groups and fixed bases, level by level, from the inputs on.

    A tensor leads from the groups of its in-axes to those of its out-axes. Groups that feed each
    other (a residual stream and what stands beside it) are ordered by the depth in the space's
    meta, and share a level where that is unknown.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(group.label for group in space.normal_groups)
    for name in space.tensors:
        meta = space.tensor_meta(name)
        for block in space.blocks(name):
            ends: dict[bool, list[str]] = {True: [], False: []}
            for digit in block.digits:
                if digit.label is not None:
                    ends[digit.axis in meta.out_axes or digit.axis not in meta.in_axes].append(
                        digit.label)
            graph.add_edges_from((a, b) for a in ends[False] for b in ends[True] if a != b)
    joined = nx.condensation(graph)
    found: list[tuple[str, ...]] = []
    for level in nx.topological_generations(joined):
        # Components of one level are unrelated: their inner orders may run side by side.
        orders = [_inner(space, joined.nodes[i]["members"]) for i in sorted(level)]
        found += [tuple(label for order in orders if at < len(order) for label in order[at])
                  for at in range(max(map(len, orders)))]
    return tuple(found)


def _inner(space: WeightSpace, members: set[str]) -> list[list[str]]:
    """One component, by depth."""
    order = [group.label for group in space.normal_groups if group.label in members]
    depths: dict[int, list[str]] = {}
    for label in order:
        meta = space.meta.groups.get(label)
        depths.setdefault(-1 if meta is None or meta.depth is None else meta.depth,
                          []).append(label)
    return [depths[depth] for depth in sorted(depths)]
