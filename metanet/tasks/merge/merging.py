"""``merge``: models and a recipe in, one model and a report out."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.checkpoint import open as open_checkpoint
from metanet.checkpoint import printable
from metanet.errors import MetanetError
from metanet.tasks.merge.plan import Plan, plan, result_config
from metanet.tasks.merge.recipe import AlignOptions, Recipe, Setting, checked_dtype, of_models
from metanet.tasks.merge.sources import SMALL_FILES, beside, choose

if TYPE_CHECKING:
    from torch import Tensor

    from metanet.checkpoint import Checkpoint
    from metanet.symmetry import Resolved
    from metanet.tasks.merge.alignment import Alignment
    from metanet.tasks.merge.stream import Progress, Stream

MARK = "metanet.merge"


@dataclass(frozen=True, eq=False)
class MergeReport:
    """What a merge did.

    Attributes:
        out: the file or folder; None where the result is in ``weights``.
        method: by which tensors were merged.
        tensors: how many were written.
        bytes: of all tensors written.
        seconds: of wall clock.
        peak_memory: most memory that the process ever held, mapped files included, in bytes.
        working_memory: most anonymous memory above that at the start, in bytes.
        alignment: how models were brought into one order, or None.
        digest: sha256 of the recipe and of what identifies its models.
        written: False where ``out`` held the result of the same recipe already.
        notes: what a reader should know.
        weights: the result, where no ``out`` was named.
    """

    out: str | None
    method: str
    tensors: int
    bytes: int
    seconds: float
    peak_memory: int
    alignment: Mapping[str, Any] | None
    digest: str
    working_memory: int = 0
    written: bool = True
    notes: tuple[str, ...] = ()
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the weights."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__
                if name != "weights"}

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(printable(name))}</th>"
                       f"<td>{html.escape(printable(value))}</td></tr>"
                       for name, value in self.to_json().items() if value not in (None, ()))
        return f"<table>{rows}</table>"


def merge(
    config_or_models: Any,
    out: str | Path | None = None,
    *,
    method: str | None = None,
    weight: Sequence[float] | None = None,
    base: Any = None,
    parameters: Mapping[str, Setting] | None = None,
    dtype: str | None = None,
    out_dtype: str | None = None,
    tokenizer_source: str | None = None,
    align: AlignOptions | Mapping[str, Any] | Sequence[Alignment | None] | None = None,
    seed: int = 0,
    shard_bytes: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge models, one tensor at a time.

    Args:
        config_or_models: a recipe (a YAML file in mergekit's form, a mapping of the same keys, a
            ``Recipe``), or a list of models: anything that ``metanet.open`` takes.
        out: a folder to make (weights in shards, index, config, tokenizer, model card), or a name
            ending in ``.safetensors`` for one file. None: the tensors are in ``report.weights``.
        method: for a list of models; linear by default. So are the following.
        weight: one per model; equal by default.
        base: the base model of task vectors; names, config and tokenizer follow it.
        parameters: of the method, such as ``{"density": 0.5}``.
        dtype: of the result; computed in float32, or in float64 where a model is.
        out_dtype: the same, stronger.
        tokenizer_source: ``union``, ``base`` or a model: match rows of embeddings by token.
        align: how to bring the models into the order of the reference first: the keys of a
            recipe's ``align:``, or one ``Alignment`` (or None) per model, in the order of the list.
        seed: of DARE's random numbers.
        shard_bytes: most bytes of one file; 5 GB by default.
        force: replace what ``out`` holds. The result of the same recipe is left alone in any case.
        progress: called with (tensors done, tensors in all).

    Raises:
        MetanetError: a recipe or models that do not fit; nothing was written. HubError: network.
    """
    started = time.perf_counter()
    models: dict[str, Any] = {}
    ready: dict[str, Alignment] = {}
    if isinstance(config_or_models, list | tuple):
        models = _labels([*config_or_models, *([] if base is None else [base])])
        named = list(models)[:len(config_or_models)]
        options, ready = _alignments(align, named)
        recipe = of_models(
            named, method or "linear", weight, parameters=parameters,
            base=None if base is None else list(models)[-1], dtype=checked_dtype(dtype),
            out_dtype=checked_dtype(out_dtype), tokenizer_source=tokenizer_source,
            align=options, seed=seed)
    else:
        given = (method, weight, base, parameters, dtype, out_dtype, tokenizer_source, align)
        if any(value is not None for value in given):
            raise MetanetError("a recipe says all of the method, weights, base and so on: change "
                               "it there")
        recipe = as_recipe(config_or_models)
    laid = plan(recipe, models)
    return run(laid, out, ready, shard_bytes, force, progress, started)


