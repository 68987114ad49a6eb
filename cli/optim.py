"""``metanet optim train`` and ``metanet optim bench``: learned optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .errors import guarded
from .examples import epilog
from .options import Json, Quiet
from .output import Sink, safe, table

app = typer.Typer(name="optim", help="Optimizers that are learned: train and measure them.",
                  no_args_is_help=True)
Data = Annotated[Optional[str], typer.Option(  # noqa: UP045 - typer reads it on Python 3.10
    "--data", metavar="PATH", help="Folder of the data sets; else METANET_DATA.")]


def train(
    recipe: Annotated[str, typer.Argument(
        metavar="RECIPE", help="optim-default, optim-context, optim-context2, optim-digits, "
        "optim-full, or a YAML file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Folder of the run; an "
                                      "interrupted one goes on.")],
    data: Data = None,
    steps: Annotated[Optional[int], typer.Option(  # noqa: UP045
        "--steps", min=1, help="Outer steps, instead of the recipe's.")] = None,
    seed: Annotated[Optional[int], typer.Option(  # noqa: UP045
        "--seed", metavar="INT", help="Meta-seed, instead of the recipe's.")] = None,
    minutes: Annotated[Optional[float], typer.Option(  # noqa: UP045
        "--minutes", help="Stop after so many CPU minutes; the same command goes on.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another run.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a learned optimizer; leaves net.safetensors, a log and the curve of the meta-loss."""
    from dataclasses import replace

    from metanet.nn import keep_freed_memory
    from metanet.tasks.optimize import recipe as recipes
    from metanet.tasks.optimize.meta import NET, Training

    sink = Sink(as_json=as_json, quiet=quiet)
    keep_freed_memory()
    changed = {k: v for k, v in (("steps", steps), ("seed", seed)) if v is not None}
    plan = replace(recipes.load(recipe), **changed)
    training = Training(plan, out, data, force=force)
    with sink.progress("meta-training"):
        net = training.run(60 * minutes if minutes else None, sink.say)
    document = {"out": out, "net": out / NET, "hash": net.hash, **net.about}
    loss = net.about["meta_loss"]
    told = "not begun" if loss is None else f"meta-loss {loss:.4f}"
    sink.result(document, [f"{net.about['outer_steps']} of {plan.steps} outer steps, {told}, net "
                           f"{safe(out / NET)}"])


def bench(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the results; "
                                      "an interrupted benchmark goes on.")],
    net: Annotated[Optional[list[str]], typer.Option(  # noqa: UP045
        "--net", metavar="[NAME=]NET", help="A learned net: default, context, or a file; may be "
                                            "given several times.")] = None,
    tasks: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--tasks", metavar="A,B", help="Only these unseen tasks.")] = None,
    rivals: Annotated[Optional[str], typer.Option(  # noqa: UP045
        "--rivals", metavar="A,B", help="Only these of sgdm, adamw, lion, muon.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1)] = 3,
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help="Tune the rivals.")] = True,
    steps: Annotated[Optional[int], typer.Option(  # noqa: UP045
        "--steps", min=10, help="Steps of every task, for a small size.")] = None,
    data: Data = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure learned nets beside SGD, AdamW, Lion and Muon on tasks that none was trained on."""
    from metanet.tasks.optimize.bench import Options
    from metanet.tasks.optimize.bench import bench as run
    from metanet.tasks.optimize.card import write
    from metanet.tasks.optimize.rivals import RIVALS
    from metanet.tasks.optimize.shipped import named
    from metanet.tasks.optimize.unseen import UNSEEN

    sink = Sink(as_json=as_json, quiet=quiet)
    pairs = [word.rpartition("=") for word in net or ["default"]]
    nets = {name or Path(path).stem: named(path) for name, _, path in pairs}
    options = Options(out, nets, tuple(tasks.split(",")) if tasks else tuple(UNSEEN),
                      tuple(rivals.split(",")) if rivals else tuple(RIVALS), seeds, tune, steps,
                      data)
    document = run(options, sink.say)
    write(document, out)
    sink.result(document, _text(document))
    sink.say(f"card: {safe(out / 'card.md')}")


def _text(document: dict[str, Any]) -> list[str]:
    rows = [(r["split"], r["model"], "failed" if r["mean"] is None else f"{r['mean']:.4f}",
             r["failures"], f"{r['step_ms']:.2f}") for r in document["rows"]]
    lines = table(("task", "optimizer", "final loss", "failures", "step ms"), rows)
    for one in document["comparisons"]:
        low, high = one["wins_interval"]
        lines.append(f"{one['one']} below {one['other']} on {one['wins']:.0%} of {one['tasks']} "
                     f"tasks ({low:.0%} to {high:.0%})")
    return lines


app.command("train", epilog=epilog("optim train"))(guarded(train))
app.command("bench", epilog=epilog("optim bench"))(guarded(bench))
