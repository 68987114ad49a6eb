"""``metanet zoo build``, ``recipes`` and ``map``: making zoos, and running over their members."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from .options import Json, Quiet
from .output import Sink, plain, safe, table

Engine = Annotated[str, typer.Option("--engine", metavar="NAME", help="local or ray.")]
Workers = Annotated[int, typer.Option(
    "--workers", "-w", min=1, max=4096, help="Processes of one thread.")]


def build(
    recipe: Annotated[str, typer.Argument(
        metavar="RECIPE", help="Name of a recipe (see `metanet zoo recipes`), or a YAML file.")],
    out: Annotated[Path, typer.Option(
        "--out", "-o", metavar="DIR", help="Folder of the zoo; an interrupted build goes on.")],
    n: Annotated[Optional[int], typer.Option(  # noqa: UP045 - typer reads it on Python 3.10
        "--n", "-n", min=1, max=10**9,
        help="Networks to make; by default the recipe's number.")] = None,
    data: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--data", metavar="PATH", help="File or folder of the data, or hf://datasets/org/name; "
                                       "else METANET_DATA.")] = None,
    seed: Annotated[Optional[int], typer.Option(  # noqa: UP045
        "--seed", min=0, max=2**63 - 1,
        help="Seed of everything; by default the recipe's.")] = None,
    engine: Engine = "local",
    workers: Workers = 2,
    force: Annotated[bool, typer.Option(
        "--force", help="Replace a zoo of another recipe at DIR.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a zoo from a recipe. Kill it when you like: the same command goes on."""
    from metanet.zoo.build import build as run

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.counter() as show:
        zoo = run(recipe, out, n=n, seed=seed, engine=engine, workers=workers, data=data,
                  force=force, progress=lambda at: show(at.done, at.total))
    document = {"out": out, "members": len(zoo), "complete": zoo.complete,
                "recipe_hash": zoo.card.recipe_hash}
    sink.result(document, f"{len(zoo)} members in {out}")


def recipes(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the recipes that come with metanet."""
    from metanet.zoo.recipe import load, names

    found = [load(name) for name in names()]
    rows = [(r.name, r.n, r.data.name, r.about) for r in found]
    Sink(as_json=as_json, quiet=quiet).result(
        [{"name": a, "n": b, "data": c, "about": d} for a, b, c, d in rows],
        table(("recipe", "n", "data", "about"), rows))


def map_(
    function: Annotated[str, typer.Argument(
        metavar="FUNCTION", help="module:name or file.py:name (its code is run: name only code "
                                 "that you trust); takes a ZooBatch, gives a value per member.")],
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the zoo.")],
    where: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--where", metavar="WHERE", help="Only members that fulfil this condition.")] = None,
    size: Annotated[int, typer.Option(
        "--size", min=1, max=10**6, help="Members per call, at most.")] = 64,
    engine: Engine = "local",
    workers: Workers = 2,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Call a function of yours on all members; prints a line of JSON for each."""
    from metanet.zoo import Zoo
    from metanet.zoo.mapping import map_members

    sink = Sink(as_json=as_json, quiet=quiet)
    found = map_members(function, Zoo.open(path), where, size=size, engine=engine, workers=workers)
    if as_json:
        sink.result(dict(found), "")
        return
    for name, value in found:
        sink.line(json.dumps({"id": name, "value": plain(value)}, default=safe))
