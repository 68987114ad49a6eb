"""``metanet inspect``: what a checkpoint holds, and the symmetry of its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from metanet.checkpoint.names import printable

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
    """Show what a checkpoint holds and the group that acts on it, where it is known or told."""
    from metanet.symmetry import resolve

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("tracing and verifying" if verify else "looking for its symmetry"):
        found = resolve(source, arch=arch, spec=spec, verify=verify,
                        kinds=("positive", "signed") if kinds else ())
    if found.space is None:
        if save_spec is not None:
            raise typer.BadParameter(f"there is no space to save: {printable(found.note)}. "
                                     "Name the architecture with --arch")
        sink.result(header_document(found), header_text(found))
        sink.say(f"hint: {NAME_AN_ARCHITECTURE}")
        return
    if save_spec is not None:
        write_text(f"{found.space}\n", save_spec, force=force)
        sink.say(f"wrote {save_spec}")
    sink.result(space_document(found), space_text(found))
    if found.verification is not None and not found.verification.ok:
        sink.say(verification_line(found.verification))
        raise typer.Exit(NEGATIVE)
