"""A function over members, and the commands around it."""

from __future__ import annotations

from pathlib import Path

import engine_jobs as jobs
import pytest
from cli_runs import run_command
from metanet.zoo import Zoo
from metanet.zoo.build import build
from metanet.zoo.mapping import map_members
from metanet.zoo.recipe import parse

from metanet import ZooError

TEXT = """
about: tiny
factory: inr
n: 10
data: {name: digits}
model: {sizes: [2, 5, 5, 1]}
fit: {steps: 4}
chunk: 4
commit: 8
"""
FUNCTION = """
def norm(batch):
    return sum(t.flatten(1).square().sum(1) for t in batch.tensors.values())

def short(batch):
    return [1]

value = 3
"""


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return build(parse(TEXT, "tiny"), tmp_path / "zoo", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_member_in_order(zoo: Zoo, workers: int) -> None:
    found = list(map_members(jobs.norms, zoo, "step > 0", size=3, columns=["config.label"],
                             workers=workers))
    assert tuple(name for name, _ in found) == zoo.query("step > 0").ids
    for name, value in found:
        weights = zoo.member(name)
        assert value["norm"] == pytest.approx(sum(float(w.square().sum())
                                                  for w in weights.values()), rel=1e-5)
        assert value["label"] == zoo.row(name)["config.label"]


def test_functions_by_name(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION)
    by_file = dict(map_members(f"{tmp_path}/mine.py:norm", zoo, workers=1))
    by_module = dict(map_members("engine_jobs:norms", zoo, columns=["config.label"], workers=1))
    assert by_file == {name: value["norm"] for name, value in by_module.items()}


@pytest.mark.parametrize(("text", "words"), [
    ("mine.py:value", "has no function"), ("mine.py:nothing", "has no function"),
    ("none.py:norm", "is no Python file"), ("no_such_module:f", "cannot be imported"),
    ("mine.py", "names no function"), ("mine.py:short", "1 for 12 members")])
def test_what_is_no_function(zoo: Zoo, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION)
    where = f"{tmp_path}/{text}" if ".py" in text else text
    with pytest.raises(ZooError, match=words):
        list(map_members(where, zoo, workers=1))


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METANET_DATA", raising=False)
    (tmp_path / "tiny.yaml").write_text(TEXT)
    (tmp_path / "mine.py").write_text(FUNCTION)
    out = tmp_path / "zoo"
    words = ("zoo", "build", tmp_path / "tiny.yaml", "-o", out, "--workers", 1)
    done = run_command(*words, "--n", 6, "--json")
    assert done.code == 0 and done.json["members"] == 7 and done.json["complete"] is True
    assert "6 of 6" in done.err and (" a second" in done.err or " a minute" in done.err)
    assert "another recipe" in run_command(*words, "--n", 5).err
    mapped = run_command("zoo", "map", f"{tmp_path}/mine.py:norm", out, "--where", "step > 0",
                         "--workers", 1)
    assert mapped.code == 0 and len(mapped.out.splitlines()) == 6
    assert set(run_command("zoo", "map", f"{tmp_path}/mine.py:norm", out, "--workers", 1,
                           "--json").json) == set(Zoo.open(out).query().ids)
    assert "inr-mnist" in run_command("zoo", "recipes").out
    absent = run_command("zoo", "build", "wild-cnn21k", "-o", tmp_path / "wild")
    assert absent.code == 3 and "METANET_DATA" in absent.err and "--data" in absent.err
