"""Checkpoints that others made: a folder with a manifest, as a part that is only tested on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import metanet.checkpoint as checkpoints
from metanet.checkpoint.names import natural_key, printable
from metanet.errors import CheckpointError, MetanetError
from metanet.graph import WeightBatch
from metanet.symmetry import WeightSpace
from metanet.tasks.predict.data import Array, Part, Task

_TARGETS = ("test_accuracy", "test_acc_best")
_MOST = 32 << 20


def fitted_to(space: WeightSpace, source: Any) -> dict[str, Tensor]:
    """Tensors of a checkpoint under the names of a space.

    Names may differ by what stands in front of all of them, or altogether where the shapes follow
    each other in the same order.

    Raises:
        CheckpointError: if it cannot be read, or holds other tensors than the space.
    """
    ckpt = checkpoints.open(source)
    wanted = {name: spec.shape for name, spec in space.tensors.items()}
    shapes = {name: tuple(ckpt.shape(name)) for name in ckpt.names}
    names = _matched(wanted, shapes)
    if names is None:
        raise CheckpointError(
            f"{printable(source, 200)}: holds {len(shapes)} tensors {_shown(shapes)}, the "
            f"predictor reads {len(wanted)} tensors {_shown(wanted)}; it knows no other network")
    return {ours: _sound(ckpt.read(theirs), theirs, source) for ours, theirs in names.items()}


def _sound(value: Tensor, name: str, source: Any) -> Tensor:
    if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"{printable(source, 200)}: tensor {printable(name, 80)!r} holds "
                              "something else than finite floating-point numbers")
    return value.to(torch.float32)


def _matched(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
             ) -> dict[str, str] | None:
    """Our name → theirs."""
    if len(wanted) != len(found):
        return None
    ours, theirs = (sorted(names, key=natural_key) for names in (wanted, found))
    for name in theirs:  # equal up to a prefix
        for own in ours:
            if name.endswith(own):
                prefix = name[:len(name) - len(own)]
                pairs = {n: prefix + n for n in ours}
                if all(found.get(b) == wanted[a] for a, b in pairs.items()):
                    return pairs
    if [wanted[n] for n in ours] == [found[n] for n in theirs]:
        return dict(zip(ours, theirs, strict=True))
    return None


def _shown(shapes: dict[str, tuple[int, ...]]) -> str:
    text = ", ".join("x".join(map(str, shape)) or "()" for shape in list(shapes.values())[:6])
    return f"({text}{', …' if len(shapes) > 6 else ''})"


def strangers(folder: Path, task: Task) -> tuple[Part, dict[str, int]]:
    """Members of a folder with a ``manifest.json``: entries with file, repo and an accuracy.

    Returns:
        Those that are better than chance, their repositories in ``info['repo']``; and a census.

    Raises:
        MetanetError: if there is no manifest, or nothing in it fits the task.
    """
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > _MOST:
            raise MetanetError(f"{path}: is larger than {_MOST} bytes; it is no manifest")
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MetanetError(f"{path}: cannot be read as a manifest ({error})") from None
    rows: list[tuple[str, str, float, dict[str, Tensor]]] = []
    census = {"members": len(entries), "refused": 0, "chance": 0}
    for entry in entries:
        y = next((float(entry[key]) for key in _TARGETS if key in entry), float("nan"))
        if task.goal.least is not None and not y >= task.goal.least:
            census["chance"] += 1
            continue
        try:
            state = fitted_to(task.space, folder / Path(str(entry["file"])).name)
        except CheckpointError:
            census["refused"] += 1
            continue
        rows.append((str(entry["file"]), str(entry.get("repo", entry["file"])), y, state))
    if len(rows) < 2:
        raise MetanetError(f"{folder}: {len(rows)} of {len(entries)} files fit the space of "
                           f"{task.name}")
    return _part(rows, task), census


def _part(rows: list[tuple[str, str, float, dict[str, Tensor]]], task: Task) -> Part:
    n, like = len(rows), task.parts["train"]
    batch = WeightBatch.stack(task.space, [row[3] for row in rows], [row[0] for row in rows])
    info: dict[str, Array] = {"repo": np.array([row[1] for row in rows], object)}
    hyper = np.full((n, like.hyper.shape[1]), np.nan)
    return Part(tuple(row[0] for row in rows), batch, np.array([row[2] for row in rows]),
                np.full(n, "strangers"), hyper, torch.zeros(n, like.context.shape[1]), info)
