"""Rows of a table: one way to predict each, all behind one door, in one registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from metanet.checkpoint.names import no_such
from metanet.errors import MetanetError
from metanet.tasks.predict.data import Array, Part, Task

Track = Literal["W", "Q", "D", "-"]
TRACKS = {
    "W": "weights only, no forward pass of the network",
    "Q": "data-free queries of the network: at most 64 learned inputs",
    "D": "uses labelled or rendered data",
    "-": "reads neither weights nor outputs",
}
Setting: TypeAlias = "Mapping[str, Any]"


@dataclass(frozen=True)
class Budget:
    """What a row may spend; the same for every row of a table.

    Attributes:
        epochs: passes over the training part, at most.
        batch_size: members per step.
        width: channels of the layers of readers.
        patience: epochs without a better validation loss before training ends.
        trials: settings tried, chosen on validation.
        seeds: fits of the chosen setting.
    """

    epochs: int = 30
    batch_size: int = 32
    width: int = 16
    patience: int = 10
    trials: int = 2
    seeds: int = 5


@dataclass(eq=False)
class Fitted:
    """A row after training.

    Attributes:
        predict: members → numbers ``[N]`` in the units of the target, or probabilities
            ``[N, classes]``.
        parameters: numbers that were trained.
        curve: one entry per epoch, of rows that have epochs.
        model: what may be saved, of rows that have it.
        inner: rows that were fitted on the way, by their names; they need no fit of their own.
        seconds: of the fit, of an inner one.
    """

    predict: Callable[[Part], Array]
    parameters: int = 0
    curve: Sequence[Mapping[str, float]] = ()
    model: Any = field(default=None, repr=False)
    inner: Mapping[str, Fitted] = field(default_factory=dict, repr=False)
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One way to predict.

    Attributes:
        name: in commands. title: in tables.
        track: W, Q, D, or -.
        fit: ``(task, budget, setting, seed)`` → :class:`Fitted`; sees train and val alone.
        settings: what is tried, as many as the budget has trials.
        invariant: whether permuted copies must get equal predictions.
        suits: whether it makes sense for a task.
        seeded: whether another seed gives another result.
        make: ``(task, budget, setting)`` → the untrained reader, of rows that learn one.
    """

    name: str
    title: str
    track: Track
    fit: Callable[[Task, Budget, Setting, int], Fitted]
    settings: tuple[Setting, ...] = ({},)
    invariant: bool = True
    suits: Callable[[Task], bool] = field(default=lambda task: True)
    seeded: bool = True
    make: Any = None


ROWS: dict[str, Row] = {}


def register(row: Row) -> Row:
    """Add a row to the registry.

    Raises:
        MetanetError: if the name is taken or the track unknown.
    """
    if row.name in ROWS or row.track not in TRACKS:
        raise MetanetError(f"row {row.name!r} of track {row.track!r} cannot be registered: the "
                           "name is taken, or there is no such track")
    ROWS[row.name] = row
    return row


def row(name: str) -> Row:
    """A row by its name.

    Raises:
        MetanetError: naming those that there are.
    """
    if name not in ROWS:
        raise MetanetError(no_such("model", name, ROWS))
    return ROWS[name]


def suiting(name: str, task: Task) -> Row:
    """A row by its name, for a task that has what it needs.

    Raises:
        MetanetError: if there is no such row, or it does not suit the task.
    """
    found = row(name)
    if not found.suits(task):
        raise MetanetError(f"the model {name!r} does not suit {task.name}: it needs the members' "
                           "code, their hyper-parameters or labelled images, which this zoo does "
                           "not bring")
    return found


def constant(task: Task, n: int) -> Array:
    """What is best without looking: the mean of the targets, or the shares of the classes."""
    y = task.parts["train"].y
    if task.goal.kind == "classification":
        shares = np.bincount(y, minlength=task.classes) / len(y)
        return np.tile(shares, (n, 1))
    return np.full(n, task.goal.back(task.goal.forward(y).mean()))
