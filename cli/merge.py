"""``metanet merge``: models and a recipe in, one model out, a tensor at a time."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .merge_options import Calib, Normalize, OutMaybe, Restarts
from .options import Arch, Force, Json, Quiet, Seed, Spec
from .output import Sink, safe, table
from .render import group_document, groups_table

if TYPE_CHECKING:
    from metanet.tasks.merge import Plan, Recipe

_YAML = (".yml", ".yaml")
Words = Annotated[Optional[list[str]], typer.Option(  # noqa: UP045 - typer reads it on Python 3.10
    "--param", "-p", metavar="NAME=VALUE",
    help="Parameter of the method, such as density=0.5; may be repeated.")]
Text = Optional[str]  # noqa: UP045


def merge(
    sources: Annotated[list[str], typer.Argument(
        metavar="CONFIG.yml | MODEL…", help="A recipe, or models: files, folders, hf://….")],
    out: OutMaybe = None,
    method: Annotated[Text, typer.Option("--method", metavar="NAME", help="linear, slerp, "
                      "multislerp, karcher, task_arithmetic, ties, dare_linear, dare_ties, "
                      "passthrough.")] = None,
    weight: Annotated[Optional[list[float]], typer.Option(  # noqa: UP045
        "--weight", "--weights", "-w", metavar="NUMBER", help="Of each model, in order; repeated; "
        "equal by default.")] = None,
    base: Annotated[Text, typer.Option("--base", metavar="MODEL", help="Base of task vectors.")
                    ] = None,
    param: Words = None,
    dtype: Annotated[Text, typer.Option("--dtype", metavar="NAME", help="Of the result.")] = None,
    tokenizer: Annotated[Text, typer.Option("--tokenizer", metavar="union|base|MODEL", help="Match "
                         "rows of embeddings by token.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Read headers, say what would be done, and "
                                       "do nothing.")] = False,
    arch: Arch = None,
    spec: Spec = None,
    alignment: Annotated[Optional[list[Path]], typer.Option(  # noqa: UP045
        "--alignment", metavar="FILE", help="Written by `metanet align`: of the second model, the "
        "third, …")] = None,
    calib: Calib = None,
    normalize: Normalize = None,
    restarts: Restarts = 3,
    shard_size: Annotated[float, typer.Option("--shard-size", metavar="GB", min=1e-6,
                                              help="Most of one file.")] = 5.0,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge models into one; with --arch, --spec or --alignment they are aligned first."""
    if out is None and not plan:
        raise typer.BadParameter("name the result with --out, or ask for the --plan")
    options = {"method": method, "weight": weight, "base": base, "param": param, "dtype": dtype,
               "tokenizer": tokenizer}
    aligned = _align(sources, arch, spec, alignment, calib, normalize, restarts, seed)
    recipe = _recipe(sources, options, aligned, seed)
    sink = Sink(as_json=as_json, quiet=quiet)
    (_plan if plan else _run)(sink, recipe, out, shard_size, force)


def _run(sink: Sink, recipe: Recipe, out: Path, shard_size: float, force: bool) -> None:
    from metanet.tasks.merge import merge as run

    with sink.counter() as show:
        report = run(recipe, out, shard_bytes=int(shard_size * 1e9), force=force, progress=show)
    for note in report.notes:
        sink.say(f"note: {safe(note)}")
    sink.say(f"{'wrote' if report.written else 'already there, of the same recipe:'} {safe(out)}")
    text = (f"{report.method}: {report.tensors} tensors, {report.bytes} bytes in "
            f"{report.seconds:.1f} s, peak {report.peak_memory >> 20} MiB: {safe(out)}")
    sink.result(report.to_json(), text)


def _plan(sink: Sink, recipe: Recipe, *_: Any) -> None:
    from metanet.tasks.merge import plan

    with sink.progress("reading headers"):
        laid = plan(recipe)
        space = laid.space()
    groups = None if space is None else [group_document(group) for group in space.groups]
    shown = [] if space is None else ["aligned by the groups", *groups_table(space)]
    sink.result({**laid.to_json(), "groups": groups}, [*_text(laid), *shown])


def _recipe(sources: list[str], given: dict[str, Any], aligned: Any, seed: int) -> Recipe:
    from metanet.tasks.merge import read_recipe
    from metanet.tasks.merge.recipe import checked_dtype, of_models

    if len(sources) == 1 and sources[0].lower().endswith(_YAML):
        named = [f"--{key}" for key, value in given.items() if value]
        if named or aligned is not None:
            raise typer.BadParameter(f"the recipe says it all: write {', '.join(named) or 'align'} "
                                     "into the file")
        return read_recipe(sources[0])
    return of_models(sources, given["method"] or "linear", given["weight"] or None,
                     base=given["base"], parameters=dict(map(_parameter, given["param"] or ())),
                     dtype=checked_dtype(given["dtype"]), tokenizer_source=given["tokenizer"],
                     align=aligned, seed=seed)


def _align(sources: list[str], arch: str | None, spec: Path | None, files: list[Path] | None,
           calib: Path | None, normalize: str | None, restarts: int, seed: int) -> Any:
    if arch is None and spec is None and not files:
        if calib is not None:
            raise typer.BadParameter("--calib is of use only with --arch")
        return None
    from metanet.tasks.merge.recipe import AlignOptions

    if len(files or ()) > len(sources) - 1:
        raise typer.BadParameter("more alignments than models beside the first")
    load = {model: str(path) for model, path in zip(sources[1:], files or (), strict=False)}
    return AlignOptions("auto", arch, None if spec is None else str(spec),
                        None if calib is None else str(calib), normalize, restarts, seed, load)


def _parameter(text: str) -> tuple[str, float | bool]:
    name, sign, value = text.partition("=")
    try:
        if not name or not sign:
            raise ValueError
        word = value.strip().lower()
        if word in ("true", "false"):
            return name, word == "true"
        return name, int(word) if re.fullmatch(r"[+-]?\d+", word) else float(word)
    except ValueError:
        raise typer.BadParameter(f"--param wants NAME=NUMBER, not {safe(text)!r}") from None


def _text(laid: Plan) -> list[str]:
    """One line per kind of tensor: numbers in names stand for all that differ in them alone."""
    kinds: Counter[tuple[str, str, str]] = Counter()
    for job in laid.jobs:
        shape = "x".join(map(str, job.info.shape)) or "scalar"
        what = f"{job.info.dtype}{'' if job.values else ', copied'}"
        kinds[re.sub(r"\d+", "N", job.name), shape, what] += 1
    rows = [(safe(name), shape, what, str(count)) for (name, shape, what), count in kinds.items()]
    v = laid.vocabulary
    return [
        f"{laid.recipe.method} of {len(laid.models)} models in the order of "
        f"{safe(laid.recipe.reference)}",
        *table(("tensor", "shape", "dtype", "count"), rows),
        "vocabulary: " + ("as it is" if v is None else f"{v.size} rows, {safe(v.source)}, "
                          f"{v.added} tokens added"),
        "ties: " + (", ".join(f"{safe(a)} = {safe(o)}" for a, o in laid.aliases.items()) or "none"),
        f"result: {len(laid.jobs)} tensors, {laid.bytes} bytes; to download: at most "
        f"{laid.download} bytes",
        f"peak memory above the start of torch: about {laid.peak_memory >> 20} MiB "
        f"(largest tensor in float32: {laid.largest >> 20} MiB)",
        *(f"note: {safe(note)}" for note in laid.notes),
    ]
