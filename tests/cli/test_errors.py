"""Bad input: exit code 3 (4 for the network), one clear message, no traceback, no file."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from cli_runs import Run
from metanet.cli.errors import exit_code, guarded
from safetensors.torch import save

from metanet import CheckpointError, HubError, SpaceMismatch


class Evil:
    """A pickle that would leave a file behind if anything in it were called."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.mark), "w")


LFS = (b"version https://git-lfs.github.com/spec/v1\n"
       b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n")


def truncated() -> bytes:
    return save({"a": torch.zeros(100, 100)})[:-500]


def huge_header() -> bytes:
    return struct.pack("<Q", 1 << 40) + b"{}"


BAD: dict[str, Callable[[], bytes]] = {
    "truncated.safetensors": truncated,
    "huge.safetensors": huge_header,
    "pointer.safetensors": lambda: LFS,
    "pointer.pt": lambda: LFS,
    "page.pt": lambda: b"<!DOCTYPE html><html><body>Not Found</body></html>",
    "empty.pt": lambda: b"",
    "noise.pth": lambda: bytes(range(256)) * 8,
    "no_tensors.safetensors": lambda: save({}),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_bad_files(run: Run, tmp_path: Path, name: str, verb: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name]())
    words = ("-o", tmp_path / "out.safetensors") if verb == "convert" else ()
    done = run(verb, path, *words)
    assert done.code == 3
    assert done.err.startswith("error: ")
    assert name in done.err
    assert not done.out
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_is_never_run(run: Run, tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pt"
    payload = {"state_dict": Evil(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path)
    done = run("inspect", path)
    assert done.code == 3
    assert "open" in done.err
    assert not mark.exists()


def test_error_under_json_is_one_document(run: Run, tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "missing.pt", "--json")
    assert done.code == 3
    assert done.json["error"]["type"] == "CheckpointError"
    assert "missing.pt" in done.json["error"]["message"]


@pytest.mark.parametrize("arch", ["no-such-arch", "resnet20-cifar", "missing.py:make"])
def test_an_architecture_that_does_not_fit(run: Run, mlp: Path, arch: str) -> None:
    done = run("inspect", mlp, "--arch", arch)
    assert done.code == 3
    assert done.err.startswith("error: ")


@pytest.mark.parametrize("text", ["", "space v1\n0.weight: h1 h1", "space v2", "space v1\nno: 3!"])
def test_a_spec_that_does_not_fit(run: Run, mlp: Path, tmp_path: Path, text: str) -> None:
    spec = tmp_path / "bad.space"
    spec.write_text(text, encoding="utf-8")
    done = run("inspect", mlp, "--spec", spec)
    assert done.code == 3
    assert done.err.startswith("error: ")


def test_names_are_escaped(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "names.safetensors"
    path.write_bytes(save({"a\x1b[31m\u202eb": torch.zeros(2)}))
    done = run("inspect", path)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out
    assert run("inspect", path, "--json").json["tensors"][0]["name"] == "a\x1b[31m\u202eb"


def test_exit_codes() -> None:
    assert exit_code(CheckpointError("x")) == exit_code(SpaceMismatch("x")) == 3
    assert exit_code(PermissionError("x")) == 3
    assert exit_code(HubError("x")) == 4
    assert exit_code(ZeroDivisionError("x")) == 70


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_bug_is_called_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: str
) -> None:
    def broken(as_json: bool) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setenv("METANET_TRACEBACK", debug)
    with pytest.raises(typer.Exit) as end:
        guarded(broken)(as_json=True)
    out, err = capsys.readouterr()
    assert end.value.exit_code == 70
    assert json.loads(out)["error"] == {"type": "ZeroDivisionError", "message": "by nought"}
    assert "bug" in err
    assert ("Traceback" in err) is bool(debug)


def test_usage_errors_pass_through() -> None:
    def misused() -> None:
        raise typer.BadParameter("x")

    with pytest.raises(typer.BadParameter):
        guarded(misused)()


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """No traceback reaches the terminal, and stdout is the document alone."""
    path = tmp_path / "page.pt"
    path.write_bytes(BAD["page.pt"]())
    done = subprocess.run([sys.executable, "-m", "metanet", "inspect", str(path), "--json"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "CheckpointError"


def test_a_closed_pipe_is_no_error(mlp: Path) -> None:
    """``metanet inspect … | head -1`` ends without a traceback."""
    command = f"'{sys.executable}' -m metanet inspect '{mlp}' -q | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
