"""Networks of the size of large language models, without a single weight in memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys, time
import torch
from metanet.symmetry import infer
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.vision import prepare_torchvision

prepare_torchvision()
import transformers
torch.set_num_threads(1)
layers, hidden, wide, heads, groups = json.loads(sys.argv[1])
config = transformers.LlamaConfig(
    hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers,
    num_attention_heads=heads, num_key_value_heads=groups, vocab_size=32000, use_cache=False)
with meta_parameters():
    model = transformers.LlamaForCausalLM(config)
start = time.process_time()
space = infer(model.eval(), (torch.arange(14).reshape(2, 7),))
seconds = time.process_time() - start
found = sorted([g.kind, g.size, [space.group(label).size for label in g.over]]
               for g in space.groups if not g.dead)
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, found]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(32, 4096, 11008, 32, 32), (80, 8192, 28672, 64, 8)])
def test_llama_of_7b_and_70b(shape: tuple[int, ...]) -> None:
    """Each layer has its MLP, its heads (8 x 8 for the grouped one) and the V-O digits of each;
    rotary positions hold queries and keys in place. One stream: S(hidden).
    """
    layers, hidden, wide, heads, groups = shape
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(shape)], capture_output=True,
                          text=True, timeout=900, check=True)
    seconds, gigabytes, found = json.loads(done.stdout.splitlines()[-1])
    grouped = [["S", heads // groups, [groups]]] if heads > groups else []
    layer = [["S", wide, []], ["S", groups, []], ["S", hidden // heads, [groups]], *grouped]
    assert found == sorted([["S", hidden, []], *layer * layers])
    assert seconds < 60, f"{seconds:.1f} s of CPU"
    assert gigabytes < 1.5, f"{gigabytes:.2f} GB at most"
