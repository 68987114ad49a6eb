"""``metanet predict``: what a stored predictor says of checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from .errors import BAD_INPUT
from .options import Json, Quiet
from .output import Sink, safe, table


def predict(
    run: Annotated[str, typer.Argument(
        metavar="RUN|NAME", help="Folder of a run, or a shipped predictor: small-cnn (test "
        "accuracy), inr-mnist (which digit a SIREN shows).")],
    sources: Annotated[list[str], typer.Argument(
        metavar="SRC…", help="Checkpoints: files, folders of files, hf://org/name/file.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict from weights, with an interval, or a flag where training saw nothing like it."""
    from metanet.nn import keep_freed_memory
    from metanet.tasks.predict import Predictors

    sink = Sink(as_json=as_json, quiet=quiet)
    keep_freed_memory()
    loaded = Predictors.load(run)
    found, rows = [], []
    for one in loaded.each(sources):
        if isinstance(one, tuple):
            found.append({"source": one[0], "error": one[1]})
            rows.append((safe(one[0]), "-", "-", f"refused: {safe(one[1])}"))
        else:
            found.append(asdict(one))
            rows.append(_row(found[-1]))
    sink.result(found, table(("source", "prediction", "90 % interval", "note"), rows))
    if found and all("error" in entry for entry in found):
        raise typer.Exit(BAD_INPUT)


def _row(one: dict[str, Any]) -> tuple[str, str, str, str]:
    value = one["prediction"]
    if one["probability"] is not None:
        shown = f"{value} (p = {one['probability']:.2f})"
        within = "-" if one["classes"] is None else "{" + ", ".join(map(str, one["classes"])) + "}"
    else:
        shown = f"{value:.4f}"
        within = "-" if one["interval"] is None else "[{:.4f}, {:.4f}]".format(*one["interval"])
    note = f"out of distribution: {one['note']}" if one["out_of_distribution"] else ""
    return safe(one["source"]), shown, within, note
