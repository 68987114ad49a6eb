"""``metanet zoo``: documents, exit codes, and names that try to move the cursor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import Run
from metanet.zoo import Member, Zoo
from safetensors.torch import load_file
from small_zoos import labelled, small, weights


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return small(tmp_path / "z", license="MIT")


def test_info(run: Run, zoo: Zoo) -> None:
    done = run("zoo", "info", zoo.path, "--json")
    assert done.code == 0
    assert {"members", "spaces", "metrics", "splits", "bytes", "recipe", "complete"} <= set(
        done.json)
    assert done.json["members"] == 10
    text = run("zoo", "info", zoo.path).out
    assert "10 members in 1 shards" in text
    assert "metrics.test_accuracy" in text


def test_query(run: Run, zoo: Zoo) -> None:
    done = run("zoo", "query", zoo.path, "lr < 0.03", "-c", "id,lr", "--json")
    assert done.json == {"members": 3, "shown": 3, "rows": [
        {"id": f"m{i:03d}", "config.lr": pytest.approx(0.01 * i)} for i in range(3)]}
    done = run("zoo", "query", zoo.path, "-n", "2")
    assert done.out.count("\n") == 3
    assert "2 of 10 members" in done.err
    assert run("zoo", "query", zoo.path, "lr > 7").out == "no member\n"
    bad = run("zoo", "query", zoo.path, "lrr > 7")
    assert bad.code == 3
    assert "Did you mean" in bad.err


def test_split_and_verify(run: Run, zoo: Zoo) -> None:
    done = run("zoo", "split", zoo.path, "--by", "band", "--column", "lr", "--test", "0.07,1",
               "--parts", "train=.8,val=.2", "--json")
    assert done.code == 0
    assert done.json["counts"] == {"test": 3, "train": 6, "val": 1}
    found = run("zoo", "verify", zoo.path, "--json")
    assert (found.code, found.json["ok"], found.json["leaks"]) == (0, True, [])
    assert {"members", "ok", "missing", "corrupt", "leaks"} <= set(found.json)
    zoo.add([Member("copy", weights=weights(0))])
    zoo.index.db.execute("UPDATE members SET split = 'test' WHERE id = 'copy'")
    found = run("zoo", "verify", zoo.path, "--json")
    assert found.code == 1
    assert "equal weights" in found.json["leaks"][0]


def test_verify_finds_damage(run: Run, zoo: Zoo) -> None:
    path = zoo.path / "shards" / "000000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    done = run("zoo", "verify", zoo.path)
    assert done.code == 1
    assert "corrupt: shards/000000.safetensors" in done.out
    assert run("zoo", "verify", zoo.path, "--shallow").code == 0
    path.unlink()
    assert run("zoo", "verify", zoo.path, "--json").json["missing"] == ["shards/000000.safetensors"]


def test_verify_finds_a_class_sorted_zoo(run: Run, tmp_path: Path) -> None:
    zoo = labelled(tmp_path / "l", order=lambda y: np.argsort(y, kind="stable"))
    done = run("zoo", "verify", zoo.path, "--json")
    assert done.code == 1
    assert "order (index, chunk) tells config.label" in done.json["leaks"][0]
    assert run("zoo", "verify", zoo.path, "--no-gate").code == 0
    text = run("zoo", "verify", zoo.path)
    assert text.code == 1
    assert "LEAK" in text.out


def test_clean(run: Run, zoo: Zoo) -> None:
    orphan = zoo.path / "shards" / "000009.safetensors"
    orphan.write_bytes(b"x")
    assert "left by a killed writer" in run("zoo", "verify", zoo.path, "--clean").out
    assert not orphan.exists()


def test_ingest_and_export(run: Run, zoo: Zoo, tmp_path: Path) -> None:
    done = run("zoo", "export", zoo.path, "-o", tmp_path / "out", "--where", "lr < .05", "--json")
    assert (done.code, done.json["members"]) == (0, 5)
    assert torch.equal(load_file(tmp_path / "out/weights/m002.safetensors")["0.bias"],
                       weights(2)["0.bias"])
    (tmp_path / "out" / "weights" / "m000.safetensors").write_text("gone")
    done = run("zoo", "ingest", tmp_path / "out", "-o", tmp_path / "back", "--json")
    assert (done.code, done.json["members"]) == (0, 4)
    assert list(done.json["refused"]) == ["weights/m000.safetensors"]
    assert run("zoo", "ingest", tmp_path / "out", "-o", tmp_path / "back").code == 0  # resumes
    again = run("zoo", "ingest", tmp_path / "out", "-o", zoo.path)
    assert again.code == 3
    assert "--force" in again.err
    assert run("zoo", "export", zoo.path, "-o", tmp_path / "i.parquet").code == 0
    assert (tmp_path / "i.parquet").read_bytes()[:4] == b"PAR1"


@pytest.mark.parametrize("words", [["info"], ["query"], ["split"], ["verify"]])
def test_no_zoo(run: Run, tmp_path: Path, words: list[str]) -> None:
    done = run("zoo", *words, tmp_path, "--json")
    assert done.code == 3
    assert done.json["error"]["type"] == "ZooError"


def test_usage(run: Run, zoo: Zoo) -> None:
    assert run("zoo", "split", zoo.path, "--parts", "train").code == 2


def test_names_cannot_move_the_cursor(run: Run, tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "z")
    zoo.add([Member("a", {"no\x1b[2Jte": "x\x1b[31m\u202ey"}, weights=weights(0))])
    for words in (["info"], ["query"]):
        done = run("zoo", *words, zoo.path)
        assert done.code == 0
        assert "\x1b" not in done.out
        assert "\u202e" not in done.out
