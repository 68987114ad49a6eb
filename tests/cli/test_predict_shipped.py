"""The predictors that come with metanet, on checkpoints that others made."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import Run

from metanet.graph import WeightBatch
from metanet.tasks.predict import Part
from metanet.tasks.predict.predictor import SHIPPED, Predictors, shipped

LIMIT = 4_000_000


def test_two_are_shipped_and_small() -> None:
    assert shipped() == ["inr-mnist", "small-cnn"]
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) <= LIMIT
    for name in shipped():
        assert (SHIPPED / name / "README.md").read_text(encoding="utf-8").startswith(f"# {name}")
        assert not [p for p in (SHIPPED / name).rglob("*") if p.suffix in (".pt", ".pkl", ".py")]


@pytest.mark.parametrize("name", ["inr-mnist", "small-cnn"])
def test_permuted_copies_get_one_prediction(name: str) -> None:
    """Also rescaled and sign-flipped ones, where the code of the members has that freedom."""
    for one in Predictors.load(name).many:
        space, wide = one.task.space, one.task.wide
        assert wide is not None
        rng = np.random.default_rng(0)
        state = {key: torch.from_numpy(0.2 * rng.normal(size=spec.shape)).float()
                 for key, spec in space.tensors.items()}
        said = [one.model(_part(one, moved)) for moved in
                (state, space.random(1).apply(state), wide.random(2).apply(state))]
        assert all(np.isfinite(values).all() for values in said)
        assert np.abs(said[1] - said[0]).max() < 1e-5
        assert np.abs(said[2] - said[0]).max() < 1e-5


def _part(one: Any, state: Any) -> Any:
    k = len(one.task.kinds)
    return Part(("x",), WeightBatch.stack(one.task.space, [state]), np.zeros(1), np.zeros(1),
                np.zeros((1, 0)), torch.full((1, k), 1 / max(k, 1)))


def test_an_orbit_of_a_stranger_gets_one_digit(run: Run, shared_data: Path) -> None:
    """64 members of one orbit; the image is a six with its axes transposed."""
    found = run("predict", "inr-mnist", shared_data / "siren_orbit", "--json").json
    said = [one for one in found if "prediction" in one]
    assert len(said) == 64
    assert Counter(one["prediction"] for one in said) == {6: 64}
    probabilities = [one["probability"] for one in said]
    assert max(probabilities) - min(probabilities) < 1e-5
    assert min(probabilities) > 0.5
    assert len({one["out_of_distribution"] for one in said}) == 1


@pytest.mark.parametrize("family", ["wild_mnist_cnn21k", "wild_mnist_lenet45k"])
def test_strangers_get_sensible_accuracies(run: Run, shared_data: Path, family: str) -> None:
    folder = shared_data / family
    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    true = {e["file"]: float(e.get("test_accuracy", e.get("test_acc_best"))) for e in entries}
    found = {Path(one["source"]).name: one for one in run(
        "predict", "small-cnn", folder, "--json").json}
    said = {name: found[name]["prediction"] for name in true}
    assert len(said) == len(true)
    good = [name for name, y in true.items() if y > 0.9]
    assert all(0.1 < value < 1 for value in said.values())
    errors = [abs(said[name] - true[name]) for name in good]
    assert np.median(errors) < 0.05
    for one in found.values():
        assert (one["interval"] is None) == one["out_of_distribution"]


def test_what_it_does_not_know_is_refused(run: Run, shared_data: Path) -> None:
    done = run("predict", "small-cnn", shared_data / "resnet_cifar", "--json")
    assert done.code == 3 and done.json
    assert all("knows no other network" in one["error"] or "known" in one["error"]
               for one in done.json)
    broken = run("predict", "inr-mnist", shared_data / "burn_fixtures", "--json")
    assert all("error" in one for one in broken.json)
