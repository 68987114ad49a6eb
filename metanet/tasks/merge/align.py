"""``align``: find how to bring one model into the order of another.

Weights alone: coordinate descent with restarts. With inputs: a start by activations, polished by
weight matching; which of all the candidates is taken is decided by what the average of both models
does on these inputs, for the objective on weights does not tell (the best objective and the best
merge are different candidates on real pairs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metanet.checkpoint.names import no_such
from metanet.errors import MetanetError, SymmetryError
from metanet.symmetry import GroupElement, WeightSpace
from metanet.symmetry.inputs import tensors_of
from metanet.symmetry.kinds import ROTATING
from metanet.symmetry.matching import match, objective
from metanet.symmetry.starts import random_start
from metanet.symmetry.verify import relative_change, widened
from metanet.tasks.merge.activations import activation_gains
from metanet.tasks.merge.alignment import Alignment, Certificate
from metanet.tasks.merge.data import Samples, fitted
from metanet.tasks.merge.repair import mix, repair
from metanet.tasks.merge.runner import Runner, State
from metanet.tasks.merge.scores import against, ensemble, kind_of, scored

METHODS = ("auto", "weights", "activations")
_CHOICE_ROWS = 1000
_CERTIFIED = 1e-10


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to align: its name, its element, the objective, and the loss that decides."""

    name: str
    element: GroupElement
    objective: float
    loss: float | None = None


