"""``metanet zoo``: populations of networks as data. One API call per verb, then rendering."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from . import pull as hub
from . import zoo_build
from .errors import NEGATIVE, guarded
from .examples import epilog
from .options import Arch, Json, Quiet, Seed
from .output import Sink, safe, table
from .zoo_text import info_text, query_text, verify_document, verify_text

if TYPE_CHECKING:
    from metanet.zoo import Zoo

app = typer.Typer(name="zoo", help="Populations of networks: a store with an index, splits and a "
                                   "gate against leaks.", no_args_is_help=True)

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the zoo.")]
Where = Annotated[Optional[str], typer.Argument(  # noqa: UP045 - typer reads it on Python 3.10
    metavar="[WHERE]", help="Condition, such as \"split = 'test' and config_lr < 0.01\".")]


def _open(path: Path) -> Zoo:
    from metanet.zoo import Zoo

    return Zoo.open(path)


def info(path: Dir, as_json: Json = False, quiet: Quiet = False) -> None:
    """Show what a zoo holds: members, spaces, metrics, splits, bytes, recipe."""
    sink = Sink(as_json=as_json, quiet=quiet)
    found = _open(path).stats()
    sink.result(found, info_text(found))


def query(
    path: Dir,
    where: Where = None,
    columns: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--columns", "-c", metavar="A,B", help="Columns to show.")] = None,
    limit: Annotated[int, typer.Option(
        "--limit", "-n", min=0, max=10**9, help="Rows to show; 0 shows all.")] = 20,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the members that fulfil a condition."""
    from dataclasses import replace

    sink = Sink(as_json=as_json, quiet=quiet)
    found = _open(path).query(where)
    shown = replace(found, places=found.places[:limit]) if limit else found
    rows = list(shown.rows(columns.split(",") if columns else None))
    document = {"members": len(found), "shown": len(rows), "rows": rows}
    sink.result(document, query_text(rows))
    if len(rows) < len(found):
        sink.say(f"{len(rows)} of {len(found)} members; --limit 0 shows all")


def split(
    path: Dir,
    by: Annotated[str, typer.Option("--by", help="run, image, data, architecture, lineage, repo, "
                                                 "column or band.")] = "run",
    parts: Annotated[str, typer.Option(
        "--parts", metavar="A=X,B=Y", help="Share of each part.")] = "train=.7,val=.15,test=.15",
    column: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--column", metavar="COLUMN", help="Column of a split by column or band.")] = None,
    test: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--test", metavar="A,B", help="Values held out as test; of a band its two bounds.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Split a zoo so that nothing leaks, and store the split in its index."""
    sink = Sink(as_json=as_json, quiet=quiet)
    report = _open(path).split(by, _shares(parts), seed=seed, column=column,
                               test=test.split(",") if test else None)
    rows = [*report.counts.items()]
    if report.unassigned:
        rows.append(("(none)", report.unassigned))
    sink.result(report, table(("part", "members"), [(safe(a), b) for a, b in rows]))
    sink.say(f"{report.units} independent units, split by {report.by}")


def _shares(text: str) -> dict[str, float]:
    try:
        return {name.strip(): float(share) for name, share in
                (item.split("=") for item in text.split(","))}
    except ValueError:
        raise typer.BadParameter("write it like train=.8,test=.2", param_hint="--parts") from None


def verify(
    path: Dir,
    shallow: Annotated[bool, typer.Option(
        "--shallow", help="Compare sizes and headers only, hash nothing.")] = False,
    label: Annotated[Optional[list[str]], typer.Option(  # noqa: UP045
        "--label", metavar="COLUMN", help="Column that holds a class; may be repeated.")] = None,
    no_gate: Annotated[bool, typer.Option(
        "--no-gate", help="Do not run the classifiers that look for leaks.")] = False,
    clean: Annotated[bool, typer.Option(
        "--clean", help="Remove files that a killed writer left behind.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every byte, the split and the leak gate; exit code 1 if anything is wrong."""
    sink = Sink(as_json=as_json, quiet=quiet)
    zoo = _open(path)
    with sink.progress("verifying"):
        found = zoo.verify(not shallow, leaks=not no_gate, labels=label, seed=seed)
        if clean:
            from metanet.zoo.verify import clean as remove

            remove(zoo)
    sink.result(verify_document(found), verify_text(found))
    if not found.ok:
        raise typer.Exit(NEGATIVE)


def ingest(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of checkpoints.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The zoo to make.")],
    metrics: Annotated[Optional[Path], typer.Option(  # noqa: UP045
        "--table", metavar="FILE", help="CSV or JSON with a row per file; by default manifest.json "
                                        "or metrics.csv in the folder.")] = None,
    arch: Arch = None,
    columns: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--metrics", metavar="A,B", help="Columns that are metrics, not configuration.")] = None,
    license: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--license", help="Licence of the weights.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another zoo at DIR.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a folder of anyone's checkpoints, with a table of metrics, into a zoo."""
    from metanet.zoo import ingest as read

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("reading"):
        done = read(folder, out, table=metrics, arch=arch, license=license, force=force,
                    metrics=columns.split(",") if columns else None)
    for file, why in done.refused.items():
        sink.say(f"refused {safe(file)}: {safe(why)}")
    for name, word in done.renamed.items():
        sink.say(f"{safe(word)} is stored as {name}")
    document: dict[str, Any] = {"out": out, "members": len(done.zoo), "added": done.added,
                                "refused": done.refused, "renamed": done.renamed}
    sink.result(document, f"{len(done.zoo)} members in {out} ({done.added} new, "
                          f"{len(done.refused)} refused)")


def export(
    path: Dir,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Folder, or FILE.parquet "
                                                                         "for the index alone.")],
    where: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--where", metavar="WHERE", help="Only members that fulfil this condition.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a zoo as a folder of safetensors with a CSV, or its index as Parquet."""
    from metanet.zoo.frames import export_folder, to_parquet

    sink = Sink(as_json=as_json, quiet=quiet)
    found = _open(path).query(where)
    with sink.progress("writing"):
        if out.suffix.lower() in (".parquet", ".pq"):
            to_parquet(found, out)
        else:
            export_folder(found, out)
    sink.result({"out": out, "members": len(found)}, f"{len(found)} members in {out}")


for _verb in (info, query, split, verify, ingest, export):
    app.command(_verb.__name__, epilog=epilog(f"zoo {_verb.__name__}"))(guarded(_verb))
for _name, _verb in (("build", zoo_build.build), ("recipes", zoo_build.recipes),
                     ("map", zoo_build.map_), ("pull", hub.pull_zoo), ("push", hub.push_zoo)):
    app.command(_name, epilog=epilog(f"zoo {_name}"))(guarded(_verb))
