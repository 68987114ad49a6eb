"""LoRA adapters: the rank is free, the rest belongs to the base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import save_file
from symmetry_tools import signatures
from torch import Tensor

from metanet.errors import SymmetryError
from metanet.symmetry import resolve

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": False, "modules_to_save": None,
         "target_modules": ["q_proj", "v_proj"]}
PATH = "base_model.model.model.layers"
State = dict[str, Tensor]


def factors(*names: str, rank: int = 4, ins: int = 6, outs: int = 7) -> State:
    out = {}
    for name in names:
        out[f"{name}.lora_A.weight"] = torch.randn(rank, ins)
        out[f"{name}.lora_B.weight"] = torch.randn(outs, rank)
    return out


def adapter(path: Path, state: State, **config: Any) -> Path:
    """A folder as PEFT saves it."""
    save_file(state, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(PLAIN | config))
    return path


def test_each_rank_is_a_group(tmp_path: Path) -> None:
    state = factors(f"{PATH}.0.self_attn.q_proj", f"{PATH}.0.self_attn.v_proj")
    found = resolve(adapter(tmp_path, state))
    assert found.space is not None and (found.route, found.space.status) == ("adapter", "inferred")
    assert "LoRA adapter of 2 modules, rank 4" in found.note
    assert signatures(found.space) == models.s(4, 4)
    moved = found.restore(found.space.random(0).apply(found.checkpoint.state_dict()))
    for name in (f"{PATH}.0.self_attn.q_proj", f"{PATH}.0.self_attn.v_proj"):
        (a, b), (c, d) = ((s[f"{name}.lora_A.weight"], s[f"{name}.lora_B.weight"])
                          for s in (state, moved))
        assert not torch.equal(a, c)
        assert torch.allclose(b @ a, d @ c, atol=1e-6)
    assert "base model" in found.space.explain(f"{PATH}.0.self_attn.q_proj.lora_A.weight", 1)
    with pytest.raises(SymmetryError, match="nothing to verify against"):
        resolve(tmp_path, verify=True)


def test_other_layers_ranks_and_names(tmp_path: Path) -> None:
    state = {
        **factors(f"{PATH}.0.mlp.up", rank=2),
        f"{PATH}.0.mlp.up.lora_B.bias": torch.randn(7),
        f"{PATH}.0.conv.lora_A.weight": torch.randn(4, 3, 5, 5),
        f"{PATH}.0.conv.lora_B.weight": torch.randn(8, 4, 1, 1),
        "base_model.model.embed.lora_embedding_A": torch.randn(4, 31),
        "base_model.model.embed.lora_embedding_B": torch.randn(6, 4),
        "base_model.model.score.weight": torch.randn(2, 6),
        f"{PATH}.1.v.lora_A.default.weight": torch.randn(1, 6),
        f"{PATH}.1.v.lora_B.default.weight": torch.randn(6, 1),
    }
    found = resolve(adapter(tmp_path, state, modules_to_save=["score"],
                            rank_pattern={"up": 2, "v": 1}))
    assert found.space is not None and signatures(found.space) == models.s(2, 4, 4)
    assert set(found.space.tensors) == set(state)


def test_the_file_alone_is_enough() -> None:
    found = resolve(factors("a.q_proj", rank=3))
    assert found.space is not None and found.route == "adapter"


@pytest.mark.parametrize(("state", "config", "message"), [
    (factors("a"), {"peft_type": "IA3"}, "only LoRA"),
    (factors("a"), {"use_dora": True}, "DoRA"),
    (factors("a"), {"target_parameters": ["experts.gate"]}, "stacked"),
    (factors("a"), {"r": 8}, "adapter_config.json says 8"),
    (factors("a", rank=1), {"r": 1}, "rank 2 or more"),
    ({"a.lora_A.weight": torch.ones(4, 6)}, {}, "has A alone"),
    ({"a.lora_A.weight": torch.ones(4, 6), "a.lora_B.weight": torch.ones(7, 2)}, {},
     "do not multiply"),
    ({**factors("a"), "a.lora_magnitude_vector": torch.ones(7)}, {}, "no factor of a plain LoRA"),
    ({**factors("a"), "score.weight": torch.ones(2, 6)}, {}, "no factor of a plain LoRA"),
    ({"prompt_embeddings": torch.ones(4, 6)}, {"peft_type": "PROMPT_TUNING"}, "only LoRA"),
])
def test_what_is_no_plain_lora_is_refused(
    state: State, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    found = resolve(adapter(tmp_path, state, **config))
    assert (found.space, found.route) == (None, None)
    assert message in found.note


def test_a_config_that_is_no_object(tmp_path: Path) -> None:
    adapter(tmp_path, factors("a"))
    (tmp_path / "adapter_config.json").write_text("[1]")
    assert "no JSON object" in resolve(tmp_path).note
