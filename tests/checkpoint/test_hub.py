"""hf:// with the real client and a Hub on loopback: headers first, tensors when they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import FakeHub, served
from safetensors.torch import save

from metanet.checkpoint import door, hub
from metanet.checkpoint.doctor import doctor
from metanet.errors import CheckpointError, HubError

VALUES = {"a.weight": torch.randn(400, 300), "a.bias": torch.randn(300),
          "b.weight": torch.randn(300, 300).to(torch.bfloat16), "n": torch.tensor(7)}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with served(monkeypatch, tmp_path / "cache") as server:
        yield server


def shards() -> dict[str, bytes]:
    parts = {"model-00001-of-00002.safetensors": ["a.weight", "a.bias"],
             "model-00002-of-00002.safetensors": ["b.weight", "n"]}
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    return {"config.json": b'{"model_type": "tiny"}', "README.md": b"# hello",
            "model.safetensors.index.json": json.dumps(index).encode(),
            **{file: save({n: VALUES[n] for n in names}) for file, names in parts.items()}}


@pytest.mark.parametrize("files", [{"model.safetensors": save(VALUES)}, shards()])
def test_inspecting_downloads_headers_only(fake: FakeHub, files: dict[str, bytes]) -> None:
    sha = fake.add("org/net", files)
    ckpt = door.open("hf://org/net")
    assert set(ckpt.names) == set(VALUES) and ckpt.source.revision == sha
    assert {n: ckpt.shape(n) for n in ckpt.names} == {n: tuple(t.shape) for n, t in VALUES.items()}
    assert ckpt.dtype("b.weight") == "bfloat16"
    if "config.json" in files:
        assert ckpt.metadata["config"] == {"model_type": "tiny"}
    # Of each file the first 64 KiB, of 480 and 180 kB.
    assert all(told == "bytes=0-65535" for told in fake.gets(".safetensors"))
    assert fake.served < sum(map(len, files.values())) / 2


def test_one_tensor_by_range(fake: FakeHub) -> None:
    fake.add("org/net", shards())
    ckpt = door.open("hf://org/net")
    before = fake.served
    assert torch.equal(ckpt.read("a.bias"), VALUES["a.bias"])
    assert fake.served - before == VALUES["a.bias"].nbytes
    assert torch.equal(ckpt.read("n"), VALUES["n"])
    # Most of its file: now the whole file comes, once, and stays.
    assert torch.equal(ckpt.read("b.weight"), VALUES["b.weight"])
    asked = len(fake.asked)
    assert torch.equal(ckpt.read("b.weight"), VALUES["b.weight"])
    assert len(fake.asked) == asked


def test_all_tensors_come_as_whole_files(fake: FakeHub) -> None:
    fake.add("org/net", shards())
    ckpt = door.open("hf://org/net")
    before = len(fake.gets(".safetensors"))
    found = ckpt.state_dict()
    assert all(torch.equal(found[n], VALUES[n]) for n in VALUES)
    whole = fake.gets(".safetensors")[before:]
    assert whole == [None, None]  # two files, each whole and once
    assert len(ckpt.source.sha256) == 64
    again = door.open("hf://org/net")  # from the cache
    assert len(fake.gets(".safetensors")) == before + 2 and again.source.sha256 == \
        ckpt.source.sha256


def test_offline_reads_what_is_here(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    sha = fake.add("org/net", {"model.safetensors": save(VALUES)})
    door.open("hf://org/net").state_dict()
    asked = len(fake.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(door.open(f"hf://org/net@{sha}/model.safetensors").read("n"), VALUES["n"])
    with pytest.raises(HubError, match="offline"):
        door.open(f"hf://org/other@{sha}/model.safetensors")
    assert len(fake.asked) == asked


def test_revisions_are_pinned(fake: FakeHub) -> None:
    old = fake.add("org/net", {"model.safetensors": save({"w": torch.zeros(2)})})
    fake.repos["models", "org/net"].refs["refs/pr/1"] = old
    new = fake.add("org/net", {"model.safetensors": save({"w": torch.ones(2)})})
    ckpt = door.open("hf://org/net@refs%2Fpr%2F1")
    assert ckpt.source.revision == old != new
    fake.add("org/net", {"model.safetensors": save({"other": torch.ones(2)})})
    assert ckpt.read("w").sum() == 0
    with pytest.raises(HubError, match="Check the name"):
        door.open("hf://org/net@nothing")


def test_a_dropped_connection_is_tried_again(fake: FakeHub) -> None:
    fake.add("org/net", {"model.safetensors": save(VALUES)})
    fake.drop["model.safetensors"] = [100, 1000]
    ckpt = door.open("hf://org/net")
    fake.drop["model.safetensors"] = [10]
    assert torch.equal(ckpt.read("a.bias"), VALUES["a.bias"])
    fake.drop["model.safetensors"] = [10] * 9
    with pytest.raises(HubError, match="Check the network"):
        ckpt.read("a.bias")


def test_a_private_repository_without_a_token(fake: FakeHub, monkeypatch: pytest.MonkeyPatch
                                              ) -> None:
    fake.add("org/secret", {"model.safetensors": save(VALUES)}, private=True)
    with pytest.raises(HubError, match="log in"):
        door.open("hf://org/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_let_me_in")
    assert len(door.open("hf://org/secret")) == len(VALUES)


def test_a_server_without_ranges(fake: FakeHub) -> None:
    fake.add("org/net", {"model.safetensors": save(VALUES)})
    fake.ranges = False
    with pytest.raises(HubError, match="parts of files"):
        door.open("hf://org/net")


@pytest.mark.parametrize(  # ids: both workers must name a test alike, and the values are random
    "data", [b"", b"12345", b"\xff" * 100, save(VALUES)[:-5], b"\x04\0\0\0\0\0\0\0{}  junk"],
    ids=["empty", "short", "length", "truncated", "rest"])
def test_a_damaged_header(fake: FakeHub, data: bytes) -> None:
    fake.add("org/net", {"model.safetensors": data})
    with pytest.raises((CheckpointError, HubError)):
        door.open("hf://org/net")


def test_a_long_header_takes_two_requests(fake: FakeHub) -> None:
    values = {f"layer.{i}.with.a.long.name": torch.full((1,), float(i)) for i in range(2000)}
    fake.add("org/net", {"model.safetensors": save(values)})
    ckpt = door.open("hf://org/net")
    assert len(ckpt) == 2000 and ckpt.read("layer.1999.with.a.long.name") == 1999
    assert len(fake.gets("storage") + fake.gets("model.safetensors")) == 6


def test_other_formats_are_downloaded(fake: FakeHub, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "x.bin")
    fake.add("org/old", {"pytorch_model.bin": (tmp_path / "x.bin").read_bytes()}, kind="datasets")
    assert door.open("hf://datasets/org/old").read("w").sum() == 3


def test_the_doctor_reads_everything(fake: FakeHub) -> None:
    fake.add("org/net", {"model.safetensors": save({"w": torch.tensor([float("nan")])})})
    assert any("NaN" in f["message"] or "nonfinite" in f["what"] for f in doctor("hf://org/net"))


@pytest.mark.parametrize("uri", ["hf://o/n", "hf://datasets/o/n@v1/sub/a.bin", "hf://o/n@a%2Fb"])
def test_an_address_has_one_spelling(uri: str) -> None:
    assert hub.parse_address(uri).uri == uri
