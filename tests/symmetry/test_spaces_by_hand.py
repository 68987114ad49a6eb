"""Twenty-two families whose space is written by hand, line by line, and must be the inferred one.

Labels do not count in ``==``; names, digits, their order, ties and fibres do.
"""

from __future__ import annotations

from collections.abc import Callable

import models
import pytest
import torch
from torch import Tensor, nn

from metanet.symmetry import WeightSpace
from metanet.symmetry.infer import infer_program, record
from metanet.trace.archs.vision import prepare_torchvision


def linear(name: str, out: str, ins: str, bias: bool = True) -> str:
    lines = [f"{name}.weight: {out} {ins}"]
    return "\n".join([*lines, f"{name}.bias: {out}"] if bias else lines)


def norm(name: str, axis: str) -> str:
    return f"{name}.weight: {axis}\n{name}.bias: {axis}"


def batch_norm(name: str, axis: str) -> str:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return "\n".join(f"{name}.{leaf}: {axis}" for leaf in leaves)


def groups(**sizes: str) -> str:
    return "\n".join(f"group {label} = S({size.partition('/')[0]})"
                     + (f" / {size.partition('/')[2]}" if "/" in size else "")
                     for label, size in sizes.items())


def recurrent(name: str, level: str, gates: int, hidden: str, ins: str) -> str:
    """Every gate has one row for each hidden neuron; the state is read by all gates."""
    rows = f"({gates}! {hidden})"
    return "\n".join([
        f"{name}.weight_ih_{level}: {rows} {ins}", f"{name}.weight_hh_{level}: {rows} {hidden}",
        f"{name}.bias_ih_{level}: {rows}", f"{name}.bias_hh_{level}: {rows}"])


def attention(name: str, stream: str, q: str, k: str, v: str, o: str, bias: bool = True,
              leaves: tuple[str, str, str, str] = ("q", "k", "v", "o")) -> str:
    """Rows of q, k and v, columns of o."""
    rows = zip(leaves[:3], (q, k, v), strict=True)
    lines = [linear(f"{name}{leaf}", axis, stream, bias) for leaf, axis in rows]
    return "\n".join([*lines, linear(f"{name}{leaves[3]}", stream, o, bias)])


def post_norm_layer(at: str, h: str) -> str:
    """nn.TransformerEncoderLayer: q, k, v packed; the stream (the fixed input) is 16 wide."""
    packed = f"({h} q{at}/{h} + {h} q{at}/{h} + {h} v{at}/{h})"
    return "\n".join([
        f"layers.{at}.self_attn.in_proj_weight: {packed} 16!",
        f"layers.{at}.self_attn.in_proj_bias: {packed}",
        linear(f"layers.{at}.self_attn.out_proj", "16!", f"({h} v{at}/{h})"),
        linear(f"layers.{at}.linear1", f"f{at}", "16!"),
        linear(f"layers.{at}.linear2", "16!", f"f{at}"),
        norm(f"layers.{at}.norm1", "16!"), norm(f"layers.{at}.norm2", "16!")])


def resnet_a() -> str:
    """Option A: a block that doubles the width pads zeros on both sides of the stream."""
    second, third = "(a + stem + b)", "(c + a + stem + b + d)"

    def block(at: int, inner: str, before: str, after: str) -> str:
        return "\n".join([
            f"layers.{at}.conv1.weight: {inner} {before} 3! 3!",
            batch_norm(f"layers.{at}.bn1", inner),
            f"layers.{at}.conv2.weight: {after} {inner} 3! 3!",
            batch_norm(f"layers.{at}.bn2", after)])

    return "\n".join([
        groups(stem="4", i0="4", i1="8", a="2", b="2", i2="16", c="4", d="4"),
        "conv1.weight: stem 3! 3! 3!", batch_norm("bn1", "stem"),
        block(0, "i0", "stem", "stem"), block(1, "i1", "stem", second),
        block(2, "i2", second, third), linear("linear", "10!", third)])


