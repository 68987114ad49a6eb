"""Predictors on disk: a trained reader with its interval and its flag; plain data, no code."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from metanet.checkpoint.names import natural_key, printable
from metanet.errors import CheckpointError, MetanetError
from metanet.graph import WeightBatch
from metanet.symmetry import WeightSpace
from metanet.tasks.predict.data import Array, Cut, Goal, Part, Task, unnamed
from metanet.tasks.predict.normal import Normal
from metanet.tasks.predict.rows.base import Budget, row
from metanet.tasks.predict.rows.neural import Model, larger
from metanet.tasks.predict.strangers import fitted_to
from metanet.tasks.predict.trust import Familiar, Interval

FILE, WEIGHTS, FLAG = "predictor.json", "reader.safetensors", "familiar.safetensors"
VERSION = 1
SHIPPED = Path(__file__).parents[2] / "weights"
_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin", ".ckpt", ".tar", ".th")
_MOST = 16 << 20


@dataclass(frozen=True)
class Prediction:
    """What is said of one checkpoint.

    Attributes:
        source: where it came from.
        prediction: a number, or the most likely class.
        interval: holds the target of members exchangeable with the training zoo at the stated
            level; None where the checkpoint is out of distribution, or for classes.
        out_of_distribution: whether its weights are unlike those of the training zoo.
        distance, threshold: what the flag compares.
        classes: set of classes at the stated level; None for numbers and where flagged.
        probability: of the most likely class.
        predictor: which one spoke.
        note: a caution in words.
    """

    source: str
    prediction: float | int
    interval: tuple[float, float] | None
    out_of_distribution: bool
    distance: float
    threshold: float
    classes: tuple[int, ...] | None = None
    probability: float | None = None
    predictor: str = ""
    note: str = ""

    def _repr_html_(self) -> str:
        import html

        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(printable(value))}</td></tr>"
                       for name, value in asdict(self).items() if value not in (None, ""))
        return f"<table>{rows}</table>"


@dataclass(eq=False)
class Predictor:
    """A trained reader, ready for checkpoints.

    Attributes:
        task: what it was trained for; holds no members.
        model: the reader.
        row: name of its row. setting, budget: what it was built from.
        interval, familiar: when to trust it.
        about: scores, and where it comes from, as plain data.
    """

    task: Task
    model: Model
    row: str
    setting: Mapping[str, Any]
    budget: Budget
    interval: Interval
    familiar: Familiar
    about: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, batch: WeightBatch, names: Iterable[str] = ()) -> list[Prediction]:
        """Predictions for members of the space, in order."""
        n, goal = len(batch), self.task.goal
        part = Part(tuple(map(str, range(n))), batch, np.zeros(n), np.zeros(n),
                    np.zeros((n, 0)), unnamed(n, self.task.kinds))
        found, far = self.model(part), self.distance(batch)
        labels = list(names) or list(part.ids)
        return [self._one(labels[i], found[i], float(far[i]), goal) for i in range(n)]

    def distance(self, batch: WeightBatch) -> Array:
        """What the flag compares with its threshold: blind to signs and scales of the space."""
        return self.familiar.distance(Normal(larger(self.task))(batch))

    def _one(self, name: str, found: Any, far: float, goal: Goal) -> Prediction:
        strange = not far <= self.familiar.threshold
        note = ("its weights are unlike those of the training zoo: no interval holds"
                if strange else "")
        said: dict[str, Any] = {"source": name, "out_of_distribution": strange, "distance": far,
                "threshold": self.familiar.threshold, "note": note, "predictor": self.task.name}
        width = self.interval.width
        if goal.kind == "classification":
            best = int(found.argmax())
            inside = tuple(int(i) for i in np.flatnonzero(1 - found <= width)) or (best,)
            return Prediction(prediction=best, interval=None, probability=float(found[best]),
                              classes=None if strange else inside, **said)
        ends = np.array([found - width, found + width])
        low, high = (float(v) for v in goal.back(ends))
        sound = not strange and math.isfinite(width)
        return Prediction(prediction=float(goal.back(np.array(found))),
                          interval=(low, high) if sound else None, **said)

    # ------------------------------------------------------------ on disk

    def save(self, folder: Path) -> None:
        """Write plain data and safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.clone().contiguous() for k, v in self.model.reader.state_dict().items()},
                  folder / WEIGHTS)
        save_file({k: torch.from_numpy(np.ascontiguousarray(v).astype(np.float32))
                   for k, v in self.familiar.to_arrays().items()}, folder / FLAG)
        (folder / FILE).write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        """Everything but the numbers of the reader and the flag."""
        task = self.task
        wide = larger(task)
        return {"format": VERSION, "name": task.name, "row": self.row,
                "setting": dict(self.setting), "budget": asdict(self.budget),
                "goal": asdict(task.goal), "cut": asdict(task.cut), "classes": task.classes,
                "kinds": list(task.kinds), "recipe": dict(task.recipe),
                "space": task.space.to_json(), "wide": wide.to_json(),
                "mean": self.model.mean, "scale": self.model.scale,
                "interval": {**asdict(self.interval), "width": self.interval.width
                             if math.isfinite(self.interval.width) else None},
                "about": dict(self.about)}

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Read what :meth:`save` wrote; nothing named in it is imported.

        Raises:
            CheckpointError: if there is no predictor, or its files do not belong together.
        """
        path = folder / FILE
        try:
            if path.stat().st_size > _MOST:
                raise CheckpointError(f"{path}: is larger than {_MOST} bytes; it is no predictor")
            told = json.loads(path.read_text(encoding="utf-8"))
            task = _task(told)
            setting, budget = told["setting"], Budget(**told["budget"])
            found = row(str(told["row"]))
            if found.make is None:
                raise CheckpointError(f"{path}: a row {found.name!r} cannot be stored")
            reader = found.make(task, budget, setting)
            reader.load_state_dict(load_file(folder / WEIGHTS))
            arrays = {k: v.double().numpy() for k, v in load_file(folder / FLAG).items()}
            width = told["interval"]["width"]
            interval = Interval(**{**told["interval"], "width": float("inf") if width is None
                                   else float(width)})
            model = Model(reader, float(told["mean"]), float(told["scale"]),
                          task.goal.kind == "classification")
            return cls(task, model, found.name, setting, budget, interval,
                       Familiar.from_arrays(arrays), told["about"])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: cannot be read as a predictor ({error}); name a "
                                  "folder that `metanet train` wrote, or a shipped name: "
                                  f"{', '.join(shipped()) or 'none'}") from error


def _task(told: Mapping[str, Any]) -> Task:
    goal = Goal(**{**told["goal"], "stratum": tuple(told["goal"]["stratum"])})
    return Task(str(told["name"]), goal, Cut(str(told["cut"]["name"])), {},
                WeightSpace.from_json(told["space"]), told["recipe"], {}, (),
                int(told["classes"]), tuple(map(str, told["kinds"])),
                WeightSpace.from_json(told["wide"]))


def shipped() -> list[str]:
    """Names of the predictors that come with metanet."""
    return sorted(p.name for p in SHIPPED.iterdir() if p.is_dir() and any(
        p.rglob(FILE))) if SHIPPED.is_dir() else []


class Predictors:
    """One predictor for each space that is known: which of them speaks, the shapes decide."""

    def __init__(self, many: Iterable[Predictor]) -> None:
        self.many = tuple(many)

    @classmethod
    def load(cls, name: str | Path) -> Predictors:
        """A folder with a predictor (or folders of them), or a shipped name.

        Raises:
            CheckpointError: if there is none.
        """
        folder = Path(name)
        if not folder.is_dir() and str(name) in shipped():
            folder = SHIPPED / str(name)
        if not folder.is_dir():
            raise CheckpointError(f"{printable(name, 200)}: is no folder of a predictor, and no "
                                  f"shipped one: {', '.join(shipped()) or 'none'}")
        found = [p.parent for p in sorted(folder.rglob(FILE))]
        return cls(Predictor.load(path) for path in found or [folder])

    def predict(self, source: Any, name: str | None = None) -> Prediction:
        """One checkpoint: a path, an ``hf://`` address, a state dict or a Checkpoint.

        Raises:
            CheckpointError: if it cannot be read, or fits no space that is known.
        """
        problems: list[str] = []
        for one in self.many:
            try:
                state = fitted_to(one.task.space, source)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            batch = WeightBatch.stack(one.task.space, [state])
            return one(batch, [name or str(source)])[0]
        if len(set(problems)) > 1:
            raise CheckpointError(f"{problems[0]} ({len(problems) - 1} more architectures are "
                                  "known; it is none of them)")
        raise CheckpointError(problems[0])

    def each(self, sources: Iterable[str]) -> Iterator[Prediction | tuple[str, str]]:
        """A prediction, or (source, reason) of a refusal, for every checkpoint found."""
        for source in sources:
            for path in checkpoints_in(source):
                try:
                    yield self.predict(path)
                except MetanetError as error:
                    yield path, str(error)


def checkpoints_in(source: str) -> list[str]:
    """A file or address itself; of a folder every file that may be a checkpoint."""
    path = Path(source)
    if source.startswith("hf://") or not path.is_dir():
        return [source]
    found = [str(p) for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file()]
    return sorted(found, key=natural_key) or [source]


def as_arrays(found: Iterable[Prediction]) -> Array:
    """The predictions alone."""
    return np.array([one.prediction for one in found])
