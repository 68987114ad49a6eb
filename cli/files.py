"""Writing: whole or not at all, and never over a different file unless told to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from metanet.errors import MetanetError


def write_text(text: str, out: Path, *, force: bool) -> bool:
    """Write UTF-8 text; see :func:`write`."""
    return write(out, lambda path: path.write_text(text, encoding="utf-8"), force=force)


def write(out: Path, make: Callable[[Path], object], *, force: bool) -> bool:
    """Let ``make`` write a file beside ``out``, then move it there in one step.

    Returns:
        False where ``out`` already held the same bytes and was left alone.

    Raises:
        MetanetError: if the folder is missing, or ``out`` holds something else without ``force``.
    """
    if not out.parent.is_dir():
        raise MetanetError(f"{out}: the folder {out.parent} does not exist. Create it first.")
    if out.is_dir():
        raise MetanetError(f"{out}: is a folder. Name a file.")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".metanet-") as folder:
        fresh = Path(folder) / out.name  # the suffix says which format to write
        make(fresh)
        if out.exists() and same(fresh, out):
            return False
        if out.exists() and not force:
            raise MetanetError(
                f"{out}: exists and holds something else. Name another file, or add --force.")
        os.replace(fresh, out)
    return True


def same(a: Path, b: Path) -> bool:
    """Whether two files hold the same bytes."""
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as left, b.open("rb") as right:
        while chunk := left.read(1 << 20):
            if chunk != right.read(1 << 20):
                return False
    return True
