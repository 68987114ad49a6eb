"""How files cut and name the tensors of a module, without any library: views, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import metanet
from metanet.errors import SpaceMismatch
from metanet.symmetry import resolve
from metanet.trace.archs.header import Header
from metanet.trace.archs.stored import Binding, Part, Storage, bind, packing

State = dict[str, Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.out = nn.Linear(8, 3)


def apart(state: State) -> State:
    """q, k and v of packed attention, one tensor each, as other libraries store them."""
    out = dict(state)
    for leaf in ("weight", "bias"):
        rows = out.pop(f"attn.in_proj_{leaf}").chunk(3)
        out |= {f"attn.{n}_proj.{leaf}": r.clone() for n, r in zip("qkv", rows, strict=True)}
    return out


def bound(module: nn.Module, state: State) -> Storage:
    return bind(module, Header.of(metanet.open(state)), "test")


def test_packed_rows_are_put_together_and_taken_apart() -> None:
    module = Block()
    state = apart(dict(module.state_dict()))
    storage = bound(module, state)
    assert sorted(part.names[0] for part in storage.parts) == [
        "attn.in_proj_bias", "attn.in_proj_weight"]
    view = storage.view(metanet.open(state))
    assert set(view.names) == set(module.state_dict())
    assert torch.equal(view.read("attn.in_proj_weight"), module.attn.in_proj_weight)
    back = storage.restore(view.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)
    flipped = storage.moved(metanet.open(state), lambda name, tensor: tensor.flip(0))
    assert torch.equal(flipped.read("attn.q_proj.bias"), state["attn.v_proj.bias"].flip(0))
    assert torch.equal(flipped.read("out.bias"), state["out.bias"].flip(0))
    assert flipped.names == metanet.open(state).names


def renamed(state: State, old: str, new: str) -> State:
    return {k.replace(old, new): v for k, v in state.items()}


@pytest.mark.parametrize(("old", "new"), [("out.", "model.out."), ("attn.", "model.attn.")])
def test_a_prefix_that_some_names_have_is_found(old: str, new: str) -> None:
    module = nn.ModuleDict({"model": Block()})
    state = renamed(dict(module.state_dict()), f"model.{old}", old)
    storage = bound(module, state)
    assert storage.seen(f"{new}weight" if old == "out." else "model.attn.out_proj.weight") == (
        "out.weight" if old == "out." else "attn.out_proj.weight")


def test_weight_norm_of_either_kind() -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    old = {"0.bias": module[0].bias.detach(),
           "0.weight_g": torch.randn(3, 1), "0.weight_v": torch.randn(3, 4)}
    storage = bound(module, old)
    assert storage.seen("0.parametrizations.weight.original0") == "0.weight_g"
    with pytest.raises(SpaceMismatch):
        bound(module, {**old, "0.weight_g": torch.randn(4, 1)})


@pytest.mark.parametrize("change", [
    lambda s: {k: v for k, v in s.items() if k != "attn.k_proj.bias"},
    lambda s: {**s, "attn.k_proj.bias": torch.zeros(7)},
    lambda s: {**s, "attn.extra": torch.zeros(7)},
    lambda s: {**s, "attn.in_proj_bias": torch.zeros(24)},
])
def test_what_is_left_over_is_refused(change) -> None:  # type: ignore[no-untyped-def]
    module = Block()
    with pytest.raises(SpaceMismatch):
        bound(module, change(apart(dict(module.state_dict()))))


def test_a_part_that_loses_numbers_is_caught() -> None:
    good = packing(("w",), ("a", "b"))
    lossy = Part(good.names, good.stored, good.gather,
                 lambda t: {k: torch.zeros_like(v) for k, v in good.scatter(t).items()})
    state = {"w": torch.randn(6, 2)}
    assert set(Storage(parts=(good,)).restore(state)) == {"a", "b"}
    with pytest.raises(SpaceMismatch, match="cannot be written back"):
        Storage(parts=(lossy,)).restore(state)


def test_names_beyond_reason_are_never_matched() -> None:
    binding = Binding(nn.Linear(2, 2, bias=False), Header.of({"x" * 2000: (2, 2),
                                                              "weight": (2, 2)}))
    binding.by_names()
    assert binding.left() == [] and binding.taken() == {"weight"}
    assert binding.storage([["weight"]]) is None  # nor overlooked


def test_a_file_of_a_usual_name_has_the_config_beside_it(tmp_path: Path) -> None:
    state = {"a.lora_A.weight": torch.randn(4, 6), "a.lora_B.weight": torch.randn(5, 4)}
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    assert "only LoRA" in resolve(tmp_path / "adapter_model.safetensors").note
    save_file(state, tmp_path / "other.safetensors")
    assert resolve(tmp_path / "other.safetensors").route == "adapter"
    save_file({"a.weight": torch.randn(3, 3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet"}))
    assert "diffusers" in resolve(tmp_path / "model.safetensors").note
