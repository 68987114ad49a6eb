"""The leak gate: clean zoos pass, planted leaks are found, false alarms are as rare as promised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metanet.zoo import Zoo, leaks
from metanet.zoo.features import Table
from metanet.zoo.leaks import _classify, _holm, gate
from small_zoos import labelled, small

from metanet import ZooError


@pytest.mark.parametrize("shared", [False, True])
def test_a_clean_zoo_passes(tmp_path: Path, shared: bool) -> None:
    zoo = labelled(tmp_path / "z", shared=shared)
    found = zoo.verify()
    assert found.ok, found.leaks
    assert found.gate is not None
    kinds = {check.evidence for check in found.gate.checks}
    assert {"order (index, chunk)", "training (steps, final loss)", "step-0 weights",
            "step-0 statistics", "weights, shuffled labels"} == kinds
    assert not found.gate.skipped


@pytest.mark.parametrize(("options", "evidence"), [
    ({"order": lambda y: np.argsort(y, kind="stable")}, "order"),
    ({"bias": 1.0}, "step-0"),
    ({"steps": lambda rng, c: 100 + 20 * c + rng.normal() * 10}, "training"),
    ({"views": 5, "order": lambda y: np.argsort(y, kind="stable")}, "order"),
])
def test_planted_leaks_are_found(tmp_path: Path, options: dict[str, Any], evidence: str) -> None:
    found = labelled(tmp_path / "z", **options).verify()
    assert not found.ok
    assert found.gate is not None
    assert {check.evidence.split(" (")[0].split(" w")[0].split(" s")[0]
            for check in found.gate.leaks} == {evidence}
    assert all(evidence in line for line in found.leaks)


def test_a_seed_that_follows_the_label_is_found(tmp_path: Path) -> None:
    """One initialisation per class: no moment differs much, every weight does."""
    import torch
    from metanet.zoo import Entry
    from small_zoos import SHAPES

    zoo = Zoo.create(tmp_path / "z", labels=["config.label"])
    rng = np.random.default_rng(5)
    label = rng.integers(4, size=200)
    start = {k: torch.from_numpy(rng.normal(size=(4, *s)))[label].float()
             for k, s in SHAPES.items()}
    zoo.add_stacked(start, [Entry(str(i), {"label": int(c)}, step=0) for i, c in enumerate(label)])
    assert {c.evidence for c in gate(zoo).leaks} == {"step-0 weights", "step-0 statistics"}


def test_views_do_not_count_as_evidence(tmp_path: Path) -> None:
    """Thirty images with ten views each, in a row: views tell each other, no class leaks."""
    assert labelled(tmp_path / "z", views=10).verify().ok


def test_a_declared_column_is_reported_and_passes(tmp_path: Path) -> None:
    steps = {"steps": lambda rng, c: 100 + 20 * c + rng.normal()}
    zoo = labelled(tmp_path / "z", **steps, intrinsic={
        "metrics.steps": "stops at a target", "metrics.final_loss": "of the image"})
    found = zoo.verify()
    assert found.ok
    assert found.gate is not None
    told = [c for c in found.gate.checks if c.reason]
    assert {c.evidence for c in told} == {"training (steps, final loss)"}
    assert min(c.p_all for c in told) < 0.05
    zoo.set_card(intrinsic={"metrics.steps": "stops at a target"})
    assert not zoo.verify().ok  # the loss stands beside it and is not declared


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    found = small(tmp_path / "a").verify()
    assert found.ok
    assert found.gate is not None
    assert "no column is declared" in found.gate.skipped["classifiers"]
    few = gate(small(tmp_path / "b"), labels=["opt"])
    assert not few.checks
    assert any("too few" in why for why in few.skipped.values())
    with pytest.raises(ZooError, match="no column 'colour'"):
        gate(small(tmp_path / "c"), labels=["colour"])


def test_numbers_are_binned_and_their_order_is_checked(tmp_path: Path) -> None:
    zoo = small(tmp_path / "z", 120)  # lr rises with the index
    found = gate(zoo, labels=["config.lr"])
    assert {c.evidence for c in found.leaks} == {"order (index, chunk)"}


def test_deterministic(tmp_path: Path) -> None:
    zoo = labelled(tmp_path / "z")
    assert gate(zoo) == gate(zoo)


def test_false_alarms_are_controlled(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 clean tables, classes constant in groups: at 5 %, more than 11 alarms have p < .001."""
    monkeypatch.setattr(leaks, "PERMUTATIONS", 199)
    alarms = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(40), 2)
        y = rng.integers(3, size=40)[groups]
        x = rng.normal(size=(80, 3)) + 3 * rng.normal(size=(40, 3))[groups]
        table = Table("noise", x, np.arange(80), classifiers=("logistic", "neighbour"))
        checks = _holm(_classify("y", table, x, y, groups, seed))
        alarms += not all(check.ok for check in checks)
    assert alarms <= 11, alarms


def test_holm_by_hand() -> None:
    base = _classify("y", Table("x", np.zeros((50, 1)), np.arange(50), classifiers=("neighbour",)),
                     np.zeros((50, 1)), np.arange(50) % 2, np.arange(50), 0)[0]
    ps = [0.04, 0.01, 0.03]
    found = _holm([replace(base, p=p) for p in ps])
    assert [c.p_all for c in found] == pytest.approx([0.06, 0.03, 0.06])
    assert [c.ok for c in found] == [True, False, True]
