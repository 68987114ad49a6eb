"""Speed of merging: ``python -m tests.bench.merge_speed [--repeat 5] [--layers 16]``.

Random Llama-shaped bf16 checkpoints; a fresh process per run, CPU seconds of the whole process, the
least of the repeats, since whatever else the machine does can only add to them. ``net`` is what is
left without start-up, and start-up is a run of the same command on models of a few kilobytes; GB/s
count the bytes of the two models (TIES reads a base beside). Memory is anonymous, above that after
``import torch``. ``--mergekit PATH`` runs that ``mergekit-yaml`` in turn with ours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

METHODS = {"linear": [], "slerp": ["-p", "t=0.5"], "task_arithmetic": [], "karcher": [],
           "multislerp": [], "ties": ["-p", "density=0.5"], "dare_linear": ["-p", "density=0.5"],
           "dare_ties": ["-p", "density=0.5"]}
Run = Callable[[Path, str], tuple[float, int]]
BASED = {"task_arithmetic", "ties", "dare_linear", "dare_ties"}


def llama(seed: int, layers: int, width: int, inner: int, vocab: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width),
              "model.norm.weight": (width,)}
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= {f"{p}self_attn.{k}_proj.weight": (width, width) for k in "qkvo"}
        shapes |= {f"{p}mlp.{k}_proj.weight": (inner, width) for k in ("gate", "up")}
        shapes |= {f"{p}mlp.down_proj.weight": (width, inner), f"{p}input_layernorm.weight":
                   (width,), f"{p}post_attention_layernorm.weight": (width,)}
    return {n: (0.02 * torch.randn(s, generator=rng)).bfloat16() for n, s in shapes.items()}


def cpu(*words: str) -> tuple[float, str]:
    """CPU seconds of a fresh process, and what it printed."""
    before = os.times()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    after = os.times()
    return (after.children_user + after.children_system - before.children_user
            - before.children_system, done.stdout)


def merge(name: str, folder: Path, prefix: str) -> tuple[float, int]:
    """CPU seconds and anonymous bytes of ours."""
    models = [str(folder / f"{prefix}{i}") for i in (0, 1)]
    base = ["--base", str(folder / f"{prefix}2")] if name in BASED else []
    seconds, text = cpu(sys.executable, "-m", "metanet", "merge", *models, "--method", name,
                        *METHODS[name], *base, "-o", str(folder / "out"), "--json")
    shutil.rmtree(folder / "out")
    return seconds, int(json.loads(text)["working_memory"])


def peer(command: str, name: str, folder: Path, prefix: str) -> tuple[float, int]:
    """CPU seconds of mergekit, on the same recipe."""
    models = [folder / f"{prefix}{i}" for i in (0, 1)]
    lines = [f"merge_method: {name}", "dtype: bfloat16", "models:"]
    for model in models:
        lines += [f"  - model: {model}", "    parameters: {weight: 1, density: 0.5}"
                  if name in BASED else "    parameters: {weight: 1}"]
    if name in BASED:
        lines.append(f"base_model: {folder / f'{prefix}2'}")
    (folder / "peer.yml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    seconds, _ = cpu(command, str(folder / "peer.yml"), str(folder / "out"))
    shutil.rmtree(folder / "out")
    return seconds, 0


def save(folder: Path, name: str, weights: dict[str, torch.Tensor]) -> None:
    (folder / name).mkdir()
    save_file(weights, folder / name / "model.safetensors")
    (folder / name / "config.json").write_text(json.dumps({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": sum(
            n.endswith("q_proj.weight") for n in weights)}), encoding="utf-8")


def measure(label: str, run: Run, folder: Path, repeat: int, bare: float, size: int) -> None:
    """One row. Small and large models in turn, so that both meet the same machine."""
    small, large = [], []
    for _ in range(repeat):
        small.append(run(folder, "small"))
        large.append(run(folder, "big"))
    start, whole = min(small)[0], min(large)[0]
    memory = max(held for _, held in large)
    print(f"{label} | {start - bare:.2f} | {whole:.2f} | "
          f"{size / 1e9 / max(whole - start, 1e-9):.2f} | "
          f"{f'{memory / 2**20:.0f}' if memory else '-'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--mergekit", metavar="PATH", help="its command mergekit-yaml")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(3):
            save(folder, f"big{i}", llama(i, options.layers, 1024, 2816, 8000))
            save(folder, f"small{i}", llama(i, 1, 8, 16, 10))
        size = 2 * (folder / "big0" / "model.safetensors").stat().st_size
        bare = min(cpu(sys.executable, "-c", "import torch")[0] for _ in range(options.repeat))
        print(f"import torch {bare:.2f} CPU-s; two models of {size / 2e6:.0f} MB each")
        print("method | start-up above import torch, CPU-s | whole, CPU-s | net GB/s | "
              "anonymous MiB")
        for method in options.methods:
            measure(method, partial(merge, method), folder, options.repeat, bare, size)
            if options.mergekit and method in ("linear", "ties"):
                measure(f"{method}, mergekit", partial(peer, options.mergekit, method), folder,
                        options.repeat, bare, size)


if __name__ == "__main__":
    main()
