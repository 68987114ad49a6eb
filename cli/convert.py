"""``metanet convert``: any readable checkpoint to safetensors."""

from __future__ import annotations

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
    from metanet.checkpoint import convert as to_safetensors

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("converting"):
        to_safetensors(source, out, force=force)
    sink.result({"out": out, "source": source}, str(out))
