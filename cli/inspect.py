"""``metanet inspect``: what a checkpoint holds, and the symmetry of its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .errors import NEGATIVE
from .files import write_text
from .options import Arch, Force, Json, Quiet, Source, Spec
from .output import Sink
from .render import (
    NAME_AN_ARCHITECTURE,
    header_document,
    header_text,
    space_document,
    space_text,
    verification_line,
)


def inspect(
    source: Source,
    arch: Arch = None,
    spec: Spec = None,
    save_spec: Annotated[Optional[Path], typer.Option(  # noqa: UP045
        "--save-spec", metavar="FILE", help="Write the space in text form.")] = None,
    verify: Annotated[bool, typer.Option(
        "--verify", help="Prove it: random elements must leave the outputs alone.")] = False,
    kinds: Annotated[bool, typer.Option(
        "--kinds", help="Also look for signs and positive scales of neurons.")] = False,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the tensors of a checkpoint and, with --arch or --spec, the group that acts on them."""
    sink = Sink(as_json=as_json, quiet=quiet)
    if arch is None and spec is None:
        if verify or kinds or save_spec is not None:
            raise typer.BadParameter("--verify, --kinds and --save-spec need --arch or --spec")
        _header(source, sink)
        return
    from metanet.symmetry import resolve

    with sink.progress("tracing and verifying" if verify else "tracing"):
        resolved = resolve(source, arch=arch, spec=spec, verify=verify,
                           kinds=("positive", "signed") if kinds else ())
    if save_spec is not None:
        write_text(f"{resolved.space}\n", save_spec, force=force)
        sink.say(f"wrote {save_spec}")
    sink.result(space_document(resolved), space_text(resolved))
    if resolved.verification is not None and not resolved.verification.ok:
        sink.say(verification_line(resolved.verification))
        raise typer.Exit(NEGATIVE)


def _header(source: str, sink: Sink) -> None:
    import metanet

    checkpoint = metanet.open(source)
    sink.result(header_document(checkpoint), header_text(checkpoint))
    sink.say(f"hint: {NAME_AN_ARCHITECTURE}")
