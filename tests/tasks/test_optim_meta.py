"""Meta-training: gradients against a slow truth, resuming, the recipes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from metanet.errors import MetanetError
from metanet.tasks.optimize import LearnedOptimizer, Net, fresh
from metanet.tasks.optimize import recipe as recipes
from metanet.tasks.optimize.estimate import Backward, Evolution
from metanet.tasks.optimize.families import TRAINING
from metanet.tasks.optimize.inner import Sampler, Task, mlp
from metanet.tasks.optimize.meta import Training
from metanet.tasks.optimize.recipe import Recipe
from metanet.tasks.optimize.spec import Spec
from metanet.tasks.optimize.unseen import UNSEEN
from metanet.tasks.optimize.worker import Worker

TINY = Task("tiny", "digits", 8, lambda: mlp(64, (5,), 10), batch=8)
PLAN = Recipe(tasks=("mlp-digits",), estimator="backprop", steps=4, truncation=3, pairs=2,
              horizon=(3, 9))


def worker(kind: str = "element", replicas: int = 4, paired: bool = True,
           plan: Recipe = PLAN) -> Worker:
    return Worker(TINY, Spec(kind), plan, replicas, paired, 0)


def test_pairs_start_alike_and_see_the_same() -> None:
    one = worker()
    theta = Spec().start()[None].expand(4, -1)
    with torch.no_grad():
        found = one.unroll(theta, 3)
    assert torch.equal(found.meta[:2], found.meta[2:])
    assert float((found.meta[0] - found.meta[1]).abs()) > 0
    assert torch.equal(one.p[:2], one.p[2:])


def test_unroll_is_the_optimizer() -> None:
    """A worker's steps are those of LearnedOptimizer on the same network and batches."""
    plan = replace(PLAN, reparam=(1.0, 1.0), horizon=(1000, 1000))
    one = worker(replicas=1, paired=False, plan=plan)
    one.facts[0] = 0
    noise = 0.2 * torch.randn(Spec().start().shape)
    net = fresh().with_theta(fresh().theta + noise)
    module = TINY.make()
    with torch.no_grad():
        for p, value in zip(module.parameters(), one.layout.views(one.p[0]), strict=True):
            p.copy_(value)
    there = one.generator.get_state()
    with torch.no_grad():
        one.unroll(net.theta[None], 5)
    one.generator.set_state(there)
    optimizer = LearnedOptimizer(module, net, guard=False)
    for _ in range(5):
        x, y = one.samplers[0].draw()
        optimizer.zero_grad()
        TINY.loss(module(x), y).backward()
        optimizer.step()
    for p, value in zip(module.parameters(), one.layout.views(one.p[0]), strict=True):
        torch.testing.assert_close(p.detach(), value, atol=2e-4, rtol=1e-2)


def test_storage_by_a_factor_is_the_same_network() -> None:
    one = worker(plan=replace(PLAN, reparam=(4.0, 4.0)), replicas=1, paired=False)
    values = one.layout.named(one.p[0] * 4)
    x, y = one.samplers[0].draw()
    loss = TINY.loss(functional_call(one.module, values, (x,)), y)
    assert float(loss.detach()) == pytest.approx(2.3, abs=0.5)


@pytest.mark.parametrize("kind", ["element", "context"])
def test_backprop_is_the_slope(kind: str) -> None:
    """The gradient through a truncation against a difference along it."""
    theta = Spec(kind).start().double()
    theta = theta + 0.1 * torch.randn(len(theta), dtype=torch.float64)
    plan = replace(PLAN, horizon=(100, 100))

    def made() -> Worker:
        one = worker(kind, 2, False, plan)
        one.p = one.p.double()
        one.module.double()
        for sampler in one.samplers:
            sampler.x = sampler.x.double()
        one.state = type(one.state)(*(v.double() for v in (
            one.state.momenta, one.state.square, one.state.steps)))
        return one

    gradient, _ = Backward(made()).gradient(theta, 3)
    step = 1e-5 * gradient / gradient.norm()
    with torch.no_grad():
        up = made().unroll((theta + step)[None], 3).meta.mean()
        down = made().unroll((theta - step)[None], 3).meta.mean()
    assert float((up - down) / 2e-5) == pytest.approx(float(gradient.norm()), rel=1e-2)


def test_first_order_takes_gradients_as_given() -> None:
    """Exact for one learned step, whose gradient does not depend on the net; near it for more."""
    theta = Spec().start()
    found = {}
    for estimator in ("backprop", "first-order"):
        plan = replace(PLAN, estimator=estimator, horizon=(100, 100))
        for steps in (2, 6):
            one = worker(replicas=4, paired=False, plan=plan)
            found[estimator, steps], told = Backward(one).gradient(theta, steps)
            found[estimator, -steps] = told.meta
    torch.testing.assert_close(found["first-order", 2], found["backprop", 2], rtol=1e-3, atol=1e-6)
    assert torch.equal(found["first-order", -6], found["backprop", -6])  # the same losses
    apart = found["first-order", 6] - found["backprop", 6]
    assert 1e-5 < float(apart.norm() / found["backprop", 6].norm()) < 0.1


