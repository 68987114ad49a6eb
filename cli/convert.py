"""``metanet convert``: any readable checkpoint to safetensors."""

from __future__ import annotations

from .files import write
from .options import Force, Json, Out, Quiet, Source
from .output import Sink


def convert(
    source: Source,
    out: Out,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write any readable checkpoint as safetensors; no code in it is ever run."""
    import metanet

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("converting"):
        checkpoint = metanet.open(source)
        written = write(out, checkpoint.convert, force=force)
    sink.said(written, out)
    document = {"out": out, "source": checkpoint.source.uri, "n_tensors": len(checkpoint.names),
                "n_parameters": checkpoint.n_parameters}
    sink.result(document, str(out))
