"""kill -9, a full disk, and two processes on one target."""

from __future__ import annotations

import multiprocessing
import resource
from pathlib import Path

import pytest
import torch
from attacks.killing import WRITERS, kill_many

import metanet.checkpoint as door
from metanet.errors import MetanetError


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_twenty_kills(name: str) -> None:
    assert "of 20 killed, resumed to the same weights" in kill_many(name, 20)


def test_kills_of_convert() -> None:
    assert "resumed" in kill_many("convert", 3)


def _with_little_room(folder: Path) -> None:
    """Files may grow to 4 MB in this process: a disk that is full."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
    try:
        door.open(str(folder / "big.pt")).convert(folder / "out.safetensors", force=True)
    except (MetanetError, OSError) as error:
        (folder / "told").write_text(str(error), encoding="utf-8")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2_000_000)}, tmp_path / "big.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "small.pt")
    door.open(str(tmp_path / "small.pt")).convert(tmp_path / "out.safetensors")
    before = (tmp_path / "out.safetensors").read_bytes()
    child = multiprocessing.get_context("fork").Process(target=_with_little_room, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert "large" in (tmp_path / "told").read_text(encoding="utf-8").lower()
    assert (tmp_path / "out.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "big.pt", "out.safetensors", "small.pt", "told"]
