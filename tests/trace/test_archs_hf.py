"""hf:FOLDER and timm:NAME: registries only, nothing that a file names is imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metanet.errors import SpaceMismatch, TraceError
from metanet.trace.archs import build, load
from metanet.trace.archs.vision import prepare_torchvision

BERT = {"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 40, "vocab_size": 31, "max_position_embeddings": 16}
LLAMA = {**BERT, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "pad_token_id": 0,
         "num_key_value_heads": 1, "tie_word_embeddings": True, "bos_token_id": 1,
         "eos_token_id": 2}


pytestmark = pytest.mark.usefixtures("working_torchvision")


def folder(tmp_path: Path, config: dict[str, Any]) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return f"hf:{tmp_path}"


def reference(config: dict[str, Any], class_name: str) -> torch.nn.Module:
    import transformers

    cls = getattr(transformers, class_name)
    return cls(cls.config_class(**config)).eval()


@pytest.mark.parametrize(("config", "class_name"), [
    (BERT, "BertModel"), (LLAMA, "LlamaForCausalLM"),
    ({**BERT, "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
])
def test_same_function(tmp_path: Path, config: dict[str, Any], class_name: str) -> None:
    real = reference(config, class_name)
    state = dict(real.state_dict())
    built = build(folder(tmp_path, config), state)
    assert type(built.module).__name__ == class_name
    assert all(p.is_meta for p in built.module.parameters())
    assert not any(b.is_meta for b in built.module.buffers())
    module = load(built, state)
    with torch.no_grad():
        ours, theirs = module(*built.example_inputs), real(*built.example_inputs)
    assert "past_key_values" not in ours
    assert torch.equal(ours[0], theirs[0])


def test_tied_head_may_be_absent_from_the_file(tmp_path: Path) -> None:
    state = dict(reference(LLAMA, "LlamaForCausalLM").state_dict())
    del state["lm_head.weight"]
    module = load(build(folder(tmp_path, LLAMA), state), state)
    assert module.lm_head.weight is module.model.embed_tokens.weight


def test_mismatch_names_the_tensor(tmp_path: Path) -> None:
    state = dict(reference(LLAMA, "LlamaForCausalLM").state_dict())
    state["model.norm.weight"] = torch.ones(25)
    with pytest.raises(SpaceMismatch, match=r"model\.norm\.weight.*\(24,\), found \(25,\)"):
        build(folder(tmp_path, LLAMA), state)


@pytest.mark.parametrize(("change", "message"), [
    ({"architectures": ["system"]}, "'system' is not among the classes"),
    ({"architectures": ["BertModel"]}, "not among the classes"),
    ({"architectures": [7]}, "not among the classes"),
    ({"model_type": "os.system"}, "not one that transformers"),
    ({"model_type": ["llama"]}, "not one that transformers"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ({"num_hidden_layers": 10**9}, "above 4096"),
    ({"max_position_embeddings": 10**12}, "above"),
    ({"hidden_size": "wide"}, "cannot build"),
    ({"backbone": "evil/repo"}, "Hub"),
])
def test_configs_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        build(folder(tmp_path, {**LLAMA, **change}))


def test_code_named_in_a_config_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    config = {**BERT, "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
              "_attn_implementation": "evil/kernel", "attn_implementation": "evil/kernel"}
    module = build(folder(tmp_path, config)).module
    assert type(module).__module__ == "transformers.models.bert.modeling_bert"
    assert module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_damaged_configs(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(TraceError):
        build(f"hf:{tmp_path}")


def test_absent_folder() -> None:
    with pytest.raises(TraceError, match=r"needs a folder with a config\.json"):
        build("hf:no/such/folder")


def test_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(TraceError, match=r"metanet-toolkit\[hf\]"):
        build("timm:resnet18")


@pytest.mark.timm
def test_timm_solves_classes_and_is_the_same_function() -> None:
    prepare_torchvision()
    import timm

    real = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    built = build("timm:vit_tiny_patch16_224", real.state_dict())
    module = load(built, real.state_dict())
    with torch.no_grad():
        assert torch.equal(module(*built.example_inputs), real(*built.example_inputs))
    with pytest.raises(TraceError, match="resnet18"):
        build("timm:resnt18")
