"""Fixtures of the tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import Run, network, run_command
from safetensors.torch import save_file


@pytest.fixture
def run() -> Run:
    """Run ``metanet WORDS…`` in this process."""
    return run_command


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """A safetensors file of a small MLP."""
    path = tmp_path / "mlp.safetensors"
    save_file(network().state_dict(), path)
    return path
