"""The parts of the demo, each against something slower and more obvious."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from sklearn.metrics import r2_score

from metanet.symmetry import WeightSpace, infer, verify
from metanet.tasks.demo.baselines import CHANCE, split_runs, usable, weight_statistics
from metanet.tasks.demo.data import Digits, load_digits
from metanet.tasks.demo.llama import Llama, Shape, llama_on_meta, rotate
from metanet.tasks.demo.meet import Path
from metanet.tasks.demo.mlp import MLP, double
from metanet.tasks.demo.population import (
    LAYOUT,
    N_PARAMETERS,
    SNAPSHOTS,
    Population,
    Recipe,
    SmallCNN,
    draw_recipe,
    forward,
    state_dict,
    train_population,
)
from metanet.tasks.demo.scores import ceiling, difference, score
from metanet.tasks.demo.scramble import scramble
from metanet.tasks.demo.words import count


@pytest.fixture(scope="module")
def data() -> Digits:
    return load_digits()


@pytest.fixture(scope="module")
def population(data: Digits) -> Population:
    return train_population(draw_recipe(12, (8, 24), 0), data)


def recipe(**changes: torch.Tensor) -> Recipe:
    base = {"lr": torch.tensor([0.01, 0.01]), "weight_decay": torch.tensor([0.1, 0.1]),
            "init_scale": torch.ones(2), "images": torch.tensor([900, 900]),
            "steps": torch.tensor([8, 8]), "adam": torch.tensor([True, False])}
    return Recipe(**{**base, **changes})


def test_digits_are_split_without_overlap(data: Digits) -> None:
    parts = (data.train, data.labelled, data.test)
    assert [len(part) for part in parts] == [900, 100, 797]
    assert all(len(part.y.unique()) == 10 for part in parts)
    assert float(data.train.x.max()) == 1.0
    rows = torch.cat([torch.cat([p.x.flatten(1), p.y[:, None].float()], 1) for p in parts])
    assert len(rows.unique(dim=0)) == len(rows)  # so the parts share no image


def test_batched_forward_is_the_module_of_each_member() -> None:
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(3, N_PARAMETERS, generator=generator) / 3
    x = torch.rand(5, 3, 8, 8, generator=generator)
    got = forward(theta, x)
    for k in range(3):
        module = SmallCNN()
        module.load_state_dict(state_dict(theta[k]))
        torch.testing.assert_close(got[k], module(x[:, k : k + 1]))


def test_a_diverged_member_does_not_touch_the_others(data: Digits) -> None:
    calm = train_population(recipe(), data)
    wild = train_population(recipe(lr=torch.tensor([0.01, 1e30])), data)
    torch.testing.assert_close(wild.weights[:, 0], calm.weights[:, 0])
    assert wild.finite[-1].tolist() == [True, False]
    assert wild.accuracy[-1, 1] == 0
    assert usable(wild)[-1].tolist() == [bool(calm.accuracy[-1, 0] >= CHANCE), False]


@pytest.mark.parametrize("adam", [True, False])
def test_updates_are_those_of_torch(data: Digits, adam: bool) -> None:
    """One member, eight steps, by torch's own optimizers on the same gradients."""
    chosen = recipe(adam=torch.tensor([adam, adam]), images=torch.tensor([1, 1]))
    trained = train_population(chosen, data).weights[-1, 0]
    start = train_population(recipe(lr=torch.zeros(2), images=torch.tensor([1, 1])), data)
    module = SmallCNN()
    module.load_state_dict(state_dict(start.weights[-1, 0]))
    # One image only: every batch is that image 32 times, whichever one it is.
    subset = torch.Generator().manual_seed(0)
    for shape in LAYOUT.values():
        torch.randn(2, int(np.prod(shape)), generator=subset)
    image = torch.rand(2, len(data.train), generator=subset).argsort(1)[0, 0]
    x, y = data.train.x[image][None], data.train.y[image][None]
    if adam:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(module.parameters(), 0.01,
                                                             weight_decay=0.1)
    else:
        optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        if not adam:
            with torch.no_grad():
                for p in module.parameters():
                    p.mul_(1 - 0.01 * 0.1)
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.testing.assert_close(trained, expected, rtol=1e-3, atol=1e-5)


def test_population_is_a_function_of_its_seed(data: Digits, population: Population) -> None:
    again = train_population(draw_recipe(12, (8, 24), 0), data)
    other = train_population(draw_recipe(12, (8, 24), 0), data, seed=1)
    assert torch.equal(population.weights, again.weights)
    assert not torch.equal(population.weights, other.weights)
    assert population.weights.shape == (len(SNAPSHOTS), 12, N_PARAMETERS)


def test_hyper_parameters_name_the_checkpoint(population: Population) -> None:
    features = population.recipe.features()
    assert features.shape == (len(SNAPSHOTS), 12, 6)
    saved = np.exp(features[:, :, -1]).round()
    assert (saved == population.recipe.saved_at().numpy()).all()
    assert (saved[-1] == population.recipe.steps.numpy()).all()


def test_no_run_is_in_two_parts() -> None:
    good = np.ones((4, 100), dtype=bool)
    good[:, 10:20] = False
    good[0, :50] = False
    split = split_runs(good)
    parts = [set(rows.member) for rows in (split.train, split.validation, split.test)]
    assert [len(part) for part in parts] == [54, 13, 23]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert not set(range(10, 20)) & set.union(*parts)
    assert set(split.test.snapshot) == set(split.validation.snapshot) == {3}
    assert good[split.train.snapshot, split.train.member].all()
    assert len(split.train) == good[:, sorted(parts[0])].sum()


