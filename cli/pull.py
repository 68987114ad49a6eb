"""``metanet pull`` and ``metanet zoo pull/push``: files from and to the Hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .options import Json, Quiet
from .output import Sink, plain, safe

if TYPE_CHECKING:
    from metanet.zoo import Pulled

Src = Annotated[str, typer.Argument(
    metavar="SRC", help="hf://org/name, hf://datasets/org/name, with @revision and /file.")]
Target = Annotated[Path, typer.Option(
    "--out", "-o", metavar="OUT", help="Folder to make; of one file or of tensors, the file.")]
Where = Annotated[Optional[str], typer.Option(  # noqa: UP045 - typer reads it on Python 3.10
    "--where", metavar="WHERE", help="Of a zoo, only members that fulfil this condition.")]
Replace = Annotated[bool, typer.Option(
    "--force", help="Replace what an earlier pull left at OUT.")]


def pull(
    source: Src,
    out: Target,
    include: Annotated[Optional[list[str]], typer.Option(  # noqa: UP045
        "--include", "-i", metavar="PATTERN",
        help="Only files like this; may be repeated.")] = None,
    where: Where = None,
    tensor: Annotated[Optional[list[str]], typer.Option(  # noqa: UP045
        "--tensor", "-t", metavar="PATTERN",
        help="Only tensors like this, by range, as one safetensors file.")] = None,
    force: Replace = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download from the Hub, pinned to a commit, every byte checked; goes on where it stopped."""
    from metanet.zoo import pull as run

    sink = Sink(as_json=as_json, quiet=quiet)
    with _bars(sink):
        done = run(source, out, patterns=include or (), where=where, tensors=tensor or (),
                   force=force)
    _show(done, sink)


def pull_zoo(
    source: Src,
    out: Target,
    where: Where = None,
    force: Replace = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a zoo from the Hub, or the members that fulfil a condition."""
    from metanet.zoo import pull as run

    sink = Sink(as_json=as_json, quiet=quiet)
    with _bars(sink):
        done = run(source, out, where=where, force=force, zoo=True)
    _show(done, sink)


def push_zoo(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the zoo.")],
    name: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub.")],
    revision: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--revision", metavar="BRANCH", help="Branch; made where it does not exist.")] = None,
    private: Annotated[bool, typer.Option(
        "--private", help="Make a new repository private.")] = False,
    dataset: Annotated[bool, typer.Option(
        "--dataset", help="A dataset repository instead of a model repository.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a zoo with a card, as one commit; what the Hub has already is not sent again."""
    from metanet.zoo import push as run

    sink = Sink(as_json=as_json, quiet=quiet)
    with _bars(sink):
        uri = run(path, name, revision=revision, private=private,
                  kind="dataset" if dataset else "model")
    sink.result({"source": uri}, uri)


def _show(done: Pulled, sink: Sink) -> None:
    document: dict[str, Any] = plain(done)
    what = f"{done.members} members" if done.members is not None else f"{done.files} files"
    sink.result(document, f"{what}, {done.bytes} bytes in {safe(done.out)}")
    sink.say(f"{'already there' if done.already else 'pulled'}: {safe(done.source)}; licence "
             f"{safe(done.license)}")


@contextmanager
def _bars(sink: Sink) -> Iterator[None]:
    """The progress bars of the Hub's client: on a terminal only."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if (not sink.quiet and sys.stderr.isatty()) or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
