"""``metanet fold``: gains of norms into the layers that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .files import write, write_text
from .options import Arch, Force, Json, Out, Quiet, Source, resolved
from .output import Sink, safe
from .render import group_document, groups_table


def fold(
    source: Source,
    out: Out,
    arch: Arch = None,
    save_spec: Annotated[Optional[Path], typer.Option(  # noqa: UP045
        "--save-spec", metavar="FILE", help="Write the space of folded models in text form, for "
        "align, distance and merge.")] = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the same function with unit gains, so that its residual stream may turn."""
    from metanet.checkpoint import write_safetensors
    from metanet.symmetry.resolve import built
    from metanet.tasks.merge.fold import fold as prepare

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("folding"):
        found = resolved(source, arch)
        if found.code is None:
            raise typer.BadParameter("folding is proved by running the network; name the "
                                     "architecture with --arch")
        made = prepare(*built(source, found.code))
        state = found.checkpoint.state_dict()
        error = made.error(state)
        origin = {"metanet.source_sha256": found.checkpoint.source.sha256,
                  "metanet.space": made.space.digest}
        written = write(out, lambda path: write_safetensors(made.apply(state), path,
                                                            metadata=origin), force=force)
        if save_spec is not None:
            write_text(f"{made.space}\n", save_spec, force=force)
    sink.said(written, out)
    document = {"out": out, "source": str(found.checkpoint.source.uri), "arch": found.arch,
                "norms": len(made.norms), "untied": dict(made.ties), "max_error": error,
                "groups": [group_document(group) for group in made.space.groups]}
    untied = ", ".join(f"{safe(name)} from {safe(owner)}" for name, owner in made.ties.items())
    sink.result(document, [
        f"{safe(out)}: {len(made.norms)} norms folded; outputs change by at most {error:.1e}",
        f"untied: {untied or 'nothing'}", *groups_table(made.space)])
