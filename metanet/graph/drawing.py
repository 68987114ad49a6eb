"""A drawing of a ParameterGraph: groups are coloured lines, tensors stand across them.

Tensors run from left to right in natural order (in most checkpoints the order of depth). A line
reaches from the first tensor of its group to the last, with its name above its start; lines that do
not overlap share a row, so that a deep network is long and not high. A tensor is drawn from the
lines that it reads (dot) to those that it feeds (arrow head); biases and norms are ticks on their
line.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from metanet.graph.parameter_graph import EdgeSet, ParameterGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_COLUMNS = 400
_INCH, _ROW, _LETTER = 0.34, 0.46, 0.06  # width of a column, height of a row, width of a letter
_GREY = "#8a8a8a"
# Ten hues that stay apart on white, in print and for most colour-blind readers.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99",
            "#6a4c93", "#997700")
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4}


def draw_svg(graph: ParameterGraph) -> str:
    """The drawing as SVG text, the same bytes every time."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    columns = _columns(graph)
    reach, lines = _reach(graph, columns), rows(graph)
    row = _packed(graph, reach)
    height = max(row.values(), default=0) + 1
    size = (max(1.5 + _INCH * len(columns), 6.0), 2.0 + _ROW * height)
    with matplotlib.rc_context({"svg.hashsalt": "metanet", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for name, number in lines.items():
            first, last, y = min(reach[name]) - 0.35, max(reach[name]) + 0.35, row[name]
            axes.plot([first, last], [y, y], linewidth=3, color=colour(graph, name), alpha=0.55,
                      solid_capstyle="round", zorder=1, gid=f"group-{number}")
            axes.text(first, y - 0.27, _line_label(graph, name), fontsize=7, parse_math=False,
                      gid=f"group-{number}", zorder=5, va="center", bbox=_BEHIND)
        _draw_tensors(axes, graph, columns, lines, row)
        axes.set_xlim(-1, max(len(columns), size[0] / _INCH - 4))
        axes.set_ylim(height - 0.4, -0.7)
        axes.set_xticks(range(len(columns)))
        axes.set_xticklabels([_label(name, 48) for name in columns], rotation=60, ha="right",
                             fontsize=7, parse_math=False)
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def rows(graph: ParameterGraph) -> dict[str, int]:
    """Number of each line, by the first tensor that it meets."""
    reach = _reach(graph, _columns(graph))
    return {name: i for i, name in enumerate(sorted(reach, key=lambda name: min(reach[name])))}


def _packed(graph: ParameterGraph, reach: dict[str, list[float]]) -> dict[str, int]:
    """Row of each line: the first one that is free where the line and its name stand."""
    ends: list[float] = []
    found: dict[str, int] = {}
    for name in sorted(reach, key=lambda name: min(reach[name])):
        first = min(reach[name]) - 0.35
        name_ends = first + len(_line_label(graph, name)) * _LETTER / _INCH
        row = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[row:row + 1] = [max(max(reach[name]) + 0.35, name_ends) + 0.2]
        found[name] = row
    return found


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
                  lines: dict[str, int], row: dict[str, int]) -> None:
    for edge in graph.edge_sets.values():
        at = _column(graph, columns, edge)
        if at is None or not edge.ends:
            continue
        places = [row[end.nodes] for end in edge.ends]
        # Numbers, not names: the page finds by them what belongs to a group.
        gid = "-".join(["tensor", *map(str, sorted({lines[end.nodes] for end in edge.ends}))])
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
    return f"{_label(name, 28)} {size}"


def _label(text: str, limit: int) -> str:
    """Printable, and short enough to draw."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= limit else f"{clean[:limit - 8]}…{clean[-7:]}"
