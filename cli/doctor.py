"""``metanet doctor``: what is wrong with this environment, or with a file."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .environment import environment
from .errors import NEGATIVE
from .options import Json, Quiet
from .output import Sink, safe, table


def doctor(
    source: Annotated[Optional[str], typer.Argument(  # noqa: UP045
        metavar="[SRC]", help="Checkpoint to look at too.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check the installation and, if SRC is given, say what a checkpoint holds or what ails it."""
    sink = Sink(as_json=as_json, quiet=quiet)
    checks = environment()
    sink.result({"result": checks, "ok": all(check.ok for check in checks), "source": source},
                table(("check", "state", "detail", ""),
                      [(c.check, "ok" if c.ok else "BAD", safe(c.detail), c.hint) for c in checks]))
    if not all(check.ok for check in checks):
        raise typer.Exit(NEGATIVE)
