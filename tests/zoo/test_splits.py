"""Splits keep together what belongs together, and refuse to leak."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from metanet.zoo import Member, Zoo
from small_zoos import weights

from metanet import ZooError


def population(path: Path, n: int = 60) -> Zoo:
    """Three views per image, two checkpoints per run, one duplicate, two data sets."""
    zoo = Zoo.create(path)
    members = []
    for i in range(n):
        config: dict[str, Any] = {"image": i // 3, "data": ("mnist", "fashion")[i // 3 % 2],
                                  "lr": 0.001 * (i // 3), "image_group": i // 3 % 9 + 100}
        members.append(Member(f"r{i}/a", config, step=10, weights=weights(i)))
        members.append(Member(f"r{i}/b", config, parent=f"r{i}/a", step=20,
                              weights=weights(1000 + i)))
    zoo.add(members)
    return zoo


def parts_of(zoo: Zoo, column: str) -> dict[Any, set[Any]]:
    found = defaultdict(set)
    for row in zoo.query("split is not null").rows([column, "split"]):
        value, part = row.values()
        found[value].add(part)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_image_split_keeps_views_and_near_duplicates_together(tmp_path: Path, seed: int) -> None:
    zoo = population(tmp_path / "z")
    report = zoo.split("image", {"train": 0.6, "test": 0.4}, seed=seed)
    assert report.unassigned == 0
    assert sum(report.counts.values()) == 120
    for row in zoo.query().rows(["config.data", "config.image", "config.image_group", "split"]):
        assert row["split"] in ("train", "test")
    groups = defaultdict(set)
    for row in zoo.query().rows():
        groups[row["config.data"], row["config.image_group"]].add(row["split"])
        groups[row["id"].split("/")[0]].add(row["split"])
    assert all(len(parts) == 1 for parts in groups.values())
    assert report.counts["train"] == pytest.approx(72, abs=9)


def test_same_seed_same_split(tmp_path: Path) -> None:
    zoo = population(tmp_path / "z")
    first = (zoo.split("image", seed=1), parts_of(zoo, "id"))
    second = (zoo.split("image", seed=2), parts_of(zoo, "id"))
    again = (zoo.split("image", seed=1), parts_of(zoo, "id"))
    assert first == again
    assert first[1] != second[1]


def test_data_split_holds_out_a_data_set(tmp_path: Path) -> None:
    zoo = population(tmp_path / "z")
    zoo.split("data", {"train": 0.8, "val": 0.2}, test=["fashion"])
    found = parts_of(zoo, "config.data")
    assert found["fashion"] == {"test"}
    assert found["mnist"] == {"train", "val"}


def test_band_split(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "z")
    zoo.add([Member(str(i), {"lr": i / 100}, weights=weights(i)) for i in range(20)])
    zoo.add([Member("child", {"lr": 0.15}, parent="2", weights=weights(77))])
    report = zoo.split("band", {"train": 1.0}, column="lr", test=["0.1", 0.2])
    assert report.counts == {"test": 10, "train": 9}
    assert report.unassigned == 2  # the child and its parent stand on both sides of the band
    assert zoo.row("child")["split"] is None
    assert zoo.row("2")["split"] is None
    assert zoo.row("10")["split"] == "test"
    assert zoo.verify().ok


def test_architecture_split(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "z")
    for k in (2, 3, 4):
        zoo.add([Member(f"{k}/{i}", weights={"a": torch.randn(k)}) for i in range(5)])
    zoo.split("architecture", {"train": 0.67, "test": 0.33})
    assert sorted(len(v) for v in parts_of(zoo, "layout").values()) == [1, 1, 1]


@pytest.mark.parametrize(("kind", "make", "told"), [
    ("hash", lambda z: z.add([Member("copy", weights=weights(0))]), "equal weights"),
    ("lineage", lambda z: z.add([Member("kid", parent="r0", step=5, weights=weights(99))]),
     "one was trained on from the other"),
    ("run", lambda z: z.add([Member("kid", {"run": 0}, step=5, weights=weights(99))]),
     "one training run"),
    ("image", lambda z: z.add([Member("kid", {"image": "i0"}, weights=weights(99))]),
     "views of one image"),
])
def test_a_leaking_split_is_refused(tmp_path: Path, kind: str, make: Any, told: str) -> None:
    zoo = Zoo.create(tmp_path / "z")
    zoo.add([Member(f"r{i}", {"run": i, "image": f"i{i}"}, weights=weights(i)) for i in range(8)])
    make(zoo)
    last = zoo.query().ids[-1]
    fine = {**dict.fromkeys(zoo.query().ids, "train"), "r5": "test"}
    zoo.set_split(fine)
    with pytest.raises(ZooError, match=told) as error:
        zoo.set_split({last: "test"})
    assert "'r0'" in str(error.value)
    assert last in str(error.value)
    assert zoo.row(last)["split"] == "train"  # nothing has changed
    # one that got in behind our back is found
    zoo.index.db.execute("UPDATE members SET split = 'test' WHERE id = ?", (last,))
    found = zoo.verify()
    assert not found.ok
    assert found.split_leaks[0].kind == kind


def test_equal_initialisations_do_not_leak(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "z")
    zoo.add([Member(f"r{i}/0", {"run": i}, step=0, weights=weights(0)) for i in range(10)])
    zoo.add([Member(f"r{i}", {"run": i}, parent=f"r{i}/0", step=9, weights=weights(i + 1))
             for i in range(10)])
    assert zoo.split("run").units == 10


def test_adding_to_the_wrong_side_is_refused(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "z")
    zoo.add([Member("a", weights=weights(1), split="train")])
    with pytest.raises(ZooError, match="this split leaks"):
        zoo.add([Member("b", weights=weights(1), split="test")])
    assert len(zoo) == 1
    assert zoo.add([Member("b", weights=weights(1), split="train")]) == 1


def test_siblings_of_an_absent_parent(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "z")
    zoo.add([Member(f"{p}{i}", parent=f"base-{p}", weights=weights(ord(p) * 10 + i))
             for p in "abcdef" for i in range(4)])
    assert zoo.split("run").units == 24
    assert zoo.split("lineage", {"train": 0.7, "test": 0.3}).counts == {"test": 8, "train": 16}
    assert all(len(v) == 1 for v in parts_of(zoo, "parent").values())


@pytest.mark.parametrize(("options", "told"), [
    ({"by": "colour"}, "known are run"),
    ({"by": "data"}, "needs the column config.data"),
    ({"by": "band", "column": "lr"}, "needs a range"),
    ({"by": "band", "column": "lr", "test": [5, 6]}, "0 of 10 members"),
    ({"by": "column"}, "needs a column"),
    ({"by": "column", "column": "lrr"}, "Did you mean"),
    ({"by": "column", "column": "opt"}, "would be empty"),
    ({"by": "run", "parts": {"train": 0.9, "test": 0.2}}, "add up to 1"),
    ({"by": "run", "parts": {"train": 1.0, "test": -1.0}}, "not positive"),
    ({"by": "run", "test": ["x"]}, "no column whose values"),
])
def test_impossible_splits_say_why(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    from small_zoos import small

    zoo = small(tmp_path / "z")
    with pytest.raises(ZooError, match=told):
        zoo.split(**options)
    assert len(zoo.query("split is null")) == 10


def test_unknown_member_in_an_own_split(tmp_path: Path) -> None:
    from small_zoos import small

    zoo = small(tmp_path / "z")
    with pytest.raises(ZooError, match="no member 'nobody'"):
        zoo.set_split({"m001": "train", "nobody": "test"})
    assert zoo.set_split({"m001": "train"}).counts == {"train": 1}
    assert zoo.stats()["splits"]["made"]["by"] == "own"


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
def test_components_match_a_slow_reference(pairs: list[tuple[int, int]]) -> None:
    from metanet.zoo.links import _components

    label = list(range(8))
    for _ in range(8):
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    found = _components(pairs, 8)
    for i in range(8):
        for j in range(8):
            assert (found[i] == found[j]) == (label[i] == label[j])