def test_statistics_do_not_see_the_order_of_neurons(population: Population) -> None:
    space = infer(SmallCNN(), (torch.rand(2, 1, 8, 8),))
    moved = space.random(0).apply(state_dict(population.weights[-1, 0]))
    row = torch.cat([moved[name].flatten() for name in LAYOUT])
    both = Population(torch.stack([population.weights[-1, 0], row])[None], population.recipe,
                      population.test_correct, population.labelled_correct)
    found = weight_statistics(both)
    assert found.shape == (1, 2, 56)
    np.testing.assert_allclose(found[0, 0], found[0, 1], rtol=1e-12)


def test_scores_are_those_of_scipy_and_sklearn() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 12, 40) / 12  # with ties
    predicted = np.round(true + rng.normal(size=40) / 5, 1)
    found = score(predicted, true, resamples=400)
    assert found.tau.value == pytest.approx(kendalltau(predicted, true).statistic)
    assert found.r2.value == pytest.approx(r2_score(true, predicted))
    drawn = [rng.integers(0, 40, 40) for _ in range(400)]
    taus = [kendalltau(predicted[i], true[i]).statistic for i in drawn]
    low, high = np.quantile(taus, [0.025, 0.975])
    assert (found.tau.low, found.tau.high) == pytest.approx((low, high), abs=0.03)
    assert score(np.zeros(40), true).tau.value == 0
    assert difference(true, predicted, true).low > 0 > difference(predicted, true, true).high


def test_ceiling_falls_with_fewer_images() -> None:
    generator = torch.Generator().manual_seed(0)
    accuracy = torch.linspace(0.3, 0.9, 60)[:, None]
    many, few = (torch.rand(60, n, generator=generator) < accuracy for n in (2000, 50))
    high, low = ceiling(many, resamples=50), ceiling(few, resamples=50)
    assert 1 > high.tau > low.tau + 0.1
    assert 1 > high.r2 > low.r2
    assert low.halves < low.tau


def test_llama_is_causal_and_rotates() -> None:
    torch.manual_seed(0)
    net = Llama(Shape(97, 32, 2, 4, 2, 8, 56)).double()
    tokens = torch.arange(10).reshape(2, 5)
    other = tokens.clone()
    other[:, -1] += 40
    before, after = net(tokens), net(other)
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, -1], after[:, -1])
    # Scores of rotated queries and keys depend on the distance of positions only.
    q, k = (torch.randn(8, dtype=torch.float64).expand(1, 1, 6, 8) for _ in range(2))
    scores = (rotate(q) @ rotate(k).transpose(2, 3))[0, 0]
    for offset in range(6):
        line = scores.diagonal(offset)
        torch.testing.assert_close(line, line[:1].expand_as(line))


def test_llama_shape_has_the_groups_of_gqa() -> None:
    """Residual stream, and per layer: key heads, query heads of each, value dims of each, MLP."""
    space = infer(llama_on_meta(), (torch.randint(0, 97, (2, 5)),))
    layer = [("S", 8192, ()), ("S", 8, ()), ("S", 4, (8,)), ("S", 64, (8,))]
    expected = sorted([("S", 2048, ()), *layer, *layer])
    sizes = {g.label: g.size for g in space.groups}
    found = sorted((g.kind, g.size, tuple(sizes[b] for b in g.over)) for g in space.groups)
    assert found == expected
    small = llama_on_meta(Shape(97, 32, 2, 4, 2, 8, 56))
    tokens = torch.randint(0, 97, (2, 5))
    proof = verify(small, infer(small, (tokens,)), (tokens,))
    assert proof.ok
    assert proof.controls.detected == proof.controls.total == 9


def test_scramble_tells_one_network_from_two(data: Digits) -> None:
    torch.manual_seed(0)
    nets = [double(MLP()) for _ in range(2)]
    space = infer(MLP(), (data.test.x[:2],))
    found = scramble(space, nets[0], nets[1], data.test.x, seed=3)
    assert abs(found.cosine) < 0.1
    assert found.max_change < 1e-13
    assert found.recovered
    assert not found.other_same
    # A space that knows no freedom finds nothing.
    frozen = WeightSpace.parse("space v1\n" + "\n".join(
        f"{name}: " + " ".join(f"{n}!" for n in spec.shape)
        for name, spec in space.tensors.items()))
    permuted = space.random(3).apply(nets[0])
    assert not scramble(frozen, nets[0], permuted, data.test.x, seed=3).other_same
    assert scramble(space, nets[0], permuted, data.test.x, seed=3).other_same


def test_barrier_is_measured_from_the_straight_line() -> None:
    path = Path([0.0, 0.5, 1.0], [1.0, 3.0, 2.0], [0.9, 0.1, 0.8])
    assert path.barrier == pytest.approx(1.5)
    assert path.midpoint == (3.0, 0.1)


@pytest.mark.parametrize(("number", "words"), [
    (7, "7"), (9_999, "9,999"), (270_896, "271 thousand"), (646_981_632, "647 million"),
    (1_240_000_000, "1.24 billion")])
def test_counts_are_readable(number: int, words: str) -> None:
    assert count(number) == words
