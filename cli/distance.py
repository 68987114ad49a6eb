"""``metanet distance``: how far apart two models are, whatever the order of their neurons."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .errors import NEGATIVE
from .merge_options import A, B, Restarts
from .options import Arch, Json, Quiet, Seed, Spec, resolved
from .output import Sink, safe


def distance(
    a: A,
    b: B,
    arch: Arch = None,
    spec: Spec = None,
    restarts: Restarts = 1,
    above: Annotated[Optional[float], typer.Option(  # noqa: UP045
        "--fail-above", metavar="X",
        help="Exit with 1 where the relative distance is larger.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Euclidean distance of two models over the best alignment found: an upper bound."""
    import metanet

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("matching"):
        first = resolved(a, arch, spec)
        found = metanet.distance(first.checkpoint, first.alike(b), first.space,
                                 restarts=restarts, seed=seed)
    document = {"result": found.aligned, "aligned": found.aligned, "naive": found.naive,
                "norm": found.norm, "relative": found.relative,
                "matched": found.match.matched, "converged": found.match.converged}
    sink.result(document, [
        f"{safe(a)} and {safe(b)}: {found.aligned:.6g} apart (relative {found.relative:.4f}; "
        f"0 is equal, 1.41 unrelated)",
        f"as they are: {found.naive:.6g}",
        *(f"{label}: mean cosine of partners {cosine:.3f}"
          for label, cosine in found.match.matched.items())])
    if above is not None and found.relative > above:
        raise typer.Exit(NEGATIVE)
