"""Engines: order, errors, dead workers, dead parents."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import engine_jobs as jobs
import pytest
import torch
from metanet.zoo.engine import Local, engine

from metanet import ZooError


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(engine("local", workers).map(jobs.square, range(40))) == [i * i for i in range(40)]


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    found = Local(2).map(jobs.die_once, [(i, str(tmp_path)) for i in range(12)])
    assert list(found) == list(range(12))
    assert (tmp_path / "died").exists()


def test_workers_that_always_die_are_given_up() -> None:
    with pytest.raises(ZooError, match="died 3 times"):
        list(Local(2).map(jobs.always_die, [1]))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_is_passed_on(workers: int) -> None:
    found = Local(workers).map(jobs.fail, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="item two"):
        list(found)


def test_one_thread_each_and_ours_given_back() -> None:
    torch.set_num_threads(2)
    try:
        assert list(Local(1).map(jobs.threads, [0])) == [1]
        assert torch.get_num_threads() == 2
        assert list(Local(2).map(jobs.threads, [0])) == [1]
    finally:
        torch.set_num_threads(1)


def test_workers_end_with_a_killed_parent(tmp_path: Path, root: Path) -> None:
    code = ("import sys, engine_jobs\nfrom metanet.zoo.engine import Local\n"
            "if __name__ == '__main__':\n"
            "    list(Local(2).map(engine_jobs.tell_and_sleep, [sys.argv[1]] * 2))\n")
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script, tmp_path],
                              env={**os.environ, "PYTHONPATH": str(root / "tests")})
    try:
        pids = _wait(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 60) and [
            int(p.stem) for p in tmp_path.glob("*.pid")]
    finally:
        parent.kill()
        parent.wait()
    assert pids
    assert _wait(lambda: not any(map(_runs, pids)), 20)


def _wait(done, seconds: float) -> bool:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("name", "workers", "words"), [
    ("dask", 2, "local, ray"), ("local", 0, "at least one")])
def test_what_there_is_not(name: str, workers: int, words: str) -> None:
    with pytest.raises(ZooError, match=words):
        engine(name, workers)


def test_ray_absent_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ZooError, match=r"metanet-toolkit\[ray\]"):
        engine("ray", 2)
