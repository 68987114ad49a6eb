"""``metanet demo``: the main job in one command, offline, computed live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Quiet, Seed
from .output import Sink


def demo(
    out: Annotated[Path, typer.Option(
        "--out", "-o", metavar="PAGE", help="Page to write.")] = Path("metanet-demo.html"),
    quick: Annotated[bool, typer.Option(
        "--quick", help="A smaller population: seconds instead of minutes.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """See, scramble, meet and read networks: everything computed now, ending in one page."""
    sink = Sink(as_json=as_json, quiet=quiet)
    sink.line("metanet demo: every number below is computed now, on this machine")
    from metanet.tasks.demo import run

    result = run(out, quick=quick, seed=seed, say=sink.line)
    sink.result({"out": out, **result}, str(out))
