"""Part 4: predict the accuracy of networks from their weights, beside everything simpler."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from metanet.graph import WeightBatch
from metanet.models import Metanet, fit
from metanet.symmetry import Verification, WeightSpace, infer, verify
from metanet.tasks.demo.baselines import (
    Array,
    Prediction,
    Rows,
    Split,
    reference_rows,
    split_runs,
    usable,
)
from metanet.tasks.demo.data import Digits
from metanet.tasks.demo.population import (
    Population,
    SmallCNN,
    draw_recipe,
    state_dict,
    train_population,
)
from metanet.tasks.demo.scores import Ceiling, Estimate, Score, ceiling, difference, score


@dataclass(frozen=True)
class Plan:
    """Size of part 4.

    Args:
        members: runs to train.
        steps: fewest and most optimizer steps of a run.
        epochs: of each metanet, over the checkpoints of the training part.
    """

    members: int
    steps: tuple[int, int]
    epochs: int


# Two metanets of different layers and one prediction, their mean; nothing is selected.
KINDS = ("gmn", "unf")
WIDTH, DEPTH = 16, 2


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    prediction: Prediction
    score: Score


@dataclass(frozen=True)
class Census:
    """What became of the runs: diverged and chance-level ones are counted here and nowhere else."""

    runs: int
    diverged: int
    chance: int
    checkpoints: int
    train_runs: int
    validation_runs: int
    test_runs: int


@dataclass(frozen=True)
class Read:
    """Everything that part 4 found.

    Args:
        census: of the runs.
        space: of every member.
        proof: of the space.
        rows: the table; the metanets come last.
        gain: τ of the metanet minus τ of weight statistics + boosting, on the same resamples.
        ceiling: of the table.
        true: accuracies of the test members.
        permuted_change: largest change of a prediction when all test members are permuted.
        shuffled_change: mean change when the entries of each tensor are shuffled.
        shuffled_tau: τ on shuffled test members.
        seconds: training the population, training the metanets (and the reference rows beside
            them), scoring.
    """

    census: Census
    space: WeightSpace
    proof: Verification
    rows: tuple[Row, ...]
    gain: Estimate
    ceiling: Ceiling
    true: Array
    permuted_change: float
    shuffled_change: float
    shuffled_tau: float
    seconds: tuple[float, float, float]

    def row(self, start: str) -> Row:
        """The row whose name starts so."""
        return next(row for row in self.rows if row.prediction.name.startswith(start))


def read(plan: Plan, data: Digits, seed: int, say: Callable[[str], None]) -> Read:
    """Train the population, the metanets and the reference rows, and score them.

    Args:
        plan: sizes.
        data: the digits.
        seed: of everything random.
        say: told about progress.
    """
    start = perf_counter()
    population = train_population(draw_recipe(plan.members, plan.steps, seed), data, seed,
                                  _reporter(say))
    good = usable(population)
    split = split_runs(good, seed)
    census = _census(population, good, split)
    trained = perf_counter()
    say(f"  {census.runs} runs in {trained - start:.0f} s; {census.diverged} diverged, "
        f"{census.chance} at chance; {census.test_runs} held out")
    space, proof = _space()
    say(f"  their space: {len(space.groups)} groups, "
        f"{'verified' if proof.ok else 'NOT VERIFIED'} (error {proof.max_error:.0e})")
    with ThreadPoolExecutor(1) as pool:  # the reference rows keep the other core busy
        references = pool.submit(lambda: list(reference_rows(population, split)))
        metanets = [_train(kind, plan.epochs, space, population, split, say) for kind in KINDS]
        read_at = perf_counter()
        predictions = [*references.result(), *_metanet_rows(metanets, space, population, split)]
    true = split.test.of(population.accuracy)
    rows = tuple(Row(p, score(p.values, true, seed=seed)) for p in predictions)
    statistics = next(p for p in predictions if p.name.startswith("weight statistics"))
    return Read(
        census, space, proof, rows, difference(predictions[-1].values, statistics.values, true,
                                               seed=seed),
        ceiling(population.test_correct[-1][split.test.member], seed=seed), true,
        *_controls(metanets, space, population, split, seed),
        (trained - start, read_at - trained, perf_counter() - read_at),
    )


def _reporter(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Speak at each quarter."""
    told = 0

    def report(done: int, total: int) -> None:
        nonlocal told
        if 4 * done // total > told and done < total:
            told = 4 * done // total
            say(f"  {done} of {total} runs trained")

    return report


