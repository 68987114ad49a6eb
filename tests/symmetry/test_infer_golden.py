"""Golden rows: the group of each small network, proved; and that the order of things is right."""

from __future__ import annotations

import models
import pytest
import torch
import wirings
from symmetry_tools import signatures

from metanet.symmetry import WeightSpace
from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.verify import verify_program
from metanet.trace.archs.vision import prepare_torchvision

ROWS = {**models.MODELS, **wirings.WIRINGS}


@pytest.mark.parametrize("name", ROWS)
def test_golden_row(name: str) -> None:
    torch.manual_seed(0)
    golden = ROWS[name]
    program = record(golden.factory(), golden.example_inputs)
    space = infer_program(program)
    assert space.meta.unsupported == ()
    assert signatures(space) == golden.groups
    assert space.status == "inferred"
    assert WeightSpace.parse(str(space)) == space
    assert WeightSpace.from_json(space.to_json()) == space
    found = verify_program(program, space, samples=2)
    assert found.ok, found.report()
    assert found.max_error <= 1e-12
    assert found.controls.detected == found.controls.total
    assert not any(group.dead for group in space.groups)


def test_the_two_shortcuts_give_fourteen_and_twelve() -> None:
    rows = {name: len(models.MODELS[name].groups) for name in ("resnet20a", "resnet20b")}
    assert rows == {"resnet20a": 14, "resnet20b": 12}


def test_labels_are_names_of_layers() -> None:
    golden = models.MODELS["resnet8b"]
    space = infer_program(record(golden.factory(), golden.example_inputs))
    assert {g.label for g in space.groups} == {
        "conv1", "layers_0_conv1", "layers_1_conv1", "layers_1_conv2", "layers_2_conv1",
        "layers_2_conv2",
    }


def test_meta_says_roles_depths_activations_and_wiring() -> None:
    golden = models.MODELS["resnet8b"]
    space = infer_program(record(golden.factory(), golden.example_inputs))
    meta = space.meta
    assert meta.tensors["layers.0.bn1.running_var"].role == "running_var"
    assert meta.tensors["layers.0.bn1.weight"].role == "norm_weight"
    conv = meta.tensors["layers.0.conv2.weight"]
    assert (conv.role, conv.out_axes, conv.in_axes, conv.depth) == ("weight", (0,), (1,), 2)
    assert meta.tensors["linear.bias"].role == "bias"
    assert meta.groups["layers_0_conv1"].activation == "relu"
    assert meta.groups["layers_0_conv1"].depth == 1
    wires = {(w.source, w.target, w.tensor) for w in meta.wiring}
    assert (None, "conv1", "conv1.weight") in wires
    assert ("conv1", "layers_0_conv1", "layers.0.conv1.weight") in wires
    assert ("conv1", "conv1", None) in wires  # the residual edge of the first block


def test_meta_of_embeddings() -> None:
    golden = models.MODELS["char_lm"]
    space = infer_program(record(golden.factory(), golden.example_inputs))
    assert space.meta.tensors["wpe.weight"].role == "embedding"
    assert space.meta.tensors["wpe.weight"].in_axes == (0,)
    assert space.aliases == {"wte.weight": "lm_head.weight"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "gpt2", "llama", "qwen3", "neox", "phi3", "opt", "bert", "t5", "mixtral", "falcon", "mamba"])
def test_transformers(name: str) -> None:
    prepare_torchvision()
    import transformers as t

    base = {"vocab_size": 50, "use_cache": False}
    llama = {**base, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40}
    made = {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(
            **base, n_positions=16, n_embd=24, n_layer=2, n_head=3, bos_token_id=0,
            eos_token_id=0)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(
            **llama, num_attention_heads=6, num_key_value_heads=2, head_dim=8)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(
            **llama, num_attention_heads=6, num_key_value_heads=2, head_dim=8)),
        "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(
            **base, hidden_size=24, state_size=4, num_hidden_layers=1, time_step_rank=2)),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**llama, num_attention_heads=3)),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(
            **llama, num_attention_heads=3, num_key_value_heads=3, pad_token_id=0,
            eos_token_id=0)),
        "opt": lambda: t.OPTForCausalLM(t.OPTConfig(
            **base, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, ffn_dim=40,
            word_embed_proj_dim=24)),
        "bert": lambda: t.BertModel(t.BertConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            intermediate_size=40), add_pooling_layer=False),
        "t5": lambda: models.Logits(t.T5ForConditionalGeneration(t.T5Config(
            **base, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_decoder_layers=2, num_heads=3,
            decoder_start_token_id=0))),
        "mixtral": lambda: t.MixtralForCausalLM._from_config(t.MixtralConfig(
            **{**llama, "num_hidden_layers": 1}, num_attention_heads=3, num_key_value_heads=3,
            head_dim=8, num_local_experts=5, num_experts_per_tok=2, sliding_window=None),
            experts_implementation="batched_mm"),
        "falcon": lambda: t.FalconForCausalLM(t.FalconConfig(
            **base, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            ffn_hidden_size=40)),
    }
    s = models.s
    expected = {
        "gpt2": s(24, 3, 3, 96, 96) + s(8, 8, 8, 8, over=(3,)),
        "llama": s(24, 2, 2, 40, 40) + s(3, 3, 8, 8, over=(2,)),
        # One norm for the queries of all heads and one for the keys: rotation pins both anyway.
        "qwen3": s(24, 2, 2, 40, 40) + s(3, 3, 8, 8, over=(2,)),
        # The stream, the inner channels, the state of each channel, the rank of the time step.
        "mamba": s(24, 48, 4, 2),
        "neox": s(24, 3, 3, 40, 40) + s(6, 6, 8, 8, over=(3,)),
        "phi3": s(24, 3, 3, 40, 40) + s(8, 8, over=(3,)),
        "opt": s(24, 3, 3, 40, 40) + s(8, 8, 8, 8, over=(3,)),
        # Heads: one relative bias for both encoder layers, one for both decoder self-attentions;
        # cross attention has none, so each layer's heads are its own. In each of six attentions
        # q~k and v~o move inside every head.
        "t5": s(24, 3, 3, 3, 3, 40, 40, 40, 40) + s(*[8] * 12, over=(3,)),
        # Experts move with the router's outputs, and each has neurons of its own.
        "mixtral": s(24, 3, 5) + s(8, over=(3,)) + s(40, over=(5,)),
        # Query heads move with the columns of the output; key and value have one head each, whose
        # entries are pinned by rotation (q, k) or move alike under all heads (v).
        "falcon": s(24, 3, 3, 8, 8, 40, 40),
        "bert": s(3, 3, 40, 40) + s(8, 8, 8, 8, over=(3,)),  # the stream is an output
    }
    given = models.tokens(50, 7)
    if name == "t5":
        given = (given[0], models.tokens(50, 5)[0])
    program = record(made[name]().eval(), given)
    space = infer_program(program)
    assert signatures(space) == sorted(expected[name])
    assert verify_program(program, space, samples=2).ok


@pytest.mark.timm
def test_timm_vit() -> None:
    prepare_torchvision()
    import timm

    module = timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=2,
                               img_size=32, patch_size=8)
    program = record(module, torch.randn(2, 3, 32, 32))
    space = infer_program(program)
    expected = models.s(48, 3, 3, 192, 192) + models.s(16, 16, 16, 16, over=(3,))
    assert signatures(space) == sorted(expected)
    assert verify_program(program, space, samples=2).ok
