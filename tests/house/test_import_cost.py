"""What must start at once imports neither torch nor torch_geometric."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

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


def test_help_is_quick() -> None:
    """CPU seconds, which a busy machine disturbs least; the goal on an idle one is 0.5."""
    before = os.times()
    wall = time.perf_counter()
    subprocess.run([sys.executable, "-m", "metanet", "--help"], check=True, capture_output=True)
    after = os.times()
    cpu = (after.children_user + after.children_system
           - before.children_user - before.children_system)
    assert cpu < 1.5, f"{cpu:.2f} s of CPU, {time.perf_counter() - wall:.2f} s of wall clock"
