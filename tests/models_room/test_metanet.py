"""Metanet: invariant, trains, survives saving, refuses nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_spaces import SPACES, random_state
from torch import Tensor, nn

from metanet.errors import CheckpointError, SpaceMismatch, SymmetryError
from metanet.graph import WeightBatch
from metanet.models import Editor, Metanet, fit
from metanet.nn import GMNLayer, assert_equivariant
from metanet.nn.checks import random_batch
from metanet.symmetry import WeightSpace, infer

SMALL = {"width": 8, "depth": 2, "head": 16, "dropout": 0.0}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unf": {"kind": "unf", "checkpoint": True},
    "product": {"kind": "product", "pool": ["mean", "attention"]},
    "reads": {"statistics": False, "schedule": "forward", "messages": 1, "activation": "relu",
              "encoding": ["raw", "fan_in", "quantile", "depth", "role", "neuron"]},
    "pna": {"aggregate": ["mean", "max", "std"], "pool": ["attention", "mean", "sum"],
            "checkpoint": True, "channel_dropout": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("space", ["mlp", "attention", "nested", "tied", "large_fixed"])
def test_invariant(space: str, options: str) -> None:
    model = Metanet(SPACES[space], outputs=2, **{**SMALL, **OPTIONS[options]})
    assert assert_equivariant(model) <= 1e-10


@pytest.mark.parametrize("space", SPACES)
def test_invariant_on_every_space(space: str) -> None:
    assert assert_equivariant(Metanet(SPACES[space], **{**SMALL, "depth": 1})) <= 1e-10


@pytest.mark.parametrize("space", ["mlp", "attention", "conv", "recurrence"])
@pytest.mark.parametrize("residual", [True, False])
def test_editor_is_equivariant(space: str, residual: bool) -> None:
    model = Editor(SPACES[space], width=4, depth=1, gamma=1.0, residual=residual)
    assert assert_equivariant(model) <= 1e-10


def test_editor_learns_saves_and_starts_near_the_weights(tmp_path: Path) -> None:
    batch, _ = members(16, 9)
    torch.manual_seed(0)
    model = Editor(SPACES["mlp"], width=8, depth=1, kind="unf")
    model.measure(batch)
    near = model(batch)
    for name, value in batch.blocks.items():
        assert (near.blocks[name] - value).abs().max() < 0.2 * value.abs().max()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):  # double every weight
        out = model(batch)
        loss = torch.stack([(out.blocks[k] - 2 * v).square().mean()
                            for k, v in batch.blocks.items()]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    model.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path)
    for name, value in model.eval()(batch).blocks.items():
        assert torch.equal(value, loaded(batch).blocks[name])


def test_checkpointing_changes_no_number() -> None:
    batch, targets = members(6, 8)
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(3)
        model = Metanet(SPACES["mlp"], **{**SMALL, "messages": 1}, checkpoint=checkpoint)
        (model(batch)[:, 0] - targets).square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_without_statistics_shuffled_weights_are_another_network() -> None:
    """The statistics path cannot tell them apart; what is left must."""
    batch, _ = members(8, 6)
    place = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    mixed = batch.blocks["fc2.weight"].flatten(1, 2)[:, place].reshape(8, 5, 4, 1)
    shuffled = batch.with_blocks({**batch.blocks, "fc2.weight": mixed})
    with_them = Metanet(SPACES["mlp"], **SMALL)
    a, b = (with_them.statistics(with_them.encoder.encode(x)) for x in (batch, shuffled))
    torch.testing.assert_close(a, b)
    model = Metanet(SPACES["mlp"], **SMALL, statistics=False)
    assert model.statistics is None and model.feature_mean.numel() == 0
    for layer in model.modules():
        if isinstance(layer, GMNLayer):  # layers start as the identity: wake them
            for parameter in layer.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
    model.eval()
    assert (model(batch) - model(shuffled)).abs().max() > 1e-3


def test_probes_join_and_survive_saving(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    space = infer(module, (torch.randn(2, 3),))
    states = [{k: v + 0.5 * torch.randn_like(v) for k, v in module.state_dict().items()}
              for _ in range(24)]
    batch = WeightBatch.stack(space, states)
    x = torch.randn(32, 3)
    with torch.no_grad():  # what the networks say on data, which probes can see best
        targets = torch.stack([torch.func.functional_call(module, s, (x,)).square().mean()
                               for s in states])
    options = {"probes": 6, "probe_shape": [3], "module": module}
    model = Metanet(space, **SMALL, **options, statistics=False)
    assert model.listen is not None and len(model.listen.places) == 2
    assert assert_equivariant(model) <= 1e-10
    done = fit(model, batch, targets, epochs=60, lr=1e-2, batch_size=24, weight_decay=0.0)
    assert done.train_loss[-1] < 0.1 * done.train_loss[0]
    moved = batch.apply(space.random(3))
    torch.testing.assert_close(model(batch), model(moved), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("module") is None
    assert "module" not in model.config
    loaded = Metanet.from_pretrained(tmp_path, module=module)
    assert torch.equal(loaded(batch), model(batch))
    with pytest.raises(SymmetryError, match="code"):
        Metanet.from_pretrained(tmp_path)


def members(n: int, seed: int) -> tuple[WeightBatch, Tensor]:
    """Networks with one hidden layer; the target is a coupled invariant: Σ_i v_i·tanh(b_i)."""
    space = SPACES["mlp"]
    states = [random_state(space, seed * 1000 + i) for i in range(n)]
    value = [(s["fc2.weight"] @ s["fc1.bias"].tanh()) @ s["fc2.bias"] for s in states]
    return WeightBatch.stack(space, states), torch.stack(value)


@pytest.mark.parametrize("kind", ["gmn", "unf"])
def test_overfits_a_coupled_invariant(kind: str) -> None:
    batch, targets = members(24, 1)
    torch.manual_seed(0)
    model = Metanet(SPACES["mlp"], kind=kind, **{**SMALL, "width": 16})
    done = fit(model, batch, 10 * targets + 3, epochs=100, lr=1e-2, batch_size=24,
               weight_decay=0.0)
    assert done.train_loss[-1] < 0.02 < 0.5 < done.train_loss[0]
    found = model(batch)[:, 0].detach()
    assert float((found - (10 * targets + 3)).square().mean()) < 0.02 * float((10 * targets).var())


def test_generalises_and_keeps_the_best_epoch() -> None:
    space = SPACES["mlp"]
    batch, _ = members(160, 1)
    val, _ = members(40, 2)
    target = [b.blocks["fc1.bias"].square().mean((1, 2)) for b in (batch, val)]
    torch.manual_seed(0)
    model = Metanet(space, **SMALL)
    done = fit(model, batch, target[0], val, target[1], epochs=25, lr=5e-3, patience=20)
    assert done.best_epoch == done.val_loss.index(min(done.val_loss))
    assert min(done.val_loss) < 0.2
    error = (model(val)[:, 0].detach() - target[1]).square().mean()
    error = float(error / target[0].var(correction=0))
    assert error == pytest.approx(min(done.val_loss), rel=1e-4)


def test_training_is_deterministic_and_leaves_the_global_state() -> None:
    batch, targets = members(12, 3)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        model = Metanet(SPACES["mlp"], width=4, depth=1, head=8, dropout=0.5)
        before = torch.get_rng_state()
        fit(model, batch, targets, epochs=3, batch_size=5, seed=7)
        assert torch.equal(before, torch.get_rng_state())
        found.append(model(batch))
    assert torch.equal(found[0], found[1])
    other = Metanet(SPACES["mlp"], width=4, depth=1, head=8)
    done = fit(other, batch, targets, epochs=10_000, time_budget=0.3)
    assert done.seconds < 3 and len(done.train_loss) < 10_000


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    batch, targets = members(12, 4)
    model = Metanet(SPACES["mlp"], kind="unf", **SMALL)
    fit(model, batch, 100 + targets, epochs=2)
    model.save_pretrained(tmp_path / "net")
    assert {p.name for p in (tmp_path / "net").iterdir()} >= {"config.json", "model.safetensors"}
    loaded = Metanet.from_pretrained(tmp_path / "net").eval()
    assert loaded.space == model.space and loaded.config == model.config
    assert torch.equal(loaded(batch), model(batch))
    again = Metanet.from_config(json.loads((tmp_path / "net" / "config.json").read_text()))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(batch), model(batch))


def test_float64_members_and_several_outputs_train() -> None:
    batch, targets = members(12, 5)
    model = Metanet(SPACES["mlp"], outputs=2, **SMALL)
    done = fit(model, batch.to(torch.float64), torch.stack([targets, -targets], 1).double(),
               epochs=3)
    assert done.best_epoch == 2 and not done.val_loss
    assert model(batch).dtype == torch.float32 and model(batch).shape == (12, 2)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="save_pretrained"):
        Metanet.from_pretrained(tmp_path)
    Metanet(SPACES["mlp"], **SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 9}))
    with pytest.raises(CheckpointError, match="size mismatch"):
        Metanet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 10**9}))
    with pytest.raises(SymmetryError, match="width"):
        Metanet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError):
        Metanet.from_pretrained(tmp_path)


def test_the_space_may_be_text_or_json() -> None:
    space = SPACES["attention"]
    for form in (space, str(space), space.to_json()):
        model = Metanet.from_config({"space": form, "outputs": 3, "width": 4, "depth": 0})
        assert model.space == space
        assert WeightSpace.from_json(model.config["space"]) == space
        assert model(random_batch(space, 1, n=5).to(torch.float32)).shape == (5, 3)


def test_constant_and_wild_inputs_stay_finite() -> None:
    space = SPACES["mlp"]
    batch = random_batch(space, 1, n=8).to(torch.float32)
    batch = batch.map(lambda b: b * 0 if b.ndim == 3 else b * 1e12)
    model = Metanet(space, **SMALL)
    fit(model, batch, torch.ones(8), epochs=2)
    assert torch.isfinite(model(batch)).all()


@pytest.mark.parametrize(("config", "words"), [
    ({"kind": "cnn"}, "kind"), ({"width": 0}, "width"), ({"width": 10**9}, "width"),
    ({"depth": 2.5}, "depth"), ({"pool": ["median"]}, "stats"), ({"schedule": "up"}, "schedule"),
    ({"encoding": ["log"]}, "log"), ({"probes": 3}, "module"), ({"pool": []}, "stats"),
    ({"dropout": 1.0}, "dropout"), ({"device": "cpu"}, "device"),
    ({"kind": "product", "schedule": "forward"}, "schedule='forward' is an option of kind 'gmn'"),
    ({"mixing": "factored"}, "mixing"), ({"kind": "unf", "aggregate": ["max"]}, "aggregate"),
])
def test_refusals(config: dict[str, object], words: str) -> None:
    with pytest.raises(SymmetryError, match=words):
        Metanet.from_config({"space": SPACES["mlp"], **config})


def test_refusals_of_fit() -> None:
    batch, targets = members(6, 1)
    model = Metanet(SPACES["mlp"], **SMALL)
    with pytest.raises(SpaceMismatch, match="shape"):
        fit(model, batch, targets[:5])
    with pytest.raises(SpaceMismatch, match="finite"):
        fit(model, batch, targets / 0)
    with pytest.raises(SymmetryError, match="missing"):
        Metanet.from_config({"kind": "gmn"})
