"""Folders, the Hub, writing, names, the doctor, and the one call of torch.load."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import metanet.checkpoint as door
from metanet.checkpoint import hub
from metanet.errors import CheckpointError, HubError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def shards(folder: Path, suffix: str = "safetensors") -> dict[str, torch.Tensor]:
    """Three tensors in two shards, in the spelling of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {f"layers.{i}.weight": torch.randn(2, 2) for i in range(3)}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    mapping = {}
    for part, names in enumerate([["layers.0.weight", "layers.2.weight"], ["layers.1.weight"]]):
        name = f"{stem}-0000{part + 1}-of-00002.{suffix}"
        mapping |= dict.fromkeys(names, name)
        chosen = {n: values[n] for n in names}
        if suffix == "safetensors":
            save_file(chosen, folder / name, {"format": "pt"})
        else:
            torch.save(chosen, folder / name)
    index = {"metadata": {"total_size": 48}, "weight_map": mapping}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return values


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_folder(suffix: str, tmp_path: Path) -> None:
    values = shards(tmp_path / "net", suffix)
    ckpt = door.open(tmp_path / "net")
    assert ckpt.names == tuple(values) and ckpt.metadata["config"] == {"model_type": "tiny"}
    assert all(torch.equal(ckpt.read(name), value) for name, value in values.items())
    assert len(ckpt.source.files) == 2 and len(ckpt.source.sha256) == 64
    index = next((tmp_path / "net").glob("*.index.json"))
    assert door.open(index).names == ckpt.names
    assert door.open(ckpt.convert(tmp_path / "one.safetensors")).names == ckpt.names


