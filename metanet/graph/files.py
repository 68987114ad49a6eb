"""export: a ParameterGraph as a file, by its suffix; written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.errors import SymmetryError
from metanet.graph.parameter_graph import ParameterGraph

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = (".pt", ".graphml", ".svg", ".html")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Parameter graph</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
figure, .wide { overflow-x: auto; margin: 1rem 0 }
figure { background: #fff; border-radius: 6px; padding: .5rem }
svg .off { opacity: .08 } tr[data-row] { cursor: pointer } tr.on { font-weight: 600 }
tr[data-row]:hover, tr.on { background: #8882 }
table { border-collapse: collapse } th, td { padding: .2rem .8rem .2rem 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #8884 } td.n { text-align: right }
td.t { max-width: 40rem; overflow-wrap: anywhere }
pre { background: #8881; padding: 1rem; overflow-x: auto }
.swatch { display: inline-block; width: 1em; height: 1em; border-radius: 50%;
vertical-align: -.15em }
</style></head><body>
<h1>Parameter graph</h1>
<p>{{ "{:,}".format(graph.n_nodes) }} nodes in {{ graph.node_sets|length }} sets,
{{ graph.edge_sets|length }} blocks, {{ "{:,}".format(graph.n_edges) }} edges,
{{ "{:,}".format(graph.space.n_parameters) }} parameters; symmetry {{ graph.space.status }}.</p>
<p>Coloured lines are groups of neurons that may be permuted, grey lines fixed axes; S(64) x 3 is a
group of 64 in each of three heads. A tensor stands across the lines that it reads (dot) and feeds
(arrow head); ticks are biases and norms.</p>
{# matplotlib escapes the names that it writes into the drawing #}
<figure>{{ svg|safe }}</figure>
<h2>Groups</h2>
<p>Click a group to see it alone, with the tensors that it acts on; click again for all.
<input type="search" placeholder="tensor or group" aria-label="Find a tensor or group"></p>
<div class="wide"><table><tr><th></th><th>group</th><th>kind</th><th>size</th><th>inside</th>
<th>copies</th>
<th>tensors</th></tr>
{% for group in graph.space.normal_groups %}<tr data-row="{{ rows[group.label] }}" tabindex="0">
<td><span class="swatch" style="background: {{ colours[group.label] }}"></span></td>
<td>{{ group.label }}</td><td>{{ group.kind }}</td><td class="n">{{ group.size }}</td>
<td>{{ group.over|join(" × ") }}</td><td class="n">{{ group.copies }}</td>
<td class="t"><details><summary>{{ group.tensors|length }}</summary>
{{ group.tensors|join(", ")|printable }}</details></td></tr>
{% endfor %}</table></div>
<h2>Space</h2>
<pre>{{ text }}</pre>
<script>
const groups = [...document.querySelectorAll("tr[data-row]")];
const parts = [...document.querySelectorAll("svg [id^=group-], svg [id^=tensor-]")];
function show(rows) {
  for (const g of groups) g.classList.toggle("on", !!rows && rows.has(g.dataset.row));
  for (const p of parts) p.classList.toggle("off",
    !!rows && !p.id.split("-").slice(1).some(row => rows.has(row)));
}
for (const g of groups) {
  const pick = () => show(g.classList.contains("on") ? null : new Set([g.dataset.row]));
  g.addEventListener("click", e => { if (!e.target.closest("details")) pick(); });
  g.addEventListener("keydown", e => { if (e.key === "Enter") pick(); });
}
document.querySelector("input").addEventListener("input", e => {
  const word = e.target.value.toLowerCase();
  for (const g of groups) g.hidden = !g.textContent.toLowerCase().includes(word);
  show(word ? new Set(groups.filter(g => !g.hidden).map(g => g.dataset.row)) : null);
});
</script>
</body></html>
"""


