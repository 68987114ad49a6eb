"""The store: adding, asking, batches, spaces, merging, what is refused."""

from __future__ import annotations

import json
import pickle
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from metanet.zoo import Entry, Member, Zoo
from safetensors import safe_open
from small_zoos import SHAPES, member, small, weights
from torch import nn

import metanet
from metanet import WeightSpace, ZooError

SPACE = """space v1
group h = S(5)
0.weight: h 3!
0.bias: h
2.weight: 2! h
2.bias: 2!"""


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return small(tmp_path / "z", license="MIT", recipe={"a": 1})


def test_members_come_back_bit_for_bit(zoo: Zoo) -> None:
    for i in (0, 9):
        found = zoo.member(f"m{i:03d}")
        assert set(found) == set(SHAPES)
        assert all(torch.equal(found[k], v) for k, v in weights(i).items())


def test_shard_is_plain_safetensors_stacked(zoo: Zoo) -> None:
    with safe_open(zoo.path / "shards" / "000000.safetensors", "pt") as handle:
        assert handle.get_tensor("0.weight").shape == (10, 5, 3)
        assert torch.equal(handle.get_tensor("2.bias")[4], weights(4)["2.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64,
                                   torch.bool, torch.uint8, torch.float8_e4m3fn, torch.complex64])
def test_every_dtype_and_odd_shape(tmp_path: Path, dtype: torch.dtype) -> None:
    zoo = Zoo.create(tmp_path / "z")
    rows = [{"a": torch.randn(3).to(dtype), "z": torch.tensor(i).to(dtype),
             "none": torch.empty(0, 4, dtype=dtype), "u": torch.tensor([i], dtype=torch.uint8)}
            for i in range(3)]
    zoo.add([Member(str(i), weights=w) for i, w in enumerate(rows)])
    for i, row in enumerate(rows):
        for name, tensor in zoo.member(str(i)).items():
            assert tensor.dtype == row[name].dtype
            assert tensor.shape == row[name].shape
            assert torch.equal(tensor.reshape(-1).view(torch.uint8),
                               row[name].reshape(-1).view(torch.uint8))


