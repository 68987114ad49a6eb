"""The kernels against torch's autograd and optimizers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from metanet.zoo import fit_inr, fit_net, nets
from metanet.zoo.fit_inr import INR, Fit, fit, grid, psnr
from torch import Tensor, nn


def problem(net: INR, n: int, scheme: str = "dws"
            ) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    x = grid(6, 7)
    starts = [net.init(torch.Generator().manual_seed(i), scheme) for i in range(n)]
    return starts, x, torch.rand(n, len(x), net.sizes[-1])


@pytest.mark.parametrize("net", [
    INR((2, 8, 8, 1)), INR((2, 8, 5, 6, 3)), INR((2, 7, 1), w0=5.0, shift=0.0),
    INR((2, 8, 8, 1), "relu"), INR((2, 6, 6, 2), "relu", shift=0.1)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_iterates_are_those_of_autograd_and_adam(net: INR, decay: float) -> None:
    starts, x, targets = problem(net, 3, "dws" if net.activation == "sine" else "kaiming")
    found = fit(net, Fit(steps=25, lr=1e-3, weight_decay=decay), starts, x, targets)
    for i, start in enumerate(starts):
        module = nets.Coordinates(net.sizes, net.activation, net.w0, net.shift)
        module.load_state_dict(start)
        optimizer = torch.optim.Adam(module.parameters(), 1e-3, weight_decay=decay)
        for _ in range(25):
            optimizer.zero_grad()
            F.mse_loss(module(x), targets[i]).backward()
            optimizer.step()
        for name, value in module.state_dict().items():
            torch.testing.assert_close(found.weights[name][i], value, rtol=2e-3, atol=2e-5)
        assert float(found.mse[i]) == pytest.approx(
            float(F.mse_loss(module(x), targets[i]).detach()), rel=1e-3)


def test_weights_do_not_depend_on_who_is_fitted_beside() -> None:
    net = INR((2, 8, 8, 1))
    starts, x, targets = problem(net, 4)
    together = fit(net, Fit(steps=20), starts, x, targets)
    alone = fit(net, Fit(steps=20), starts[2:3], x, targets[2:3])
    for name, value in alone.weights.items():
        torch.testing.assert_close(together.weights[name][2], value[0], rtol=1e-4, atol=1e-6)


def test_each_stops_by_itself() -> None:
    net = INR((2, 16, 16, 1))
    starts, x, _ = problem(net, 3)
    targets = torch.stack([torch.full((len(x), 1), 0.5), x[:, :1] * 0.4 + 0.5,
                           torch.rand(len(x), 1)])
    how = Fit(steps=60, lr=1e-3, stop_psnr=30, check=5)
    found = fit(net, how, starts, x, targets)
    assert found.steps[0] < found.steps[1] < found.steps[2] == 60
    assert all(psnr(float(m)) >= 30 for m in found.mse[:2])
    for i in (0, 1):  # as if it had been told to make just these steps
        same = fit(net, Fit(steps=found.steps[i], lr=1e-3), starts[i:i + 1], x, targets[i:i + 1])
        torch.testing.assert_close(found.weights["seq.1.weight"][i],
                                   same.weights["seq.1.weight"][0], rtol=1e-3, atol=1e-4)


def test_schedule() -> None:
    how = Fit(steps=100, lr=1.0, schedule="cosine", warmup=0.2)
    rates = [how.rate(step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) == 19
    assert rates[-1] < 1e-6 and rates[19:] == sorted(rates[19:], reverse=True)


def test_a_fit_that_diverges_has_no_error_but_nan() -> None:
    net = INR((2, 8, 8, 1), "relu")
    starts, x, targets = problem(net, 2, "kaiming")
    targets[1, 0] = math.inf
    found = fit(net, Fit(steps=3), starts, x, targets)
    assert math.isfinite(found.mse[0]) and math.isnan(found.mse[1])


def test_psnr() -> None:
    assert psnr(0.01) == pytest.approx(20) and psnr(0) == math.inf and math.isnan(psnr(math.nan))


def test_a_meta_start_learns_faster() -> None:
    net = INR((2, 16, 16, 1))
    x = grid(8, 8)
    targets = torch.stack([(x[:, :1] * a + 0.5) * 0.3 for a in torch.linspace(0, 1, 40)])
    rng = torch.Generator().manual_seed(0)
    meta = fit_inr.meta_init(net, "dws", x, targets[8:], rng, rounds=30)
    plain = net.init(torch.Generator().manual_seed(1), "dws")
    how = Fit(steps=10, lr=5e-3, betas=(0.9, 0.95))
    errors = [fit(net, how, [start] * 8, x, targets[:8]).mse.mean() for start in (meta, plain)]
    assert errors[0] < errors[1] / 2


# ------------------------------------------------------------ classifiers


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nets.build(nets.Shape("mlp", 4, 6, 2, "tanh"))


def seen(n: int = 32) -> fit_net.Images:
    rng = torch.Generator().manual_seed(1)
    return fit_net.Images(torch.rand(n, 1, 4, 4, generator=rng),
                          torch.randint(10, (n,), generator=rng), torch.arange(n), 0.5, 0.25)


@pytest.mark.parametrize(("name", "theirs"), [
    ("sgd", lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.01)),
    ("adam", lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.01)),
    ("rmsprop", lambda p: torch.optim.RMSprop(p, 0.01, weight_decay=0.01))])
def test_optimizers_are_those_of_torch(name: str, theirs) -> None:  # type: ignore[no-untyped-def]
    images = seen()
    plan = fit_net.Plan(name, 0.01, 0.01, 32, 12, (12,))  # the batch is all images
    found = fit_net.train(mlp(), plan, images, torch.Generator().manual_seed(0)).snapshots[-1]
    module = mlp()
    optimizer = theirs(module.parameters())
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(module((images.x - 0.5) / 0.25), images.y).backward()
        optimizer.step()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(found.weights[key], value, rtol=1e-3, atol=2e-4)


def test_snapshots_stand_where_they_should() -> None:
    plan = fit_net.Plan("sgd", 0.1, 0.0, 8, 10, (0, 4, 10))
    done = fit_net.train(mlp(), plan, seen(), torch.Generator().manual_seed(0))
    assert [s.step for s in done.snapshots] == [0, 4, 10] and done.diverged is None
    assert torch.equal(done.snapshots[0].weights["fc1.weight"],
                       mlp().state_dict()["fc1.weight"])
    short = fit_net.Plan("sgd", 0.1, 0.0, 8, 4, (4,))
    same = fit_net.train(mlp(), short, seen(), torch.Generator().manual_seed(0)).snapshots[0]
    assert torch.equal(same.weights["fc2.bias"], done.snapshots[1].weights["fc2.bias"])


def test_divergence_keeps_the_last_finite_weights() -> None:
    plan = fit_net.Plan("sgd", 1e36, 0.0, 8, 50, (0, 1, 50))
    torch.manual_seed(0)
    module = nets.build(nets.Shape("mlp", 4, 6, 2, "relu"))
    done = fit_net.train(module, plan, seen(), torch.Generator().manual_seed(0))
    assert done.diverged is not None and done.diverged < 50
    assert [s.step for s in done.snapshots] == [0, 1, 50]
    assert all(bool(w.isfinite().all()) for w in done.snapshots[-1].weights.values())


def test_every_image_once_per_epoch() -> None:
    batches = fit_net._batches(12, 4, torch.Generator().manual_seed(0))
    epochs = [torch.cat([next(batches) for _ in range(3)]) for _ in range(2)]
    assert all(sorted(e.tolist()) == list(range(12)) for e in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert len(next(fit_net._batches(3, 8, torch.Generator()))) == 3


@pytest.mark.parametrize("scheme", ["default", "kaiming", "xavier", "orthogonal", "normal"])
def test_initialise(scheme: str) -> None:
    def made(seed: int, scale: float) -> dict[str, Tensor]:
        module = mlp()
        fit_net.initialise(module, scheme, scale, torch.Generator().manual_seed(seed))
        return {k: v.clone() for k, v in module.state_dict().items()}

    one, twice, other = made(0, 1.0), made(0, 2.0), made(1, 1.0)
    assert torch.equal(2 * one["fc1.weight"], twice["fc1.weight"])
    assert not torch.equal(one["fc1.weight"], other["fc1.weight"])
    assert bool((one["fc1.bias"] == 0).all()) == (scheme != "default")


def test_small_cnn_is_that_of_its_zoo() -> None:
    module = nets.build(nets.Shape("small-cnn", 28, 16, 1, "relu"))
    assert sum(p.numel() for p in module.parameters()) == 4970
