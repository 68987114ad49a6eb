"""``metanet related``: are two models the products of one training run?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .errors import NEGATIVE
from .merge_options import A, B
from .options import Arch, Json, Quiet, Seed, Spec, resolved
from .output import Sink, safe, table


def related(
    a: A,
    b: B,
    arch: Arch = None,
    spec: Spec = None,
    by_layer: Annotated[bool, typer.Option(
        "--by-layer", help="Also tell, per tensor, how far the models are from shuffled copies.",
    )] = False,
    budget: Annotated[int, typer.Option(
        "--budget", metavar="MB", min=1, max=1 << 24,
        help="Megabytes to read per model, smallest tensors first.",
    )] = 1024,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Test whether two models are independent: a small p-value says that they are kin."""
    from metanet.tasks.merge import related as test

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("matching"):
        first = resolved(a, arch, spec)
        found = test(first.checkpoint, first.alike(b), first.space, seed=seed, by_layer=by_layer,
                     budget=budget << 20)
    document = found.to_json()
    document["per_group"] = list(document["per_group"])
    sink.result(document, _text(document))
    if found.refused is not None:
        sink.say("refused: nothing can be said about these models")
        raise typer.Exit(NEGATIVE)


def _text(document: dict[str, Any]) -> list[str]:
    if document["refused"] is not None:
        return [f"no p-value: {safe(document['refused'])}"]
    rows = [(row["label"], f"{row['size']}x{row['copies']}", row["fixed_points"],
             f"{row['spearman']:.3f}", f"{row['log10_p']:.2f}",
             "-" if row["agreement"] is None else row["agreement"])
            for row in document["per_group"]]
    lines = [f"p = {document['p_value']:.3g} (log10 {document['log10_p']:.1f}): "
             + ("kin" if document["related"] else "no evidence of kinship"),
             f"order: p = {document['order_p']:.3g}; orbit (permuted copies): "
             f"p <= {document['orbit_p']:.3g}",
             *table(("group", "neurons", "in place", "spearman", "log10 p", "confirmed"), rows)]
    layers = [(row["tensor"], f"{row['cosine']:.3f}", f"{row['z']:.1f}", f"{row['p_value']:.3f}")
              for row in document["by_layer"]]
    if layers:
        lines += table(("tensor", "cosine", "z", "p"), [(safe(r[0]), *r[1:]) for r in layers])
    lines += [f"left out {safe(k)}: {safe(v)}" for k, v in document["refused_groups"].items()]
    return [*lines, "assuming that:", *(f"- {line}" for line in document["assumptions"])]
