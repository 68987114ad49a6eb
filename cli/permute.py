"""``metanet permute``: another checkpoint of the same function."""

from __future__ import annotations

from .files import write
from .options import Arch, Force, Json, Out, Quiet, Seed, Source, Spec, resolved
from .output import Sink


def permute(
    source: Source,
    out: Out,
    arch: Arch = None,
    spec: Spec = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Apply a random element of the group and write the equivalent checkpoint as safetensors."""
    from metanet.checkpoint import write_safetensors

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("permuting"):
        found = resolved(source, arch, spec)
        checkpoint, space = found.checkpoint, found.space
        moved = found.restore(space.random(seed).apply(checkpoint.state_dict()))
        origin = {"metanet.source_sha256": checkpoint.source.sha256, "metanet.seed": str(seed),
                  "metanet.space": space.digest}
        written = write(out, lambda path: write_safetensors(
            moved, path, metadata=origin, aliases=found.stored.aliases), force=force)
    sink.said(written, out)
    document = {"out": out, "source": str(checkpoint.source.uri), "arch": found.arch,
                "seed": seed, "groups": len(space.groups), "n_tensors": len(moved)}
    sink.result(document, str(out))
