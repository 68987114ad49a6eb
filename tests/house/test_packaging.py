"""The wheel holds one top-level name and all of the package; the repository root stays small."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from house_source import ROOT, module_of, project

TOP = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "metanet", "cli", "tests", "zoo"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel built from a copy, so that the tree gets no build folder."""
    copy = tmp_path_factory.mktemp("wheel")
    junk = shutil.ignore_patterns("__pycache__")
    for name in sorted(TOP - {"tests"}):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=junk)
        else:
            shutil.copy2(source, copy / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", "dist"],
        cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(next((copy / "dist").glob("*.whl"))).namelist()


def test_only_top_level_name_is_metanet(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"metanet"}
    assert len(tops) == 2


def test_every_python_file_is_in_the_wheel(wheel: list[str]) -> None:
    for folder in ("metanet", "cli", "zoo"):
        for path in (ROOT / folder).rglob("*.py"):
            relative = path.relative_to(ROOT).as_posix()
            stem = module_of(relative).replace(".", "/")
            assert f"{stem}.py" in wheel or f"{stem}/__init__.py" in wheel, (
                f"{relative} is not in the wheel: add its folder to packages in pyproject.toml")


def test_every_data_file_is_in_the_wheel(wheel: list[str]) -> None:
    for folder, target in (("metanet", "metanet"), ("cli", "metanet/cli"), ("zoo", "metanet/zoo")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc") or "__pycache__" in path.parts:
                continue
            name = f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
            assert name in wheel, f"{name}: add it to package-data in pyproject.toml"


def test_root_is_small() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                            check=False)
    if listed.returncode:  # not a git checkout: what lies there is what was shipped
        names = {path.name for path in ROOT.iterdir()}
    else:
        names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP


def test_floors_not_pins() -> None:
    table = project()["project"]
    extras = [line for lines in table["optional-dependencies"].values() for line in lines]
    assert not [line for line in [*table["dependencies"], *extras] if "==" in line]


def test_entry_points_agree() -> None:
    assert project()["project"]["scripts"] == {"metanet": "metanet.cli.app:main"}
    main = (ROOT / "metanet" / "__main__.py").read_text(encoding="utf-8")
    assert "metanet.cli.app" in main


def test_ci_types_the_readme(tmp_path: Path) -> None:
    """The command that .ci/run extracts is in the README once, and installs what dev names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("<!-- test command -->")[1].split("<!-- end -->")[0]
    commands = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    assert len(commands) == 1
    assert ".[dev]" in commands[0]
    assert "pytest" in commands[0]
