"""``metanet merge``: documents, text, plan and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_runs import Run, network
from safetensors.torch import load_file, save_file


@pytest.fixture
def pair(tmp_path: Path, mlp: Path) -> tuple[Path, Path]:
    other = {name: t + 1 for name, t in network().state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    return mlp, tmp_path / "other.safetensors"


def test_merge(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("merge", *pair, "--weight", 1, "--weight", 3, "-o", out, "--json")
    assert done.code == 0, done.err
    assert done.json.keys() >= {"out", "method", "tensors", "bytes", "seconds", "peak_memory",
                                "alignment"}
    assert (done.json["method"], done.json["tensors"], done.json["bytes"]) == ("linear", 6, 296)
    assert done.json["alignment"] is None
    expected = network().state_dict()
    for name, tensor in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name] + 0.75)
    again = run("merge", *pair, "--weight", 1, "--weight", 3, "-o", out)
    assert "already there" in again.err
    other = run("merge", *pair, "-o", out)
    assert (other.code, "--force" in other.err) == (3, True)


def test_recipe_and_plan(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = tmp_path / "r.yml"
    config.write_text(f"merge_method: slerp\nmodels: [{{model: {pair[0]}}}, {{model: {pair[1]}}}]\n"
                      "parameters: {t: 0}\n", encoding="utf-8")
    laid = run("merge", config, "--plan", "--json")
    assert laid.code == 0, laid.err
    assert (laid.json["n_tensors"], laid.json["bytes"], laid.json["download_bytes"]) == (6, 296, 0)
    assert {"name": "0.weight", "shape": [5, 6], "dtype": "float32", "from": 2,
            "copied": False} in laid.json["tensors"]
    assert laid.json["groups"] is None
    grouped = run("merge", *pair, "--arch", "mlp", "--plan", "--json")
    assert [group["size"] for group in grouped.json["groups"]] == [5, 4]
    assert "aligned by the groups" in run("merge", *pair, "--arch", "mlp", "--plan").out
    text = run("merge", config, "--plan").out
    assert "slerp of 2 models" in text
    assert "N.weight" in text
    assert not (tmp_path / "out").exists()
    done = run("merge", config, "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done.err
    got = load_file(tmp_path / "out.safetensors")
    assert all(torch.allclose(t, got[n]) for n, t in network().state_dict().items())


def test_aligned(run: Run, mlp: Path, tmp_path: Path) -> None:
    run("permute", mlp, "--arch", "mlp", "-o", tmp_path / "p.safetensors")
    done = run("merge", mlp, tmp_path / "p.safetensors", "--arch", "mlp", "-o", tmp_path / "out",
               "--json")
    assert done.code == 0, done.err
    assert done.json["alignment"]["models"][str(tmp_path / "p.safetensors")]["certificate"]["ok"]
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.allclose(t, got[n], atol=1e-6) for n, t in network().state_dict().items())


def test_refusals(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    config, out = tmp_path / "r.yml", tmp_path / "out"
    config.write_text("merge_method: ties\nmodles: []\n", encoding="utf-8")
    done = run("merge", config, "-o", out)
    assert done.code == 3
    assert "line 2: unknown key 'modles'" in done.err
    assert run("merge", *pair).code == 2
    assert run("merge", config, "--method", "ties", "-o", out).code == 2
    assert run("merge", *pair, "-p", "density", "-o", out).code == 2
    assert run("merge", *pair, "-p", "density=1", "-o", out).code == 3
    assert run("merge", *pair, "--method", "ties", "-o", out).code == 3
    assert run("merge", pair[0], tmp_path / "absent", "-o", out).code == 3
    assert run("merge", *pair, "--method", "slerp", "-p", "t=2", "-o", out).code == 3
    assert not out.exists()