def test_exploding_gradients_are_left_out(tmp_path: Path) -> None:
    training = Training(plan(estimator="backprop"), tmp_path)
    training.rows = [{"task": "a", "norm": n} for n in (1.0, 2.0, 3.0)]
    training.rows += [{"task": "b", "norm": 0.01}] * 3
    assert training._share(2.0, "a") == pytest.approx(1 / 2)  # tasks count alike
    assert training._share(0.01, "b") == pytest.approx(100)
    assert training._share(50.0, "a") * 50 == pytest.approx(2)  # at most twice the usual
    assert training._share(5.0, "b") == training._share(1e13, "a") == 0
    assert training._share(float("nan"), "a") == 0


@pytest.mark.parametrize("persistent", [True, False])
def test_evolution_finds_the_direction(persistent: bool) -> None:
    """With many pairs the estimate points where the slope does."""
    plan = replace(PLAN, horizon=(100, 100))
    theta = Spec().start()
    exact, _ = Backward(worker(replicas=64, paired=False, plan=plan)).gradient(theta, 4)
    source = Evolution(worker(replicas=600, plan=plan), 0.02, persistent, len(theta))
    found, _ = source.gradient(theta, 4)
    assert float(torch.cosine_similarity(found, exact, 0)) > 0.3  # of chance: 0.06


def test_persistent_credit_ends_with_the_episode() -> None:
    plan = replace(PLAN, horizon=(6, 6))
    source = Evolution(worker(plan=plan), 0.02, True, len(Spec().start()))
    theta = Spec().start()
    norms = []
    for _ in range(12):
        over = source.worker.facts[0, 0] >= source.worker.facts[1, 0]
        source.gradient(theta, 3)
        norms.append((bool(over), float(source.sums[0].norm())))
    first = [norm for over, norm in norms if over]
    later = [norm for over, norm in norms[1:] if not over]
    assert first
    assert later
    assert max(first) < 1.25 * min(first)  # one perturbation
    assert min(later) > 1.1 * min(first)  # two and more


def plan(**changed: object) -> Recipe:
    return replace(PLAN, tasks=("mlp-digits", "mlp2-digits-tanh"),
                   **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["pes", "backprop"])
def test_resumed_training_is_the_same(estimator: str, tmp_path: Path) -> None:
    recipe = plan(estimator=estimator, kind="context")
    whole = Training(recipe, tmp_path / "a").run()
    parts = Training(recipe, tmp_path / "b")
    parts.run(limit=0.0)
    parts._outer()
    parts._outer()
    parts._store()
    again = Training(recipe, tmp_path / "b")
    assert again.done == 2
    net = again.run()
    assert torch.equal(net.theta, whole.theta)
    stored = Net.load(tmp_path / "b" / "net.safetensors")
    assert stored.hash == whole.hash
    assert stored.about["trained"]
    assert stored.spec.width == 64
    lines = (tmp_path / "b" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert (tmp_path / "b" / "meta_loss.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(MetanetError, match="another recipe"):
        Training(replace(recipe, seed=5), tmp_path / "b")


def test_weight_nets_can_be_trained(tmp_path: Path) -> None:
    recipe = replace(PLAN, kind="unf", hidden=2, depth=2, pairs=1, steps=1, truncation=2)
    net = Training(recipe, tmp_path).run()
    assert net.spec.space
    model = TRAINING["mlp-digits"].make()
    optimizer = LearnedOptimizer(model, net, example_inputs=torch.randn(5, 1, 8, 8))
    model(torch.randn(5, 1, 8, 8)).sum().backward()
    optimizer.step()


def test_recipes_are_whole() -> None:
    for name in recipes.names():
        assert recipes.load(name).steps > 0
    assert {"optim-default", "optim-context"} <= set(recipes.names())
    a, b = recipes.load("optim-default"), recipes.load("optim-context")
    assert replace(a, kind="context", about="").key == replace(b, about="").key
    with pytest.raises(MetanetError, match="no recipe"):
        recipes.load("absent")
    with pytest.raises(MetanetError, match="no training task"):
        Recipe(tasks=("chars",))


def test_nothing_unseen_is_trained_on() -> None:
    assert not set(UNSEEN) & set(TRAINING)
    for item in UNSEEN.values():
        for task in TRAINING.values():
            shapes = [[tuple(p.shape) for p in t.make().parameters()] for t in (item.task, task)]
            assert shapes[0] != shapes[1]


def test_samplers_repeat_themselves() -> None:
    a, b = (Sampler(TINY, torch.Generator().manual_seed(3)) for _ in range(2))
    for one, other in zip(a.draw(), b.draw(), strict=True):
        assert torch.equal(one, other)
