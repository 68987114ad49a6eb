"""Streaming: the same bits as in memory, whole outputs only, ties, vocabularies, memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import served
from safetensors.torch import load_file, save_file
from torch import Tensor

import metanet as mn
from metanet.errors import CheckpointError, MetanetError
from metanet.tasks.merge.methods import METHODS
from tests.tasks.merge_nets import mlp, state

Weights = dict[str, Tensor]


def decoder(seed: int, layers: int = 3, vocab: int = 10, dtype: torch.dtype = torch.float32
            ) -> Weights:
    rng = torch.Generator().manual_seed(seed)
    names = {"model.embed_tokens.weight": (vocab, 8), "model.norm.weight": (8,)}
    for i in range(layers):
        names |= {f"model.layers.{i}.self_attn.q_proj.weight": (8, 8),
                  f"model.layers.{i}.mlp.up_proj.weight": (12, 8)}
    return {n: torch.randn(s, generator=rng).to(dtype) for n, s in names.items()}


def folder(path: Path, weights: Weights, tokens: list[str] | None = None, shards: int = 1,
           **config: Any) -> Path:
    path.mkdir()
    names = list(weights)
    if shards == 1:
        save_file(weights, path / "model.safetensors")
    else:
        held = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards]
                for i in range(shards)}
        for file, mine in held.items():
            save_file({n: weights[n] for n in mine}, path / file)
        index = {"weight_map": {n: file for file, mine in held.items() for n in mine}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {"model_type": "llama", "tie_word_embeddings": True, "num_hidden_layers": 3,
              "vocab_size": 10, "torch_dtype": "float32", **config}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tokens is not None:
        document = {"model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(tokens)}},
                    "added_tokens": []}
        (path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        (path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    return path


def options(name: str) -> dict[str, Any]:
    method = METHODS[name]
    some = {"t": 0.4, "density": 0.5}
    known = {p.name for p in method.parameters}
    return {"method": name, "parameters": {k: v for k, v in some.items() if k in known}}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streaming_equals_in_memory(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    count = 1 if name == "passthrough" else 2
    weights = [decoder(i, dtype=dtype) for i in range(count)]
    root = decoder(9, dtype=dtype) if METHODS[name].base else None
    paths = [folder(tmp_path / f"m{i}", w, shards=i + 1) for i, w in enumerate(weights)]
    base = None if root is None else folder(tmp_path / "base", root, shards=3)
    report = mn.merge(paths, tmp_path / "out", base=base, shard_bytes=800, **options(name))
    held = mn.merge(weights, base=root, **options(name)).weights
    streamed = mn.open(tmp_path / "out")
    assert set(streamed.names) == set(held)
    assert all(torch.equal(streamed.read(n), held[n]) for n in held)
    assert all(t.dtype == dtype for t in held.values())
    assert report.tensors == 8
    assert report.bytes == sum(t.nbytes for t in held.values())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_what_a_folder_holds(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", decoder(0), list("abcdefghij"))
    b = folder(tmp_path / "b", decoder(1), list("abcdefghij"))
    report = mn.merge([a, b], tmp_path / "out", dtype="bfloat16", weight=[1, 3])
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json"}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert "merge_method: linear" in (out / "README.md").read_text()
    got = load_file(out / "model.safetensors")["model.norm.weight"]
    expected = 0.25 * decoder(0)["model.norm.weight"] + 0.75 * decoder(1)["model.norm.weight"]
    assert torch.equal(got, expected.bfloat16())
    assert "linear" in report._repr_html_()
    assert json.dumps(report.to_json())


def test_one_file(tmp_path: Path) -> None:
    save_file(decoder(0), tmp_path / "a.safetensors")
    torch.save(decoder(1), tmp_path / "b.pt")
    out = tmp_path / "out.safetensors"
    mn.merge([tmp_path / "a.safetensors", tmp_path / "b.pt"], out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.pt",
                                                          "out.safetensors"]
    expected = mn.merge([decoder(0), decoder(1)]).weights
    assert all(torch.equal(t, expected[n]) for n, t in load_file(out).items())


def test_same_recipe_returns_and_others_are_refused(tmp_path: Path) -> None:
    for i in (0, 1):
        folder(tmp_path / f"m{i}", decoder(i))
    models, out = [tmp_path / "m0", tmp_path / "m1"], tmp_path / "out"
    first = mn.merge(models, out)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    again = mn.merge(models, out)
    assert (first.written, again.written) == (True, False)
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(MetanetError, match="exists and holds something else"):
        mn.merge(models, out, weight=[1, 2])
    changed = mn.merge(models, out, weight=[1, 2], force=True)
    assert changed.digest != first.digest
    save_file(decoder(5), tmp_path / "m1" / "model.safetensors")
    with pytest.raises(MetanetError, match="exists and holds something else"):
        mn.merge(models, out, weight=[1, 2])
    (tmp_path / "other").mkdir()
    with pytest.raises(MetanetError, match="exists and holds"):
        mn.merge(models, tmp_path / "other")
    assert not list(tmp_path.glob(".*"))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    good = folder(tmp_path / "a", decoder(0))
    bad = folder(tmp_path / "b", decoder(1))

    def cut(done: int, total: int) -> None:
        if done == 4:
            (bad / "model.safetensors").write_bytes(b"gone")

    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        mn.merge([good, bad], tmp_path / "out", progress=cut)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


KILLED = """
import sys, time
import metanet as mn
def slow(done, total):
    print(done, flush=True)
    time.sleep(0.2)
