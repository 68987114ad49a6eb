"""One content through every format; wrappers, prefixes, ties, order, laziness."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import metanet.checkpoint as door
from metanet.errors import CheckpointError

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
          torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16,
          torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)


def tensors() -> dict[str, Tensor]:
    """Every dtype, odd shapes, a transposed and a scalar tensor."""
    out = {f"t.{i}": (torch.randn(2, 3) * 3).abs().to(d) for i, d in enumerate(DTYPES)}
    return out | {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4),
                  "turned": torch.randn(4, 3).T, "big.10": torch.randn(5), "big.9": torch.ones(5)}


def same(ckpt: door.Checkpoint, expected: dict[str, Tensor]) -> None:
    assert sorted(ckpt.names) == sorted(expected)
    for name, tensor in expected.items():
        got = ckpt.read(name)
        assert got.dtype == tensor.dtype and ckpt.shape(name) == tuple(tensor.shape)
        assert ckpt.dtype(name) == str(tensor.dtype).removeprefix("torch.")
        assert got.is_contiguous()
        assert torch.equal(bits(got), bits(tensor))


def bits(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else flat


def write(kind: str, path: Path, content: Any) -> None:
    if kind == "safetensors":
        save_file({k: v.contiguous() for k, v in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "memory"])
def test_round_trip(kind: str, tmp_path: Path) -> None:
    content, path = tensors(), tmp_path / "no_suffix"
    if kind == "legacy":  # torch has no legacy storage type for these
        content = {k: v for k, v in content.items() if "uint16" not in str(v.dtype)
                   and "uint32" not in str(v.dtype) and "uint64" not in str(v.dtype)
                   and "float8" not in str(v.dtype)}
    if kind != "memory":
        write(kind, path, content)
    ckpt = door.open(content if kind == "memory" else path)
    same(ckpt, content)
    out = ckpt.convert(tmp_path / "out.safetensors")
    again = door.open(out)
    same(again, content)
    assert again.source.format == "safetensors"
    assert door.open(ckpt) is ckpt


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_order_of_keys_is_forgotten(kind: str, tmp_path: Path) -> None:
    content = {f"layers.{i}.weight": torch.ones(1) * i for i in (10, 2, 1, 0, 33)}
    write(kind, tmp_path / "a", content)
    write(kind, tmp_path / "b", dict(reversed(content.items())))
    a, b = door.open(tmp_path / "a"), door.open(str(tmp_path / "b"))
    assert a.names == b.names == tuple(f"layers.{i}.weight" for i in (0, 1, 2, 10, 33))
    assert a.convert(tmp_path / "a2").read_bytes() == b.convert(tmp_path / "b2").read_bytes()


@pytest.mark.parametrize("kind", ["zip", "legacy", "memory"])
def test_ties_are_kept(kind: str, tmp_path: Path) -> None:
    shared = torch.randn(3, 2)
    content = {"z.weight": shared, "a.10": shared, "a.9": shared, "turned": shared.T,
               "part": shared[:2], "copy": shared.clone()}
    if kind != "memory":
        write(kind, tmp_path / "x", content)
    ckpt = door.open(content if kind == "memory" else tmp_path / "x")
    assert ckpt.aliases == {"a.10": "a.9", "z.weight": "a.9"}
    assert ckpt.n_parameters == 6 + 6 + 4 + 6
    again = door.open(ckpt.convert(tmp_path / "out"))
    assert again.aliases == ckpt.aliases and again.names == ckpt.names
    assert again.metadata == {"format": "pt"}
    same(again, content)
    read = again.state_dict()
    assert read["z.weight"] is read["a.9"] and list(read) == list(again.names)


def test_tied_module(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    net[1].weight = net[0].weight
    ckpt = door.open(net)
    assert ckpt.aliases == {"1.weight": "0.weight"} and ckpt.source.uri == "memory:"
    torch.save(net.state_dict(), tmp_path / "x")
    saved = door.open(tmp_path / "x")
    assert saved.aliases == ckpt.aliases and ckpt.source.sha256 != saved.source.sha256
    assert ckpt.source.sha256 == door.open(dict(net.state_dict())).source.sha256


def layers() -> OrderedDict[str, Tensor]:
    return OrderedDict(torch.nn.Sequential(torch.nn.Linear(3, 2)).state_dict())


WRAPPED: dict[str, tuple[Any, str]] = {
    "flat": (layers, ""),
    "state_dict": (lambda: {"state_dict": layers(), "best_acc": 0.5}, "state_dict"),
    "training": (lambda: {"model_state_dict": layers(), "optimizer_state_dict": {
        "state": {0: {"exp_avg": torch.ones(2, 3)}}, "param_groups": []}}, "model_state_dict"),
    "own word": (lambda: {"my_net": layers(), "config": {"lr": 0.1}}, "my_net"),
    "double": (lambda: {"checkpoint": {"model": layers()}, "step": torch.tensor(3)},
               "checkpoint.model"),
    "side data": (lambda: {"net": layers(), "indices": [torch.arange(5)]}, "net"),
    "list of one": (lambda: {"state_dict": [layers()]}, "state_dict.0"),
    "beside statistics": (lambda: {"state_dict": layers(), "mean": torch.zeros(3)}, "state_dict"),
    "parameters": (lambda: {k: torch.nn.Parameter(v) for k, v in layers().items()}, ""),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("kind", ["zip", "legacy", "memory"])
def test_wrappers(name: str, kind: str, tmp_path: Path) -> None:
    make, wrapper = WRAPPED[name]
    content = make()
    if kind != "memory":
        write(kind, tmp_path / "x", content)
    ckpt = door.open(content if kind == "memory" else tmp_path / "x")
    assert ckpt.names == ("0.bias", "0.weight") and ckpt.wrapper == wrapper
    assert ckpt.renamed == {}
    assert all("0.weight" not in key for key in ckpt.metadata)


def test_tree_of_layers_is_flattened() -> None:
    ckpt = door.open({"params": {"Dense_0": {"kernel": torch.ones(2, 2)},
                                 "Dense_1": {"kernel": torch.ones(2, 2)}}, "step": 3})
    assert ckpt.names == ("Dense_0.kernel", "Dense_1.kernel") and ckpt.metadata == {"step": 3}


def test_several_candidates_are_offered(tmp_path: Path) -> None:
    torch.save({"actor": layers(), "critic": layers(), "nets": [layers()]}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"'actor', 'critic', 'nets'.*key='actor'"):
        door.open(tmp_path / "x")
    assert door.open(tmp_path / "x", key="critic").wrapper == "critic"
    assert door.open(tmp_path / "x", key="nets.0").names == ("0.bias", "0.weight")
    assert "actor.0.weight" in door.open(tmp_path / "x", key="")
    with pytest.raises(CheckpointError, match="offers: 'critic'"):
        door.open(tmp_path / "x", key="critics")


@pytest.mark.parametrize(("prefix", "kept"), [
    ("module.", ""), ("_orig_mod.", ""), ("module._orig_mod.", ""), ("model.", "model."),
])
def test_prefixes(prefix: str, kept: str) -> None:
    ckpt = door.open({prefix + name: value for name, value in layers().items()})
    assert ckpt.names == (f"{kept}0.bias", f"{kept}0.weight")
    assert set(ckpt.renamed) == (set() if kept else {f"{prefix}0.bias", f"{prefix}0.weight"})


def test_prefix_of_some_keys_stays() -> None:
    ckpt = door.open({"module.a": torch.ones(2), "b": torch.ones(2)})
    assert ckpt.names == ("b", "module.a") and ckpt.renamed == {}


def test_metadata_is_plain_and_survives(tmp_path: Path) -> None:
    around = {"epoch": 3, "name": "net", "rates": (0.1, 0.2), "shape": torch.Size([2]),
              "where": torch.device("cpu"), "kind": torch.float16, "loss": torch.tensor(2.0)}
    torch.save({"state_dict": layers(), **around}, tmp_path / "x")
    ckpt = door.open(tmp_path / "x")
    assert ckpt.metadata["epoch"] == 3 and ckpt.metadata["rates"] == [0.1, 0.2]
    assert ckpt.metadata["loss"] == "<tensor float32[]>"
    json.dumps(ckpt.metadata)
    again = door.open(ckpt.convert(tmp_path / "out"))
    assert again.metadata == {**ckpt.metadata, "format": "pt"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol: int, tmp_path: Path) -> None:
    """What torch's safe loader cannot read is refused when opened, not when read."""
    content = layers()
    torch.save(content, tmp_path / "x", pickle_protocol=protocol)
    if protocol > 3:
        with pytest.raises(CheckpointError, match=f"protocol {protocol}"):
            door.open(tmp_path / "x")
    else:
        same(door.open(tmp_path / "x"), content)