def test_ties_are_stored_once_and_come_back(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    zoo = Zoo.create(tmp_path / "z")
    zoo.add([Member("t", weights={"a": shared, "b": shared, "c": shared.clone()})])
    found = zoo.member("t")
    assert found["a"] is found["b"]
    assert torch.equal(found["c"], shared)
    assert len(next(iter(zoo.layouts.values())).tensors) == 2


def test_several_architectures_in_one_add(zoo: Zoo) -> None:
    other = {"x": torch.ones(2)}
    zoo.add([Member("a", weights=other), member(50), Member("b", weights=other)])
    assert len(zoo) == 13
    assert len(zoo.layouts) == 2
    assert [len(b) for b in zoo.batches(size=100)] in ([2, 11], [11, 2])


# ------------------------------------------------------------ queries


@pytest.mark.parametrize(("where", "ids"), [
    ("config_lr < 0.02", ["m000", "m001"]),
    ("config.lr between .02 and 3e-2", ["m002", "m003"]),
    ("lr<.05 and opt='sgd'", ["m001", "m003"]),
    ("diverged", ["m003"]),
    ("not diverged and test_accuracy >= 1/2", ["m000", "m001"]),
    ("id in ('m001', 'm009')", ["m001", "m009"]),
    ("id like '%07' or \"id\" = 'm008'", ["m007", "m008"]),
    ("split is null and id = :who", ["m004"]),
    ("id = 'it''s'", []),
    ("round(lr * 100) = 5", ["m005"]),
    (None, [f"m{i:03d}" for i in range(10)]),
])
def test_query(zoo: Zoo, where: str | None, ids: list[str]) -> None:
    assert list(zoo.query(where, {"who": "m004"}).ids) == ids


@pytest.mark.parametrize(("where", "told"), [
    ("config_lrr < 1", "Did you mean config_lr"),
    ("tset_accuracy < 1", "Did you mean metrics_test_accuracy"),
    ("split = \"test\"", "single quotes: 'test'"),
    ("lr < 1; drop table members", "';'"),
    ("lr < 1 -- and more", "no column 'more'"),
    ("lr < 1 /* 2 */", "not well formed"),
    ("1) union select sql from sqlite_master where (1", "no column 'union'"),
    ("lr < 1) or (lr > 2", "brackets"),
    ("id in (select id from members)", "no column 'select'"),
    ("load_extension('x')", "no function 'load_extension'"),
    ("randomblob(1e9) = 1", "no function 'randomblob'"),
    ("lr <", "not well formed"),
    ("id = :nobody", "not well formed"),
    ("lr = 'unclosed", "not understood"),
    ("(" * 200_000, "limit"),
])
def test_bad_query_is_refused(zoo: Zoo, where: str, told: str) -> None:
    with pytest.raises(ZooError) as error:
        zoo.query(where)
    assert told in str(error.value)
    assert len(zoo) == 10


def test_the_second_wall(zoo: Zoo) -> None:
    """Were a token to slip through, SQLite itself refuses all but reading members."""
    from metanet.zoo.query import reading_only

    for sql in ("DELETE FROM members", "SELECT * FROM shards", "PRAGMA user_version = 3",
                "SELECT sql FROM sqlite_master", "ATTACH 'x' AS y", "CREATE TABLE t (a)"):
        with reading_only(zoo.index.db), pytest.raises(sqlite3.DatabaseError):
            zoo.index.db.execute(sql)
    zoo.add([member(20)])  # and writing works again


def test_ambiguous_short_name(zoo: Zoo) -> None:
    zoo.add([Member("x", {"loss": "mse"}, {"loss": 1.0}, weights=weights(1))])
    with pytest.raises(ZooError, match="config_loss or metrics_loss"):
        zoo.query("loss = 1")
    assert zoo.query("metrics.loss = 1").ids == ("x",)


def test_columns_of_a_selection(zoo: Zoo) -> None:
    found = zoo.query("lr > 0.055")
    assert found["lr"] == pytest.approx([0.06, 0.07, 0.08, 0.09])
    assert list(found["opt"]) == ["adam", "sgd"] * 2
    row = next(found.rows())
    assert row["id"] == "m006"
    assert row["metrics.diverged"] is False
    assert zoo.row("m003")["metrics.diverged"] is True


def test_missing_values_are_nan(zoo: Zoo) -> None:
    zoo.add([Member("n", {"lr": float("nan")}, {"new": 2}, weights=weights(1))])
    assert np.isnan(zoo.query("id = 'n'")["lr"][0])
    assert np.isnan(zoo.query("id = 'm001'")["new"][0])


# ------------------------------------------------------------ batches


@pytest.mark.parametrize("seed", [None, 3])
def test_batches_hold_every_member_once(zoo: Zoo, seed: int | None) -> None:
    zoo.add([member(i) for i in range(10, 25)])
    seen = []
    for batch in zoo.batches(size=4, columns=["lr"], seed=seed):
        assert len(batch) <= 4
        for row, name in enumerate(batch.ids):
            i = int(name[1:])
            seen.append(i)
            assert batch.columns["lr"][row] == pytest.approx(0.01 * i)
            for key, tensor in batch.tensors.items():
                assert torch.equal(tensor[row], weights(i)[key])
    assert sorted(seen) == list(range(25))
    assert (seen == sorted(seen)) == (seed is None)


def test_a_condition_and_a_selection(zoo: Zoo) -> None:
    names = [n for b in zoo.batches("opt = 'sgd'", 2) for n in b.ids]
    assert names == [n for b in zoo.query("opt = 'sgd'").batches(3) for n in b.ids]
    assert names == ["m001", "m003", "m005", "m007", "m009"]


def test_writing_into_a_batch_changes_nothing(zoo: Zoo) -> None:
    before = zoo.digest()
    for size in (10, 3):
        for batch in zoo.batches(size=size):
            for tensor in batch.tensors.values():
                tensor.zero_()
    for batch in zoo.batches(size=4, seed=0):
        batch.tensors["0.bias"].zero_()
    assert torch.equal(zoo.member("m002")["0.bias"], weights(2)["0.bias"])
    assert all(b.tensors["0.weight"].abs().sum() > 0 for b in zoo.batches(size=10))
    assert zoo.digest() == before
    assert zoo.verify().ok


def test_neighbours_are_views_of_the_file(zoo: Zoo) -> None:
    batch = next(zoo.batches(size=5))
    assert all(t._base is not None for t in batch.tensors.values())


def test_weight_batch(tmp_path: Path) -> None:
    space = WeightSpace.parse(SPACE)
    zoo = Zoo.create(tmp_path / "z")
    zoo.add([replace(member(i), space=space) for i in range(6)])
    assert zoo.spaces == {space.digest: space}
    for wanted in (space, space.digest[:8]):
        batch = next(zoo.batches(size=6, space=wanted)).weights
        same = metanet.WeightBatch.stack(space, [weights(i) for i in range(6)])
        assert batch.blocks.keys() == same.blocks.keys()
        assert all(torch.equal(batch.blocks[k], same.blocks[k]) for k in same.blocks)
        assert batch.names == tuple(f"m{i:03d}" for i in range(6))
    assert zoo.row("m000")["space"] == space.digest
    with pytest.raises(ZooError, match="no member of space"):
        next(zoo.batches(space="ffff"))


def test_member_must_fit_its_space(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "z")
    bad = {**weights(0), "0.bias": torch.zeros(4)}
    with pytest.raises(ZooError, match=r"'0\.bias' has shape \(4,\)"):
        zoo.add([Member("x", weights=bad, space=WeightSpace.parse(SPACE))])


def test_without_a_space_there_is_no_weight_batch(zoo: Zoo) -> None:
    with pytest.raises(ZooError, match="space of these members is not known"):
        _ = next(zoo.batches()).weights


# ------------------------------------------------------------ refusals and the card


@pytest.mark.parametrize(("bad", "told"), [
    ([member(1)], "in the zoo already"),
    ([member(50), member(50)], "twice"),
    ([Member("", weights={"a": torch.ones(1)})], "1 to 200"),
    ([Member("a\nb", weights={"a": torch.ones(1)})], "printable"),
    ([Member("x", weights={})], "without a tensor"),
    ([Member("x", {"lr": "fast"}, weights=weights(0))], "holds both float and str"),
    ([Member("x", {"a": 1}, weights=weights(0)), Member("y", {"a": "b"}, weights=weights(0))],
     "both int and str"),
    ([Member("x", {"a-b": 1, "a_b": 1}, weights=weights(0))], "would both be"),
    ([Member("x", {"a": object()}, weights=weights(0))], "no value of an index"),
    ([Member("x", {"a": 2**70}, weights=weights(0))], "64 bits"),
    ([Member("x", weights=weights(0), step=-1)], "step -1"),
])
def test_nothing_is_added_when_one_is_bad(zoo: Zoo, bad: list[Member], told: str) -> None:
    before, files = zoo.digest(), sorted(zoo.path.rglob("*"))
    with pytest.raises(ZooError, match=told):
        zoo.add([member(60), *bad])
    assert zoo.digest() == before
    assert sorted(zoo.path.rglob("*")) == files


def test_a_column_keeps_its_kind(zoo: Zoo) -> None:
    with pytest.raises(ZooError, match=r"config\.lr' holds float, not str"):
        zoo.add([Member("x", {"lr": "fast"}, weights=weights(0))])
    assert not [p for p in (zoo.path / "shards").iterdir() if p.name != "000000.safetensors"]


def test_stacked_lengths_must_agree(zoo: Zoo) -> None:
    with pytest.raises(ZooError, match="does not hold 3 members"):
        zoo.add_stacked({"a": torch.ones(2, 2)}, [Entry(str(i)) for i in range(3)])


def test_create_resume_and_refuse(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="stands there already"):
        Zoo.create(zoo.path, recipe={"a": 1})
    assert len(Zoo.create(zoo.path, recipe={"a": 1}, resume=True)) == 10
    with pytest.raises(ZooError, match="another recipe"):
        Zoo.create(zoo.path, recipe={"a": 2}, resume=True)
    assert len(Zoo.create(zoo.path, recipe={"a": 2}, resume=True, force=True)) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ZooError, match=r"thesis\.txt"):
        Zoo.create(tmp_path / "mine", force=True)
    with pytest.raises(ZooError, match="no zoo here"):
        Zoo.open(tmp_path / "nowhere")


