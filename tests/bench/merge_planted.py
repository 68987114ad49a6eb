"""Planted elements and how well matching finds them after noise and rounding.

Small transformers at their own initialisation; a random element moves a copy, which is then worn:
noise in units of each tensor's deviation, bfloat16, or eight bits with one scale per tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import metanet
from metanet import WeightSpace
from metanet.symmetry.matching import match
from metanet.trace.archs.vision import prepare_torchvision

NOISE = (0.0, 0.3, 1.0, 1.5, 2.0, 3.0)
MODELS = ("llama", "qwen3", "gpt2", "bert", "vit", "mixtral", "gpt_neox")


def small(kind: str) -> tuple[WeightSpace, dict[str, Tensor]]:
    """Space and weights of two layers of width 64."""
    prepare_torchvision()
    import transformers as hf

    wide = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 199, "use_cache": False}
    grouped = {**wide, "num_key_value_heads": 2}
    plain = {k: v for k, v in wide.items() if k not in ("vocab_size", "use_cache")}
    torch.manual_seed(0)
    made = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**grouped, head_dim=16)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(
            n_embd=64, n_layer=2, n_head=4, vocab_size=199, n_positions=64, use_cache=False)),
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**wide)),
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(
            **plain, image_size=32, patch_size=8)),
        "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(
            **grouped, num_local_experts=4, num_experts_per_tok=2)),
        "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**wide)),
    }[kind]().eval()
    space = metanet.infer(made)
    return space, {k: v.detach().clone() for k, v in made.state_dict().items()}


def planted(kind: str, seeds: int = 3) -> dict[str, float]:
    """Share of neurons brought back, by what was done to the moved copy."""
    space, state = small(kind)
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        element = space.random(seed)
        moved = element.apply(state)
        rng = torch.Generator().manual_seed(seed)
        worn = {f"noise {size:g}": {k: _noisy(v, size, rng) for k, v in moved.items()}
                for size in NOISE}
        worn["bf16"] = {k: v.bfloat16().float() for k, v in moved.items()}
        worn["8 bit"] = {k: _eight_bits(v) for k, v in moved.items()}
        for name, copy in worn.items():
            copy |= {alias: copy[owner] for alias, owner in space.aliases.items()}
            back = match(state, copy, space).element @ element
            hits = [table == np.arange(table.shape[-1]) for table in back.tables.values()]
            found.setdefault(name, []).append(
                float(sum(h.sum() for h in hits) / sum(h.size for h in hits)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _noisy(value: Tensor, size: float, rng: torch.Generator) -> Tensor:
    if not value.is_floating_point() or value.numel() < 2:
        return value
    return value + size * value.std() * torch.randn(value.shape, generator=rng)


def _eight_bits(value: Tensor) -> Tensor:
    """Rounded to 127 steps either side, one scale per tensor."""
    if not value.is_floating_point() or not bool(value.any()):
        return value
    step = value.abs().max() / 127
    return (value / step).round() * step


def planted_table(say: Callable[[str], None]) -> None:
    head = [*(f"noise {size:g}" for size in NOISE), "bf16", "8 bit"]
    say("| share of neurons brought back | " + " | ".join(head) + " |")
    say("|" + "---|" * (len(head) + 1))
    for kind in MODELS:
        found = planted(kind)
        say(f"| {kind} | " + " | ".join(f"{found[name]:.3f}" for name in head) + " |")
