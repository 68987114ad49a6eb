"""Options of the verbs that look at two models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from metanet.tasks.merge import Samples

A = Annotated[str, typer.Argument(metavar="A", help="The reference: a file, folder or hf://…")]
B = Annotated[str, typer.Argument(metavar="B", help="The other model, in the same forms.")]
Calib = Annotated[Optional[Path], typer.Option(  # noqa: UP045 - typer reads it on Python 3.10
    "--calib", metavar="FILE.npz",
    help="Inputs x (labels y optional): matching, repair, temperature, choice of the candidate.")]
Data = Annotated[Path, typer.Option(
    "--data", metavar="FILE.npz", help="Inputs x and labels y: scoring, and nothing else.")]
Normalize = Annotated[Optional[str], typer.Option(  # noqa: UP045
    "--normalize", metavar="MEAN,STD", help="Taken off the inputs (uint8 become [0, 1] first).")]
Restarts = Annotated[int, typer.Option(
    "--restarts", metavar="INT", min=1, max=1000,
    help="Runs of weight matching, all but one from random starts.")]
OutMaybe = Annotated[Optional[Path], typer.Option(  # noqa: UP045
    "--out", "-o", metavar="OUT", help="File to write.")]


def contents(path: Path | None, normalize: str | None) -> Samples | None:
    """The samples of a file, shuffled by a fixed seed: files are often sorted by class."""
    if path is None:
        return None
    from metanet.tasks.merge.data import load, parse_normalize

    return load(path, parse_normalize(normalize)).shuffled()