def test_the_card(zoo: Zoo) -> None:
    card = json.loads((zoo.path / "zoo.json").read_text())
    assert (card["format"], card["version"], card["license"]) == ("metanet.zoo", 1, "MIT")
    assert card["recipe"] == {"a": 1}
    assert not card["complete"]
    zoo.finish()
    assert Zoo.open(zoo.path).complete
    card["recipe"] = {"a": 2}
    (zoo.path / "zoo.json").write_text(json.dumps(card))
    with pytest.raises(ZooError, match="does not have the hash"):
        Zoo.open(zoo.path)


def test_equal_adds_give_equal_bytes(tmp_path: Path) -> None:
    zoos = [small(tmp_path / name) for name in "ab"]
    for zoo in zoos:
        zoo.add([member(i) for i in range(20, 30)])
        zoo.split("run")
        zoo.finish()
        zoo.close()
    files = [{p.relative_to(z.path): p.read_bytes() for p in z.path.rglob("*") if p.is_file()}
             for z in zoos]
    assert files[0] == files[1]
    assert zoos[0].digest() == zoos[1].digest()


def test_missing_tells_what_is_left(zoo: Zoo) -> None:
    assert zoo.missing(["m001", "new", "m002"]) == ["new"]
    assert "m001" in zoo
    assert "new" not in zoo


