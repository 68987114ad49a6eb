"""Every public name is there, and stays what it is whatever was imported before."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import metanet
from metanet import symmetry

CODE = """
import importlib, inspect, pkgutil, sys
import metanet
before = sys.argv[1] == "all"
if before:
    for module in pkgutil.walk_packages(metanet.__path__, "metanet."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
for package in [m for n, m in sorted(sys.modules.items()) if n.split(".")[0] == "metanet"]:
    for name in getattr(package, "_LAZY", ()):
        if inspect.ismodule(getattr(package, name)):
            print(package.__name__, name)
"""


@pytest.mark.parametrize("before", ["none", "all"])
def test_no_module_shadows_a_public_function(before: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, before], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout, f"a module hides the function of the same name: {done.stdout}"


@pytest.mark.parametrize("name", [*metanet._LAZY])
def test_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(metanet, name))


@pytest.mark.parametrize("name", sorted(symmetry._LAZY))
def test_symmetry_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(symmetry, name))
