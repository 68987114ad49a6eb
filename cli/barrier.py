"""``metanet barrier``: loss and accuracy along the line between two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .files import write
from .merge_options import A, B, Calib, Data, Normalize, Restarts, contents
from .options import Arch, Force, Json, Quiet, Seed, Spec, resolved
from .output import Sink, table


def barrier(
    a: A,
    b: B,
    data: Data,
    arch: Arch = None,
    spec: Spec = None,
    calib: Calib = None,
    normalize: Normalize = None,
    points: Annotated[int, typer.Option(
        "--points", metavar="INT", min=3, max=9999, help="Points per path, odd.")] = 25,
    method: Annotated[str, typer.Option(
        "--method", metavar="NAME", help="auto, weights or activations.")] = "auto",
    restarts: Restarts = 3,
    plot: Annotated[Optional[Path], typer.Option(  # noqa: UP045
        "--plot", metavar="FILE", help="Draw the paths: .svg or .png.")] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score the line from A to B: naive, aligned, repaired, calibrated; the ensemble beside."""
    from metanet.tasks.merge import barrier as measure

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress("matching and scoring"):
        first = resolved(a, arch, spec)
        if first.code is None and first.arch is not None:
            raise typer.BadParameter(f"models are run here, and {first.note}: if that is so, add "
                                     f"--arch {first.arch}")
        scored = contents(data, normalize)
        found = measure(first.checkpoint, first.alike(b), scored, contents(calib, normalize),
                        points=points, space=first.space, arch=first.code, method=method,
                        restarts=restarts, seed=seed)
    if found.contaminated:
        sink.say(f"warning: {found.shared} of {len(scored)} rows are scored on and calibrated on: "
                 "the figures are contaminated")
    document = found.to_json()
    if plot is not None:
        _draw(document, plot, force=force, sink=sink)
    sink.result(document, _text(document))


def _draw(document: dict[str, Any], plot: Path, *, force: bool, sink: Sink) -> None:
    from metanet.report.paths import save_paths

    paths = {name: [(p["t"], p["loss"], p["accuracy"]) for p in path["points"]]
             for name, path in document["variants"].items()}
    sink.said(write(plot, lambda path: save_paths(paths, path), force=force), plot)


def _text(document: dict[str, Any]) -> list[str]:
    rows = []
    for name, path in document["variants"].items():
        middle = path["midpoint"]
        accuracy = "-" if middle["accuracy"] is None else f"{middle['accuracy']:.4f}"
        rows.append((name, f"{path['barrier_loss']:.4f}", f"{middle['loss']:.4f}", accuracy))
    first, last = (document["variants"]["naive"]["points"][i] for i in (0, -1))
    ends = [f"{name}: loss {p['loss']:.4f}" + (
        "" if p["accuracy"] is None else f", accuracy {p['accuracy']:.4f}")
        for name, p in (("A", first), ("B", last))]
    return [*ends, *table(("variant", "barrier", "loss at 1/2", "accuracy at 1/2"), rows),
            f"alignment: {document['alignment']['method']}; calibration data prefer "
            f"{document['chosen']}"]