def test_folder_prefers_safetensors_and_leaves_the_optimizer(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.bin")
    assert door.open(tmp_path).source.files[0].name == "pytorch_model.bin"
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert door.open(tmp_path).read("w").sum() == 2


def test_offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline"):
        door.open("hf://org/net")
    root = tmp_path / "models--org--net"
    values = shards(root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    ckpt = door.open("hf://org/net")
    assert ckpt.names == tuple(values) and ckpt.source.revision == COMMIT
    one = door.open(f"hf://org/net@{COMMIT}/model-00002-of-00002.safetensors")
    assert one.names == ("layers.1.weight",) and one.source.revision == COMMIT
    with pytest.raises(HubError):
        door.open("hf://org/net@other")
    with pytest.raises(HubError):
        door.open(f"hf://org/net@{COMMIT}/absent.safetensors")


@pytest.mark.parametrize("uri", ["hf://", "hf://one", "hf://a/b/../c", "hf://a/b@", "hf://../x/y",
                                 "hf://a/b\x00", "hf://-a/b"])
def test_bad_addresses(uri: str) -> None:
    with pytest.raises(CheckpointError, match="hf://org/name"):
        door.open(uri)


def test_address() -> None:
    parsed = hub.parse_address("hf://o/n@v1.0/sub/file.bin")
    assert parsed == hub.HubAddress("o/n", "v1.0", "sub/file.bin")


def test_write_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.safetensors"
    door.write_safetensors({"w": torch.ones(2)}, out)
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match="complex128"):
        door.write_safetensors({"w": torch.ones(2, dtype=torch.complex128)}, out)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(CheckpointError, match="disk full"):
        door.write_safetensors({"w": torch.zeros(2)}, out)
    assert out.read_bytes() == before and os.listdir(tmp_path) == [out.name]


def test_writing_is_read_by_safetensors_and_deterministic(tmp_path: Path) -> None:
    values = {"b": torch.randn(3).bfloat16(), "a": torch.randn(2, 2), "tied": torch.zeros(1)}
    values["tied"] = values["a"]
    door.write_safetensors(values, tmp_path / "x", {"who": "me", "n": 3}, {"tied": "a"})
    door.write_safetensors(dict(reversed(values.items())), tmp_path / "y",
                           {"n": 3, "who": "me"}, {"tied": "a"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    with safe_open(tmp_path / "x", framework="pt") as handle:
        assert handle.metadata()["who"] == "me" and set(handle.keys()) == {"a", "b"}
        assert torch.equal(handle.get_tensor("b"), values["b"])
    assert door.open(tmp_path / "x").metadata == {"format": "pt", "who": "me", "n": 3}
    with pytest.raises(CheckpointError, match="no owner"):
        door.write_safetensors({"a": torch.ones(1)}, tmp_path / "z", aliases={"b": "c"})


def test_convert_refuses_to_overwrite(tmp_path: Path) -> None:
    source, out = {"w": torch.ones(2)}, tmp_path / "out"
    door.convert(source, out)
    with pytest.raises(CheckpointError, match="force=True"):
        door.convert(source, out)
    door.convert({"w": torch.zeros(2)}, out, force=True)
    assert door.open(out).read("w").sum() == 0
    door.convert(out, out, force=True)
    assert door.open(out).read("w").sum() == 0
    for bad in (tmp_path, tmp_path / "absent" / "out"):
        with pytest.raises(CheckpointError):
            door.convert(source, bad)
    assert os.stat(out).st_mode & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_natural_order() -> None:
    names = ["b", "a10", "a9", "a", "a09", "layer.2.x", "layer.10.x", "9" * 5000]
    assert door.natural_sorted(names) == (
        "9" * 5000, "a", "a09", "a9", "a10", "b", "layer.2.x", "layer.10.x")


@given(st.lists(st.text(alphabet="a1.0_9", max_size=6)))
def test_natural_key_is_a_total_order(names: list[str]) -> None:
    ordered = door.natural_sorted(names)
    assert ordered == door.natural_sorted(reversed(names)) and sorted(ordered) == sorted(names)


@given(st.text(alphabet="aé界 [\\\x1b\n\r\x00\x7f\x9b\u202e\u2066\u200b\u2028\ud800\U000e0001"))
def test_printable_is_printable(text: str) -> None:
    shown = door.printable(text)
    assert shown.isprintable() and (shown == text or not text.isprintable())
    assert not set(shown) & set("\x1b\n\r\x00\u202e\u2066\u200b\x9b")


def test_printable_examples() -> None:
    assert door.printable("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"
    assert door.printable("fc1.weight") == "fc1.weight" and door.printable("abcd", 2) == "ab…"
    assert door.printable("\ud800") == "\\ud800"


def test_doctor(tmp_path: Path) -> None:
    shared = torch.tensor([1.0, float("nan"), float("inf")])
    state = {"module.a": shared, "module.b": shared, "module.../x\x1b": torch.zeros(2, 2),
             "module.e": torch.zeros(0)}
    torch.save({"state_dict": state, "mean": torch.ones(3)}, tmp_path / "x")
    findings = {f["what"]: f for f in door.doctor(tmp_path / "x")}
    assert findings["nonfinite"]["value"] == {"a": 2}
    assert findings["nonfinite"]["level"] == "warning"
    assert findings["aliases"]["value"] == {"b": "a"}
    assert {"wrapper", "prefix", "names", "empty", "zeros", "outside", "sha256"} <= set(findings)
    assert all(f["message"].isprintable() for f in findings.values())
    json.dumps(list(findings.values()))


def test_doctor_finds_nothing_odd_in_a_sound_net() -> None:
    levels = {f["level"] for f in door.doctor(torch.nn.Linear(3, 3))}
    assert levels == {"info"}


def test_integers_open_but_are_no_weights() -> None:
    ckpt = door.open({"table": torch.arange(4)})
    assert ckpt.dtype("table") == "int64" and ckpt.nonfinite("table") == 0
    with pytest.raises(CheckpointError, match="int64"):
        ckpt.require_floating()
    assert "integers" in {f["what"] for f in door.doctor(ckpt)}


def test_one_safe_call_of_torch_load(root: Path) -> None:
    """Exactly one torch.load, with weights_only=True, and no unpickling anywhere."""
    loads = []
    for path in [*root.glob("metanet/**/*.py"), *root.glob("cli/*.py"), *root.glob("zoo/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                banned = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
                assert not {a.name for a in node.names} & banned, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "jit.load"):
                loads.append((path.name, {k.arg: ast.unparse(k.value) for k in node.keywords}))
    assert len(loads) == 1, loads
    assert loads[0][0] == "torch_file.py" and loads[0][1]["weights_only"] == "True"
