"""Plans: everything from headers, on the Hub, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_server import served
from safetensors.torch import save_file

from metanet.tasks.merge import plan
from metanet.tasks.merge.plan import Layers
from metanet.tasks.merge.recipe import of_models


def test_layers() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.w" for i in range(3) for j in range(2)]
    layers = Layers.of([*names, "model.norm.weight", "model.embed_tokens.weight"])
    assert layers == Layers("model.layers.", (0, 1, 2))
    assert layers.split("model.layers.12.mlp.experts.1.w") == (12, "mlp.experts.1.w")
    assert layers.depth("model.layers.1.x") == 0.5
    assert (layers.depth("model.embed_tokens.weight"), layers.depth("model.norm.weight")) == (0, 1)
    assert Layers.of(["0.weight", "2.weight", "2.bias"]) == Layers("", (0, 2))
    assert Layers.of(["w", "b"]).depth("w") == 1


def test_plan_downloads_no_tensor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = {f"layers.{i}.w": torch.randn(300, 300) for i in range(3)}
    save_file(weights, tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    with served(monkeypatch, tmp_path / "cache") as hub:
        hub.add("org/name", {"model.safetensors": data})
        laid = plan(of_models(["hf://org/name", str(tmp_path / "m.safetensors")], "linear"))
        assert hub.served < 200_000 < len(data)
    assert laid.download == 3 * 360_000
    assert laid.bytes == 3 * 360_000
    assert laid.largest == 360_000
    assert laid.peak_memory > 2 * 360_000
    document = laid.to_json()
    assert [row["remote"] for row in document["models"]] == [True, False]
    assert document["tensors"][0] == {"name": "layers.0.w", "shape": [300, 300],
                                      "dtype": "float32", "from": 2, "copied": False}
