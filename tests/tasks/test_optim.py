"""LearnedOptimizer as a torch optimizer: state, resume, dtypes, errors, the guard."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from metanet.errors import MetanetError
from metanet.tasks.optimize import LearnedOptimizer, Net, Spec, fresh
from metanet.tasks.optimize.guard import Guard
from metanet.tasks.optimize.spec import LOG_MOST


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(),
                         nn.Linear(4, 3)).to(dtype)


def rule(kind: str = "element", seed: int = 3, noise: float = 0.3) -> Net:
    """A net with random weights: every branch counts."""
    plain = fresh(kind)
    generator = torch.Generator().manual_seed(seed)
    return plain.with_theta(plain.theta + noise * torch.randn(len(plain.theta),
                                                              generator=generator))


def losses(model: nn.Module, steps: int, optimizer: torch.optim.Optimizer, start: int = 0,
           schedule: torch.optim.lr_scheduler.LRScheduler | None = None) -> list[float]:
    found = []
    for i in range(start, start + steps):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(16, 6, generator=generator)
        y = (x[:, :3] > 0).float().argmax(1)
        dtype = next(model.parameters()).dtype
        loss = nn.functional.cross_entropy(model(x.to(dtype)).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("kind", ["element", "context"])
def test_untrained_net_is_adam(kind: str) -> None:
    a, b = net(), net()
    ours = LearnedOptimizer(a, fresh(kind), weight_decay=0.1)
    adam = torch.optim.AdamW(b.parameters(), lr=1e-3, weight_decay=0.1)
    assert losses(a, 20, ours) == pytest.approx(losses(b, 20, adam), rel=1e-5)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("kind", ["element", "context"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(kind: str, dtype: torch.dtype) -> None:
    def made(model: nn.Module) -> tuple[LearnedOptimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = LearnedOptimizer(model, rule(kind), lr=0.5, weight_decay=0.1)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)

    whole = net(dtype)
    optimizer, schedule = made(whole)
    want = losses(whole, 12, optimizer, 0, schedule)
    first = net(dtype)
    optimizer, schedule = made(first)
    losses(first, 5, optimizer, 0, schedule)
    buffer = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict()}, buffer)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    second = net(dtype)
    optimizer, schedule = made(second)
    losses(second, 2, optimizer, 50)  # what is loaded replaces what was there
    second.load_state_dict(stored["model"])
    optimizer.load_state_dict(stored["optimizer"])
    schedule.load_state_dict(stored["schedule"])
    assert losses(second, 7, optimizer, 5, schedule) == want[5:]
    for p, q in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)
    state = optimizer.state_dict()
    assert all(v.dtype == torch.float32 for s in state["state"].values() for v in s.values())
    assert state["learned"]["hash"] == rule(kind).hash


def test_deepcopy_goes_on_alike() -> None:
    model = net()
    optimizer = LearnedOptimizer(model, rule())
    losses(model, 3, optimizer)
    other, twin = copy.deepcopy((model, optimizer))
    assert losses(model, 3, optimizer, 3) == losses(other, 3, twin, 3)


def test_state_of_another_net_is_refused() -> None:
    model = net()
    optimizer = LearnedOptimizer(model, rule(seed=1))
    losses(model, 1, optimizer)
    with pytest.raises(MetanetError, match="another learned net"):
        LearnedOptimizer(net(), rule(seed=2)).load_state_dict(optimizer.state_dict())


def test_narrow_parameters_keep_small_steps() -> None:
    """Without a master copy, steps below the resolution of bfloat16 would be lost."""
    p = nn.Parameter(torch.full((4,), 100.0, dtype=torch.bfloat16))
    optimizer = LearnedOptimizer([p], fresh(), lr=1.0)
    for _ in range(400):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert float(p.detach()[0]) < 100.0
    with torch.no_grad():
        p.fill_(7.0)  # what the caller writes is taken over
    optimizer.step()
    assert float(p.detach()[0]) == pytest.approx(7.0, abs=0.05)


def test_groups_have_their_own_lr_and_decay() -> None:
    model = net()
    layers = [model[0], model[2], model[4]]
    before = [p.detach().clone() for layer in layers for p in layer.parameters()]
    optimizer = LearnedOptimizer([
        {"params": list(layers[0].parameters()), "lr": 0.0},
        {"params": list(layers[1].parameters()), "lr": 1.0}], fresh())
    optimizer.add_param_group({"params": list(layers[2].parameters()), "lr": 2.0,
                               "weight_decay": 1000.0})
    losses(model, 1, optimizer)
    moved = [float((p.detach() - q).abs().max()) for p, q in zip(
        [p for layer in layers for p in layer.parameters()], before, strict=True)]
    assert moved[0] == moved[1] == 0
    assert moved[2] == pytest.approx(1e-3, rel=1e-2)
    assert moved[4] > 0.5  # lr 2 · 0.001 · 1000: the weights point the other way


def test_group_added_later_keeps_the_state() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = LearnedOptimizer([a], fresh())
    a.grad = torch.ones(3)
    optimizer.step()
    optimizer.add_param_group({"params": [b]})
    b.grad = torch.ones(3)
    optimizer.step()
    assert float(optimizer.state[a]["step"]) == 2
    assert float(optimizer.state[b]["step"]) == 1


def test_parameters_without_gradient_stand_still() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = LearnedOptimizer([a, b], rule())
    for p in (a, b):
        p.grad = torch.tensor([1.0, -2.0, 0.5])
    optimizer.step()
    kept = {k: v.clone() for k, v in optimizer.state[b].items()}
    there = b.detach().clone()
    b.grad = None
    optimizer.step()
    assert torch.equal(b, there)
    assert all(torch.equal(kept[k], optimizer.state[b][k]) for k in kept)


def test_closure_and_maximize() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = LearnedOptimizer([p], fresh(), maximize=True)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 1.0
    assert float(p.detach()) == pytest.approx(1.001)


def test_sparse_and_complex_are_refused() -> None:
    with pytest.raises(MetanetError, match="complex64"):
        LearnedOptimizer([nn.Parameter(torch.ones(2, dtype=torch.complex64))], fresh())
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = LearnedOptimizer(table.named_parameters(), fresh())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(MetanetError, match="gradient of weight is sparse"):
        optimizer.step()


def test_structure_free_mode_says_so() -> None:
    with pytest.warns(UserWarning, match="structure-free mode"):
        optimizer = LearnedOptimizer(net().parameters(), rule("context"))
    assert "structure-free" in optimizer.structure
    model = net()
    assert "groups of neurons" in LearnedOptimizer(model, rule("context")).structure
    assert LearnedOptimizer(model, rule()).structure.startswith("none")


def test_bad_gradients_are_left_out() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = LearnedOptimizer([p], rule())
    p.grad = torch.tensor([1.0, float("nan"), 1.0])
    optimizer.step()
    assert torch.equal(p, torch.ones(3))
    assert optimizer.guard is not None
    assert optimizer.guard.skipped == 1


def test_guard_replaces_a_step_uphill() -> None:
    """A net whose gate is closed and whose summand climbs: with the guard it is Adam."""
    bad = fresh()
    pieces = bad.spec.unpack(bad.theta.clone()[None])
    pieces["b3"][0, 0], pieces["b3"][0, 1] = -2.0, -9.0
    bad = bad.with_theta(torch.cat([v.flatten() for v in pieces.values()]))
    ends = {}
    for guard in (False, True):
        p = nn.Parameter(torch.full((4,), 2.0))
        optimizer = LearnedOptimizer([p], bad, guard=guard)
        for _ in range(50):
            p.grad = 2 * p.detach()
            optimizer.step()
        ends[guard] = float(p.detach()[0])
    assert ends[False] > 2 > ends[True]
    assert ends[True] == pytest.approx(1.95, abs=0.003)


def test_guard_shortens_steps_when_losses_explode() -> None:
    guard = Guard()
    for _ in range(10):
        guard.told(1.0)
    assert guard.trust == 1
    guard.told(50.0)
    guard.told(float("nan"))
    assert guard.trust == 0.25
    assert not guard.learned
    for _ in range(40):
        guard.told(1.1)
    assert guard.trust == 1
    assert guard.alarms == 2


def test_step_is_never_much_longer_than_adams() -> None:
    wild = rule(noise=30.0)
    p = nn.Parameter(torch.zeros(50))
    optimizer = LearnedOptimizer([p], wild)
    p.grad = torch.randn(50)
    optimizer.step()
    most = 1e-3 * torch.tensor(LOG_MOST).exp() * 1.01
    assert 0 < float(p.detach().square().mean().sqrt()) <= float(most)


@pytest.mark.parametrize("name", ["default", "context"])
def test_shipped_nets_train_quicker_than_adam(name: str) -> None:
    ends = []
    for learned in (True, False):
        model = net()
        optimizer = LearnedOptimizer(model, name) if learned else \
            torch.optim.AdamW(model.parameters())
        ends.append(losses(model, 60, optimizer)[-1])
    assert ends[0] < ends[1] / 2


def test_files(tmp_path: Path) -> None:
    made = rule("context")
    made.save(tmp_path / "a.safetensors")
    found = Net.load(tmp_path / "a.safetensors")
    assert found.hash == made.hash
    assert rule("context", seed=9).hash != made.hash
    assert Net(Spec("context", width=9), made.theta).hash != made.hash
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(MetanetError, match="cannot be read"):
        Net.load(tmp_path / "b.safetensors")
    with pytest.raises(MetanetError, match="no learned net"):
        LearnedOptimizer(net(), "absent")
