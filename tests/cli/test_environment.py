"""What doctor says of an installation."""

from __future__ import annotations

import pytest
from metanet.cli import environment as env


@pytest.mark.parametrize(("version", "bounds", "ok"), [
    ("2.13.0+cpu", ">=2.10", True),
    ("2.9.1", ">=2.10", False),
    ("0.29.2", "<1,>=0.26", True),
    ("1.0", "<1,>=0.26", False),
    ("2.13.0+cpu", "==2.13.0", True),
    ("2.15.0", "==2.13.0", False),
    ("5", "", True),
])
def test_satisfies(version: str, bounds: str, ok: bool) -> None:
    assert env.satisfies(version, bounds) is ok


@pytest.mark.parametrize(("line", "parts"), [
    ("torch>=2.10", ("torch", ">=2.10")),
    ("typer<1,>=0.26", ("typer", "<1,>=0.26")),
    ("torch (==2.13.0)", ("torch", "==2.13.0")),
    ("numpy", ("numpy", "")),
    ("tomli; python_version < '3.11'", ("tomli", "")),
])
def test_split(line: str, parts: tuple[str, str]) -> None:
    assert env.split(line) == parts


def test_this_installation_has_all_it_needs() -> None:
    checks = {check.check: check for check in env.environment()}
    assert {"python", "metanet", "torch", "safetensors", "typer"} <= checks.keys()
    assert all(checks[name].ok for name in ("python", "metanet", "torch", "typer"))


def test_a_torchvision_for_another_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "installed", {"torchvision": "0.28.0", "torch": "2.15.0"}.get)
    monkeypatch.setattr(env.metadata, "requires", lambda name: ["numpy", "torch==2.13.0"])
    (check,) = env._torchvision()
    assert not check.ok
    assert "2.13.0" in check.hint


def test_a_missing_dependency_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "installed", lambda name: None)
    assert not env._dependency("safetensors>=0.5").ok
