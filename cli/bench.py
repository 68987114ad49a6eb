"""``metanet bench`` and ``metanet report``: the tables, and pages to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .options import Json, Quiet
from .output import Sink, safe, table

Number = Optional[int]  # noqa: UP045 - typer reads it on Python 3.10


def bench(
    suite: Annotated[str, typer.Argument(
        metavar="SUITE", help="inr-digits, inr-mnist, headline, small-cnn, seed-only or wild.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the results; "
                                      "an interrupted suite goes on.")],
    zoos: Annotated[Optional[Path], typer.Option(  # noqa: UP045
        "--zoos", metavar="DIR", help="Folder of zoos, named as their recipes; what is not there "
                                      "is built.")] = None,
    wild: Annotated[Optional[Path], typer.Option(  # noqa: UP045
        "--wild", metavar="DIR", help="Folder of the strangers' folders.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The small size, on digits.")] = False,
    rows: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--rows", metavar="A,B", help="Only these rows.")] = None,
    epochs: Annotated[Number, typer.Option("--epochs", min=1, max=10**6)] = None,
    seeds: Annotated[Number, typer.Option("--seeds", min=1, max=1000)] = None,
    trials: Annotated[Number, typer.Option("--trials", min=1, max=4)] = None,
    limit: Annotated[Number, typer.Option("--limit", min=40, help="Members of each zoo to take, "
                                          "at most.")] = None,
    data: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--data", metavar="PATH", help="Data for building zoos; else METANET_DATA.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace results of another plan.")
                     ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a suite: every row, every split, equal trials and seeds; ends in a table and a page."""
    from metanet.nn import keep_freed_memory
    from metanet.tasks.predict import SUITES, Options
    from metanet.tasks.predict.bench import bench as run
    from metanet.tasks.predict.page import bench_page
    from metanet.tasks.predict.suites import QUICK
    from metanet.tasks.predict.suites import suite as named

    sink = Sink(as_json=as_json, quiet=quiet)
    keep_freed_memory()
    chosen = named(suite)
    changed = {k: v for k, v in (("epochs", epochs), ("seeds", seeds), ("trials", trials)) if v}
    budget = replace(QUICK if quick else SUITES[suite].budget, **changed)
    options = Options(out, zoos, wild, quick, tuple(rows.split(",")) if rows else (), budget,
                      limit, force, data)
    document = run(chosen, options, sink.say)
    bench_page(document, out)
    sink.result(document, _text(document))
    sink.say(f"page: {safe(out / 'report.html')}; card: {safe(out / 'card.md')}")


def _text(document: dict[str, Any]) -> list[str]:
    lines = []
    for stage, split in dict.fromkeys((r["stage"], r["split"]) for r in document["rows"]):
        rows = [(r["track"], r["title"], _number(r["mean"]), _number(r["sd"]), r["seeds"],
                 r["parameters"], f"{r['seconds']:.0f}") for r in document["rows"]
                if (r["stage"], r["split"]) == (stage, split)]
        metric = next(r["metric"] for r in document["rows"] if r["stage"] == stage)
        lines += [f"{stage}, scored on {split}", *table(
            ("track", "row", metric, "sd", "seeds", "parameters", "seconds"), rows), ""]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run or a suite.")],
    out: Annotated[Optional[Path], typer.Option(  # noqa: UP045
        "--out", "-o", metavar="FILE", help="The page; by default DIR/report.html.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained HTML page about a run or a suite."""
    from metanet.tasks.predict.page import folder_page

    sink = Sink(as_json=as_json, quiet=quiet)
    path = folder_page(folder, out)
    sink.result({"out": path}, safe(path))