def export(graph: ParameterGraph, path: str | os.PathLike[str], *, max_edges: int = 200_000
           ) -> None:
    """Write a graph.

    Args:
        path: ``.pt``: plain tensors and strings, which ``torch.load(weights_only=True)`` reads:
            the dense blocks, their ends, the space, and (within the budget) the arrays of
            ``to_pyg``; ``.graphml``: neurons within the budget, else tensors and groups; ``.svg``:
            a drawing; ``.html``: the drawing, the groups and the text of the space on one page.
        max_edges: the budget.

    Raises:
        SymmetryError: for another suffix.
    """
    path = Path(path)
    writers: dict[str, Callable[[Path], None]] = {
        ".pt": lambda p: _write_pt(graph, p, max_edges),
        ".graphml": lambda p: _write_graphml(graph, p, max_edges),
        ".svg": lambda p: _write_text(svg(graph), p),
        ".html": lambda p: _write_text(html(graph), p),
    }
    if path.suffix not in writers:
        raise SymmetryError(f"{path}: a graph is written as {', '.join(FORMATS)}, "
                            f"not {path.suffix or 'a file without suffix'}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".metanet-") as folder:
        fresh = Path(folder) / path.name
        writers[path.suffix](fresh)
        os.replace(fresh, path)


def svg(graph: ParameterGraph) -> str:
    """The drawing as SVG text."""
    from metanet.graph.drawing import draw_svg

    return draw_svg(graph)


def inline_svg(graph: ParameterGraph) -> str:
    """The drawing for use inside HTML: no prologue, and no comments (which repeat the names)."""
    drawing = re.sub("<!--.*?-->|<metadata>.*?</metadata>", "", svg(graph), flags=re.DOTALL)
    return drawing[drawing.index("<svg"):]


def html(graph: ParameterGraph) -> str:
    """One self-contained page; every name from the checkpoint is escaped."""
    from jinja2 import Environment, StrictUndefined

    from metanet.graph.drawing import colour, rows

    colours = {group.label: colour(graph, group.label) for group in graph.space.normal_groups}
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["printable"] = printable
    page = environment.from_string(_PAGE)
    return page.render(graph=graph, svg=inline_svg(graph), text=str(graph.space), colours=colours,
                       rows=rows(graph))


def plain(graph: ParameterGraph, max_edges: int = 200_000) -> dict[str, Any]:
    """What ``.pt`` holds: tensors and strings in dicts, no code."""
    from metanet.graph.pyg import flat_arrays, set_names

    ends = {name: json.dumps([{"nodes": end.nodes, "digits": end.digits, "out": end.out}
                              for end in edge.ends]) for name, edge in graph.edge_sets.items()}
    found: dict[str, Any] = {
        "format": "metanet.graph", "version": "1",
        "space": json.dumps(graph.space.to_json()),
        "blocks": {name: _own(edge.values) for name, edge in graph.edge_sets.items()},
        "ends": ends,
        "extras": {name: _own(value) for name, value in graph.extras.items()},
        "names": json.dumps(graph.names),
    }
    if graph.n_edges <= max_edges:
        found["arrays"] = flat_arrays(graph, max_edges)
        found["node_set_names"] = json.dumps(set_names(graph))
        found["edge_set_names"] = json.dumps(list(graph.edge_sets))
    return found


def _own(value: Tensor) -> Tensor:
    """Its own memory: a view would drag the whole storage into the file."""
    return value.detach().cpu().contiguous().clone()


def _write_pt(graph: ParameterGraph, path: Path, max_edges: int) -> None:
    import torch

    torch.save(plain(graph, max_edges), path)


def _write_graphml(graph: ParameterGraph, path: Path, max_edges: int) -> None:
    import networkx

    level = "neuron" if graph.n_edges <= max_edges else "tensor"
    made = graph.to_networkx(level, max_edges)
    clean = networkx.MultiDiGraph()
    for name, data in made.nodes(data=True):
        clean.add_node(printable(name), **_flat(data))
    for source, target, key, data in made.edges(keys=True, data=True):
        key = printable(key) if isinstance(key, str) else key
        clean.add_edge(printable(source), printable(target), key, **_flat(data))
    networkx.write_graphml(clean, path)


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """GraphML has no lists; numbers are written so that they can be read back exactly."""
    return {key: " ".join(map(repr, value)) if isinstance(value, list)
            else printable(value) if isinstance(value, str) else value
            for key, value in data.items()}


def printable(text: str) -> str:
    """Text with control characters (which XML cannot hold) written as escapes."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
