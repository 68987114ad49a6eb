"""One contract for every row of the registry, and what each must be blind to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from predict_zoos import task

from metanet.graph import WeightBatch
from metanet.symmetry import GroupElement, WeightSpace
from metanet.tasks.predict.features import statistics
from metanet.tasks.predict.images import module_of
from metanet.tasks.predict.normal import Coordinates, Normal
from metanet.tasks.predict.rows import ROWS, TRACKS, Budget, neural
from metanet.tasks.predict.trust import shuffled
from metanet.tasks.predict.wiring import wiring

BUDGET = Budget(epochs=2, width=4, batch_size=8, trials=1, seeds=1, patience=2)


def moved(batch: WeightBatch, space: WeightSpace, seed: int) -> WeightBatch:
    """The members as they are after a random element of a space with the same blocks."""
    wide = WeightBatch(space, batch.blocks, batch.names)
    return WeightBatch(batch.space, wide.apply(space.random(seed)).blocks, batch.names)


@pytest.mark.parametrize("kind", ["inr", "net", "mixed"])
@pytest.mark.parametrize("name", list(ROWS))
def test_contract(name: str, kind: str) -> None:
    row, found = ROWS[name], task(kind)
    assert row.track in TRACKS
    assert len(row.settings) in (1, 4)  # as many trials for one as for another, or none to make
    if not row.suits(found):
        return
    fitted = row.fit(found, BUDGET, row.settings[0], 0)
    part = found.parts["test"]
    values = fitted.predict(part)
    if found.goal.kind == "classification":
        assert values.shape == (len(part), found.classes)
        assert np.allclose(values.sum(1), 1, atol=1e-5)
    else:
        assert values.shape == (len(part),)
        assert (values > 0).all() and (values < 1).all()
    assert np.isfinite(values).all()
    again = row.fit(found, BUDGET, row.settings[0], 0).predict(part)
    assert np.array_equal(values, again), "the same seed must give the same bits"
    if row.invariant:
        other = fitted.predict(part.with_batch(moved(part.batch, found.space, 1)))
        assert np.abs(other - values).max() < 1e-5


@pytest.mark.parametrize("kind", ["inr", "net"])
@pytest.mark.parametrize("name", ["flagship-w", "flagship-q", "probing"])
def test_signs_and_scales_are_not_seen(name: str, kind: str) -> None:
    found = task(kind)
    wide = neural.larger(found)
    assert {g.kind for g in wide.groups} == {{"inr": "signed", "net": "positive"}[kind]}
    part = found.parts["test"]
    fitted = ROWS[name].fit(found, BUDGET, ROWS[name].settings[0], 0)
    values = fitted.predict(part)
    other = fitted.predict(part.with_batch(moved(part.batch, wide, 3)))
    assert np.abs(other - values).max() < 1e-5
    if name == "flagship-w":  # plain readers do see them, so the test can fail
        plain = ROWS["gmn"].fit(found, BUDGET, ROWS["gmn"].settings[0], 0)
        seen = plain.predict(part.with_batch(moved(part.batch, wide, 3)))
        assert np.abs(seen - plain.predict(part)).max() > 1e-4


def test_normal_keeps_the_function() -> None:
    found = task("inr")
    part, module = found.parts["test"], module_of(found.recipe)
    after = Normal(neural.larger(found), 30.0)(part.batch)
    x = torch.rand(20, 2) * 2 - 1
    for one, other in zip(part.batch.unstack(), after.unstack(), strict=True):
        a, b = (torch.func.functional_call(module, state, (x,)) for state in (one, other))
        assert torch.allclose(a, b, atol=1e-4)
    assert (after.blocks["seq.1.bias"] >= 0).all()
    assert (after.blocks["seq.1.bias"] <= torch.pi / 60 + 1e-6).all()


def test_coordinates_move_the_picture() -> None:
    found = task("inr")
    batch, module = found.parts["test"].batch[:4], module_of(found.recipe)
    step = Coordinates(found.space, turn=0.0, move=0.3, size=0.0)
    assert step.eval()(batch) is batch
    torch.manual_seed(0)
    after = step.train()(batch)
    added = (after.blocks["seq.0.bias"] - batch.blocks["seq.0.bias"])[0]
    shift = torch.linalg.lstsq(batch.blocks["seq.0.weight"][0, :, :, 0], added).solution
    x = torch.rand(20, 2) - 0.5
    one, other = batch.unstack()[0], after.unstack()[0]
    assert torch.allclose(torch.func.functional_call(module, other, (x,)),
                          torch.func.functional_call(module, one, (x + shift[:, 0],)), atol=1e-3)


def test_conventions_are_drawn() -> None:
    found = task("inr")
    step = Coordinates(found.space, turn=0.0, move=0.0, size=0.0, conventions=True).train()
    torch.manual_seed(0)
    batch = found.parts["train"].batch
    after = step(batch)
    ratio = (after.blocks["seq.2.weight"] / batch.blocks["seq.2.weight"]).flatten(1).mean(1)
    assert set(ratio.round().int().tolist()) == {1, 2}
    swapped = (after.blocks["seq.0.weight"][:, :, 0] - batch.blocks["seq.0.weight"][:, :, 1]).abs()
    assert 0 < int((swapped.amax((1, 2)) < 1e-6).sum()) < len(batch)


def test_element_of_the_wide_space_is_no_permutation() -> None:
    element = neural.larger(task("net")).random(3)
    assert isinstance(element, GroupElement)
    assert any(element.moved().values())


def test_wiring_sees_what_statistics_do_not() -> None:
    """Entries in another order keep all statistics of a tensor and lose its wiring; neurons in
    another order keep both.
    """
    found = task("net")
    batch = found.parts["train"].batch
    before = wiring(batch)
    assert before.shape[1] > 50 and bool(torch.isfinite(before).all())
    assert bool((before.std(0) > 1e-9).float().mean() > 0.9), "numbers that tell members apart"
    again = wiring(moved(batch, found.space, 1))
    assert torch.allclose(again, before, atol=1e-6)
    other = shuffled(batch)
    assert torch.allclose(statistics(other), statistics(batch), atol=1e-6)
    assert float((wiring(other) - before).abs().median()) > 0.01