def test_read_is_a_copy(tmp_path: Path) -> None:
    content = layers()
    torch.save(content, tmp_path / "x")
    for ckpt in (door.open(content), door.open(tmp_path / "x")):
        ckpt.read("0.weight").zero_()
        assert torch.equal(ckpt.read("0.weight"), content["0.weight"])


def test_unknown_name_and_changed_file(tmp_path: Path) -> None:
    torch.save(layers(), tmp_path / "x")
    ckpt = door.open(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"Near it: 0\.weight"):
        ckpt.shape("0.wieght")
    torch.save({"0.weight": torch.zeros(9)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="has changed"):
        ckpt.read("0.weight")


@pytest.mark.parametrize("value", [3, None, b"bytes", object(), "", "no/such/file", "a\x00b",
                                   "x" * 5000, torch.ones(2)])
def test_no_checkpoint(value: Any) -> None:
    with pytest.raises(CheckpointError):
        door.open(value)


def test_meta_module_has_shapes_but_no_values() -> None:
    with torch.device("meta"):
        ckpt = door.open(torch.nn.Linear(10**6, 10**6))
    assert ckpt.shape("weight") == (10**6, 10**6)
    with pytest.raises(CheckpointError, match="meta device"):
        ckpt.read("weight")


HEADERS_ONLY = """
import sys
import metanet
for path in sys.argv[1:]:
    ckpt = metanet.open(path)
    ckpt.names, ckpt.shape("0.weight"), ckpt.dtype("0.weight"), ckpt.aliases, repr(ckpt)
    ckpt.source.sha256, ckpt.n_parameters, ckpt.metadata
heavy = {"torch", "numpy", "huggingface_hub", "safetensors"} & set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""


def test_headers_need_no_torch(tmp_path: Path) -> None:
    for kind in ("safetensors", "zip", "legacy"):
        write(kind, tmp_path / kind, layers())
    done = subprocess.run([sys.executable, "-c", HEADERS_ONLY,
                           *map(str, sorted(tmp_path.iterdir()))],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_terabyte_in_a_sparse_file_opens_at_once(tmp_path: Path) -> None:
    path, header = tmp_path / "x", json.dumps({"w": {
        "dtype": "F32", "shape": [25 * 10**10], "data_offsets": [0, 10**12]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    try:
        with path.open("r+b") as handle:
            handle.truncate(8 + len(header) + 10**12)
    except OSError:
        with path.open("r+b") as handle:  # a file system with a smaller limit
            handle.truncate(8 + len(header) + 10**6)
        with pytest.raises(CheckpointError, match="cut off"):
            door.open(path)
    else:
        assert door.open(path).shape("w") == (25 * 10**10,)