mn.merge(sys.argv[1:3], sys.argv[3], shard_bytes=900, progress=slow)
"""


@pytest.mark.parametrize("after", [1, 5, 7])
def test_kill_leaves_nothing_that_loads(after: int, tmp_path: Path) -> None:
    for i in (0, 1):
        folder(tmp_path / f"m{i}", decoder(i))
    models, out = [str(tmp_path / f"m{i}") for i in (0, 1)], tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", KILLED, *models, str(out)],
                          stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < after:
            pass
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    (left,) = tmp_path.glob(".*")
    for place in (left, left / "out"):
        with pytest.raises(CheckpointError):
            mn.open(place)
    assert mn.merge(models, out).written
    assert not list(tmp_path.glob(".*")), "what a dead run left is cleared by the next one"


# ---------------------------------------------------------------- ties and vocabularies


def test_ties_are_kept(tmp_path: Path) -> None:
    def tied(seed: int) -> Weights:
        weights = decoder(seed)
        return {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}

    for i in (0, 1):
        torch.save(tied(i), tmp_path / f"{i}.pt")
    mn.merge([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "out", shard_bytes=900)
    merged = mn.open(tmp_path / "out")
    assert dict(merged.aliases) == {"model.embed_tokens.weight": "lm_head.weight"}
    save_file(apart := {**decoder(2), "lm_head.weight": torch.randn(10, 8)}, tmp_path / "2.st")
    both = mn.merge([tmp_path / "0.pt", tmp_path / "2.st"]).weights
    assert torch.equal(both["lm_head.weight"],
                       (tied(0)["lm_head.weight"] * 0.5).add(apart["lm_head.weight"], alpha=0.5))
    assert not torch.equal(both["lm_head.weight"], both["model.embed_tokens.weight"])


def test_tied_and_untied_models(tmp_path: Path) -> None:
    apart = {**decoder(1), "lm_head.weight": torch.randn(10, 8)}
    a = folder(tmp_path / "a", decoder(0))
    b = folder(tmp_path / "b", apart, tie_word_embeddings=False)
    report = mn.merge([a, b], tmp_path / "out")
    got = mn.open(tmp_path / "out").state_dict()
    expected = 0.5 * decoder(0)["model.embed_tokens.weight"] + 0.5 * apart["lm_head.weight"]
    torch.testing.assert_close(got["lm_head.weight"], expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert "tied in some models" in report.notes[0]


@pytest.mark.parametrize(("source", "tokens"), [("union", list("abcdefghijxy")),
                                                ("base", list("abcdefghij"))])
def test_vocabularies(source: str, tokens: list[str], tmp_path: Path) -> None:
    one, two = decoder(0), decoder(1, vocab=11)
    mine, theirs = list("abcdefghij"), list("xdcbaefgyih")
    a = folder(tmp_path / "a", one, mine)
    b = folder(tmp_path / "b", two, theirs, vocab_size=11)
    with pytest.raises(MetanetError, match="tokenizer_source: union"):
        mn.merge([a, b])
    mn.merge([a, b], tmp_path / "out", tokenizer_source=source, weight=[0.5, 0.5])
    got = mn.open(tmp_path / "out").read("model.embed_tokens.weight")
    name, config = "model.embed_tokens.weight", json.loads(
        (tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == len(tokens) == len(got)
    vocab = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocab == {t: i for i, t in enumerate(tokens)}
    for row, token in zip(got, tokens, strict=True):
        rows = [w[name][v.index(token)] for w, v in ((one, mine), (two, theirs)) if token in v]
        torch.testing.assert_close(row, sum(rows) / len(rows))


def test_union_without_tokenizer_is_refused_early(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", decoder(0)), folder(tmp_path / "b", decoder(1))
    with pytest.raises(MetanetError, match="no tokenizer.json"):
        mn.merge([a, b], tmp_path / "out", tokenizer_source="union")


# ---------------------------------------------------------------- recipes


def test_slices_stack_layers(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", decoder(0)), folder(tmp_path / "b", decoder(1))
    recipe = {"merge_method": "passthrough", "slices": [
        {"sources": [{"model": str(a), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(b), "layer_range": [1, 3]}]}]}
    report = mn.merge(recipe, tmp_path / "out")
    got, name = mn.open(tmp_path / "out").state_dict(), "model.layers.{}.mlp.up_proj.weight"
    origin = [(0, 0), (0, 1), (1, 1), (1, 2)]
    for layer, (model, number) in enumerate(origin):
        assert torch.equal(got[name.format(layer)], decoder(model)[name.format(number)])
    assert torch.equal(got["model.embed_tokens.weight"], decoder(0)["model.embed_tokens.weight"])
    assert torch.equal(got["model.norm.weight"], decoder(1)["model.norm.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    assert report.tensors == 10


def test_gradients_and_filters_reach_the_tensors() -> None:
    recipe = {"merge_method": "slerp", "base_model": "model 1", "models": [
        {"model": "model 0"}, {"model": "model 1"}],
        "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]}}
    from metanet.tasks.merge.merging import run
    from metanet.tasks.merge.plan import plan
    from metanet.tasks.merge.recipe_file import read_recipe

    laid = plan(read_recipe(recipe), {"model 0": decoder(0), "model 1": decoder(1)})
    got = run(laid, None, {}, None, False, None, time.perf_counter()).weights
    name = "model.layers.{}.mlp.up_proj.weight"
    torch.testing.assert_close(got[name.format(0)], decoder(1)[name.format(0)])
    torch.testing.assert_close(got[name.format(2)], decoder(0)[name.format(2)])
    assert {job.values.whole["t"] for job in laid.jobs if "mlp" not in job.name} == {0.5}


def test_alignment_undoes_a_permutation(tmp_path: Path) -> None:
    net = mlp(0)
    space = mn.infer(net, torch.zeros(1, 8))
    save_file(state(net), tmp_path / "a.safetensors")
    save_file(space.random(3).apply(state(net)), tmp_path / "b.safetensors")
    (tmp_path / "s.space").write_text(str(space), encoding="utf-8")
    models = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    spec = {"spec": str(tmp_path / "s.space")}
    report = mn.merge(models, tmp_path / "out.safetensors", align=spec)
    merged = load_file(tmp_path / "out.safetensors")
    assert all(torch.allclose(t, merged[n], atol=1e-6) for n, t in state(net).items())
    assert report.alignment["to"] == str(models[0])
    assert report.alignment["models"][str(models[1])]["objective"] > 0
    found = mn.align(*models, space)
    given = mn.merge(models, align=[None, found]).weights
    assert all(torch.equal(given[n], merged[n]) for n in merged)


def test_integers_are_copied(tmp_path: Path) -> None:
    models = [{"w": torch.full((2,), float(i)), "steps": torch.tensor(i + 1)} for i in (0, 1)]
    report = mn.merge(models)
    assert int(report.weights["steps"]) == 1
    assert report.weights["w"].tolist() == [0.5, 0.5]
    assert "copied" in report.notes[0]


@pytest.mark.parametrize(("models", "told"), [
    ([{"w": torch.ones(2)}, {"v": torch.ones(2)}], "has no tensor"),
    ([{"w": torch.ones(2)}, {"w": torch.ones(3)}], "different shapes"),
    ([{"w": torch.ones(2, dtype=torch.complex64)}] * 2, "cannot be averaged"),
    ([{"w": torch.ones(2, dtype=torch.int8)}] * 2, "no weights"),
])
def test_models_that_do_not_fit(models: list[Weights], told: str, tmp_path: Path) -> None:
    with pytest.raises(MetanetError, match=told):
        mn.merge(models, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a = folder(tmp_path / "a", decoder(0), list("abcdefghij"), shards=2)
    with served(monkeypatch, tmp_path / "cache") as hub:
        commit = hub.add("org/name", {p.name: p.read_bytes() for p in a.iterdir()})
        b = folder(tmp_path / "b", decoder(1))
        mn.merge(["hf://org/name", b], tmp_path / "out")
    got, expected = mn.open(tmp_path / "out"), mn.merge([decoder(0), decoder(1)]).weights
    assert all(torch.equal(got.read(n), expected[n]) for n in got.names)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert commit in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------- memory

MEASURED = """
import sys, torch
torch.set_num_threads(1)
import metanet as mn
report = mn.merge(sys.argv[1:3], sys.argv[4], method=sys.argv[5],
                  base=sys.argv[3] if sys.argv[5] != "linear" else None)
print(report.working_memory)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "ties", "task_arithmetic"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_is_twice_the_largest_tensor(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    for i in range(3):
        save_file({f"w{j}": torch.randn(3000, 4000, generator=rng).to(dtype) for j in range(4)},
                  tmp_path / f"{i}.safetensors")
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(3)]
    done = subprocess.run([sys.executable, "-c", MEASURED, *paths, str(tmp_path / "out"), name],
                          capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) <= 2 * 4 * 3000 * 4000
