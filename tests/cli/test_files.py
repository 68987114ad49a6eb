"""Writing whole or not at all, and never over something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from metanet.cli.files import write, write_text

from metanet import MetanetError


def test_writes_and_leaves_nothing_else(tmp_path: Path) -> None:
    assert write_text("a", tmp_path / "x.txt", force=False)
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_same_content_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "x.txt"
    write_text("a", out, force=False)
    assert not write_text("a", out, force=False)


def test_other_content_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "x.txt"
    write_text("a", out, force=False)
    with pytest.raises(MetanetError, match="--force"):
        write_text("b", out, force=False)
    assert out.read_text() == "a"
    assert write_text("b", out, force=True)
    assert out.read_text() == "b"
    assert len(list(tmp_path.iterdir())) == 1


def test_failure_leaves_no_file(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise MetanetError("stopped")

    with pytest.raises(MetanetError, match="stopped"):
        write(tmp_path / "x.txt", fails, force=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["missing/x.txt", "."])
def test_bad_places_are_named(tmp_path: Path, where: str) -> None:
    with pytest.raises(MetanetError, match="folder"):
        write_text("a", tmp_path / where, force=False)
