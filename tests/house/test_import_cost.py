"""What must start at once imports neither torch nor torch_geometric."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metanet.checkpoint import write_safetensors

HEAVY = ("torch", "torch_geometric", "scipy", "matplotlib", "numpy")


def loaded_by(code: str) -> set[str]:
    """Which heavy modules a fresh interpreter holds after running ``code``."""
    report = f"import sys; print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def help_of(*words: str) -> str:
    return (f"import metanet.cli.app as a\ntry:\n    a.app([*{words!r}, '--help'])\n"
            "except SystemExit as end:\n    assert not end.code")


@pytest.mark.parametrize("code", [
    "import metanet",
    "import metanet.errors",
    "import metanet.symmetry",
    "from metanet import WeightSpace",
    "from metanet import WeightSpace; str(WeightSpace.parse('space v1\\ngroup h = S(4)\\na: h'))",
    help_of(),
    help_of("inspect"),
    help_of("demo"),
])
def test_no_heavy_import(code: str) -> None:
    assert not loaded_by(code)


@pytest.mark.parametrize("name", ["0.weight", "what.is_this"])
def test_a_header_is_read_without_torch(name: str, tmp_path: Path) -> None:
    """Recognised or not, a safetensors file tells what it tells by its header."""
    path = tmp_path / "net.safetensors"
    write_safetensors({name: torch.zeros(4, 3), "2.weight": torch.zeros(2, 4)}, path)
    code = ("import metanet.cli.app as a\ntry:\n    a.app(['inspect', sys.argv[1]])\n"
            "except SystemExit as end:\n    assert not end.code")
    assert not loaded_by(f"import sys\nsys.argv[1:] = [{str(path)!r}]\n{code}")


@pytest.mark.parametrize("words", [["--help"], ["inspect", "{path}"]])
def test_the_first_answer_is_quick(words: list[str], tmp_path: Path) -> None:
    """CPU seconds, which a busy machine disturbs least; the goals on an idle one are 0.5, 0.6."""
    path = tmp_path / "net.safetensors"
    write_safetensors({"0.weight": torch.zeros(4, 3), "2.weight": torch.zeros(2, 4)}, path)
    before = os.times()
    wall = time.perf_counter()
    subprocess.run([sys.executable, "-m", "metanet", *(w.format(path=path) for w in words)],
                   check=True, capture_output=True)
    after = os.times()
    cpu = (after.children_user + after.children_system
           - before.children_user - before.children_system)
    assert cpu < 1.5, f"{cpu:.2f} s of CPU, {time.perf_counter() - wall:.2f} s of wall clock"
