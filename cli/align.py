"""``metanet align``: how to bring one model into the order of another."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .files import write
from .merge_options import A, B, Calib, Normalize, OutMaybe, Restarts, contents
from .options import Arch, Force, Json, Quiet, Seed, Spec, resolved
from .output import Sink, safe, table


def align(
    a: A,
    b: B,
    arch: Arch = None,
    spec: Spec = None,
    out: OutMaybe = None,
    method: Annotated[str, typer.Option(
        "--method", metavar="NAME", help="auto, weights or activations.")] = "auto",
    calib: Calib = None,
    normalize: Normalize = None,
    restarts: Restarts = 3,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the element that brings B into the order of A; -o writes it, to be applied later."""
    from metanet.tasks.merge import align as find

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("aligning"):
        first = resolved(a, arch, spec)
        found = find(first.checkpoint, first.alike(b), first.space, method,
                     contents(calib, normalize), arch=first.code,
                     restarts=restarts, seed=seed)
    if out is not None:
        sink.said(write(out, found.save, force=force), out)
    document = {"out": out, "result": "aligned", **found.to_json(),
                "groups": len(first.space.groups)}
    sink.result(document, _text(document, a, b))


def _text(document: dict[str, Any], a: str, b: str) -> list[str]:
    proof = document["certificate"]
    rows = [(row["name"], f"{row['objective']:.4f}",
             "-" if row["loss"] is None else f"{row['loss']:.4f}")
            for row in document["details"]["candidates"]]
    lines = [f"{safe(b)} in the order of {safe(a)}: {document['method']}, "
             f"objective {document['objective']:.4f}",
             *table(("candidate", "objective", "loss"), rows),
             f"chosen by {document['details']['chosen_by']}"]
    if proof is not None:
        lines.append(f"the moved model {'computes' if proof['ok'] else 'DOES NOT COMPUTE'} what it "
                     f"did before: outputs change by at most {proof['max_error']:.1e} "
                     f"({proof['dtype']}, {proof['inputs']})")
    return [*lines, *(f"{label}: {share:.0%} of its neurons move"
                      for label, share in document["moved"].items())]
