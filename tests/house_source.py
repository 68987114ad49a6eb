"""What the tests of the house read: the project's Python files and their imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TOP = {"cli": "metanet.cli", "zoo": "metanet.zoo"}


def python_files(*folders: str) -> list[str]:
    """Paths, relative to the root, of all Python files below the folders."""
    return sorted(path.relative_to(ROOT).as_posix() for folder in folders
                  for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def project() -> dict[str, Any]:
    """pyproject.toml as a table."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def module_of(path: str) -> str:
    """Dotted name that a file is imported by: ``cli/app.py`` -> ``metanet.cli.app``."""
    first, *rest = Path(path).with_suffix("").parts
    parts = [TOP.get(first, first), *rest]
    return ".".join(parts).removesuffix(".__init__")


def room_of(path: str) -> str:
    """Room of a file: the second part of its module name."""
    return module_of(path).split(".")[1]


def imports(root: Path, path: str, *, types: bool = True) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import, at the top or inside a function.

    ``from a import b`` gives ``a.b``, since ``b`` may be a module. Without ``types`` the imports
    that only a type checker sees are left out.
    """
    module = module_of(path)
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree if types else _RunTime().visit(tree)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(package, node)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


class _RunTime(ast.NodeTransformer):
    """Drops ``if TYPE_CHECKING:`` blocks."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def _absolute(package: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)
