"""Wiring: which verbs there are. Each verb imports what is heavy inside its own function."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from . import (
    align,
    barrier,
    bench,
    convert,
    demo,
    distance,
    doctor,
    explain,
    fold,
    graph,
    inspect,
    merge,
    optim,
    permute,
    predict,
    pull,
    related,
    train,
    zoo,
)
from .errors import guarded
from .examples import START, epilog
from .group import Root

app = typer.Typer(
    name="metanet",
    cls=Root,
    help="Networks as data: any checkpoint in, its exact symmetry out, and what stands on that.",
    epilog="Exit codes: 0 ok, 1 negative finding, 2 usage, 3 bad input, 4 network.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order of the chain: see, write, compare, learn.
for _panel, _verbs in {
    "Start here": (demo.demo,),
    "See": (inspect.inspect, explain.explain, graph.graph, doctor.doctor),
    "Write": (convert.convert, fold.fold, permute.permute, pull.pull),
    "Two models": (align.align, barrier.barrier, distance.distance, related.related,
                   merge.merge),
    "Many models": (predict.predict, train.train, train.evaluate, bench.bench, bench.report),
}.items():
    for _verb in _verbs:
        app.command(_verb.__name__, rich_help_panel=_panel,
                    epilog=epilog(_verb.__name__))(guarded(_verb))
app.add_typer(zoo.app, rich_help_panel="Populations")
app.add_typer(optim.app, rich_help_panel="Populations")


def _version(wanted: bool) -> None:
    if wanted:
        from metanet import __version__

        typer.echo(f"metanet {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Networks as data: any checkpoint in, its exact symmetry out, and what stands on that."""
    if context.invoked_subcommand is None:
        typer.echo(START)


def main() -> None:
    """Entry point of the command ``metanet``."""
    if not sys.warnoptions:  # stderr is for people; ``python -W default -m metanet`` shows them
        warnings.simplefilter("ignore")
    app()