GOLDEN = {
    "mlp": [groups(a="16", b="24"), linear("0", "a", "8!"), linear("2", "b", "a"),
            linear("4", "10!", "b")],
    "siren": [groups(a="32", b="32"), linear("seq.0", "a", "2!"), linear("seq.1", "b", "a"),
              linear("seq.2", "1!", "b")],
    # Flattening makes 16 channels major and 4 x 4 places minor.
    "lenet": [groups(a="6", b="16", c="120", d="84"), linear("0", "a", "1! 5! 5!"),
              linear("3", "b", "a 5! 5!"), linear("7", "c", "(b 4! 4!)"), linear("9", "d", "c"),
              linear("11", "10!", "d")],
    "resnet8a": [resnet_a()],
    "gru": [groups(a="12"), recurrent("rnn", "l0", 3, "a", "5!"), linear("head", "3!", "a")],
    "lstm2": [groups(a="12", b="12"), recurrent("rnn", "l0", 4, "a", "5!"),
              recurrent("rnn", "l1", 4, "b", "a"), linear("head", "3!", "b")],
    "bilstm": [groups(a="12", b="12"), recurrent("rnn", "l0", 4, "a", "5!"),
               recurrent("rnn", "l0_reverse", 4, "b", "5!"), linear("head", "3!", "(a + b)")],
    "encoder": [groups(h0="4", q0="4/h0", v0="4/h0", f0="32", h1="4", q1="4/h1", v1="4/h1",
                       f1="32"), post_norm_layer("0", "h0"), post_norm_layer("1", "h1")],
    "packed_attention": [
        groups(h="3", q="4/h", v="4/h"), linear("qkv", "(h q/h + h q/h + h v/h)", "12!"),
        linear("proj", "12!", "(h v/h)")],
    "separate_attention": [
        groups(m="12", h="3", q="4/h", v="4/h"), linear("embed", "m", "5!"),
        attention("", "m", "(h q/h)", "(h q/h)", "(h v/h)", "(h v/h)"),
        linear("head", "7!", "m")],
    "char_lm": [
        groups(m="8", h="2", q="4/h", v="4/h", f="16"), "lm_head.weight: 13! m",
        "wte.weight = lm_head.weight", "wpe.weight: 6! m", norm("ln1", "m"), norm("ln2", "m"),
        norm("ln_f", "m"), linear("attn.qkv", "(h q/h + h q/h + h v/h)", "m"),
        linear("attn.proj", "m", "(h v/h)"), linear("fc", "f", "m"), linear("out", "m", "f")],
    # A depthwise layer has one kernel for each channel that it gets.
    "separable": [
        groups(a="8", b="12"), "features.0.weight: a 3! 3! 3!", batch_norm("features.1", "a"),
        "features.3.weight: a 1! 3! 3!", batch_norm("features.4", "a"),
        "features.6.weight: b a 1! 1!", batch_norm("features.7", "b"),
        linear("head", "7!", "b")],
    # Four groups of three channels feed the same four groups of two.
    "grouped": [
        groups(g="4", a="3/g", b="2/g"), linear("features.0", "(g a/g)", "3! 3! 3!"),
        "features.2.weight: (g b/g) a/g 3! 3!", "features.2.bias: (g b/g)",
        linear("head", "7!", "(g b/g)")],
    "groupnorm": [
        groups(g="4", a="3/g", k="2", b="4/k"), linear("features.0", "(g a/g)", "3! 3! 3!"),
        norm("features.1", "(g a/g)"), linear("features.3", "(k b/k)", "(g a/g) 3! 3!"),
        norm("features.4", "(k b/k)"), linear("head", "7!", "(k b/k)")],
    "prelu": [groups(a="8", b="12"), linear("features.0", "a", "3! 3! 3!"),
              "features.1.weight: a", linear("features.2", "b", "a 3! 3!"),
              "features.3.weight: 1!", linear("head", "7!", "b")],
}


def gpt2() -> str:
    """Conv1D stores (in, out); the output matrix is the embedding."""
    at = "transformer.h.0"
    packed = "(h q/h + h q/h + h v/h)"
    return "\n".join([
        groups(m="24", h="3", q="8/h", v="8/h", f="96"), "transformer.wte.weight: 50! m",
        "lm_head.weight = transformer.wte.weight", "transformer.wpe.weight: 16! m",
        f"{at}.attn.c_attn.weight: m {packed}", f"{at}.attn.c_attn.bias: {packed}",
        f"{at}.attn.c_proj.weight: (h v/h) m", f"{at}.attn.c_proj.bias: m",
        f"{at}.mlp.c_fc.weight: m f", f"{at}.mlp.c_fc.bias: f", f"{at}.mlp.c_proj.weight: f m",
        f"{at}.mlp.c_proj.bias: m", norm(f"{at}.ln_1", "m"), norm(f"{at}.ln_2", "m"),
        norm("transformer.ln_f", "m")])


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def rms_decoder(q: str, k: str, v: str, o: str) -> str:
    """What Llama and Mixtral share: untied embeddings, RMS norms without bias, attention."""
    at = "model.layers.0"
    return "\n".join([
        "model.embed_tokens.weight: 50! m", "lm_head.weight: 50! m", "model.norm.weight: m",
        f"{at}.input_layernorm.weight: m", f"{at}.post_attention_layernorm.weight: m",
        attention(f"{at}.self_attn.", "m", q, k, v, o, False, PROJECTIONS)])


