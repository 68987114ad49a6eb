"""Repair: what each correction promises, measured on the repaired model itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metanet
from metanet.errors import MetanetError
from metanet.tasks.merge import Runner, repair
from metanet.tasks.merge.layers import columns, layers, moments
from metanet.tasks.merge.repair import KINDS, mix, temperature
from metanet.trace.program import Op
from tests.tasks.merge_nets import Residual, inputs, mlp, state

X = inputs(200)
IMAGES = torch.randn(60, 2, 5, 6, generator=torch.Generator().manual_seed(1))


def runner_of(module: nn.Module, example: Tensor) -> Runner:
    return Runner(module, example_inputs=example)


def outs(runner: Runner, model: dict[str, Tensor], x: Tensor, kinds: tuple[str, ...] = (
        "linear", "conv")) -> dict[str, Tensor]:
    """Outputs of each layer of a model."""
    places, found = layers(runner.program(x)), {}

    def hook(at: int, op: Op, args: list[tuple[Any, ...]], values: list[Any]) -> list[Any]:
        if at in places and places[at].kind in kinds and not places[at].normed:
            found[places[at].name] = values[0]
        return values

    runner.lockstep([model], x, hook)
    return found


@pytest.mark.parametrize("method", ["rescale", "repair"])
@pytest.mark.parametrize("t", [0.5, 0.2])
def test_neurons_get_their_parents_statistics(method: str, t: float) -> None:
    runner = runner_of(mlp(), torch.randn(3, 8))
    a, b = state(mlp(0)), state(mlp(1))
    found = repair(runner, a, b, mix(a, b, t), X, method=method, t=t)
    of_a, of_b, mine = (outs(runner, s, X) for s in (a, b, found.state))
    assert not found.shifts
    for name in of_a:
        (mean_a, dev_a), (mean_b, dev_b), (mean, dev) = (
            moments(o[name], -1) for o in (of_a, of_b, mine))
        assert torch.allclose(dev, torch.lerp(dev_a, dev_b, t), rtol=1e-4)
        if method == "repair":
            assert torch.allclose(mean, torch.lerp(mean_a, mean_b, t), atol=1e-5)


def test_a_shift_without_a_bias_is_kept_apart() -> None:
    runner = runner_of(mlp(bias=False), torch.randn(3, 8))
    a, b = state(mlp(0, bias=False)), state(mlp(1, bias=False))
    found = repair(runner, a, b, mix(a, b, 0.5), X, method="repair")
    assert set(found.shifts) == {"0.weight", "2.weight", "4.weight"}
    assert found.state.keys() == a.keys()
    ends = [runner.outputs(s, X) for s in (a, b)]
    want = torch.stack([moments(e, -1)[0] for e in ends]).mean(0)
    assert torch.allclose(moments(found.outputs(runner, X), -1)[0], want, atol=1e-5)
    assert not torch.allclose(moments(runner.outputs(found.state, X), -1)[0], want, atol=1e-3)


@pytest.mark.parametrize("method", ["bn", "repair"])
def test_running_statistics_are_those_of_the_merged_model(method: str) -> None:
    runner = runner_of(Residual(), IMAGES[:2])
    a, b = state(Residual(0)), state(Residual(1))
    merged = mix(a, b, 0.5)
    found = repair(runner, a, b, merged, IMAGES, method=method)
    module = Residual()
    module.load_state_dict(merged)
    module.norm.momentum = None
    module.norm.reset_running_stats()
    module.norm.train()
    module(IMAGES)
    assert torch.allclose(found.state["norm.running_mean"], module.norm.running_mean, atol=1e-5)
    count = IMAGES.numel() / 2
    biased = module.norm.running_var * (count - 1) / count
    assert torch.allclose(found.state["norm.running_var"], biased, rtol=1e-4)
    changed = {n for n in merged if not torch.equal(merged[n], found.state[n])}
    affine = {n for n in merged if n.startswith(("inner", "outer", "head"))}
    assert changed == {"norm.running_mean", "norm.running_var"} | (
        affine if method == "repair" else set())


def test_least_squares_is_the_ridge_solution() -> None:
    runner = runner_of(nn.Linear(8, 4), torch.randn(3, 8))
    torch.manual_seed(3)
    a, b = state(nn.Linear(8, 4)), state(nn.Linear(8, 4))
    merged = {name: torch.zeros_like(t) for name, t in a.items()}
    found = repair(runner, a, b, merged, X, method="least-squares")
    middle = mix(a, b, 0.5)
    # a linear layer can be met exactly, up to what the ridge holds back
    assert torch.allclose(found.state["weight"], middle["weight"], rtol=0.1, atol=0.02)
    goal = X @ middle["weight"].T + middle["bias"]
    centred = (X - X.mean(0)).double().numpy()
    size = 0.01 * float(X.double().square().mean())
    want = np.linalg.solve(centred.T @ centred / 200 + size * np.eye(8),
                           centred.T @ (goal - goal.mean(0)).double().numpy() / 200).T
    assert np.allclose(found.state["weight"].numpy(), want, atol=1e-5)


@pytest.mark.parametrize(("module", "x"), [(mlp(), X), (Residual(), IMAGES)], ids=["mlp", "conv"])
@pytest.mark.parametrize("method", [k for k in KINDS if k != "bn"])
def test_equal_parents_need_no_repair(module: nn.Module, x: Tensor, method: str) -> None:
    runner = runner_of(module, x[:2])
    a = state(module)
    if "norm.running_mean" in a:  # statistics that fit the data already
        a = repair(runner, a, a, a, x, method="bn").state
    found = repair(runner, a, a, a, x, method=method)
    assert torch.allclose(found.outputs(runner, x), runner.outputs(a, x), atol=1e-4)


def test_columns_are_what_a_convolution_sums_over() -> None:
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    runner = runner_of(conv, IMAGES[:2])
    program = runner.program(IMAGES)
    layer = next(iter(layers(program).values()))
    found = columns(layer, program.ops[layer.at], IMAGES, conv.weight)
    assert found is not None
    out = found @ conv.weight.reshape(3, -1).T + conv.bias
    want = F.conv2d(IMAGES, conv.weight, conv.bias, 2, 1)
    assert torch.allclose(out, want.movedim(1, -1).reshape(-1, 3), atol=1e-5)


def test_closed_form_gives_norms_back() -> None:
    runner = runner_of(mlp(), torch.randn(3, 8))
    a, b = state(mlp(0)), state(mlp(1))
    found = repair(runner, a, b, mix(a, b, 0.5), None, method="closed")
    for name in ("0.weight", "2.weight", "4.weight"):
        want = (a[name].norm(dim=1) + b[name].norm(dim=1)) / 2
        assert torch.allclose(found.state[name].norm(dim=1), want, rtol=1e-5)


def test_tied_weights_are_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.embed(torch.relu(self.embed(x)))))

    module = Tied()
    runner = runner_of(module, torch.randn(3, 8))
    a, b = state(module), {k: v + torch.randn_like(v) for k, v in state(module).items()}
    found = repair(runner, a, b, mix(a, b, 0.5), X, method="repair")
    assert found.layers == ("last.weight",)


def test_repair_says_what_is_missing() -> None:
    runner = runner_of(mlp(), torch.randn(3, 8))
    a = state(mlp())
    with pytest.raises(MetanetError, match="give inputs"):
        repair(runner, a, a, a, None, method="repair")
    with pytest.raises(MetanetError, match="no repair"):
        repair(runner, a, a, a, X, method="magic")


def test_temperature_finds_the_minimum() -> None:
    assert temperature(lambda f: (np.log(f) - np.log(3.0)) ** 2) == pytest.approx(3.0, rel=1e-2)


def test_runs_equal_the_module() -> None:
    module = Residual()
    runner = Runner(module, metanet.infer(module, IMAGES[:2]), IMAGES[:2], batch=25)
    with torch.no_grad():
        assert torch.allclose(runner.outputs(state(module), IMAGES), module(IMAGES), atol=1e-5)
