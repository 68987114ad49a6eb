"""Ingest: arbitrary folders, tables of every kind, what is refused and why."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from metanet.zoo import Zoo, ingest
from metanet.zoo.frames import export_folder
from metanet.zoo.tables import read_table
from safetensors.torch import save_file
from small_zoos import small, weights
from torch import nn

from metanet import MetanetError, ZooError


def net(i: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(i)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).state_dict()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "nets"
    (path / "deep").mkdir(parents=True)
    for i in range(6):
        torch.save(net(i), path / f"net_{i}.pth")
    save_file(net(9), path / "deep" / "net.safetensors")
    (path / "broken.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    (path / "notes.md").write_text("no checkpoint")
    return path


def test_without_a_table_every_checkpoint_is_read(folder: Path, tmp_path: Path) -> None:
    done = ingest(folder, tmp_path / "z")
    assert done.added == 7
    assert list(done.refused) == ["broken.pt"]
    assert done.zoo.query().ids[:2] == ("nets/deep/net", "nets/net_0")
    assert all(torch.equal(v, net(9)[k]) for k, v in done.zoo.member("nets/deep/net").items())
    assert done.zoo.complete
    assert done.zoo.verify().ok
    assert str(tmp_path) not in (done.zoo.path / "zoo.json").read_text()


def rows(n: int = 6) -> list[dict[str, Any]]:
    return [{"file": f"net_{i}.pth", "repo": f"author/{i // 2}", "lr": 0.1 * i, "seed": i,
             "test_acc": 0.5 + i / 20, "val": {"loss": i / 7}, "good": i > 3} for i in range(n)]


def write(path: Path, table: str) -> Path:
    if table.endswith(".csv"):
        flat = [{**{k: v for k, v in row.items() if k != "val"}, "val.loss": row["val"]["loss"]}
                for row in rows()]
        with (path / table).open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(flat[0]))
            writer.writeheader()
            writer.writerows(flat)
    elif table.endswith(".jsonl"):
        (path / table).write_text("\n".join(map(json.dumps, rows())))
    else:
        (path / table).write_text(json.dumps(
            rows() if "list" in table else {row.pop("file"): row for row in rows()}))
    return path / table


@pytest.mark.parametrize("name", ["t.csv", "list.json", "map.json", "t.jsonl"])
def test_tables(folder: Path, tmp_path: Path, name: str) -> None:
    zoo = ingest(folder, tmp_path / "z", table=write(folder, name)).zoo
    assert len(zoo) == 6
    assert zoo.query("test_accuracy > 0.7 and config.good")["lr"] == pytest.approx([0.5])
    assert zoo.columns["config.seed"].kind == "int"
    assert zoo.columns["config.good"].kind == "bool"
    assert zoo.columns["metrics.val.loss"].kind == "float"
    assert zoo.query("primary").ids == ("nets/net_0", "nets/net_2", "nets/net_4")


def test_one_repository_stays_on_one_side(folder: Path, tmp_path: Path) -> None:
    zoo = ingest(folder, tmp_path / "z", table=write(folder, "list.json")).zoo
    assert zoo.split("run", {"train": 0.7, "test": 0.3}).units == 3
    with pytest.raises(ZooError, match="same repo"):
        zoo.set_split({"nets/net_0": "test", "nets/net_1": "train"})


def test_an_architecture_gives_the_space(folder: Path, tmp_path: Path) -> None:
    zoo = ingest(folder, tmp_path / "z", arch="mlp").zoo
    space = next(iter(zoo.spaces.values()))
    assert [group.size for group in space.groups] == [5]
    batch = next(zoo.batches(size=7)).weights
    assert torch.equal(batch.unstack()[0]["0.weight"], net(9)["0.weight"])


def test_ingest_goes_on_where_it_was_killed(folder: Path, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    from metanet.zoo import ingest as _  # noqa: F401
    module = __import__("sys").modules["metanet.zoo.ingest"]
    monkeypatch.setattr(module, "_CHUNK", 2)
    table = write(folder, "list.json")
    whole = ingest(folder, tmp_path / "whole", table=table).zoo
    calls = []
    original = Zoo.add

    def killed(self: Zoo, members: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, members)

    monkeypatch.setattr(Zoo, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(folder, tmp_path / "part", table=table)
    assert len(Zoo.open(tmp_path / "part")) == 4
    done = ingest(folder, tmp_path / "part", table=table)
    assert done.added == 2
    assert done.zoo.digest() == whole.digest()
    with pytest.raises(ZooError, match="another recipe"):
        ingest(folder, tmp_path / "part")
    assert ingest(folder, tmp_path / "part", force=True).added == 7


@pytest.mark.parametrize(("row", "told"), [
    ({"file": "../secret.pth"}, "leads out of the folder"),
    ({"file": "/etc/passwd"}, "leads out of the folder"),
    ({"file": "gone.pth"}, "is not there"),
    ({"file": "net_0.pth", "sha256": "0" * 64}, "sha256 differs"),
    ({"file": "link.pth"}, "link that leads out"),
])
def test_refused_files(folder: Path, tmp_path: Path, row: dict[str, Any], told: str) -> None:
    torch.save(net(1), tmp_path / "secret.pth")
    (folder / "link.pth").symlink_to(tmp_path / "secret.pth")
    table = tmp_path / "t.json"
    table.write_text(json.dumps([row, {"file": "net_5.pth"}]))
    done = ingest(folder, tmp_path / "z", table=table)
    assert done.added == 1
    assert told in done.refused[row["file"]]


@pytest.mark.parametrize(("name", "text", "told"), [
    ("t.json", "[1, 2]", "neither a list of maps"),
    ("t.json", "{", "cannot be read as a table"),
    ("t.csv", "colour,size\nred,1\n", "no column names the files"),
    ("t.json", "[]", "no column names the files"),
    ("t.json", '[{"file": "net_0.pth"}, {"file": "net_0.pth"}]', "listed twice"),
])
def test_bad_tables(folder: Path, tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ZooError, match=told):
        ingest(folder, tmp_path / "z", table=tmp_path / name)


def test_an_empty_folder_makes_no_zoo(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    with pytest.raises(MetanetError, match="nothing could be ingested"):
        ingest(tmp_path / "e", tmp_path / "z")
    with pytest.raises(ZooError, match="is no folder"):
        ingest(tmp_path / "nowhere", tmp_path / "z")


def test_metrics_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,alpha,accuracy,config.score\na.pt,1,2,3\n")
    assert set(read_table(tmp_path / "t.csv").rows[0][1]) == {
        "config.alpha", "metrics.accuracy", "config.score"}
    assert set(read_table(tmp_path / "t.csv", ["alpha"]).rows[0][1]) == {
        "metrics.alpha", "config.accuracy", "config.score"}


def test_export_comes_back(tmp_path: Path) -> None:
    zoo = small(tmp_path / "z")
    zoo.split("run", {"train": 0.5, "test": 0.5})
    assert export_folder(zoo.query("lr < 0.05"), tmp_path / "out") == 5
    again = ingest(tmp_path / "out", tmp_path / "back").zoo
    assert again.query().ids == zoo.query("lr < 0.05").ids
    assert torch.equal(again.member("m003")["0.bias"], weights(3)["0.bias"])
    assert {**again.row("m003"), "shard": 0} == {**zoo.row("m003"), "shard": 0}
    with pytest.raises(ZooError, match="is not empty"):
        export_folder(zoo.query(), tmp_path / "out")


def test_hostile_ids_make_harmless_file_names(tmp_path: Path) -> None:
    from metanet.zoo import Member

    zoo = Zoo.create(tmp_path / "z")
    names = ["../../up", "/etc/passwd", "CON", "a b", "A B", "..", "é/é"]
    zoo.add([Member(name, weights=weights(i)) for i, name in enumerate(names)])
    export_folder(zoo.query(), tmp_path / "out")
    inside = list((tmp_path / "out").rglob("*.safetensors"))
    assert len(inside) == len(names)
    assert all(p.parent == tmp_path / "out" / "weights" for p in inside)


@pytest.mark.parametrize(("family", "members", "refused", "primary"), [
    ("wild_mnist_cnn21k", 24, 0, 21), ("wild_mnist_lenet45k", 23, 0, 23),
    ("sb3_policies", 37, 0, 23), ("burn_fixtures", 57, 7, 51)])
def test_the_real_families(shared_data: Path, tmp_path: Path, family: str, members: int,
                           refused: int, primary: int) -> None:
    done = ingest(shared_data / family, tmp_path / "z")
    assert (len(done.zoo), len(done.refused)) == (members, refused)
    assert len(done.zoo.query("primary")) == primary
    assert done.zoo.verify().ok
    if family.startswith("wild"):
        told = {row["file"]: row["test_acc_best"] for row in
                json.loads((shared_data / family / "manifest.json").read_text())}
        found = done.zoo.query()["test_accuracy"]
        assert found == pytest.approx([told[f"net_{i:02d}.pth"] for i in range(members)])
        repos = [row["config.repo"] for row in done.zoo.query("primary").rows()]
        assert len(repos) == len(set(repos)) == len(set(done.zoo.query()["repo"]))