def llama() -> str:
    """Two key-value heads, each with three query heads; rotation pins the entries of q and k."""
    at = "model.layers.0.mlp"
    return "\n".join([
        groups(m="24", kv="2", q="3/kv", v="8/kv", f="40"),
        rms_decoder("(kv q/kv 8!)", "(kv 8!)", "(kv v/kv)", "(kv q/kv v/kv)"),
        linear(f"{at}.gate_proj", "f", "m", False), linear(f"{at}.up_proj", "f", "m", False),
        linear(f"{at}.down_proj", "m", "f", False)])


def mixtral() -> str:
    """Experts move with the rows of the router; each has neurons of its own, gate beside up."""
    at = "model.layers.0.mlp"
    return "\n".join([
        groups(m="24", h="3", v="8/h", e="5", f="40/e"),
        rms_decoder("(h 8!)", "(h 8!)", "(h v/h)", "(h v/h)"), f"{at}.gate.weight: e m",
        f"{at}.experts.gate_up_proj: e (2! f/e) m", f"{at}.experts.down_proj: e m f/e"])


def neox() -> str:
    """Per head q, k, v; the first two entries of q and k are rotated, the other six are not."""
    at = "gpt_neox.layers.0"
    rows = "(h (2! + s/h + 2! + s/h + v/h))"
    return "\n".join([
        groups(m="24", h="3", s="6/h", v="8/h", f="40"), "gpt_neox.embed_in.weight: 50! m",
        "lm_head.weight: 50! m", norm("gpt_neox.final_layer_norm", "m"),
        norm(f"{at}.input_layernorm", "m"), norm(f"{at}.post_attention_layernorm", "m"),
        linear(f"{at}.attention.query_key_value", rows, "m"),
        linear(f"{at}.attention.dense", "m", "(h v/h)"),
        linear(f"{at}.mlp.dense_h_to_4h", "f", "m"),
        linear(f"{at}.mlp.dense_4h_to_h", "m", "f")])


def falcon() -> str:
    """Three query heads, then one key and one value head, whose entries serve all heads alike."""
    at = "transformer.h.0"
    return "\n".join([
        groups(m="24", h="3", v="8", f="40"), "transformer.word_embeddings.weight: 50! m",
        "lm_head.weight = transformer.word_embeddings.weight", norm("transformer.ln_f", "m"),
        norm(f"{at}.input_layernorm", "m"),
        linear(f"{at}.self_attention.query_key_value", "(h 8! + 8! + v)", "m", False),
        linear(f"{at}.self_attention.dense", "m", "(h v)", False),
        linear(f"{at}.mlp.dense_h_to_4h", "f", "m", False),
        linear(f"{at}.mlp.dense_4h_to_h", "m", "f", False)])


def bert() -> str:
    """The stream is the output, so it is fixed."""
    at = "encoder.layer.0"
    return "\n".join([
        groups(h="3", q="8/h", v="8/h", f="40"), "embeddings.word_embeddings.weight: 50! 24!",
        "embeddings.position_embeddings.weight: 512! 24!",
        "embeddings.token_type_embeddings.weight: 2! 24!", norm("embeddings.LayerNorm", "24!"),
        attention(f"{at}.attention.", "24!", "(h q/h)", "(h q/h)", "(h v/h)", "(h v/h)",
                  leaves=("self.query", "self.key", "self.value", "output.dense")),
        norm(f"{at}.attention.output.LayerNorm", "24!"),
        linear(f"{at}.intermediate.dense", "f", "24!"), linear(f"{at}.output.dense", "24!", "f"),
        norm(f"{at}.output.LayerNorm", "24!")])