def align(
    a: Any,
    b: Any,
    space: WeightSpace | None = None,
    method: str = "auto",
    calib: Samples | Tensor | None = None,
    *,
    arch: str | None = None,
    module: nn.Module | None = None,
    example_inputs: Any = None,
    runner: Runner | None = None,
    restarts: int = 3,
    seed: int = 0,
    repair: str = "rescale",
    certify: bool = True,
) -> Alignment:
    """How to bring ``b`` into the order of ``a``: a portable ``Alignment``.

    Args:
        a: the reference: tensors, a module, or anything that ``metanet.open`` takes.
        b: the same; ``result.apply(b)`` is aligned to ``a``.
        space: of both; inferred from the architecture by default.
        method: ``weights``; ``activations`` (needs ``calib``); ``auto``: with ``calib`` all
            candidates (activations, activations polished by weights, weights), and the best on
            ``calib`` is taken; without, weights.
        calib: inputs for activations and for the choice; labels are used in the choice if given.
        arch: name of the architecture, where ``a`` is a file.
        module: the network, where there is one at hand.
        example_inputs: for ``module``, as for ``metanet.infer``.
        runner: instead of all these, a ``Runner`` that is used for many pairs.
        restarts: runs of weight matching from random elements, beside the two fixed starts.
        seed: of the restarts.
        repair: of the average, while candidates are compared.
        certify: run ``b`` before and after in float64, where there is a network to run.

    Raises:
        MetanetError: bad input; SymmetryError and SpaceMismatch for spaces that do not fit.
    """
    if method not in METHODS:
        raise MetanetError(no_such("method", method, METHODS))
    pair = Pair.of(a, b, space, arch=arch, module=module, example_inputs=example_inputs,
                   runner=runner, run=calib is not None)
    samples = _samples(calib)
    if method == "activations" and samples is None:
        raise MetanetError("activation matching runs both models: give inputs (--calib FILE)")
    found = candidates(pair, samples if method != "weights" else None, method, restarts, seed)
    best, told = choose(pair, found, samples, repair)
    proof = certificate(pair, best.element, samples) if certify else None
    return Alignment(pair.space, best.element, best.objective, best.name, seed, proof,
                     pair.sources, told)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models in one space, with their network where it can be run."""

    a: State
    b: State
    space: WeightSpace
    runner: Runner | None
    sources: tuple[str | None, str | None] = (None, None)

    @classmethod
    def of(
        cls, a: Any, b: Any, space: WeightSpace | None = None, *, arch: str | None = None,
        module: nn.Module | None = None, example_inputs: Any = None,
        runner: Runner | None = None, run: bool = False,
    ) -> Pair:
        """Read both models and find their space and network; ``run`` says a network is needed."""
        tensors, sources = zip(*(_weights(model) for model in (a, b)), strict=True)
        if runner is None:
            network = a if module is None and isinstance(a, nn.Module) else module
            if network is None and arch is not None:
                from metanet.symmetry.resolve import built, with_names

                network, example_inputs = built(a, arch, example_inputs)
                if space is None:
                    from metanet.checkpoint import open as open_checkpoint
                    from metanet.symmetry import infer

                    space = with_names(infer(network, example_inputs), open_checkpoint(a))
            if network is not None:
                runner = _runner(network, space, example_inputs, run or space is None)
        space = runner.space if runner is not None and space is None else space
        if space is None:
            raise SymmetryError("which symmetry? Give the space, or name the architecture (arch=), "
                                "or hand over the network (module=)")
        if run and runner is None:
            raise MetanetError("inputs are of use only with a network to run: name the "
                               "architecture (--arch), or hand over the module")
        return cls(tensors[0], tensors[1], space, runner, (sources[0], sources[1]))


def _runner(
    network: nn.Module, space: WeightSpace | None, example_inputs: Any, needed: bool
) -> Runner | None:
    """The network to run; None where it cannot be run and need not be."""
    try:
        return Runner(network, space, example_inputs)
    except MetanetError:
        if needed:
            raise
        return None


def _weights(model: Any) -> tuple[dict[str, Tensor], str | None]:
    if isinstance(model, (nn.Module, Mapping)):
        return tensors_of(model), None
    from metanet.checkpoint import open as open_checkpoint

    found = open_checkpoint(model)
    return tensors_of(found), found.source.sha256


def _samples(calib: Samples | Tensor | None) -> Samples | None:
    return Samples(calib) if isinstance(calib, Tensor) else calib


# ---------------------------------------------------------------- candidates


def candidates(
    pair: Pair, calib: Samples | None, method: str, restarts: int, seed: int
) -> list[Candidate]:
    """All ways to align that are worth trying."""
    found = []
    if calib is not None and pair.runner is not None:
        seen = activation_gains(pair.runner, pair.a, pair.b, calib.x)
        found.append(_candidate("activations", pair, seen.element()))
        polished = match(pair.a, pair.b, pair.space, init=found[0].element)
        found.append(Candidate("activations, then weights", polished.element, polished.objective))
    if method != "activations":
        fixed = match(pair.a, pair.b, pair.space)
        found.append(Candidate("weights", fixed.element, fixed.objective))
        for number in range(1, restarts):
            start = random_start(pair.space, np.random.default_rng([seed, number]))
            run = match(pair.a, pair.b, pair.space, init=start)
            found.append(Candidate(f"weights, restart {number}", run.element, run.objective))
    return found


def _candidate(name: str, pair: Pair, element: GroupElement) -> Candidate:
    return Candidate(name, element, objective(pair.a, pair.b, element))


def choose(
    pair: Pair, found: list[Candidate], calib: Samples | None, fix: str
) -> tuple[Candidate, dict[str, Any]]:
    """The best candidate and what the others were worth.

    With inputs: by the loss of the repaired average, on labels or else against the parents'
    ensemble. Without: by the objective.
    """
    by = "objective"
    if calib is not None and pair.runner is not None:
        by = "calibration loss" if calib.y is not None else "calibration loss without labels"
        judge = Judge(pair.runner, pair.a, pair.b, calib.head(_CHOICE_ROWS))
        found = [Candidate(c.name, c.element, c.objective,
                           judge.midpoint(c.element.apply(pair.b), fix)) for c in found]
        best = min(found, key=lambda c: (c.loss, -c.objective))
    else:
        best = max(found, key=lambda c: c.objective)
    rows = [{"name": c.name, "objective": c.objective, "loss": c.loss} for c in found]
    return best, {"chosen_by": by, "candidates": rows}


class Judge:
    """What an average of two models is worth on calibration data."""

    def __init__(self, runner: Runner, a: State, b: State, calib: Samples) -> None:
        self.runner, self.a, self.calib = runner, a, calib
        self.of_a, self.of_b = (runner.outputs(state, calib.x) for state in (a, b))
        self.kind = kind_of(calib.y, self.of_a)

    def loss(self, outputs: Tensor, t: float = 0.5) -> float:
        """Against labels where there are any, else against the parents' ensemble."""
        if self.calib.y is not None:
            return scored(outputs, self.calib.y).loss
        return against(outputs, ensemble(self.of_a, self.of_b, t, self.kind), self.kind)

    def midpoint(self, moved: State, fix: str) -> float:
        """Loss of the average of ``a`` and an aligned ``b``, after repair."""
        middle = repair(self.runner, self.a, moved, mix(self.a, moved, 0.5), self.calib.x,
                        method=fix)
        return self.loss(middle.outputs(self.runner, self.calib.x))


# ---------------------------------------------------------------- proof


def certificate(
    pair: Pair, element: GroupElement, calib: Samples | None
) -> Certificate | None:
    """Run ``b`` before and after the element, in float64; None where there is no network."""
    if pair.runner is None:
        return None
    runner = pair.runner
    if calib is not None:
        x, told = fitted(calib.x, runner.sample)[: len(runner.sample)], "calibration inputs"
    else:
        x, told = runner.sample, "example inputs"
        if x.is_floating_point():
            x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    b = pair.b
    if any(group.kind in ROTATING for group in pair.space.groups):  # turned in single: rounded
        b = {name: widened(tensor) for name, tensor in b.items()}
    before, after = runner.doubled([b, element.apply(b)], x)
    error = relative_change(before, after)
    return Certificate(error <= _CERTIFIED, error, told)

