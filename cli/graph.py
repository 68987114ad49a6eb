"""``metanet graph``: the parameter graph of a checkpoint as a file."""

from __future__ import annotations

import typer

from .files import write
from .options import Arch, Force, Json, Out, Quiet, Source, Spec
from .output import Sink

FORMATS = (".pt", ".graphml", ".svg", ".html")


def graph(
    source: Source,
    out: Out,
    arch: Arch = None,
    spec: Spec = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the parameter graph: .pt (PyG), .graphml, .svg or .html, by the suffix of OUT."""
    from metanet.graph import ParameterGraph, export
    from metanet.symmetry import resolve

    if arch is None and spec is None:
        raise typer.BadParameter("name the architecture with --arch, or the space with --spec")
    if out.suffix not in FORMATS:
        raise typer.BadParameter(f"--out must end in {', '.join(FORMATS)}; not {out.suffix!r}")
    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("building the graph"):
        resolved = resolve(source, arch=arch, spec=spec)
        built = ParameterGraph.from_checkpoint(resolved.space, resolved.checkpoint)
        written = write(out, lambda path: export(built, path), force=force)
    sink.say(f"{'wrote' if written else 'already there, the same bytes:'} {out}")
    document = {"out": out, "source": str(resolved.checkpoint.source.uri), "arch": resolved.arch,
                "format": out.suffix[1:], "groups": len(resolved.space.groups)}
    sink.result(document, str(out))
