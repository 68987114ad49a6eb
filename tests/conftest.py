"""Shared by all tests: one thread, fixed seeds, the optional data folder, the list of skips."""

from __future__ import annotations

import os

# Before torch is imported: two workers of two threads each are slower than two of one.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
_HERE = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")


def _no_network(event: str, told: tuple[Any, ...]) -> None:
    """An audit hook: this process reaches loopback and files, and nothing beyond."""
    if event in ("socket.connect", "socket.sendto"):
        host = told[1][0] if isinstance(told[1], tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = told[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and not str(host).startswith(_HERE):
        raise OSError(f"tests have no network, and this one asked for {host!r}")


sys.addaudithook(_no_network)
settings.register_profile(
    "metanet", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("metanet")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> Iterator[None]:
    """Seed every generator before each test, and hand back torch's defaults after it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder that holds pyproject.toml."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real checkpoints beside the repository, where there is one."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("shared data absent")
    return path


@pytest.fixture
def gpu() -> torch.device:
    """A CUDA device, where there is one."""
    if not torch.cuda.is_available():
        pytest.skip("GPU absent")
    return torch.device("cuda")


def _allowed() -> set[str]:
    lines = (ROOT / "tests" / "allowed_skips.txt").read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


class SkipWatch:
    """Fails the run when a test was skipped for a reason that nobody has allowed."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        longrepr = report.longrepr
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reason = reason.removeprefix("Skipped: ")
        if reason not in _allowed():
            self.unexpected.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus in (0, pytest.ExitCode.OK):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unexpected:
            terminalreporter.write_line(f"SKIP NOT ALLOWED {line}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Watch the skips of the whole run, not those of one worker."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipWatch(), "skip-watch")


@pytest.fixture
def working_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers fails on a torchvision that belongs to another torch; then hide it."""
    from metanet.trace.archs.vision import prepare_torchvision

    prepare_torchvision()
    try:
        import torchvision  # noqa: F401
    except Exception:
        monkeypatch.setitem(sys.modules, "torchvision", None)
