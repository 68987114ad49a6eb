"""Options that several verbs share, so that each has one name, one meaning and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

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
Seed = Annotated[int, typer.Option("--seed", metavar="INT", help="Seed of all that is random.")]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No prose on stderr.")]


def need_space(arch: str | None, spec: Path | None) -> None:
    """A usage error where a command needs the symmetry and nobody said which it is."""
    if arch is None and spec is None:
        raise typer.BadParameter("name the architecture with --arch, or the space with --spec")
