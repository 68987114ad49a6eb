"""``metanet explain``: why an axis is frozen, or which groups act on it."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Arch, Json, Quiet, Source, Spec, resolved
from .output import Sink, safe


def explain(
    source: Source,
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="Name of a tensor.")],
    axis: Annotated[int, typer.Argument(metavar="AXIS", help="Axis number, from 0.", min=0)],
    arch: Arch = None,
    spec: Spec = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say which groups act on one axis of a tensor, and why the rest of it is frozen."""

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("tracing"):
        found = resolved(source, arch, spec)
    text = str(found.space.explain(tensor, axis))
    document = {"source": str(found.checkpoint.source.uri), "tensor": tensor, "axis": axis,
                "arch": found.arch, "result": text}
    sink.result(document, map(safe, text.splitlines()))