def as_recipe(config: Any) -> Recipe:
    """A recipe out of a file, a mapping or a recipe. Raises MetanetError."""
    if isinstance(config, Recipe):
        return config
    if isinstance(config, str | Path | Mapping):
        from metanet.tasks.merge.recipe_file import read_recipe

        return read_recipe(config)
    raise MetanetError(f"a {type(config).__name__} is neither a recipe nor a list of models")


def _labels(models: Sequence[Any]) -> dict[str, Any]:
    """A name for every model: its path, or its number where it is in memory."""
    out: dict[str, Any] = {}
    for number, model in enumerate(models):
        name = str(model) if isinstance(model, str | Path) else f"model {number}"
        while name in out:
            name = f"{name} (again)"
        out[name] = model
    return out


def _alignments(
    align: Any, named: Sequence[str]
) -> tuple[AlignOptions | None, dict[str, Alignment]]:
    if align is None or isinstance(align, AlignOptions):
        return align, {}
    if isinstance(align, Mapping):
        try:
            return AlignOptions(**align), {}
        except TypeError as error:
            raise MetanetError(f"align: {error}; it takes "
                               f"{', '.join(AlignOptions.__dataclass_fields__)}") from None
    if len(align) != len(named):
        raise MetanetError(f"{len(align)} alignments for {len(named)} models: give one of each, "
                           "None for the reference")
    found = {name: a for name, a in zip(named, align, strict=True) if a is not None}
    return AlignOptions("given", load=dict.fromkeys(found, "memory")), found


# ---------------------------------------------------------------- running


def run(laid: Plan, out: str | Path | None, ready: Mapping[str, Alignment], limit: int | None,
        force: bool, progress: Progress | None, started: float) -> MergeReport:
    """Carry a plan out; see ``merge``."""
    target = None if out is None else Path(out)
    digest = _digest(laid, ready)
    if target is not None and _holds(target, digest):
        return _report(laid, target, digest, None, started, None, None, written=False)
    _refuse(target, force)
    from metanet.tasks.merge.stream import Stream

    moves, moved = (dict(ready), {}) if ready else _find(laid)
    stream = Stream(laid, moves, moved)
    told = None if laid.recipe.align is None else {
        "to": laid.recipe.reference, "models": {n: _told(m) for n, m in moves.items()}}
    if target is None:
        weights = {job.name: stream.tensor(job).clone() for job in laid.jobs}
        weights |= {alias: weights[owner] for alias, owner in laid.aliases.items()}
        return _report(laid, None, digest, told, started, stream, weights)
    _write(stream, target, digest, told, limit, force, progress)
    return _report(laid, target, digest, told, started, stream, None)


def _told(move: Alignment) -> dict[str, Any]:
    return {k: v for k, v in move.to_json().items() if k not in ("details", "moved")}


def _digest(laid: Plan, ready: Mapping[str, Alignment]) -> str:
    import hashlib

    parts: list[Any] = [laid.digest]
    options = laid.recipe.align
    files = [] if options is None else [options.calib, options.spec, *options.load.values()]
    for name in filter(None, files):
        path = Path(name)
        if path.is_file():
            parts.append([name, path.stat().st_size, path.stat().st_mtime_ns])
    for name, move in ready.items():
        element = move.element
        parts += [name, *(f"{k}{v.tolist()}" for k, v in sorted(element.tables.items())),
                  *(f"{k}{v.tolist()}" for k, v in sorted(element.values.items()))]
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "backslashreplace")).hexdigest()


def _holds(target: Path, digest: str) -> bool:
    """Whether there is a whole result of this recipe."""
    if not target.exists():
        return False
    try:
        mark = open_checkpoint(target).metadata.get(MARK)
        return isinstance(mark, str) and json.loads(mark)["sha256"] == digest
    except (MetanetError, ValueError, KeyError, TypeError):
        return False