def _census(population: Population, good: np.ndarray, split: Split) -> Census:
    finite = population.finite[-1]
    return Census(
        len(finite), int((~finite).sum()), int((finite & ~good[-1]).sum()), len(split.train),
        len(np.unique(split.train.member)), len(split.validation), len(split.test))


def _space() -> tuple[WeightSpace, Verification]:
    module, inputs = SmallCNN(), (torch.rand(2, 1, 8, 8),)
    space = infer(module, inputs)
    proof = verify(module, space, inputs)
    return space.with_status("verified" if proof.ok else "inferred"), proof


def _batch(space: WeightSpace, population: Population, rows: Rows) -> WeightBatch:
    return WeightBatch.stack(space, [state_dict(population.weights[s, m])
                                     for s, m in zip(rows.snapshot, rows.member, strict=True)])


def _targets(population: Population, rows: Rows) -> Tensor:
    return torch.from_numpy(rows.of(population.accuracy)).float()


def _train(kind: str, epochs: int, space: WeightSpace, population: Population, split: Split,
           say: Callable[[str], None]) -> Metanet:
    """Train one metanet; the epoch with the least validation loss is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Metanet.from_config({"space": space, "kind": kind, "width": WIDTH, "depth": DEPTH,
                                     "dropout": 0.2})
    done = fit(
        model, _batch(space, population, split.train), _targets(population, split.train),
        _batch(space, population, split.validation), _targets(population, split.validation),
        epochs=epochs, lr=4e-3, weight_decay=0.1)
    numbers = sum(p.numel() for p in model.parameters())
    say(f"  metanet of {kind.upper()} layers, {numbers:,} parameters: trained on "
        f"{len(split.train)} checkpoints in {done.seconds:.0f} s")
    return model


def _predict(models: list[Metanet], batch: WeightBatch) -> Array:
    """Mean prediction of some metanets, ``[n]``."""
    with torch.no_grad():
        found = torch.stack([model(batch)[:, 0] for model in models]).mean(0)
    return found.double().numpy()


def _metanet_rows(models: list[Metanet], space: WeightSpace, population: Population,
                  split: Split) -> list[Prediction]:
    batch = _batch(space, population, split.test)
    rows = [Prediction(f"metanet, {kind.upper()} layers", "W", _predict([model], batch))
            for kind, model in zip(KINDS, models, strict=True)]
    return [*rows, Prediction("metanet, mean of both", "W", _predict(models, batch))]


def _controls(models: list[Metanet], space: WeightSpace, population: Population, split: Split,
              seed: int) -> tuple[float, float, float]:
    """Permuted members must get the same prediction, shuffled ones must not."""
    batch = _batch(space, population, split.test)
    plain = _predict(models, batch)
    permuted = _predict(models, batch.apply(space.random(seed)))
    generator = torch.Generator().manual_seed(seed)
    members = [state_dict(population.weights[-1, m]) for m in split.test.member]
    shuffled = _predict(models, WeightBatch.stack(
        space, [{name: _shuffle(x, generator) for name, x in member.items()}
                for member in members]))
    tau = score(shuffled, split.test.of(population.accuracy), resamples=1).tau.value
    return (float(np.abs(permuted - plain).max()), float(np.abs(shuffled - plain).mean()), tau)


def _shuffle(value: Tensor, generator: torch.Generator) -> Tensor:
    """The same numbers in any order: statistics stay, the function is gone."""
    return value.flatten()[torch.randperm(value.numel(), generator=generator)].reshape(value.shape)
