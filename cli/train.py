"""``metanet train`` and ``metanet evaluate``: a reader of weights, from a zoo to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .options import Json, Quiet, Seed
from .output import Sink, safe, table

if TYPE_CHECKING:
    from metanet.tasks.predict import Cut

ZooDir = Annotated[Path, typer.Argument(metavar="ZOO", help="Folder of the zoo.")]
Split = Annotated[Optional[str], typer.Option(  # noqa: UP045 - typer reads it on Python 3.10
    "--split", metavar="BY[:COLUMN[:A,B]]", help="How to split: run (the default), image, "
    "column:config.activation:tanh, band:config.lr:0.01,0.05.")]


def cut_of(text: str | None) -> Cut:
    """``BY[:COLUMN[:A,B]]`` as a split."""
    from metanet.tasks.predict import Cut

    if not text:
        return Cut()
    by, _, rest = text.partition(":")
    column, _, values = rest.partition(":")
    held: tuple[Any, ...] | None = tuple(values.split(",")) if values else None
    return Cut(text if rest else "iid", by, column or None, held)


def train(
    task: Annotated[str, typer.Argument(
        metavar="TASK", help="accuracy, label, loss, or a column such as metrics.train_loss.")],
    zoo: ZooDir,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Folder of the run; an "
                                      "interrupted one goes on.")],
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="mlp, deepsets, dws, "
                     "unf, gmn, gmn-forward, product, flagship-w, probing or flagship-q.")] = "gmn",
    split: Split = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, max=10**6)] = 30,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=10**6)] = 32,
    accumulate: Annotated[int, typer.Option(
        "--accumulate", min=1, max=10**6, help="Batches per step.")] = 1,
    width: Annotated[int, typer.Option(
        "--width", min=1, max=4096, help="Channels of the layers.")] = 16,
    lr: Annotated[Optional[float], typer.Option("--lr", help="Greatest step size.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(  # noqa: UP045
        "--limit", min=8, help="Members to take, at most.")] = None,
    conventions: Annotated[bool, typer.Option(
        "--conventions", help="Of coordinate networks: also draw the order of coordinates and the "
                              "range of values, which files do not tell.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another run.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a predictor on a zoo; under torchrun, on several processes."""
    from metanet.zoo import Zoo

    from metanet.nn import keep_freed_memory
    from metanet.tasks.predict import Budget, Plan
    from metanet.tasks.predict.data import load
    from metanet.tasks.predict.rows import row
    from metanet.tasks.predict.running import goal_of, train_run

    sink = Sink(as_json=as_json, quiet=quiet)
    keep_freed_memory()
    setting = {**row(model).settings[0], **({"lr": lr} if lr else {}),
               **({"conventions": True} if conventions else {})}
    plan = Plan(epochs=epochs, batch_size=batch_size, accumulate=accumulate, seed=seed,
                lr=setting.get("lr", 1e-3))
    with sink.counter() as show:
        found = load(Zoo.open(zoo), goal_of(task), cut_of(split), limit=limit)
        document = train_run(found, model, out, plan=plan, setting=setting, force=force,
                             budget=Budget(width=width, batch_size=batch_size), progress=show)
    if document is not None:
        sink.result({"out": out, **document}, _text(document))
        sink.say(f"predictor in {safe(out)}; next: metanet predict {safe(out)} FILE…")


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    zoo: ZooDir,
    limit: Annotated[Optional[int], typer.Option(  # noqa: UP045
        "--limit", min=8, help="Members to take, at most; as in training.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a predictor on the test part of a zoo, split as it was for training."""
    from metanet.zoo import Zoo

    from metanet.nn import keep_freed_memory
    from metanet.tasks.predict.running import evaluate_run

    sink = Sink(as_json=as_json, quiet=quiet)
    keep_freed_memory()
    document = evaluate_run(run, Zoo.open(zoo), limit=limit)
    sink.result({"out": run, **document}, _text(document))


def _text(document: dict[str, Any]) -> list[str]:
    scores = [(name, f"{value:.4f}") for name, value in document["scores"].items()]
    return [f"{document['model']} (track {document['track']}) on {document['n']} members of the "
            f"test part, split {safe(document['split'])}", *table(("score", "value"), scores),
            f"coverage {document['coverage']:.3f} of intervals of level {document['level']}; "
            f"{document['flagged']:.1%} flagged as out of distribution"]
