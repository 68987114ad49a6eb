"""Thousands of damaged files: each is refused with a CheckpointError or reads in full."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import metanet.checkpoint as door
from metanet.errors import CheckpointError

ROUNDS = 700
KINDS = ("safetensors", "zip", "legacy")


def seed_file(kind: str, path: Path) -> bytes:
    tensors = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3)}
    if kind == "safetensors":
        save_file(tensors, path, {"who": "me"})
    else:
        wrapped = {"state_dict": {**tensors, "tied": tensors["a.bias"]}, "epoch": 3}
        torch.save(wrapped, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out))
        choice = rng.randrange(5)
        if choice == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif choice == 1:
            out[at:at + rng.randint(1, 8)] = rng.randbytes(rng.randint(0, 8))
        elif choice == 2:
            del out[at:at + rng.randint(1, 16)]
        elif choice == 3:
            out[at:at] = out[rng.randrange(len(out)):][:16]
        else:
            out[at:at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", bytes(4)])
    return bytes(out) or b"\x00"


def read_all(path: Path, data: bytes, rng: random.Random) -> str:
    """Damage ``data``, read it in full: ``"read"``, or ``"refused"`` with a printable message."""
    path.write_bytes(mutated(data, rng))
    try:
        ckpt = door.open(path)
        for name in ckpt.names:
            assert tuple(ckpt.read(name).shape) == ckpt.shape(name)
    except CheckpointError as error:
        assert str(error).isprintable()
        return "refused"
    return "read"


@pytest.mark.parametrize("rounds", [
    ROUNDS, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_mutations(kind: str, rounds: int, tmp_path: Path) -> None:
    path, rng = tmp_path / "model.bin", random.Random(7)
    data = seed_file(kind, path)
    counts = Counter(read_all(path, data, rng) for _ in range(rounds))
    assert 0 < counts["refused"] < rounds
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    data = seed_file(kind, path)
    for cut in range(0, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            door.open(path)
