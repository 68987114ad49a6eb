"""MetanetRegressor and MetanetClassifier: ``fit`` a zoo, ``predict`` a zoo or checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from metanet.errors import MetanetError
from metanet.graph import WeightBatch
from metanet.tasks.predict.data import Array, Cut, Goal, Part, Task, load
from metanet.tasks.predict.rows import Budget, Fitted, row, suiting
from metanet.tasks.predict.strangers import fitted_to


class _Estimator:
    """What both share.

    Args:
        model: name of a row, see ``metanet.tasks.predict.rows.ROWS``.
        epochs, batch_size, width: of its budget.
        seed: of everything random.
        link: ``logit`` for targets in (0, 1).
    """

    kind: Any = "regression"
    default = ""

    def __init__(self, model: str = "gmn", *, epochs: int = 30, batch_size: int = 32,
                 width: int = 16, seed: int = 0, link: str = "identity") -> None:
        self.model, self.seed, self.link = model, seed, link
        self.budget = Budget(epochs=epochs, batch_size=batch_size, width=width)
        self.task: Task | None = None
        self.fitted: Fitted | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Arguments by name, as scikit-learn asks for them."""
        return {"model": self.model, "epochs": self.budget.epochs, "seed": self.seed,
                "batch_size": self.budget.batch_size, "width": self.budget.width,
                "link": self.link}

    def set_params(self, **params: Any) -> Any:
        """Change arguments by name."""
        known = self.get_params()
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise MetanetError(f"{type(self).__name__} has no parameter {unknown[0]!r}; there are "
                               f"{', '.join(known)}")
        self.__init__(**{**known, **params})  # type: ignore[misc]
        return self

    def fit(self, zoo: Any, target: str | None = None, *, cut: Cut | None = None) -> Any:
        """Train on the training part of a zoo.

        Args:
            zoo: a ``metanet.zoo.Zoo``.
            target: a column of its index; short names are completed.
            cut: how to split; by default whole runs, at random.

        Raises:
            MetanetError: if the zoo has no such column, or is too small.
        """
        from metanet.zoo.index import resolve

        column = resolve(zoo.columns, target or self.default).name
        self.task = load(zoo, Goal(column, self.kind, self.link), cut)
        one = suiting(self.model, self.task)
        self.fitted = one.fit(self.task, self.budget, one.settings[0], self.seed)
        return self

    def _found(self, what: Any) -> Array:
        if self.fitted is None or self.task is None:
            raise MetanetError(f"this {type(self).__name__} is not fitted; call fit(zoo, target)")
        return self.fitted.predict(self._part(what, self.task))

    def _part(self, what: Any, task: Task) -> Part:
        """Members of a zoo, a Part, or checkpoints."""
        if isinstance(what, Part):
            return what
        if isinstance(what, WeightBatch):
            batch = what
        elif hasattr(what, "batches"):
            batch = WeightBatch.cat([b.weights for b in what.batches(size=1024)])
        else:
            sources = what if isinstance(what, Iterable) and not isinstance(what, (str, dict)) \
                else [what]
            batch = WeightBatch.stack(task.space, [fitted_to(task.space, s) for s in sources])
        if batch.space != task.space:
            raise MetanetError("the members have another space than those of the training zoo")
        if task.kinds or row(self.model).name in ("hyper", "statistics+hyper"):
            raise MetanetError("this model needs more than weights (hyper-parameters or the "
                               "activation); give it a Part of a task")
        import torch

        n = len(batch)
        return Part(batch.names, batch, np.zeros(n), np.zeros(n), np.zeros((n, 0)),
                    torch.zeros(n, 0))


class MetanetRegressor(_Estimator):
    """Predict a number of each network; see :class:`_Estimator` for the arguments."""

    default = "metrics.test_accuracy"

    def predict(self, what: Any) -> Array:
        """Numbers ``[N]`` for a zoo, a Part, a WeightBatch, a checkpoint or several."""
        return self._found(what)

    def score(self, what: Part) -> float:
        """R² on a Part, as scikit-learn has it."""
        from metanet.tasks.predict.metrics import r2

        return r2(self.predict(what), what.y)


class MetanetClassifier(_Estimator):
    """Tell the class of each network; see :class:`_Estimator` for the arguments."""

    kind = "classification"
    default = "config.label"

    def predict_proba(self, what: Any) -> Array:
        """Probabilities ``[N, classes]``."""
        return self._found(what)

    def predict(self, what: Any) -> Array:
        """Classes ``[N]``."""
        return np.asarray(self._found(what).argmax(1))

    def score(self, what: Part) -> float:
        """Accuracy on a Part."""
        return float((self.predict(what) == what.y).mean())
