"""Every hostile file is refused with a clear MetanetError, fast, without a trace."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attacks.hostile_files import CASES

import metanet.checkpoint as door
from metanet.errors import CheckpointError


def make(name: str, folder: Path) -> tuple[Path, Path]:
    path, canary = folder / "model.pt", folder.parent / f"{folder.name}.canary"
    CASES[name][0](path, canary)
    return path, canary


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", CASES)
def test_hostile(name: str, tmp_path: Path) -> None:
    path, canary = make(name, tmp_path)
    phrase, before = CASES[name][1], listing(tmp_path)
    begin = time.process_time()
    if phrase is None:
        ckpt = door.open(path)
        assert set(ckpt.state_dict()) == set(ckpt.names)
    else:
        with pytest.raises(CheckpointError) as caught:
            door.open(path)
        told = str(caught.value)
        assert phrase.lower() in told.lower()
        assert told.isprintable() and told.endswith(".") and len(told) < 1500
        with pytest.raises(CheckpointError):
            door.convert(path, tmp_path / "out.safetensors")
    findings = door.doctor(path)
    assert findings and (phrase is None) == (findings[0]["level"] != "error")
    assert time.process_time() - begin < 12  # three openings, on a busy machine
    assert not canary.exists()
    assert listing(tmp_path) == before


def test_corpus_is_large() -> None:
    assert len(CASES) >= 120


CHILD = """
import json, resource, sys, time
import torch
import metanet.checkpoint as door
from metanet.errors import MetanetError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for line in sys.stdin:
    path = line.rstrip("\\n")
    before, begin, kind = peak(), time.process_time(), "opened"
    try:
        ckpt = door.open(path)
        [ckpt.read(name) for name in ckpt.names]
    except MetanetError:
        kind = "refused"
    except BaseException as error:
        kind = repr(error)
    print(json.dumps([path, kind, peak() - before, time.process_time() - begin]), flush=True)
"""


def test_memory_and_time_are_bounded(tmp_path: Path) -> None:
    """One process meets the whole corpus; its peak may hardly grow with any file."""
    for name in CASES:
        (tmp_path / name).mkdir()
        make(name, tmp_path / name)
    lines = "".join(f"{tmp_path / name / 'model.pt'}\n" for name in CASES)
    done = subprocess.run([sys.executable, "-c", CHILD], input=lines, text=True, check=True,
                          capture_output=True, timeout=120)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(CASES)
    for path, kind, grown, seconds in rows:
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        assert kind in ("opened", "refused"), (path, kind)
        assert grown <= 2 * size + 200e6, (path, grown)
        assert seconds <= 4, (path, seconds)  # two on a calm machine
