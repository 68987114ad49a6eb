"""``metanet doctor``: what is wrong with this environment, or with a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Optional

import typer

from .environment import Check, environment
from .errors import BAD_INPUT, NEGATIVE
from .options import Json, Quiet
from .output import Sink, safe, table


def doctor(
    source: Annotated[Optional[str], typer.Argument(  # noqa: UP045
        metavar="SRC", help="Checkpoint to look at too.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check the installation and, if SRC is given, say what a checkpoint holds or what ails it."""
    sink = Sink(as_json=as_json, quiet=quiet)
    checks, findings = environment(), []
    if source is not None:
        from metanet.checkpoint import doctor as examine

        with sink.progress("reading"):
            findings = examine(source)
    code = verdict(checks, findings)
    document = {"source": source, "ok": code == 0,
                "result": {"environment": checks, "findings": findings}}
    sink.result(document, _text(source, checks, findings))
    if code:
        raise typer.Exit(code)


def verdict(checks: Sequence[Check], findings: Sequence[Mapping[str, Any]]) -> int:
    """Exit code: 3 for a file that cannot be used, 1 for anything else that is not well."""
    levels = {finding["level"] for finding in findings}
    if "error" in levels:
        return BAD_INPUT
    well = all(check.ok for check in checks) and "warning" not in levels
    return 0 if well else NEGATIVE


def _text(
    source: str | None, checks: Sequence[Check], findings: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    rows = [(c.check, "ok" if c.ok else "BAD", safe(c.detail), c.hint) for c in checks]
    yield from table(("check", "state", "found", ""), rows)
    if source is not None:
        yield ""
        yield safe(source)
        yield from table(("level", "finding"), [(f["level"], f["message"]) for f in findings])
