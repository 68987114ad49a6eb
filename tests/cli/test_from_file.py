"""Files of which nobody says what they are: inspected, moved, merged and written as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
import torch
from cli_runs import Run
from safetensors.torch import load_file, save_file

MIXTRAL: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40,
    "vocab_size": 3000, "max_position_embeddings": 16, "num_key_value_heads": 1,
    "num_local_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}


pytestmark = pytest.mark.usefixtures("working_torchvision")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral, one tensor for each expert, as on the Hub."""
    from metanet.trace.archs.vision import prepare_torchvision

    prepare_torchvision()
    import transformers

    path = tmp_path_factory.mktemp("mixtral")
    torch.manual_seed(1)
    config = transformers.MixtralConfig(**MIXTRAL)
    transformers.MixtralForCausalLM(config).float().save_pretrained(path)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub_server.FakeHub]:
    with hub_server.served(monkeypatch, tmp_path / "cache") as server:
        yield server


def test_inspect_on_the_hub_downloads_no_weights(
    run: Run, hub: hub_server.FakeHub, mixtral: Path
) -> None:
    state = load_file(mixtral / "model.safetensors")
    files = {name: (mixtral / name).read_bytes() for name in ("config.json", "model.safetensors")}
    size = len(files["model.safetensors"])
    sha = hub.add("org/moe", files)
    done = run("inspect", "hf://org/moe@main", "--json")
    assert done.code == 0, done.err
    assert (done.json["route"], done.json["arch"], done.json["status"]) == (
        "config", "hf", "inferred")
    assert "model type 'mixtral'" in done.json["note"]
    assert done.json["n_parameters"] == sum(t.numel() for t in state.values())
    assert sorted((g["size"], g["copies"]) for g in done.json["groups"]) == [
        (3, 1), (4, 1), (8, 1), (24, 1), (40, 4)]
    ranges = hub.gets("model.safetensors")
    assert ranges and set(ranges) == {f"bytes=0-{(1 << 16) - 1}"}  # the header, and no weights
    assert hub.served < 100_000 < size
    assert run("inspect", f"hf://org/moe@{sha}").code == 0


def test_inspect_an_adapter_on_the_hub(run: Run, hub: hub_server.FakeHub, tmp_path: Path) -> None:
    state = {"m.lora_A.weight": torch.randn(4, 3000), "m.lora_B.weight": torch.randn(3000, 4)}
    save_file(state, tmp_path / "a.safetensors")
    hub.add("org/lora", {
        "adapter_model.safetensors": (tmp_path / "a.safetensors").read_bytes(),
        "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 4}).encode()})
    done = run("inspect", "hf://org/lora", "--json")
    assert done.json["route"] == "adapter" and [g["size"] for g in done.json["groups"]] == [4]
    hub.add("org/other", {
        "adapter_model.safetensors": (tmp_path / "a.safetensors").read_bytes(),
        "adapter_config.json": json.dumps({"peft_type": "LOHA"}).encode()})
    refused = run("inspect", "hf://org/other", "--json")
    assert refused.json["route"] is None and "only LoRA" in refused.json["note"]


def output(path: Path) -> torch.Tensor:
    import transformers

    module = transformers.MixtralForCausalLM.from_pretrained(path).double().eval()
    module.config._experts_implementation = "eager"
    with torch.no_grad():
        out: torch.Tensor = module(torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 30]])).logits
    return out


def test_permute_align_and_merge_in_the_cut_of_the_file(
    run: Run, mixtral: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.json").write_bytes((mixtral / "config.json").read_bytes())
    done = run("permute", mixtral, "-o", moved / "model.safetensors", "--seed", 3)
    assert done.code == 0, done.err
    before, after = (load_file(p / "model.safetensors") for p in (mixtral, moved))
    assert before.keys() == after.keys()
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    assert not any(torch.equal(before[name], after[k]) for k in after if k.endswith("w1.weight"))
    assert (output(mixtral) - output(moved)).abs().max() < 1e-6
    found = run("distance", mixtral, moved, "--json").json
    assert found["aligned"] < 1e-5 < found["naive"]
    assert run("align", mixtral, moved, "-o", tmp_path / "al.safetensors").code == 0
    for way in (("--arch", "hf"), ("--alignment", tmp_path / "al.safetensors")):
        out = tmp_path / way[0].strip("-")
        done = run("merge", mixtral, moved, *way, "-o", out)
        assert done.code == 0, done.err
        merged = load_file(out / "model.safetensors")
        assert merged.keys() == before.keys()
        assert all(torch.equal(merged[k], before[k]) for k in before)
    naive = tmp_path / "naive"
    assert run("merge", mixtral, moved, "-o", naive).code == 0
    assert not torch.equal(load_file(naive / "model.safetensors")[name], before[name])


def test_text_says_how_the_file_is_cut(run: Run, mixtral: Path) -> None:
    done = run("inspect", mixtral)
    assert "from the file alone (config): config.json says model type 'mixtral'" in done.out
    assert "12 tensors of the file are seen as 2, and written back so" in done.out
    told = run("explain", mixtral, "model.layers.0.mlp.experts.gate_up_proj", 0)
    assert "S(4)" in told.out
