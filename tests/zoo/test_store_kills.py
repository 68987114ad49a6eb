"""kill -9 at random points, and two writers at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from metanet.zoo import Zoo
from metanet.zoo.verify import clean

# Imports once, then forks a writer per line of input: a torch import per kill takes minutes.
NURSERY = textwrap.dedent("""
    import os, sys, torch
    torch.set_num_threads(1)
    from metanet.zoo import Entry, Zoo

    def write(path, first, last, prefix):
        zoo = Zoo.create(path, recipe={"n": 1}, resume=True)
        for chunk in range(int(first), int(last)):
            ids = [f"{prefix}{chunk:03d}/{i:02d}" for i in range(20)]
            left = zoo.missing(ids)
            assert left in ([], ids), "half a chunk"
            if left:
                g = torch.Generator().manual_seed(chunk)
                zoo.add_stacked({"w": torch.randn(20, 64, 64, generator=g),
                                 "b": torch.full((20, 3), float(chunk))},
                                [Entry(n, {"chunk": chunk}, {"loss": 0.5 * i})
                                 for i, n in enumerate(ids)])

    for line in sys.stdin:
        word, *rest = line.rstrip("\\n").split("|")
        if word == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(int(rest[0]), 0)[1]), flush=True)
            continue
        child = os.fork()
        if not child:
            try:
                write(*rest)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
""")
CHUNKS = 60


class Nursery:
    """Starts writers, and tells how they ended."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", NURSERY], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, path: Path, first: int = 0, last: int = CHUNKS, prefix: str = "m") -> int:
        return self.ask(f"run|{path}|{first}|{last}|{prefix}")

    def wait(self, pid: int) -> int:
        return self.ask(f"wait|{pid}")

    def ask(self, line: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    with made.process:
        yield made


def files(zoo: Zoo) -> dict[str, bytes]:
    zoo.close()
    return {p.relative_to(zoo.path).as_posix(): p.read_bytes()
            for p in zoo.path.rglob("*") if p.is_file()}


def test_twenty_kills_and_resume(tmp_path: Path, nursery: Nursery) -> None:
    """The zoo opens after every kill, holds whole chunks only, and ends with equal bytes."""
    rng = random.Random(0)
    path = tmp_path / "killed"
    kills = seen = 0
    for _ in range(20):
        writer = nursery.start(path)
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(writer, signal.SIGKILL)
        kills += nursery.wait(writer) == -signal.SIGKILL
        if not (path / "zoo.json").exists():
            continue  # killed before there was a zoo
        zoo = Zoo.open(path)
        assert len(zoo) % 20 == 0
        assert len(zoo) >= seen
        seen = len(zoo)
        found = zoo.verify(deep=False)
        assert found.ok, (found.missing, found.corrupt)
    assert kills >= 10  # the others had finished before
    assert nursery.wait(nursery.start(path)) == 0
    whole = tmp_path / "whole"
    assert nursery.wait(nursery.start(whole)) == 0
    killed = Zoo.open(path)
    clean(killed)
    assert killed.verify().ok
    assert killed.digest() == Zoo.open(whole).digest()
    assert files(killed) == files(Zoo.open(whole))


def test_two_writers(tmp_path: Path, nursery: Nursery) -> None:
    path = tmp_path / "z"
    writers = [nursery.start(path, 0, 30, prefix) for prefix in ("a", "b")]
    assert [nursery.wait(writer) for writer in writers] == [0, 0]
    zoo = Zoo.open(path)
    assert len(zoo) == 2 * 30 * 20
    found = zoo.verify()
    assert found.ok
    assert not found.orphans
    for prefix in "ab":
        for chunk in (0, 17, 29):
            g = torch.Generator().manual_seed(chunk)
            assert torch.equal(zoo.member(f"{prefix}{chunk:03d}/07")["w"],
                               torch.randn(20, 64, 64, generator=g)[7])


def test_one_of_two_writers_is_killed(tmp_path: Path, nursery: Nursery) -> None:
    path = tmp_path / "z"
    one, two = nursery.start(path, 0, 400, "a"), nursery.start(path, 0, 30, "b")
    time.sleep(0.2)
    os.kill(one, signal.SIGKILL)
    assert nursery.wait(one) == -signal.SIGKILL
    assert nursery.wait(two) == 0
    zoo = Zoo.open(path)
    assert len(zoo.query("id like 'b%'")) == 600
    assert len(zoo) % 20 == 0
    assert zoo.verify().ok


@pytest.mark.parametrize("leftover", ["shards/000003.safetensors", "shards/.{host}-999999999-aa"])
def test_orphans_are_harmless_reported_and_removed(tmp_path: Path, leftover: str) -> None:
    from metanet.zoo.shard import _host

    zoo = Zoo.create(tmp_path / "z")
    (zoo.path / "shards").mkdir()
    orphan = zoo.path / leftover.format(host=_host())
    orphan.write_bytes(b"half a sh")
    live = zoo.path / f"shards/.{_host()}-{os.getpid()}-bb"
    live.write_bytes(b"being written")
    found = zoo.verify()
    assert found.ok
    assert found.orphans == (f"shards/{orphan.name}",)
    assert clean(zoo) == [orphan]
    assert not orphan.exists()
    assert live.exists()


def test_the_next_add_takes_the_place_of_an_orphan(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "z")
    (zoo.path / "shards").mkdir()
    (zoo.path / "shards/000000.safetensors").write_bytes(b"half a sh")
    from small_zoos import member

    zoo.add([member(1)])
    assert zoo.verify().ok


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "swap"])
def test_damage_is_found(tmp_path: Path, harm: str) -> None:
    from small_zoos import small

    zoo = small(tmp_path / "z")
    path = zoo.path / "shards/000000.safetensors"
    raw = bytearray(path.read_bytes())
    if harm == "flip":
        raw[-3] ^= 1
    elif harm == "swap":
        raw[-8:-4], raw[-4:] = raw[-4:], raw[-8:-4]
    path.write_bytes(raw[:-8] if harm == "cut" else raw)
    if harm == "gone":
        path.unlink()
    found = zoo.verify()
    assert not found.ok
    assert found.missing if harm == "gone" else found.corrupt


def test_a_swapped_row_is_found(tmp_path: Path) -> None:
    from small_zoos import small

    zoo = small(tmp_path / "z")
    zoo.index.db.execute("UPDATE members SET hash = (SELECT hash FROM members WHERE id = 'm002') "
                         "WHERE id = 'm001'")
    found = zoo.verify()
    assert any("m001" in line for line in found.corrupt)


def test_a_damaged_index_is_an_error_of_ours(tmp_path: Path) -> None:
    from small_zoos import small

    from metanet import ZooError

    zoo = small(tmp_path / "z")
    zoo.close()
    path = zoo.path / "index.sqlite"
    raw = bytearray(path.read_bytes())
    raw[100:4096] = bytes(3996)
    path.write_bytes(raw)
    with pytest.raises(ZooError, match="damaged"):
        Zoo.open(zoo.path)
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(ZooError, match="damaged"):
        Zoo.open(zoo.path)
    path.unlink()
    with pytest.raises(ZooError, match="missing"):
        Zoo.open(zoo.path)
