"""``barrier``: loss and accuracy along the line between two models, as they are and aligned.

The barrier of a path is the largest excess of its loss over the straight line between the losses
of its ends. Naive interpolation, its temperature-calibrated form and the ensemble of both parents
always stand beside, for alignment can lose to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metanet.errors import MetanetError
from metanet.tasks.merge.align import Judge, Pair, align
from metanet.tasks.merge.alignment import Alignment
from metanet.tasks.merge.data import Samples, shared_rows
from metanet.tasks.merge.repair import Repaired, mix, repair, temperature
from metanet.tasks.merge.runner import Runner, State
from metanet.tasks.merge.scores import Score, against, ensemble, kind_of, scored

POINTS = 25
_TEMPERATURE_ROWS = 2000


@dataclass(frozen=True)
class Point:
    """Loss and accuracy at ``t``: 0 is ``a``, 1 is ``b``."""

    t: float
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Path:
    """One way from ``a`` to ``b``; ``told`` is what else there is to say about it."""

    points: tuple[Point, ...]
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def barrier(self) -> float:
        """Largest excess of the loss over the straight line between the ends."""
        first, last = self.points[0].loss, self.points[-1].loss
        return max(p.loss - (1 - p.t) * first - p.t * last for p in self.points)

    @property
    def midpoint(self) -> Point:
        """The point in the middle."""
        return self.points[len(self.points) // 2]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        middle = self.midpoint
        return {
            "points": [{"t": p.t, "loss": p.loss, "accuracy": p.accuracy} for p in self.points],
            "barrier_loss": self.barrier,
            "midpoint": {"loss": middle.loss, "accuracy": middle.accuracy},
            **self.told,
        }


@dataclass(frozen=True, eq=False)
class Barrier:
    """All paths between two models. ``chosen`` is the variant that calibration data prefers.

    ``contaminated`` says that some rows were both calibrated on and scored on (``shared`` many).
    """

    variants: dict[str, Path]
    chosen: str
    contaminated: bool
    shared: int
    alignment: Alignment

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "contaminated": self.contaminated,
            "shared_rows": self.shared,
            "variants": {name: path.to_json() for name, path in self.variants.items()},
            "chosen": self.chosen,
            "alignment": self.alignment.to_json(),
        }


def barrier(
    a: Any,
    b: Any,
    data: Samples,
    calib: Samples | None = None,
    *,
    points: int = POINTS,
    alignment: Alignment | None = None,
    fixes: Sequence[str] | None = None,
    **options: Any,
) -> Barrier:
    """Score the line between two models.

    Args:
        a: tensors, a module or anything that ``metanet.open`` takes.
        b: the same.
        data: labelled; scores only.
        calib: for matching, repair, temperature and the choice; labels optional.
        points: of each path, ends included; odd, so that one is in the middle.
        alignment: found before; by default ``align(a, b, ...)``.
        fixes: repairs to try; ``repaired`` is the one that does best at the middle on ``calib``.
            By default all that are on data, or the closed form without ``calib``.
        options: of ``align`` (space, arch, module, runner, method, restarts, seed).

    Raises:
        MetanetError: no labels, even ``points``, or data that do not fit the network.
    """
    if data.y is None:
        raise MetanetError(f"{data.source}: no labels 'y' in it, and without them nothing can be "
                           "scored")
    if points < 3 or points % 2 == 0:
        raise MetanetError(f"points ({points}) must be odd and at least 3: one is in the middle")
    keys = ("space", "arch", "module", "example_inputs", "runner")
    pair = Pair.of(a, b, run=True, **{k: options[k] for k in keys if k in options})
    if alignment is None:
        rest = {k: v for k, v in options.items() if k not in keys}
        alignment = align(pair.a, pair.b, calib=calib, runner=pair.runner, **rest)
    work = _Paths(pair, alignment, data, calib, points)
    variants, chosen = work.variants(fixes)
    shared = 0 if calib is None else shared_rows(calib, data)
    return Barrier(variants, chosen, shared > 0, shared, alignment)


class _Paths:
    def __init__(
        self, pair: Pair, alignment: Alignment, data: Samples, calib: Samples | None, points: int
    ) -> None:
        if pair.runner is None:
            raise MetanetError("a barrier needs a network to run: name the architecture (--arch)")
        self.runner: Runner = pair.runner
        self.a, self.b = pair.a, pair.b
        self.moved: State = alignment.apply(pair.b)
        self.data, self.calib = data, calib
        self.times = torch.linspace(0, 1, points).tolist()
        self.ends = [self.runner.outputs(state, data.x) for state in (self.a, self.b)]
        self.y = data.y if data.y is not None else torch.zeros(0)
        self.judge = None if calib is None else Judge(self.runner, self.a, self.b, calib)
        # outputs on both data of each variant and point: the calibrated paths use them again
        self.known: dict[tuple[str, float], tuple[Tensor, Tensor | None]] = {}

    def variants(self, fixes: Sequence[str] | None) -> tuple[dict[str, Path], str]:
        """All paths, and the name of the one that calibration data prefers."""
        if fixes is None:
            fixes = ["closed"] if self.calib is None else ["rescale", "repair", "least-squares"]
        makers: dict[str, Callable[[float], Repaired]] = {
            "naive": lambda t: Repaired(mix(self.a, self.b, t), "none"),
            "aligned": lambda t: Repaired(mix(self.a, self.moved, t), "none"),
        }
        best, losses = self._best_fix(fixes)
        for fix in fixes:
            name = "repaired" if fix == best else fix
            makers[name] = lambda t, fix=fix: self._repaired(t, fix)  # type: ignore[misc]
        found = {name: self._path(name, make, {"repair": best} if name == "repaired" else {})
                 for name, make in makers.items()}
        if self.judge is not None and kind_of(self.y, self.ends[0]) == "classes":
            for name, of in (("calibrated", "repaired"), ("naive_calibrated", "naive")):
                found[name] = self._calibrated(of)
        found["ensemble"] = self._ensemble()
        return found, self._chosen(makers, losses, best)

    def _repaired(self, t: float, fix: str) -> Repaired:
        merged = mix(self.a, self.moved, t)
        if t in (0.0, 1.0):
            return Repaired(merged, "none")
        x = None if self.calib is None else self.calib.x
        return repair(self.runner, self.a, self.moved, merged, x, method=fix, t=t)

    def _best_fix(self, fixes: Sequence[str]) -> tuple[str, dict[str, float]]:
        """The repair that does best at the middle on calibration data."""
        if not fixes:
            raise MetanetError("name at least one repair")
        if self.judge is None:
            return fixes[0], {}
        losses = {fix: self.judge.loss(self._on_calib(self._repaired(0.5, fix))) for fix in fixes}
        return min(losses, key=lambda fix: losses[fix]), losses

    def _on_calib(self, model: Repaired) -> Tensor:
        if self.calib is None:
            raise MetanetError("there is no calibration data")
        return model.outputs(self.runner, self.calib.x)

    def _chosen(
        self, makers: dict[str, Callable[[float], Repaired]], losses: dict[str, float], best: str
    ) -> str:
        if self.judge is None:
            return "repaired"
        worth = {name: self.judge.loss(self._on_calib(makers[name](0.5)))
                 for name in ("naive", "aligned")}
        worth["repaired"] = losses[best]
        return min(worth, key=lambda name: worth[name])

    # ------------------------------------------------------------ paths

    def _path(
        self, name: str, make: Callable[[float], Repaired], told: dict[str, Any]
    ) -> Path:
        points = []
        for t in self.times:
            model = make(t)
            outputs = model.outputs(self.runner, self.data.x) if 0 < t < 1 else self.ends[int(t)]
            small = None if self.calib is None else self._on_calib(model)
            self.known[name, t] = outputs, small
            points.append(_point(t, scored(outputs, self.y)))
        return Path(tuple(points), told)

    def _ensemble(self) -> Path:
        kind = kind_of(self.y, self.ends[0])
        a, b = self.ends
        found = [_point(t, scored(ensemble(a, b, t, kind), self.y)) for t in self.times]
        return Path(tuple(found))

    def _calibrated(self, of: str) -> Path:
        """Logits scaled by one factor per point, fitted on calibration data, at the ends too."""
        points, factors = [], []
        for t in self.times:
            outputs, small = self.known[of, t]
            factors.append(1.0 if small is None else self._factor(small, t))
            points.append(_point(t, scored(outputs * factors[-1], self.y)))
        return Path(tuple(points), {"logit_scale": factors})

    def _factor(self, outputs: Tensor, t: float) -> float:
        judge = self.judge
        if judge is None:
            return 1.0
        rows = slice(0, _TEMPERATURE_ROWS)
        if judge.calib.y is not None:
            y = judge.calib.y[rows]
            return temperature(lambda f: scored(outputs[rows] * f, y).loss)
        target = ensemble(judge.of_a[rows], judge.of_b[rows], t, judge.kind)
        return temperature(lambda f: against(outputs[rows] * f, target, judge.kind))


def _point(t: float, score: Score) -> Point:
    return Point(t, score.loss, score.accuracy)
