"""Pull and push with the real client and a Hub on loopback, in good weather and in bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, FakeHub, served
from metanet.zoo import Zoo, hub_files, pull, push
from safetensors.torch import load_file, save
from small_zoos import member, small, weights

from metanet.errors import CheckpointError, HubError, ZooError

# The client's own way to upload a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with served(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def three_shards(path: Path) -> Zoo:
    """30 members in three shards, of two architectures, with a licence and a split."""
    zoo = small(path, 10, license="cc-by-4.0", provenance={"by": "`us`", "url": "<b>x</b>"},
                recipe={"about": "```\nfence"})
    zoo.add([member(i) for i in range(10, 20)])
    shapes = {"w": (3, 3), "b": (3,)}
    zoo.add([type(member(i))(f"other{i}", {"lr": 0.5, "opt": "adam"}, {"test_accuracy": 0.1},
                             weights=weights(i, shapes)) for i in range(10)])
    zoo.set_split({f"m{i:03d}": "test" if i % 4 == 0 else "train" for i in range(20)})
    zoo.finish()
    return zoo


def on_the_hub(fake: FakeHub, zoo: Zoo, name: str = "org/zoo") -> str:
    files = {p.relative_to(zoo.path).as_posix(): p.read_bytes()
             for p in sorted(zoo.path.rglob("*")) if p.is_file()}
    return fake.add(name, files)


def left_over(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


# ------------------------------------------------------------ there and back


def test_there_and_back(fake: FakeHub, logged_in: None, tmp_path: Path) -> None:
    zoo = three_shards(tmp_path / "zoo")
    uri = push(zoo, "org/zoo", private=True)
    assert fake.repos["models", "org/zoo"].private
    done = pull("hf://org/zoo", tmp_path / "back")
    assert done.source == uri == f"hf://org/zoo@{done.commit}"
    assert (done.members, done.license, done.already) == (30, "cc-by-4.0", False)
    back = Zoo.open(tmp_path / "back")
    assert back.digest() == zoo.digest() and back.complete
    assert back.verify().ok
    record = json.loads((tmp_path / "back" / "source.json").read_text())
    assert record["commit"] == done.commit and record["license"] == "cc-by-4.0"
    assert set(record["files"]) == {"README.md", "zoo.json", "index.sqlite",
                                    *(f"shards/{i:06d}.safetensors" for i in range(3))}
    assert not left_over(tmp_path)
    asked = len(fake.asked)
    assert pull(uri, tmp_path / "back").already and len(fake.asked) == asked


def test_a_second_push_sends_what_is_new(fake: FakeHub, logged_in: None, tmp_path: Path) -> None:
    zoo = three_shards(tmp_path / "zoo")
    first = push(zoo, "org/zoo", kind="dataset", revision="v1")
    assert first.startswith("hf://datasets/org/zoo@")
    before = set(fake.blobs)
    zoo.add([member(99)])
    second = push(zoo.path, "org/zoo", kind="dataset", revision="v1")
    assert first != second
    assert len(set(fake.blobs) - before) == 3  # a shard, the index, the card
    assert len(Zoo.open(pull(first, tmp_path / "old").out)) == 30
    assert len(Zoo.open(pull("hf://datasets/org/zoo@v1", tmp_path / "new").out)) == 31


def test_a_push_takes_away_shards_that_are_gone(fake: FakeHub, logged_in: None, tmp_path: Path
                                                ) -> None:
    push(three_shards(tmp_path / "zoo"), "org/zoo")
    push(small(tmp_path / "small", 3), "org/zoo")
    names = set(fake.files("org/zoo"))
    assert names == {".gitattributes", "README.md", "zoo.json", "index.sqlite",
                     "shards/000000.safetensors"}


def test_the_card(fake: FakeHub, logged_in: None, tmp_path: Path) -> None:
    import yaml

    push(three_shards(tmp_path / "zoo"), "org/zoo")
    card = fake.files("org/zoo")["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0" and "metanet" in front["tags"]
    assert "30 networks in 3 shards" in card and "| test | 5 |" in card
    assert "````json" in card and '"by": "`us`"' in card  # provenance and recipe stay in a block
    push(small(tmp_path / "own", 2, license="Our <b>Own</b>"), "org/own")
    card = fake.files("org/own")["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    assert "<b>" not in card.split("## Provenance")[0]


def test_a_damaged_zoo_is_not_pushed(fake: FakeHub, logged_in: None, tmp_path: Path) -> None:
    zoo = three_shards(tmp_path / "zoo")
    path = zoo.path / "shards" / "000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ZooError, match="nothing was uploaded"):
        push(zoo, "org/zoo")
    assert not fake.asked
    with pytest.raises(ZooError, match="revision"):
        push(zoo, "org/zoo@v1")


def test_a_push_without_a_token(fake: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="log in"):
        push(small(tmp_path / "zoo", 2), "org/zoo")
    assert not fake.repos


# ------------------------------------------------------------ parts


def test_members_that_fulfil_a_condition(fake: FakeHub, tmp_path: Path) -> None:
    zoo = three_shards(tmp_path / "zoo")
    on_the_hub(fake, zoo)
    done = pull("hf://org/zoo", tmp_path / "some", where="config_lr > 0.15 and split = 'train'")
    back = Zoo.open(done.out)
    ids = zoo.query("config_lr > 0.15 and split = 'train'").ids
    assert back.query().ids == ids and done.members == len(ids) == 3
    assert torch.equal(back.member(ids[0])["0.weight"], zoo.member(ids[0])["0.weight"])
    assert [row["split"] for row in back.query().rows()] == ["train"] * 3
    assert not back.complete and back.card.provenance["pulled"]["source"] == done.source
    assert back.verify(leaks=False).ok
    # The other shards stayed where they are.
    assert fake.gets("000001.safetensors") and not fake.gets("000000.safetensors")
    with pytest.raises(ZooError, match="no member"):
        pull("hf://org/zoo", tmp_path / "none", where="config_lr > 9")
    with pytest.raises(ZooError, match="exclude"):
        pull("hf://org/zoo", tmp_path / "none", where="lr > 0", patterns=["*"])


def test_patterns_and_one_file(fake: FakeHub, tmp_path: Path) -> None:
    zoo = three_shards(tmp_path / "zoo")
    on_the_hub(fake, zoo)
    done = pull("hf://org/zoo", tmp_path / "part", patterns=["shards/*1.safe*", "*.json"])
    assert done.members is None and done.files == 2
    assert {p.name for p in done.out.rglob("*") if p.is_file()} == {
        "000001.safetensors", "zoo.json", "source.json"}
    one = pull("hf://org/zoo/shards/000002.safetensors", tmp_path / "one.safetensors")
    assert one.out.read_bytes() == (zoo.path / "shards" / "000002.safetensors").read_bytes()
    assert json.loads((tmp_path / "one.safetensors.source.json").read_text())["commit"]
    with pytest.raises(HubError, match="no file fits"):
        pull("hf://org/zoo", tmp_path / "none", patterns=["*.nothing"])
    with pytest.raises(HubError, match="no such file"):
        pull("hf://org/zoo/absent.bin", tmp_path / "none")
    assert not left_over(tmp_path)


def test_one_tensor_by_range(fake: FakeHub, tmp_path: Path) -> None:
    big = {"big": torch.randn(500, 500), "small.weight": torch.randn(10, 10)}
    sha = fake.add("org/net", {"model.safetensors": save(big)})
    done = pull("hf://org/net", tmp_path / "t.safetensors", tensors=["small.*"])
    assert torch.equal(load_file(done.out)["small.weight"], big["small.weight"])
    assert set(load_file(done.out)) == {"small.weight"} and done.commit == sha
    assert fake.served < big["big"].nbytes / 4
    with pytest.raises(ZooError, match="no tensor fits"):
        pull("hf://org/net", tmp_path / "u.safetensors", tensors=["x"])


def test_a_repository_that_is_no_zoo(fake: FakeHub, tmp_path: Path) -> None:
    fake.add("org/net", {"README.md": b"---\nlicense: mit\n---\nhello", "model.safetensors": b"x",
                         "sub/dir/a.txt": b"a", "empty.txt": b""}, kind="datasets")
    seen: list[tuple[int, int]] = []
    done = pull("hf://datasets/org/net", tmp_path / "net",
                progress=lambda *at: seen.append(at))
    assert (done.license, done.files, done.members) == ("mit", 4, None)
    assert (tmp_path / "net" / "sub" / "dir" / "a.txt").read_bytes() == b"a"
    assert seen[-1][0] == seen[-1][1] == done.bytes
    with pytest.raises(ZooError, match="is no zoo"):
        pull("hf://datasets/org/net", tmp_path / "x", zoo=True)


def test_what_stands_there_is_not_overwritten(fake: FakeHub, tmp_path: Path) -> None:
    fake.add("org/net", {"a.txt": b"1"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    for force in (False, True):
        with pytest.raises(ZooError, match="another place"):
            pull("hf://org/net", tmp_path / "mine", force=force)
    pull("hf://org/net", tmp_path / "net")
    fake.add("org/net", {"b.txt": b"2"})
    with pytest.raises(ZooError, match="force"):
        pull("hf://org/net", tmp_path / "net")
    pull("hf://org/net", tmp_path / "net", force=True)
    assert {p.name for p in (tmp_path / "net").iterdir()} == {"b.txt", "source.json"}
    assert not left_over(tmp_path)


# ------------------------------------------------------------ bad weather


def test_a_dropped_connection_goes_on(fake: FakeHub, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # of 10 MB
    zoo = three_shards(tmp_path / "zoo")
    on_the_hub(fake, zoo)
    fake.drop["shards/000001.safetensors"] = [500]
    assert pull("hf://org/zoo", tmp_path / "back").members == 30
    # The second answer starts where the first broke off.
    assert fake.gets("000001.safetensors") == [None, "bytes=500-"]


def test_a_pull_that_failed_goes_on_where_it_stopped(fake: FakeHub, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    zoo = three_shards(tmp_path / "zoo")
    on_the_hub(fake, zoo)
    fake.drop["shards/000002.safetensors"] = [0] * 99
    with pytest.raises(HubError, match="run the same again"):
        pull("hf://org/zoo", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    fake.drop.clear()
    before = len(fake.gets("000000.safetensors"))
    assert pull("hf://org/zoo", tmp_path / "back").members == 30
    assert before == len(fake.gets("000000.safetensors")) == 1
    assert not left_over(tmp_path)


def test_a_killed_pull_goes_on(fake: FakeHub, tmp_path: Path) -> None:
    zoo = three_shards(tmp_path / "zoo")
    on_the_hub(fake, zoo)
    code = ("import os, sys, metanet.zoo as z\n"
            "from metanet.zoo import hub\n"
            "hub._compare = lambda *_: os._exit(9)\n"  # all is here, nothing is in its place
            f"z.pull('hf://org/zoo', {str(tmp_path / 'back')!r})\n")
    done = subprocess.run([sys.executable, "-c", code], env=environment(fake, tmp_path),
                          capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert not (tmp_path / "back").exists() and len(left_over(tmp_path)) == 1
    before = len(fake.gets(".safetensors"))
    assert pull("hf://org/zoo", tmp_path / "back").members == 30
    assert len(fake.gets(".safetensors")) == before == 3


@pytest.mark.parametrize("name", ["shards/000001.safetensors", "zoo.json", "index.sqlite"])
def test_wrong_bytes_are_refused(fake: FakeHub, tmp_path: Path, name: str) -> None:
    on_the_hub(fake, three_shards(tmp_path / "zoo"))
    fake.corrupt.add(name)
    with pytest.raises(HubError, match="is not what the Hub lists"):
        pull("hf://org/zoo", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    fake.corrupt.clear()
    assert pull("hf://org/zoo", tmp_path / "back").members == 30


def test_a_shard_that_the_index_does_not_mean(fake: FakeHub, tmp_path: Path) -> None:
    zoo = three_shards(tmp_path / "zoo")
    (zoo.path / "shards" / "000001.safetensors").write_bytes(save({"evil": torch.ones(4)}))
    on_the_hub(fake, zoo)
    with pytest.raises(ZooError, match="is not the shard that the index"):
        pull("hf://org/zoo", tmp_path / "back")
    (zoo.path / "shards" / "000001.safetensors").unlink()
    on_the_hub(fake, zoo)
    with pytest.raises(ZooError, match="incomplete"):
        pull("hf://org/zoo", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_strangers_beside_a_zoo_stay_there(fake: FakeHub, tmp_path: Path) -> None:
    zoo = small(tmp_path / "zoo", 3)
    (zoo.path / "setup.py").write_text("boom")
    on_the_hub(fake, zoo)
    assert not (pull("hf://org/zoo", tmp_path / "back").out / "setup.py").exists()


HOSTILE = ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "C:evil", "a\nb", "a\x1b[31m",
           "a\u202eb", ".cache/huggingface/x", "", "a//b", "./a", "a/.", "con", "lpt1.txt", "a ",
           "x" * 501, "a/trailing."]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(fake: FakeHub, tmp_path: Path, name: str) -> None:
    fake.add("org/net", {"a.txt": b"1", "b.txt": b"2"})
    fake.listed["b.txt"] = name
    with pytest.raises((CheckpointError, HubError)) as error:
        pull("hf://org/net", tmp_path / "deep" / "net")
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "deep" / "net").exists() and not (tmp_path / "evil").exists()
    assert not fake.gets(".txt")


@pytest.mark.parametrize("name", ["a", "a/b.c", ".gitattributes", "ä-ö/x_1.safetensors", "a..b"])
def test_plain_names_pass(name: str) -> None:
    assert hub_files.check_name(name, "here") == name


def test_a_private_zoo_without_a_token(fake: FakeHub, tmp_path: Path) -> None:
    fake.add("org/zoo", {"zoo.json": b"{}"}, private=True)
    with pytest.raises(HubError, match="HF_TOKEN"):
        pull("hf://org/zoo", tmp_path / "back")
    assert not (tmp_path / "back").exists() and not left_over(tmp_path)


def test_offline(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, snapshot_download

    zoo = three_shards(tmp_path / "zoo")
    on_the_hub(fake, zoo)
    pull("hf://org/zoo", tmp_path / "there")
    fake.add("org/cached", {"a.txt": b"1"})
    snapshot_download("org/cached")
    asked = len(fake.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull("hf://org/zoo", tmp_path / "there").already
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        pull("hf://org/zoo", tmp_path / "new")
    assert pull("hf://org/cached", tmp_path / "cached").files == 1
    assert len(fake.asked) == asked


# ------------------------------------------------------------ the command


def environment(fake: FakeHub, cache: Path) -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return {**keep, "HF_ENDPOINT": fake.endpoint, "HF_HOME": str(cache / "home"),
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost"}


def command(fake: FakeHub, tmp_path: Path, *words: str, **more: str
            ) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "metanet", *words], capture_output=True,
                          text=True, check=False, env={**environment(fake, tmp_path), **more})


def test_commands(fake: FakeHub, tmp_path: Path) -> None:
    three_shards(tmp_path / "zoo")
    done = command(fake, tmp_path, "zoo", "push", str(tmp_path / "zoo"), "org/zoo", "--private",
                   HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    uri = done.stdout.strip()
    out = str(tmp_path / "back")
    refused = command(fake, tmp_path, "zoo", "pull", "hf://org/zoo", "-o", out)
    assert refused.returncode == 4 and "HF_TOKEN" in refused.stderr
    done = command(fake, tmp_path, "zoo", "pull", "hf://org/zoo", "-o", out, "--json",
                   HF_TOKEN=TOKEN)
    told = json.loads(done.stdout)
    assert (told["members"], told["source"], told["already"]) == (30, uri, False)
    assert "licence cc-by-4.0" in done.stderr
