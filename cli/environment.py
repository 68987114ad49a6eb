"""Checks of the installation, read from package metadata alone: nothing heavy is imported."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata

DISTRIBUTION = "metanet-toolkit"
_REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)\s*(?:\(?([^;)]*)\)?)?(?:;.*)?$")
_BOUND = re.compile(r"(>=|==|<)\s*([0-9][0-9.]*)")


@dataclass(frozen=True)
class Check:
    """One thing looked at; ``hint`` says what to do where it is not ok."""

    check: str
    ok: bool
    detail: str
    hint: str = ""


def environment() -> list[Check]:
    """Python, metanet, its dependencies, and whether torchvision was built for this torch."""
    return [_python(), *_dependencies(), *_torchvision(), _cores()]


def _python() -> Check:
    version = platform.python_version()
    ok = sys.version_info >= (3, 10)
    return Check("python", ok, version, "" if ok else "install Python 3.10 or newer")


def _dependencies() -> list[Check]:
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return [Check("metanet", False, "not installed", "run: pip install -e .")]
    core = [line for line in required if "extra ==" not in line]
    return [Check("metanet", True, metadata.version(DISTRIBUTION)), *map(_dependency, core)]


def _dependency(requirement: str) -> Check:
    name, bounds = split(requirement)
    have = installed(name)
    if have is None:
        return Check(name, False, "not installed", f"run: pip install '{requirement}'")
    ok = satisfies(have, bounds)
    return Check(name, ok, have, "" if ok else f"needed is {bounds}: pip install '{requirement}'")


def _torchvision() -> list[Check]:
    """torchvision loads only beside the torch that it was built for."""
    vision, torch = installed("torchvision"), installed("torch")
    if vision is None or torch is None:
        return []
    wanted = next((bounds for name, bounds in map(split, metadata.requires("torchvision") or [])
                   if name == "torch"), "")
    ok = satisfies(torch, wanted)
    return [Check("torchvision", ok, f"{vision} beside torch {torch}",
                  "" if ok else f"it was built for torch {wanted}: install that pair")]


def _cores() -> Check:
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return Check("cpu", True, f"{os.cpu_count()} cores, OMP_NUM_THREADS {threads}")


def installed(name: str) -> str | None:
    """Version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def split(requirement: str) -> tuple[str, str]:
    """``'typer<1,>=0.26; …'`` -> ``('typer', '<1,>=0.26')``."""
    found = _REQUIREMENT.match(requirement.strip())
    return (found.group(1).lower(), (found.group(2) or "").strip()) if found else (requirement, "")


def satisfies(version: str, bounds: str) -> bool:
    """Whether a release number meets ``>=``, ``==`` and ``<`` bounds; other bounds are ignored."""
    have = _release(version)
    tests = {">=": have.__ge__, "<": have.__lt__, "==": lambda want: have[: len(want)] == want}
    return all(tests[sign](_release(want)) for sign, want in _BOUND.findall(bounds))


def _release(version: str) -> tuple[int, ...]:
    number = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(part) for part in number.group().split(".")) if number else ()
