"""Options that several verbs share, so that each has one name, one meaning and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from metanet.checkpoint.names import printable

if TYPE_CHECKING:
    from metanet.symmetry import Resolved

Source = Annotated[str, typer.Argument(
    metavar="SRC", help="Checkpoint: a file, a folder, or hf://org/name@rev/file.")]
Arch = Annotated[Optional[str], typer.Option(  # noqa: UP045 - typer reads it on Python 3.10
    "--arch", "-a", metavar="ARCH",
    help="Architecture: a name such as resnet20-cifar, timm:NAME, hf:FOLDER or file.py:factory "
         "(the file is run: name only code that you trust).")]
Spec = Annotated[Optional[Path], typer.Option(  # noqa: UP045
    "--spec", metavar="FILE", help="The space in text form, instead of an architecture.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="File to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that holds something else.")]
Seed = Annotated[int, typer.Option(
    "--seed", metavar="INT", min=0, max=2**63 - 1, help="Seed of all that is random.")]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No prose on stderr.")]


def resolved(
    source: str, arch: str | None, spec: Path | None = None, verify: bool = False,
    kinds: tuple[str, ...] = (),
) -> Resolved:
    """The checkpoint and its space; a usage error where the file does not tell it and nobody did.

    What was recognised, and by what, goes into ``note``.
    """
    from metanet.symmetry import resolve

    found = resolve(source, arch=arch, spec=spec, verify=verify, kinds=kinds)
    if found.space is None:
        raise typer.BadParameter(f"{printable(found.note)}. Name the architecture with --arch, or "
                                 "the space with --spec")
    return found