def _refuse(target: Path | None, force: bool) -> None:
    """Before any work: what stands in the way of the result."""
    if target is None:
        return
    single = target.suffix == ".safetensors"
    if target.is_dir() and single:
        raise MetanetError(f"{printable(target)}: is a folder. Name a file, or a folder without "
                           "the suffix.")
    if target.exists() and not force:
        raise MetanetError(f"{printable(target)}: exists and holds something else. Name another "
                           "output, or add --force (force=True).")
    if not target.parent.is_dir():
        raise MetanetError(f"{printable(target)}: the folder {printable(target.parent)} does not "
                           "exist. Create it first.")


def _write(stream: Stream, target: Path, digest: str, told: Any, limit: int | None, force: bool,
           progress: Progress | None) -> None:
    from metanet.tasks.merge.stream import (
        SHARD_BYTES,
        folder_beside,
        place,
        write_small,
        write_weights,
    )

    laid, single = stream.plan, target.suffix == ".safetensors"
    metadata = {MARK: json.dumps({"sha256": digest, "method": laid.recipe.method})}
    if limit is not None and limit < 1:
        raise MetanetError("a shard needs at least one byte")
    with folder_beside(target) as work:
        fresh = work / target.name
        if single:
            write_weights(stream, work, 1 << 62, metadata, progress)
            (work / "model.safetensors").rename(fresh)
        else:
            fresh.mkdir()
            for name, content in _small(laid, told).items():
                write_small(fresh / name, content)
            write_weights(stream, fresh, limit or SHARD_BYTES, metadata, progress)
        place(fresh, target, force)


def _small(laid: Plan, told: Any) -> dict[str, bytes]:
    """config.json, tokenizer, model card."""
    from metanet.tasks.merge.card import card
    from metanet.tasks.merge.stream import to_json

    out: dict[str, bytes] = {"README.md": card(laid, told).encode("utf-8", "backslashreplace")}
    config = result_config(laid)
    if config:
        out["config.json"] = to_json(config)
    if laid.vocabulary is not None:
        return {**out, **laid.vocabulary.files}
    wanted = laid.recipe.tokenizer_source
    leader = laid.recipe.reference if wanted in (None, "union", "base") else choose(
        laid.models, laid.models, str(wanted))
    for name in SMALL_FILES if config else ():
        path = beside(laid.models[leader], name)
        if path is not None:
            out[name] = path.read_bytes()
    return out


def _report(laid: Plan, target: Path | None, digest: str, told: Any, started: float,
            stream: Stream | None, weights: Mapping[str, Tensor] | None, written: bool = True
            ) -> MergeReport:
    from metanet.tasks.merge.stream import peak

    return MergeReport(
        None if target is None else str(target), laid.recipe.method, len(laid.jobs), laid.bytes,
        round(time.perf_counter() - started, 4), peak(), told, digest,
        0 if stream is None else stream.working, written, laid.notes, weights)


# ---------------------------------------------------------------- alignment


def _find(laid: Plan) -> tuple[dict[str, Alignment], dict[str, Checkpoint]]:
    """Alignments of all models to the reference: loaded where they were saved, else searched; and
    the moved models, where files cut tensors in another way than the network does.
    """
    options = laid.recipe.align
    if options is None:
        return {}, {}
    from metanet.tasks.merge.align import align
    from metanet.tasks.merge.alignment import Alignment
    from metanet.tasks.merge.data import load, parse_normalize

    for name in options.load:
        choose(laid.models, laid.models, name)
    out = {name: Alignment.load(path) for name, path in options.load.items()}
    left = [n for n in laid.models if n not in out and n != laid.recipe.reference]
    found = laid.resolved() or _another_cut(laid, out)
    if found is None:
        return out, {}
    calib = None
    if options.calib is not None:
        calib = load(Path(options.calib), parse_normalize(options.normalize)).shuffled()
    for name in left:
        out[name] = align(found.checkpoint, found.alike(laid.models[name]), found.space,
                          options.method, calib, arch=options.arch, restarts=options.restarts,
                          seed=options.seed)
    if not found.storage.parts:
        return out, {}
    return out, {name: found.storage.moved(laid.models[name], move.act)
                 for name, move in out.items()}


def _another_cut(laid: Plan, found: Mapping[str, Alignment]) -> Resolved | None:
    """The reference, where alignments speak of tensors that its file holds in another cut."""
    reference = laid.models[laid.recipe.reference]
    if all(name in reference for move in found.values() for name in move.space.tensors):
        return None
    from metanet.symmetry import resolve

    return resolve(reference)


__all__ = ["MergeReport", "as_recipe", "merge", "run"]
