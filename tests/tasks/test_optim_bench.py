"""The benchmark: rivals, trials, comparisons, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from metanet.errors import MetanetError
from metanet.tasks.optimize import fresh
from metanet.tasks.optimize import trial as trials
from metanet.tasks.optimize.bench import Options, bench, compare
from metanet.tasks.optimize.card import card
from metanet.tasks.optimize.rivals import RIVALS, Lion, Muon, orthogonal
from metanet.tasks.optimize.unseen import UNSEEN


def test_lion_by_hand() -> None:
    p = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Lion([p], lr=0.1)
    p.grad = torch.tensor([2.0, -0.5])
    optimizer.step()
    assert torch.allclose(p, torch.tensor([0.9, 1.1]))
    p.grad = torch.tensor([-0.1, 0.0])  # 0.9 · momentum 0.02 beside 0.1 · gradient: + 0.008
    optimizer.step()
    assert torch.allclose(p, torch.tensor([0.8, 1.2]))


def test_orthogonal_has_flat_spectrum() -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(12, 30)))
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.4


def test_muon_keeps_heads_and_embeddings_apart() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 3))
    matrix, rest = Muon(model).param_groups
    assert [tuple(p.shape) for p in matrix["params"]] == [(6, 4)]
    assert len(rest["params"]) == 4


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_descend(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Linear(8, 1))
    optimizer = RIVALS[name].make(model, RIVALS[name].lr / 5)
    x = torch.randn(64, 6)
    y = x[:, :1] * x[:, 1:2]
    losses = []
    for _ in range(60):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_bench_runs_resumes_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(tmp_path, {"default": fresh()}, ("deep-mlp-digits",), ("adamw",), 2, True,
                      12)
    found = bench(options)
    rows = {row["model"]: row for row in found["rows"]}
    assert set(rows) == {"default (as it comes)", "adamw (usual)", "adamw (tuned)"}
    ours, adam = rows["default (as it comes)"], rows["adamw (usual)"]
    assert ours["finals"] == pytest.approx(adam["finals"], rel=1e-4)  # untrained, it is Adam
    assert ours["memory"] > adam["memory"]
    assert ours["failures"] == 0
    monkeypatch.setattr(trials, "trial", None)
    again = bench(options)  # everything is there
    assert again["comparisons"] == found["comparisons"]
    assert json.loads((tmp_path / "result.json").read_text())["rows"]
    text = card(found)
    assert "| default | adamw (tuned) | 1 |" in text
    with pytest.raises(MetanetError, match="other nets"):
        bench(Options(tmp_path, {"default": fresh(seed=4)}, ("deep-mlp-digits",), ("adamw",), 2,
                      True, 12))


def test_missing_data_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METANET_DATA", raising=False)
    found = bench(Options(tmp_path, {}, ("chars",), ("adamw",), 1, False, 10))
    assert "tiny-shakespeare" in found["absent"]["chars"]


def test_a_failure_counts_and_does_not_win() -> None:
    rows = [{"optimizer": "a", "how": "x", "split": "t", "finals": [None, 0.1], "mean": 0.1},
            {"optimizer": "b", "how": "x", "split": "t", "finals": [0.2, 0.2], "mean": 0.2}]
    found = compare(rows, "a", "x", "b", "x")
    assert found is not None
    assert found["log_ratio"] > 0


@pytest.mark.parametrize("name", UNSEEN)
def test_unseen_tasks_are_frozen(name: str) -> None:
    """Names, sizes, steps and targets of version 1; a change needs a new version."""
    item = UNSEEN[name]
    module = item.task.make()
    told = (sum(p.numel() for p in module.parameters()), item.steps, item.target, item.task.batch)
    assert told == FROZEN[name]


FROZEN = {
    "wide-mlp-mnist": (118794, 300, 0.15, 128), "deep-mlp-digits": (13018, 300, 0.1, 64),
    "mlp-cifar16": (107338, 300, 1.6, 64), "cnn-mnist14": (14378, 300, 0.4, 64),
    "cnn-bn-cifar16": (5514, 200, 1.6, 64), "rnn-mnist14": (5770, 300, 0.8, 64),
    "chars": (22401, 300, 2.5, 32), "vit-mnist14": (19210, 300, 0.8, 64),
    "siren-cifar": (2241, 300, 0.05, 256),
    "finetune-mnist-digits": (8970, 150, 0.15, 64),
}
