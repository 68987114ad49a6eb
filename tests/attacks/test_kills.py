"""kill -9, a full disk, and two processes on one target."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attacks.killing import WRITERS, kill_many
from hub_server import served
from metanet.zoo import Zoo, pull
from small_zoos import member, small

import metanet.checkpoint as door
from metanet import merge
from metanet.errors import MetanetError


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_twenty_kills(name: str) -> None:
    assert kill_many(name, 20).startswith("20 kills, resumed to the same weights")


@pytest.mark.parametrize("name", ["convert", "pull", "optim train"])
def test_a_few_kills(name: str) -> None:
    assert kill_many(name, 2).startswith("2 kills, resumed to the same weights")


def convert_more(folder: Path) -> None:
    door.open(str(folder / "big.pt")).convert(folder / "out.safetensors", force=True)


def merge_more(folder: Path) -> None:
    merge([str(folder / "big.pt")] * 2, folder / "out.safetensors", force=True)


def add_more(folder: Path) -> None:
    Zoo.open(folder / "zoo").add([replace(member(30), weights={"w": torch.ones(2_000_000)})])


def pull_more(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, served(patch, folder / "cache") as hub:
        hub.add("org/net", {"net.safetensors": bytes(8_000_000)})
        pull("hf://org/net", folder / "net")


FULL = {"convert": convert_more, "merge": merge_more, "zoo": add_more, "pull": pull_more}


def _with_little_room(folder: Path, work: Callable[[Path], None]) -> None:
    """Files may grow to 4 MB in this process: a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
    try:
        work(folder)
    except (MetanetError, OSError) as error:
        (folder / "told").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2_000_000)}, tmp_path / "big.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "small.pt")
    door.open(str(tmp_path / "small.pt")).convert(tmp_path / "out.safetensors")
    small(tmp_path / "zoo").close()
    before = (tmp_path / "out.safetensors").read_bytes()
    digest = Zoo.open(tmp_path / "zoo").digest()
    child = multiprocessing.get_context("fork").Process(
        target=_with_little_room, args=(tmp_path, FULL[name]))
    child.start()
    child.join()
    assert child.exitcode == 0
    told = (tmp_path / "told").read_text(encoding="utf-8")
    assert "large" in told.lower() and told.partition(":")[0].endswith("Error")
    assert (tmp_path / "out.safetensors").read_bytes() == before
    assert Zoo.open(tmp_path / "zoo").digest() == digest
    assert Zoo.open(tmp_path / "zoo").verify(leaks=False).ok
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".net.")} - {"cache"} == {
        "big.pt", "out.safetensors", "small.pt", "told", "zoo"}
