"""Spaces of deep transformers written by hand, any width and depth."""

from __future__ import annotations

from metanet.symmetry import WeightSpace


def gpt2(blocks: int = 12, width: int = 768, heads: int = 12, vocab: int = 50257,
         positions: int = 1024) -> WeightSpace:
    """The space of GPT-2 as its modules name it; the defaults are the 124M model."""
    lines = [f"group model = S({width})"]
    for i in range(blocks):
        lines += [f"group h{i} = S({heads})", f"group f{i} = S({4 * width})",
                  f"group q{i} = S({width // heads}) / h{i}",
                  f"group v{i} = S({width // heads}) / h{i}"]
    lines += [f"wte.weight: {vocab}! model", f"wpe.weight: {positions}! model"]
    for i in range(blocks):
        rows = f"(h{i} q{i}/h{i} + h{i} q{i}/h{i} + h{i} v{i}/h{i})"
        lines += [f"h.{i}.{name}" for name in (
            "ln_1.weight: model", "ln_1.bias: model", f"attn.c_attn.weight: model {rows}",
            f"attn.c_attn.bias: {rows}", f"attn.c_proj.weight: (h{i} v{i}/h{i}) model",
            "attn.c_proj.bias: model", "ln_2.weight: model", "ln_2.bias: model",
            f"mlp.c_fc.weight: model f{i}", f"mlp.c_fc.bias: f{i}",
            f"mlp.c_proj.weight: f{i} model", "mlp.c_proj.bias: model")]
    return WeightSpace.parse("\n".join(["space v1", *lines, "ln_f.weight: model",
                                        "ln_f.bias: model"]))
