"""Hostile safetensors files, indices, foreign formats and state dicts that are no weights."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacks.hostile_pickles import hostile, weights
from attacks.hostile_routes import CASES
from safetensors.torch import save_file

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors(path: Path, header: Any, data: bytes = bytes(8), length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def _header(name: str, phrase: str | None, header: Any, data: bytes = bytes(8),
            length: int | None = None) -> None:
    def maker(path: Path, canary: Path) -> None:
        safetensors(path, header, data, length)
    maker.__name__ = f"safetensors_{name}"
    hostile(phrase)(maker)


def _with(**change: Any) -> dict[str, Any]:
    return {"w": {**ONE, **change}}


_header("header_of_a_terabyte", "header claims 1000000000000", {"w": ONE}, length=10**12)
_header("header_of_all_bits", "header claims", {"w": ONE}, length=2**64 - 1)
_header("header_beyond_the_file", "the file has", {"w": ONE}, length=10**6)
_header("header_cut_short", "header", {"w": ONE}, length=20)
_header("header_no_json", "header", b"{nonsense}")
_header("header_not_utf8", "header", b'{"\xff\xfe": 1}')
_header("header_deep", "header", b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}")
_header("header_million_entries", "millions", b'{"a":[' + b"0," * 5_000_000 + b"0]}")
_header("duplicate_names", "occurs twice", b'{"w":%s,"w":%s}' % ((json.dumps(ONE).encode(),) * 2))
_header("duplicate_dtype", "occurs twice",
        b'{"w":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}')
_header("overlap", "overlaps", {"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, bytes(12))
_header("twins", "overlaps", {"a": ONE, "b": ONE})
_header("hole", "hole", {"a": ONE, "b": {**ONE, "data_offsets": [16, 24]}}, bytes(24))
_header("gap_at_start", "hole", _with(data_offsets=[8, 16]), bytes(16))
_header("offsets_backwards", "offsets", _with(data_offsets=[8, 0]))
_header("offsets_beyond", "cut off", _with(shape=[250], data_offsets=[0, 1000]))
_header("terabyte_tensor", "cut off", _with(shape=[250 * 10**9], data_offsets=[0, 10**12]))
_header("length_lies", "hold", _with(shape=[3]))
_header("shape_overflows", "hold", _with(shape=[2**62, 4]))
_header("shape_negative", "shape", _with(shape=[-2]))
_header("shape_fraction", "shape", _with(shape=[2.0]))
_header("shape_boolean", "shape", _with(shape=[True, 2]))
_header("shape_text", "shape", _with(shape="2"))
_header("shape_of_many_axes", "shape", _with(shape=[1] * 100))
_header("dtype_unknown", "unknown dtype", _with(dtype="F31"))
_header("dtype_list", "unknown dtype", _with(dtype=["F32"]))
_header("dtype_packed", "quantised", _with(dtype="F4"))
_header("field_extra", "exactly", _with(code="import os"))
_header("field_missing", "exactly", {"w": {"dtype": "F32"}})
_header("entry_number", "exactly", {"w": 3})
_header("trailing_bytes", "belong to no tensor", {"w": ONE}, bytes(9))
_header("nan_in_header", "header", b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}')
_header("huge_number", "header", b'{"w":{"dtype":"F32","shape":[' + b"9" * 9999
        + b'],"data_offsets":[0,8]}}')
_header("surrogate_name", "unicode", b'{"\\ud800":%s}' % json.dumps(ONE).encode())
_header("metadata_number", "__metadata__", {"__metadata__": {"a": 1}, "w": ONE})
_header("metadata_list", "__metadata__", {"__metadata__": [], "w": ONE})
_header("alias_without_owner", "ties",
        {"__metadata__": {"metanet.aliases": '{"b": "nobody"}'}, "w": ONE})
_header("alias_of_a_tensor", "ties", {"__metadata__": {"metanet.aliases": '{"w": "w"}'}, "w": ONE})
_header("alias_no_map", "no map", {"__metadata__": {"metanet.aliases": "[1]"}, "w": ONE})
_header("no_tensors", "empty state dict", {}, b"")
_header("only_metadata", "empty state dict", {"__metadata__": {"a": "b"}}, b"")
_header("name_climbs", None, {"../../etc/passwd": ONE})
_header("name_controls", None, {"\x1b[2J\u202ewollof": ONE})


def _cut_safetensors(cut: int) -> None:
    def maker(path: Path, canary: Path) -> None:
        save_file(weights(), path)
        path.write_bytes(path.read_bytes()[:cut])
    maker.__name__ = f"safetensors_truncated_at_{cut}"
    hostile("")(maker)


for _cut in (0, 1, 7, 8, 9, 60, 200, -1):
    _cut_safetensors(_cut)


def _index(name: str, phrase: str, mapping: Any) -> None:
    """A folder with two good shards and an index that lies."""
    def maker(path: Path, canary: Path) -> None:
        path.mkdir()
        save_file({"a": torch.zeros(2), "a2": torch.zeros(2)}, path / "one.safetensors")
        save_file({"b": torch.zeros(2)}, path / "two.safetensors")
        save_file({"c": torch.zeros(2)}, path.parent / "outside.safetensors")
        told = mapping
        if not isinstance(mapping, bytes):
            told = json.dumps({"weight_map": mapping}).encode()
        (path / "model.safetensors.index.json").write_bytes(told)
    maker.__name__ = f"index_{name}"
    hostile(phrase)(maker)


_index("climbs", "plain file name", {"c": "../outside.safetensors"})
_index("absolute", "plain file name", {"c": "/etc/passwd"})
_index("backslash", "plain file name", {"c": "..\\outside.safetensors"})
_index("drive", "plain file name", {"c": "C:outside.safetensors"})
_index("parent", "plain file name", {"c": ".."})
_index("control", "plain file name", {"a": "one.safetensors\x00"})
_index("number", "plain file name", {"a": 3})
_index("missing_shard", "missing", {"a": "one.safetensors", "a2": "one.safetensors",
                                    "z": "three.safetensors"})
_index("wrong_shard", "does not hold it", {"a": "two.safetensors", "b": "one.safetensors"})
_index("forgets", "does not put there", {"a": "one.safetensors", "b": "two.safetensors"})
_index("itself", "does not promise", {"a": "model.safetensors.index.json"})
_index("empty", "weight_map", {})
_index("no_json", "json", b'{"weight_map": {')
_index("twice", "twice", b'{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')

_FOREIGN = {
    "lfs_pointer": ("git lfs", b"version https://git-lfs.github.com/spec/v1\n"
                    b"oid sha256:" + b"0" * 64 + b"\nsize 1234\n"),
    "html": ("html", b"\n<!DOCTYPE html>\n<html><body>404</body></html>"),
    "xml": ("html or xml", b"<?xml version='1.0'?><Error>AccessDenied</Error>"),
    "link_text": ("symbolic link", b"../../blobs/0123456789abcdef"),
    "gguf": ("gguf", b"GGUF\x03\x00\x00\x00" + bytes(64)),
    "hdf5": ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(64)),
    "msgpack": ("msgpack", b"\x81\xa6params\x81\xa5Dense\x01"),
    "onnx": ("onnx", b"\x08\x07\x12\x07pytorch\x1a\x051.9.0"),
    "tflite": ("lite", b"\x1c\x00\x00\x00TFL3" + bytes(64)),
    "gzip": ("gzip", b"\x1f\x8b\x08" + bytes(64)),
    "zstd": ("zstd", b"\x28\xb5\x2f\xfd" + bytes(64)),
    "png": ("image", b"\x89PNG\r\n\x1a\n" + bytes(64)),
    "program": ("program", b"\x7fELF" + bytes(64)),
    "text": ("text", b"Lorem ipsum dolor sit amet. " * 100),
    "config": ("weight_map", b'{"model_type": "llama"}'),
    "three_bytes": ("text", b"abc"),
    "zeros": ("begin with", bytes(4096)),
    "empty_zip": ("empty zip", b"PK\x05\x06" + bytes(18)),
}


def _foreign(name: str, phrase: str, data: bytes) -> None:
    def maker(path: Path, canary: Path) -> None:
        path.write_bytes(data)
    maker.__name__ = f"foreign_{name}"
    hostile(phrase)(maker)


for _name, (_phrase, _data) in _FOREIGN.items():
    _foreign(_name, _phrase, _data)


@hostile("npz")
def foreign_npz(path: Path, canary: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones(3))
    path.write_bytes(buffer.getvalue())


@hostile("tar archive")
def foreign_tar(path: Path, canary: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("../../evil"), io.BytesIO())


@hostile("no such file")
def dangling_link(path: Path, canary: Path) -> None:
    path.symlink_to("nowhere")


@hostile("failed")
def link_to_itself(path: Path, canary: Path) -> None:
    path.symlink_to(path)


@hostile("neither a file nor a folder")
def named_pipe(path: Path, canary: Path) -> None:
    os.mkfifo(path)


@hostile("no checkpoint")
def empty_folder(path: Path, canary: Path) -> None:
    path.mkdir()


@hostile("several checkpoints")
def folder_of_two(path: Path, canary: Path) -> None:
    path.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        save_file(weights(), path / name)


@hostile("quantisation by awq")
def folder_with_quantisation(path: Path, canary: Path) -> None:
    path.mkdir()
    save_file(weights(), path / "model.safetensors")
    (path / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')


def _adam() -> dict[str, Any]:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


_STATES: dict[str, tuple[str | None, Any]] = {
    "empty": ("empty state dict", lambda: {}),
    "empty_list": ("empty state dict", lambda: []),
    "numbers": ("no tensors", lambda: {"lr": 0.1, "epoch": 3}),
    "bare_tensor": ("bare tensor", lambda: torch.ones(3)),
    "adam": ("optimizer", _adam),
    "fresh_sgd": ("optimizer",
                  lambda: torch.optim.SGD(torch.nn.Linear(2, 2).parameters()).state_dict()),
    "only_optimizer": ("optimizer", lambda: {"optimizer": _adam(), "epoch": 3}),
    "moments": ("optimizer", lambda: {f"exp_avg.{k}": v for k, v in weights().items()}),
    "two": ("several state dicts", lambda: {"model": weights(), "ema": weights()}),
    "cascade": ("several state dicts", lambda: {"state_dict": [weights(), weights()]}),
    "actors": ("several state dicts", lambda: {"actor": weights(), "critic": weights()}),
    "integers": ("int64", lambda: {"fc1.weight": torch.arange(6).reshape(2, 3)}),
    "gptq": ("gptq", lambda: {"fc.qweight": torch.ones(2, 2, dtype=torch.int32),
                              "fc.qzeros": torch.ones(2, dtype=torch.int32),
                              "fc.scales": torch.ones(2)}),
    "bitsandbytes_4": ("bitsandbytes", lambda: {
        "fc.weight": torch.ones(8, 1, dtype=torch.uint8), "fc.weight.absmax": torch.ones(2),
        "fc.weight.quant_state.bitsandbytes__nf4": torch.ones(3, dtype=torch.uint8)}),
    "bitsandbytes_8": ("bitsandbytes", lambda: {
        "fc.weight": torch.ones(2, 2, dtype=torch.int8), "fc.SCB": torch.ones(2)}),
    "float8": ("float8", lambda: {"fc.weight": torch.ones(2, 2).to(torch.float8_e4m3fn),
                                  "fc.weight_scale_inv": torch.ones(1, 1)}),
    "nan": (None, lambda: {"fc1.weight": torch.full((2, 3), float("nan"))}),
    "same_names": ("two tensors", lambda: {1: torch.ones(2), "1": torch.ones(2)}),
}


def _state(name: str, phrase: str | None, make: Any) -> None:
    def maker(path: Path, canary: Path) -> None:
        torch.save(make(), path)
    maker.__name__ = f"state_{name}"
    hostile(phrase)(maker)


for _name, (_expected, _make) in _STATES.items():
    _state(_name, _expected, _make)

__all__ = ["CASES"]
