"""A drawing of a ParameterGraph: groups are coloured lines, tensors stand across them.

Tensors run from left to right in natural order (in most checkpoints the order of depth), groups
from top to bottom by their first tensor. A tensor is drawn from the lines that it reads (dot) to
those that it feeds (arrow head); biases and norms are ticks on their line.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from metanet.graph.parameter_graph import EdgeSet, ParameterGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_COLUMNS = 400
_GREY = "#8a8a8a"
# Ten hues that stay apart on white, in print and for most colour-blind readers.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99",
            "#6a4c93", "#997700")


def draw_svg(graph: ParameterGraph) -> str:
    """The drawing as SVG text, the same bytes every time."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    columns = _columns(graph)
    reach, lines = _reach(graph, columns), rows(graph)
    width, height = 3 + 0.34 * len(columns), 2.2 + 0.3 * len(lines)
    with matplotlib.rc_context({"svg.hashsalt": "metanet", "svg.fonttype": "none"}):
        figure = Figure(figsize=(max(width, 6.0), height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for name, row in lines.items():
            axes.plot([min(reach[name]) - 0.35, max(reach[name]) + 0.35], [row, row], linewidth=3,
                      color=colour(graph, name), alpha=0.55, solid_capstyle="round", zorder=1,
                      gid=f"group-{row}")
        _draw_tensors(axes, graph, columns, lines)
        axes.set_xlim(-1, len(columns))
        axes.set_ylim(len(lines) - 0.3, -0.7)
        axes.set_xticks(range(len(columns)))
        axes.set_xticklabels([_label(name, 48) for name in columns], rotation=60, ha="right",
                             fontsize=7, parse_math=False)
        axes.set_yticks(range(len(lines)))
        axes.set_yticklabels([_line_label(graph, name) for name in lines], fontsize=8,
                             parse_math=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def rows(graph: ParameterGraph) -> dict[str, int]:
    """Row of each line, from the top: by the first tensor that it meets."""
    reach = _reach(graph, _columns(graph))
    return {name: i for i, name in enumerate(sorted(reach, key=lambda name: min(reach[name])))}


def _columns(graph: ParameterGraph) -> dict[str, int]:
    """Tensors that join lines → their column; beyond the limit only the first are drawn."""
    joined = dict.fromkeys(e.tensor for e in graph.edge_sets.values() if len(e.ends) > 1)
    return {name: i for i, name in enumerate(list(joined)[:_MAX_COLUMNS])}


def _column(graph: ParameterGraph, columns: dict[str, int], edge: EdgeSet) -> float | None:
    """Where an edge set stands; vectors stand beside the weight of their layer."""
    if edge.tensor in columns:
        return columns[edge.tensor]
    stem = edge.tensor.rpartition(".")[0]
    for name, at in columns.items():
        if name.rpartition(".")[0] == stem:
            return at + 0.25
    nodes = {end.nodes for end in edge.ends}
    reach = [columns[e.tensor] for e in graph.edge_sets.values()
             if e.tensor in columns and nodes & {end.nodes for end in e.ends}]
    return min(reach) + 0.4 if reach else None


def _reach(graph: ParameterGraph, columns: dict[str, int]) -> dict[str, list[float]]:
    """Columns that each line stands at; a base reaches as far as what is fibred over it."""
    over = {group.label: group.over for group in graph.space.normal_groups}
    reach: dict[str, list[float]] = {name: [] for name in graph.node_sets}
    for edge in graph.edge_sets.values():
        at = _column(graph, columns, edge)
        for end in edge.ends if at is not None else ():
            for name in (end.nodes, *over.get(end.nodes, ())):
                reach[name].append(float(at or 0))
    return {name: places or [0.0] for name, places in reach.items()}


def _draw_tensors(axes: Axes, graph: ParameterGraph, columns: dict[str, int],
                  row: dict[str, int]) -> None:
    for edge in graph.edge_sets.values():
        at = _column(graph, columns, edge)
        if at is None or not edge.ends:
            continue
        places = [row[end.nodes] for end in edge.ends]
        # Rows, not names: the page finds by them what belongs to a group.
        gid = "-".join(["tensor", *map(str, sorted(set(places)))])
        if len(edge.ends) == 1:
            axes.plot([at], places, marker="|", markersize=7, color="#333333", zorder=3, gid=gid)
            continue
        axes.plot([at, at], [min(places), max(places)], color="#333333", linewidth=1, zorder=2,
                  gid=gid)
        for end, place in zip(edge.ends, places, strict=True):
            others = [r for r in places if r != place]
            down = bool(others) and place > sum(others) / len(others)
            marker = ("v" if down else "^") if end.out else "o"
            axes.plot([at], [place], marker=marker, markersize=6, color=colour(graph, end.nodes),
                      markeredgecolor="#333333", markeredgewidth=0.6, zorder=4, gid=gid)


def colour(graph: ParameterGraph, name: str) -> str:
    """Colour of a node set: grey without freedom."""
    if graph.node_sets[name].kind == "fixed":
        return _GREY
    free = [n for n, nodes in graph.node_sets.items() if nodes.kind != "fixed"]
    return _COLOURS[free.index(name) % len(_COLOURS)]


def _line_label(graph: ParameterGraph, name: str) -> str:
    nodes = graph.node_sets[name]
    copies = nodes.size // nodes.shape[-1]
    size = f"{nodes.kind}({nodes.shape[-1]})" + (f" x {copies}" if copies > 1 else "")
    return f"{_label(name, 28)}  {size}"


def _label(text: str, limit: int) -> str:
    """Printable, and short enough to draw."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= limit else f"{clean[:limit - 8]}…{clean[-7:]}"
