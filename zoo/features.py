"""What the leak gate gives to its classifiers: tables of numbers, one row per member."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from metanet.zoo.index import MAX_ROWS
from metanet.zoo.selection import Selection
from torch import Tensor

if TYPE_CHECKING:
    from metanet.zoo.store import Zoo

_STEPS = ("config.steps", "metrics.steps", "step", "config.epochs", "metrics.epochs")
_LOSSES = ("metrics.final_loss", "metrics.loss", "metrics.train_loss", "metrics.mse",
           "metrics.psnr")
_CHUNKS = ("config.chunk",)
_WIDE = 1024  # more numbers than this per member are projected
_MEMBERS = 1000  # of one layout, in the tables of weights
_TRIES = ("logistic", "boosting")


@dataclass(frozen=True, eq=False)
class Table:
    """Evidence: numbers that may tell a class.

    Attributes:
        evidence: what it is.
        values: ``[n, d]``, without NaN.
        places: which member of the zoo each row is, ``[n]``.
        columns: the columns of the index that it was made of.
        classifiers: which to try.
        most: members to look at, at most.
        shuffled: whether the labels are shuffled before training.
        missing: why there is no such table.
    """

    evidence: str
    values: Float[np.ndarray, "n d"]
    places: Int64[np.ndarray, " n"]
    columns: tuple[str, ...] = ()
    classifiers: tuple[str, ...] = _TRIES
    most: int = 4000
    shuffled: bool = False
    missing: str | None = None


def _none(evidence: str, why: str) -> Table:
    return Table(evidence, np.empty((0, 0)), np.empty(0, np.int64), missing=why)


def order_table(zoo: Zoo) -> Table:
    """Where a member stands: its index, shard, row and chunk."""
    found = zoo.query()
    places = found.places
    index = np.arange(len(places), dtype=np.float64)
    parts = [index, (places // MAX_ROWS).astype(np.float64), (places % MAX_ROWS).astype(np.float64)]
    parts += [found[name] for name in _CHUNKS if name in zoo.columns
              and zoo.columns[name].kind != "str"]
    return Table("order (index, chunk)", _filled(parts), np.arange(len(places)))


def training_table(zoo: Zoo) -> Table:
    """How long a member was trained, and the loss that it ended with; initialisations left out."""
    trained = np.flatnonzero(zoo.query()["step"] != 0)
    found = Selection(zoo, zoo.query().places[trained])
    names = [name for name in (*_STEPS, *_LOSSES)
             if name in zoo.columns and zoo.columns[name].kind != "str"]
    arrays = {name: found[name] for name in names}
    arrays = {name: a for name, a in arrays.items() if len(np.unique(a[np.isfinite(a)])) > 1}
    if not arrays:
        return _none("training (steps, final loss)", "every member has the same steps and loss, or "
                     "none is stored")
    return Table("training (steps, final loss)", _filled(list(arrays.values())), trained,
                 tuple(arrays))


def _filled(parts: list[np.ndarray[Any, Any]]) -> Float[np.ndarray, "n d"]:
    """Columns side by side; what is missing becomes a value of its own and a flag."""
    out = []
    for part in parts:
        gone = ~np.isfinite(part)
        out.append(np.where(gone, 0.0, np.nan_to_num(part)))
        if gone.any():
            out.append(gone.astype(np.float64))
    return np.stack(out, 1)


def step_zero_tables(zoo: Zoo, seed: int) -> Iterator[Table]:
    """Initialisations, one table per layout."""
    where = np.flatnonzero(zoo.query()["step"] == 0)
    if not len(where):
        yield _none("step-0 weights", "no step-0 weights are stored")
        return
    yield from _weights(zoo, where, "step-0 weights", ("logistic",), seed)
    yield from _weights(zoo, where, "step-0 statistics", ("boosting",), None)


def weight_tables(zoo: Zoo, seed: int) -> Iterator[Table]:
    """Final weights, one table per layout; for shuffled labels."""
    steps = zoo.query()["step"]
    where = np.flatnonzero(~(steps == 0))
    if not len(where):
        yield _none("weights", "only step-0 weights are stored")
        return
    yield from _weights(zoo, where, "weights", ("logistic", "neighbour"), seed)


def _weights(zoo: Zoo, where: Int64[np.ndarray, " k"], evidence: str, tries: tuple[str, ...],
             seed: int | None) -> Iterator[Table]:
    places = zoo.query().places
    keys = np.array(zoo.query()["layout"].tolist(), object)[where]
    kinds, counts = np.unique(keys.astype(str), return_counts=True)
    for key in kinds[np.argsort(-counts, kind="stable")][:4]:  # the largest families
        here = where[keys == key]
        if len(here) > _MEMBERS:
            here = np.sort(np.random.default_rng(seed or 0).choice(here, _MEMBERS, replace=False))
        rows = [_numbers(batch.tensors, seed)
                for batch in zoo.batches(Selection(zoo, places[here]), 256)]
        name = evidence if len(kinds) == 1 else f"{evidence} of {key[:8]}"
        yield Table(name, np.concatenate(rows), here, classifiers=tries, most=_MEMBERS)


def _numbers(tensors: Mapping[str, Shaped[Tensor, "n ..."]], seed: int | None
             ) -> Float[np.ndarray, "n d"]:
    """Moments of every tensor; with a seed also flat weights, projected where they are many."""
    flat, moments = [], []
    for name in sorted(tensors):
        values = torch.nan_to_num(tensors[name].double().flatten(1), 0.0, 0.0, 0.0).clamp(-1e6, 1e6)
        if not values.shape[1]:
            continue
        flat.append(values)
        middle = values.median(1).values
        moments += [values.mean(1), values.square().mean(1), values.amin(1), values.amax(1), middle]
    if seed is None:
        return torch.stack(moments, 1).numpy()
    joined = torch.cat(flat, 1)
    if joined.shape[1] > _WIDE:
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(joined.shape[1], _WIDE // 2, generator=generator, dtype=torch.float64)
        joined = joined @ matrix / joined.shape[1] ** 0.5
    return torch.cat([joined, torch.stack(moments, 1)], 1).numpy()
