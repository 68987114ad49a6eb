"""``metanet graph``: the parameter graph of a checkpoint as a file."""

from __future__ import annotations

import typer

from .files import write
from .options import Arch, Force, Json, Out, Quiet, Source, Spec, resolved
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
    if out.suffix not in FORMATS:
        raise typer.BadParameter(f"--out must end in {', '.join(FORMATS)}; not {out.suffix!r}")
    from metanet.graph import ParameterGraph, export

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("building the graph"):
        found = resolved(source, arch, spec)
        built = ParameterGraph.from_checkpoint(found.space, found.checkpoint)
        written = write(out, lambda path: export(built, path), force=force)
    sink.said(written, out)
    document = {"out": out, "source": str(found.checkpoint.source.uri), "arch": found.arch,
                "format": out.suffix[1:], "groups": len(found.space.groups)}
    sink.result(document, str(out))