def t5() -> str:
    """One stream for both towers; layers of a tower share one relative bias, so their heads move
    together; cross attention has none, so its heads are each layer's own."""
    lines = [groups(m="24", he="3", hd="3", hc0="3", hc1="3", **{
        f"{kind}{part}{layer}": f"8/{heads}" for kind in "qv" for layer in "01"
        for part, heads in (("e", "he"), ("d", "hd"), ("c", f"hc{layer}"))},
        fe0="40", fe1="40", fd0="40", fd1="40"),
        "inner.shared.weight: 50! m", "inner.lm_head.weight = inner.shared.weight",
        "inner.encoder.embed_tokens.weight = inner.shared.weight",
        "inner.decoder.embed_tokens.weight = inner.shared.weight",
        "inner.encoder.final_layer_norm.weight: m", "inner.decoder.final_layer_norm.weight: m"]

    def attended(name: str, heads: str, q: str, v: str) -> str:
        inside, read = f"({heads} {q}/{heads})", f"({heads} {v}/{heads})"
        return attention(f"{name}.", "m", inside, inside, read, read, bias=False)

    def dense(at: str, f: str) -> list[str]:
        return [linear(f"{at}.DenseReluDense.wi", f, "m", False),
                linear(f"{at}.DenseReluDense.wo", "m", f, False), f"{at}.layer_norm.weight: m"]

    for tower, heads in (("encoder", "he"), ("decoder", "hd")):
        for layer in "01":
            at, t = f"inner.{tower}.block.{layer}.layer", tower[0]
            lines += [attended(f"{at}.0.SelfAttention", heads, f"q{t}{layer}", f"v{t}{layer}"),
                      f"{at}.0.layer_norm.weight: m"]
            if t == "d":
                lines += [attended(f"{at}.1.EncDecAttention", f"hc{layer}", f"qc{layer}",
                                   f"vc{layer}"), f"{at}.1.layer_norm.weight: m"]
            lines += dense(f"{at}.{2 if t == 'd' else 1}", f"f{t}{layer}")
        lines.append(f"inner.{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight:"
                     f" 32! {heads}")
    return "\n".join(lines)


def made(name: str) -> nn.Module:
    """A small model of a family, with one layer (T5: two per tower)."""
    import transformers as t

    base = {"vocab_size": 50, "use_cache": False}
    wide = {**base, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    factories: dict[str, Callable[[], nn.Module]] = {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(
            **base, n_positions=16, n_embd=24, n_layer=1, n_head=3, bos_token_id=0,
            eos_token_id=0)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(
            **{**wide, "num_attention_heads": 6}, intermediate_size=40, num_key_value_heads=2,
            head_dim=8)),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(
            **wide, intermediate_size=40, num_key_value_heads=3, head_dim=8, num_local_experts=5,
            num_experts_per_tok=2, sliding_window=None)),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**wide, intermediate_size=40)),
        "falcon": lambda: t.FalconForCausalLM(t.FalconConfig(**wide, ffn_hidden_size=40)),
        "bert": lambda: t.BertModel(t.BertConfig(**wide, intermediate_size=40),
                                    add_pooling_layer=False),
        "t5": lambda: models.Logits(t.T5ForConditionalGeneration(t.T5Config(
            **base, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_decoder_layers=2, num_heads=3,
            decoder_start_token_id=0))),
    }
    return factories[name]().eval()


TRANSFORMERS = {"gpt2": gpt2, "llama": llama, "mixtral": mixtral, "neox": neox, "falcon": falcon,
                "bert": bert, "t5": t5}


def check(module: nn.Module, inputs: tuple[Tensor, ...], lines: str) -> None:
    """The inferred space is the written one, and one digit less free would be another."""
    written = WeightSpace.parse(f"space v1\n{lines}\n")
    inferred = infer_program(record(module, inputs))
    assert inferred == written
    pinned = lines.replace("= S(", "= fixed(", 1).replace(")", ') "pinned"', 1)
    assert WeightSpace.parse(f"space v1\n{pinned}\n") != inferred


@pytest.mark.parametrize("name", GOLDEN)
def test_small_networks(name: str) -> None:
    check(models.MODELS[name].factory(), models.MODELS[name].example_inputs,
          "\n".join(GOLDEN[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    prepare_torchvision()
    ids = torch.tensor([[3, 7, 1, 9, 4], [8, 2, 6, 0, 5]])
    inputs = (ids, torch.cat([ids, ids[:, :2]], 1)) if name == "t5" else (ids,)
    check(made(name), inputs, TRANSFORMERS[name]())