def test_a_zoo_travels_to_another_process(zoo: Zoo) -> None:
    again = pickle.loads(pickle.dumps(zoo))
    assert again.digest() == zoo.digest()


def test_merge(zoo: Zoo, tmp_path: Path) -> None:
    other = Zoo.create(tmp_path / "o")
    other.add([member(i) for i in range(5, 15)])
    other.add([Member("t", {"extra": 1}, parent="m001", step=4, weights={"a": torch.ones(3)})])
    assert zoo.merge(other) == 6
    assert len(zoo) == 16
    assert torch.equal(zoo.member("m014")["2.bias"], weights(14)["2.bias"])
    assert (zoo.row("t")["parent"], zoo.row("t")["step"]) == ("m001", 4)
    assert zoo.merge(other) == 0
    clash = Zoo.create(tmp_path / "c")
    clash.add([replace(member(1), weights=weights(99))])
    with pytest.raises(ZooError, match="'m001' has other weights"):
        zoo.merge(clash)
    with pytest.raises(ZooError, match="into itself"):
        zoo.merge(Zoo.open(zoo.path))


def test_stats(zoo: Zoo) -> None:
    found = zoo.stats()
    assert found["members"] == 10
    assert found["bytes"] == (zoo.path / "shards" / "000000.safetensors").stat().st_size
    assert found["metrics"]["metrics.test_accuracy"]["max"] == 1.0
    assert found["spaces"][0]["parameters"] == 32
    assert json.dumps(found)


def test_foreign_schema_is_refused(zoo: Zoo) -> None:
    zoo.index.db.execute("CREATE TRIGGER evil AFTER INSERT ON members BEGIN SELECT 1; END")
    zoo.close()
    with pytest.raises(ZooError, match="'evil'"):
        Zoo.open(zoo.path)


def test_no_file_name_comes_from_the_index(zoo: Zoo) -> None:
    zoo.index.db.execute("UPDATE shards SET shard = 7")
    zoo.index.db.execute("UPDATE members SET shard = 7, place = place + 7 * 1048576")
    assert Zoo.open(zoo.path).verify().missing == ("shards/000007.safetensors",)


def test_a_live_module_is_a_member_by_its_state_dict(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    zoo = Zoo.create(tmp_path / "z")
    zoo.add([Member("n", weights=net.state_dict())])
    net.load_state_dict(zoo.member("n"))


def test_frames(zoo: Zoo, tmp_path: Path) -> None:
    frame = zoo.to_pandas("lr < 0.05")
    assert frame["config.lr"].tolist() == pytest.approx([0, 0.01, 0.02, 0.03, 0.04])
    assert frame["metrics.diverged"].tolist() == [False, False, False, True, False]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(zoo.to_parquet(tmp_path / "i.parquet"))
    assert table.num_rows == 10
    assert table["id"][9].as_py() == "m009"


@pytest.mark.parametrize(("module", "call"), [("pandas", "to_pandas"), ("pyarrow", "to_parquet")])
def test_missing_extra_is_named(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                module: str, call: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ZooError, match=r"metanet-toolkit\[data\]"):
        zoo.to_pandas() if call == "to_pandas" else zoo.to_parquet(tmp_path / "x.parquet")
