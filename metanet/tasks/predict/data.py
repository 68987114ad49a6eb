"""A task: which members of a zoo, what to predict of them, and which part each stands in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from metanet.errors import ZooError
from metanet.graph import WeightBatch
from metanet.symmetry import WeightSpace

if TYPE_CHECKING:
    from metanet.zoo import Zoo

Array: TypeAlias = "np.ndarray[Any, Any]"
Kind = Literal["regression", "classification"]
PARTS = {"train": 0.62, "val": 0.13, "calib": 0.1, "test": 0.15}
"""Trained on; stopped and chosen by; intervals are made from; scored on."""
CHANCE = 0.15
"""With ten classes, an accuracy below is no better than chance."""
# Of a configuration, what names a member or its data and is no choice of training.
_NAMES = ("recipe", "arch", "data", "run", "family", "seed", "image", "image_group", "label",
          "view", "repo", "file")
_ACTIVATION = "config.activation"


@dataclass(frozen=True)
class Cut:
    """A split: how the members of a zoo are dealt out.

    Attributes:
        name: in tables, such as ``iid`` or ``lr band``.
        by: ``run``, ``image``, ``band``, ``column`` …, see ``metanet.zoo.splits.deal``.
        column: of a split by column or band.
        test: values that make up the test part; of a band, its bounds.
        folds: 0, or cross-validation: every seed has another fold as its test part, so that all
            members are tested on once.
    """

    name: str = "iid"
    by: str = "run"
    column: str | None = None
    test: tuple[Any, ...] | None = None
    folds: int = 0


@dataclass(frozen=True)
class Goal:
    """What is predicted.

    Attributes:
        column: of the index, such as ``metrics.test_accuracy`` or ``config.label``.
        kind: ``regression`` or ``classification``.
        link: ``logit`` for accuracies, whose differences near 1 would else drown; ``log`` for
            losses; ``identity``.
        least: members with a lower value are at chance: counted, neither trained on nor scored.
        stratum: columns within which ranks are compared.
    """

    column: str
    kind: Kind = "regression"
    link: str = "identity"
    least: float | None = None
    stratum: tuple[str, ...] = ("config.data", "config.arch")

    def forward(self, y: Array) -> Array:
        """Values → the scale that is learned."""
        if self.link == "log":
            return np.asarray(np.log(np.maximum(y, 1e-6)))
        if self.link != "logit":
            return y
        inside = np.clip(y, 1e-3, 1 - 1e-3)
        return np.asarray(np.log(inside / (1 - inside)))

    def back(self, z: Array) -> Array:
        """The learned scale → values."""
        if self.link == "log":
            return np.asarray(np.exp(np.minimum(z, 50.0)))
        return 1 / (1 + np.exp(-z)) if self.link == "logit" else z


ACCURACY = Goal("metrics.test_accuracy", link="logit", least=CHANCE)
LOSS = Goal("metrics.test_loss", link="log")
LABEL = Goal("config.label", "classification")


@dataclass(frozen=True, eq=False)
class Part:
    """Members of one architecture with their targets.

    Attributes:
        ids: of the members.
        batch: their weights, one channel.
        y: targets ``[N]``: numbers, or classes as int64.
        strata: name of each member's stratum ``[N]``.
        hyper: hyper-parameters as numbers ``[N, h]``.
        context: what the architecture leaves open, ``[N, a]``: the activation, where members of
            one space differ in it.
        info: columns of the index.
        recipe: of their zoo, where that is not the zoo of the task.
    """

    ids: tuple[str, ...]
    batch: WeightBatch
    y: Array
    strata: Array
    hyper: Float[np.ndarray, "N h"]
    context: Float[Tensor, "N a"]
    info: Mapping[str, Array] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Sequence[int] | Array) -> Part:
        index = np.asarray(rows, np.int64)
        pick = torch.from_numpy(index)
        return Part(tuple(self.ids[i] for i in index), self.batch[pick], self.y[index],
                    self.strata[index], self.hyper[index], self.context[pick],
                    {k: v[index] for k, v in self.info.items()}, self.recipe)

    def with_batch(self, batch: WeightBatch) -> Part:
        """The same members with other weights."""
        return replace(self, batch=batch)


@dataclass(frozen=True, eq=False)
class Task:
    """Parts of a zoo and what to predict of them.

    Attributes:
        name: such as ``inr-digits``.
        goal: what is predicted.
        cut: how the parts were made.
        parts: train, val, calib, test.
        space: of all members.
        recipe: of the zoo, as plain data; empty for members that others trained.
        census: members, and those left out by reason.
        hyper: names of the hyper-parameters.
        classes: of a classification, else 1 (the number of outputs).
        kinds: activations that the columns of the context stand for.
        wide: the space with signs and scales, where it is known already.
    """

    name: str
    goal: Goal
    cut: Cut
    parts: Mapping[str, Part]
    space: WeightSpace
    recipe: Mapping[str, Any]
    census: Mapping[str, int]
    hyper: tuple[str, ...] = ()
    classes: int = 1
    kinds: tuple[str, ...] = ()
    wide: WeightSpace | None = None

    @property
    def outputs(self) -> int:
        """Numbers that a network has to give."""
        return self.classes if self.goal.kind == "classification" else 1


def load(zoo: Zoo, goal: Goal, cut: Cut | None = None, *, seed: int = 0, limit: int | None = None,
         name: str | None = None) -> Task:
    """Members of a zoo (the last checkpoint of each run) in four parts that share nothing.

    Args:
        zoo: is only read.
        goal: what to predict.
        cut: how to split; by default iid, whole runs or images together. Of folds, the first.
        seed: of the split.
        limit: members to take, at most (the first in a random order).
        name: of the task; by default that of the zoo's folder.

    Raises:
        ZooError: if the zoo has no such column, no space, or too few members for four parts.
    """
    return next(_tasks(zoo, goal, cut or Cut(), seed, limit, name))


def load_folds(zoo: Zoo, goal: Goal, cut: Cut, *, seed: int = 0, limit: int | None = None
               ) -> tuple[Task, ...]:
    """As :func:`load`, one task for each fold of the split; a single one where it has no folds."""
    return tuple(_tasks(zoo, goal, cut, seed, limit, None))


def elsewhere(zoo: Zoo, task: Task) -> tuple[Part, dict[str, int]]:
    """Members of a second zoo of the same architecture, none of which is learned from.

    Returns:
        All that have a sound target, hyper-parameters that their zoo does not vary as nan; and a
        census.

    Raises:
        ZooError: if the zoo has no such target, or its members another space.
    """
    found, census = _usable(zoo, task.goal)
    part, names = _everything(zoo, task.goal, found, zoo.query().arrays(list(zoo.columns)))
    if part.batch.space != task.space:
        raise ZooError(f"{zoo.path}: members are of another architecture than those of {task.name}")
    given = dict(zip(names, part.hyper.T, strict=True))
    unknown = np.full(len(part), np.nan)
    hyper = np.array([given.get(name, unknown) for name in task.hyper]).T.reshape(len(part), -1)
    return replace(part, hyper=hyper, context=contexts(part.info, task.kinds),
                   recipe=_recipe(zoo)), census


def _recipe(zoo: Zoo) -> Mapping[str, Any]:
    """What the members were made by; empty for a zoo of what others trained."""
    return zoo.recipe if isinstance(zoo.recipe, dict) and "factory" in zoo.recipe else {}


def _tasks(zoo: Zoo, goal: Goal, cut: Cut, seed: int, limit: int | None, name: str | None
           ) -> Iterator[Task]:
    found, census = _usable(zoo, goal)
    if limit is not None and limit < len(found):
        found = np.sort(np.random.default_rng(seed).permutation(found)[:limit])
    table = zoo.query().arrays(list(zoo.columns))
    everything, hyper = _everything(zoo, goal, found, table)
    classes = int(everything.y.max()) + 1 if goal.kind == "classification" else 1
    for where in _dealt(zoo, cut, seed):
        part_of = np.array([where.get(member) or "" for member in everything.ids])
        parts = {key: everything[np.flatnonzero(part_of == key)] for key in PARTS}
        small = [key for key, part in parts.items() if len(part) < 2]
        if small:
            raise ZooError(f"{zoo.path}: the part {small[0]!r} of the split {cut.name!r} has "
                           f"{len(parts[small[0]])} members; build a larger zoo or split otherwise")
        yield Task(name or zoo.path.name, goal, cut, parts, everything.batch.space, _recipe(zoo),
                   census, hyper, classes, kinds_of(everything.info))


def _usable(zoo: Zoo, goal: Goal) -> tuple[Array, dict[str, int]]:
    """Places (in the order of the zoo) of last checkpoints with a sound target."""
    if goal.column not in zoo.columns:
        raise ZooError(f"{zoo.path}: has no column {goal.column}; there are "
                       f"{', '.join(zoo.columns)}")
    found = zoo.query()
    parents = {p for p in found["parent"].tolist() if p is not None}
    last = np.array([i not in parents for i in found.ids]) & ~(found["step"] == 0)
    y = found[goal.column].astype(np.float64)
    finite = np.isfinite(y)
    if "metrics.diverged" in zoo.columns:
        finite &= ~(found["metrics.diverged"] == 1)
    chance = finite & (y < goal.least) if goal.least is not None else np.zeros(len(y), bool)
    census = {"members": int(last.sum()), "diverged": int((last & ~finite).sum()),
              "chance": int((last & chance).sum())}
    return np.flatnonzero(last & finite & ~chance), census


def _dealt(zoo: Zoo, cut: Cut, seed: int) -> Iterator[dict[str, str | None]]:
    """Id → part; of folds, one such dealing after the other."""
    from metanet.zoo.splits import deal

    if not cut.folds:
        yield deal(zoo, cut.by, PARTS, seed=seed, column=cut.column, test=cut.test)[0]
        return
    pieces = [str(i) for i in range(2 * cut.folds)]
    where = deal(zoo, cut.by, {piece: 1 / len(pieces) for piece in pieces}, seed=seed)[0]
    for fold in range(cut.folds):
        turned = pieces[2 * fold:] + pieces[:2 * fold]
        names = dict(zip(turned, ("test", "test", "val", "calib"), strict=False))
        yield {member: piece and names.get(piece, "train") for member, piece in where.items()}


def _everything(zoo: Zoo, goal: Goal, rows: Array, table: Mapping[str, Array]
                ) -> tuple[Part, tuple[str, ...]]:
    layouts = sorted(set(table["layout"][rows].tolist()))
    if len(layouts) != 1 or next(iter(zoo.layouts.values())).space is None:
        raise ZooError(f"{zoo.path}: {len(layouts)} architectures; a task takes members of one "
                       "known space: select one with `metanet zoo query`, or ingest with --arch")
    batches = list(zoo.batches(_chosen(zoo, rows), 1024))
    batch = WeightBatch.cat([b.weights.to(torch.float32) for b in batches])
    info = {key: value[rows] for key, value in table.items()
            if key.split(".")[0] in ("config", "metrics") or key == "id"}
    hyper, names = hyper_table(info)
    y = info[goal.column]
    y = y.astype(np.int64) if goal.kind == "classification" else y.astype(np.float64)
    strata = np.array(["/".join(str(info[c][i]) for c in goal.stratum if c in info)
                       for i in range(len(rows))])
    ids = tuple(info["id"].tolist())
    return Part(ids, batch, y, strata, hyper, contexts(info, kinds_of(info)), info), names


def _chosen(zoo: Zoo, rows: Array) -> Any:
    from metanet.zoo import Selection

    return Selection(zoo, zoo.query().places[rows])


def hyper_table(info: Mapping[str, Array]) -> tuple[Float[np.ndarray, "N h"], tuple[str, ...]]:
    """Choices of training that differ between members, as numbers; texts one-hot, wide ranges
    as logarithms.
    """
    columns: list[Array] = []
    names: list[str] = []
    for key in sorted(info):
        root, _, short = key.partition(".")
        if root != "config" or short in _NAMES:
            continue
        values = info[key]
        if values.dtype == object:
            kinds = sorted({str(v) for v in values.tolist()})
            hot = [(np.array([str(v) == kind for v in values.tolist()], float), f"{short}={kind}")
                   for kind in kinds] if 1 < len(kinds) <= 20 else []
        else:
            hot = _numeric(values.astype(np.float64), short)
        columns += [column for column, _ in hot]
        names += [name for _, name in hot]
    n = len(next(iter(info.values())))
    return (np.stack(columns, 1) if columns else np.zeros((n, 0))), tuple(names)


def _numeric(values: Array, name: str) -> list[tuple[Array, str]]:
    filled = np.nan_to_num(values, nan=-1.0)
    if len(np.unique(filled)) < 2:
        return []
    wide = filled.min() > 0 and filled.max() / filled.min() > 20
    return [(np.log(filled) if wide else filled, f"log {name}" if wide else name)]


def contexts(info: Mapping[str, Array], kinds: Sequence[str]) -> Float[Tensor, "N a"]:
    """One column per activation, one-hot: where it varies among members of one space."""
    n = len(next(iter(info.values())))
    found = np.array([[str(v) == kind for kind in kinds] for v in info[_ACTIVATION].tolist()]
                     if kinds else np.zeros((n, 0)), np.float32)
    return torch.from_numpy(found)


def unnamed(n: int, kinds: Sequence[str]) -> Float[Tensor, "N a"]:
    """The context of files, which do not name their activation: each is as likely."""
    return torch.full((n, len(kinds)), 1 / max(len(kinds), 1))


def as_files(task: Task) -> Task:
    """The task as files show it: what they do not name, no part does."""
    parts = {name: replace(part, context=unnamed(len(part), task.kinds))
             for name, part in task.parts.items()}
    return replace(task, parts=parts)


def kinds_of(info: Mapping[str, Array]) -> tuple[str, ...]:
    """Names of the activations where there are several, in the order of the context's columns."""
    values = info.get(_ACTIVATION)
    kinds = sorted({str(v) for v in values.tolist()}) if values is not None else []
    return tuple(kinds) if len(kinds) > 1 else ()

