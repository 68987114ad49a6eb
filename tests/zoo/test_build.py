"""Builds: bytes that depend on recipe and seed alone, resumed after any kill."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from metanet.zoo import Zoo, data, make, nets
from metanet.zoo.build import Progress, build
from metanet.zoo.recipe import INRRecipe, load, names, parse

from metanet import ZooError

INR = parse("""
about: tiny
factory: inr
n: 10
views: 2
data: {name: digits}
model: {sizes: [2, 6, 6, 1]}
fit: {steps: 40, lr: 0.01, stop_psnr: 14, check: 10}
keep_start: 4
chunk: 2
commit: 4
""", "tiny")
NET = parse("""
about: tiny
factory: net
n: 6
arch: mlp
data: {name: digits}
checkpoints: [0, 0.5, 1]
train_images: 50
commit: 2
members:
  lr: {log_uniform: [0.01, 0.1]}
  steps: {log_integer: [5, 30]}
  optimizer: {choice: [sgd, adam, rmsprop]}
  width: {choice: [4, 6]}
  depth: 1
  dropout: 0.2
  label_noise: 0.1
  fraction: 0.2
""", "tiny-net")


def content(folder: Path) -> dict[str, str]:
    """Hash of every file but the index, whose free pages may differ, and of what it says."""
    found = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
             for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "index.sqlite"}
    return {**found, "index": Zoo.open(folder).digest()}


@pytest.mark.parametrize("recipe", [INR, NET], ids=["inr", "net"])
def test_equal_recipe_and_seed_give_equal_bytes(recipe, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    build(recipe, tmp_path / "a", workers=1)
    torch.manual_seed(2)
    build(recipe, tmp_path / "b", workers=2)
    build(recipe, tmp_path / "c", workers=1, seed=7)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    one, other = Zoo.open(tmp_path / "a"), Zoo.open(tmp_path / "c")
    assert one.query().ids == other.query().ids or recipe is NET
    assert one.query()["hash"].tolist() != other.query()["hash"].tolist()


def test_members_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = build(INR, tmp_path / "few", n=4, workers=1)
    many = build(INR, tmp_path / "many", workers=1)
    for name in few.query().ids:
        for key, value in few.member(name).items():
            assert torch.equal(value, many.member(name)[key])


def test_what_a_zoo_of_coordinate_networks_holds(tmp_path: Path) -> None:
    zoo = build(INR, tmp_path / "zoo", workers=1)
    assert zoo.complete and len(zoo) == 10 + 3  # runs 0, 4 and 8 with their starts
    assert zoo.card.labels == ("config.label",) and zoo.verify().ok
    images = data.load("digits")
    row = zoo.row(f"{images.ids[2]}/1")
    assert row["config.image"] == images.ids[2] and row["config.label"] == images.y[2]
    assert row["config.init"] == "independent" and row["space"] in zoo.spaces
    start = zoo.row(f"{images.ids[2]}/0@0")
    assert start["step"] == 0 and zoo.row(f"{images.ids[2]}/0")["parent"] == start["id"]
    assert len(set(zoo.query("step > 0")["step"])) > 1  # each stopped by itself
    assert len(set(zoo.query("step = 0")["hash"])) == 3
    weights = zoo.member(f"{images.ids[2]}/1")
    picture = make.inr_images(INR, None, [2])[0].reshape(-1, 1)
    module = nets.Coordinates((2, 6, 6, 1))
    module.load_state_dict(weights)
    error = (module(make.fit_inr.grid(8, 8)) - picture).square().mean().item()
    assert row["metrics.mse"] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("kind", ["shared", "meta"])
def test_common_starts(kind: str, tmp_path: Path) -> None:
    assert isinstance(INR, INRRecipe)
    recipe = replace(INR, init=replace(INR.init, kind=kind, rounds=2), keep_start=1)
    zoo = build(recipe, tmp_path / "zoo", n=4, workers=1)
    assert len(set(zoo.query("step = 0")["hash"])) == 1
    assert set(zoo.query()["config.init"]) == {kind}


def test_what_a_zoo_of_classifiers_holds(tmp_path: Path) -> None:
    zoo = build(NET, tmp_path / "zoo", workers=1)
    assert len(zoo) == 18 and len(zoo.layouts) == 2 and zoo.verify().ok
    last = zoo.row("000003")
    assert last["parent"] == "000003@0.5" and zoo.row("000003@0.5")["parent"] == "000003@0"
    assert last["step"] == last["config.steps"] and 5 <= last["step"] <= 30
    assert zoo.row("000003@0")["step"] == 0 and last["config.images"] == round(0.2 * 1438)
    assert len(set(zoo.query()["config.lr"])) == 6
    assert all(0 <= a <= 1 for a in zoo.query()["metrics.test_accuracy"])


def test_diverged_members_are_recorded(tmp_path: Path) -> None:
    recipe = parse("about: x\nfactory: net\nn: 1\narch: mlp\ndata: {name: digits}\n"
                   "members: {lr: 1.0e+6, steps: 60, optimizer: sgd, weight_decay: 1000, "
                   "init: kaiming}\n")
    row = build(recipe, tmp_path / "zoo", workers=1).row("000000")
    assert row["metrics.diverged"] is True and row.get("metrics.test_accuracy") is None


def test_images_are_shuffled_and_chunks_hold_several_classes() -> None:
    labels = make.dataset("digits", "train", None).y
    assert all(len(set(labels[at:at + 16])) >= 4 for at in range(0, 320, 16))


def test_near_duplicate_images_share_a_group(tmp_path: Path) -> None:
    zoo = build(INR, tmp_path / "zoo", workers=1)
    for image, group in zip(zoo.query()["config.image"], zoo.query()["config.image_group"],
                            strict=True):
        assert group in set(zoo.query()["config.image"]) and image.startswith("digits/train/")


def test_progress_and_a_second_call(tmp_path: Path) -> None:
    seen: list[Progress] = []
    build(INR, tmp_path / "zoo", workers=1, progress=seen.append)
    assert [p.done for p in seen] == [2, 4, 6, 8, 10]
    assert seen[-1].eta == 0 and all(p.rate and p.rate > 0 for p in seen)
    before = content(tmp_path / "zoo")
    build(INR, tmp_path / "zoo", workers=1, progress=seen.append)
    assert len(seen) == 5 and content(tmp_path / "zoo") == before


def test_what_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = len(build(INR, tmp_path / "zoo", workers=1, n=2))
    with pytest.raises(ZooError, match=r"another recipe .*--force"):
        build(INR, tmp_path / "zoo", workers=1, n=4)
    assert len(Zoo.open(tmp_path / "zoo")) == begun
    assert len(build(INR, tmp_path / "zoo", workers=1, n=4, force=True)) > begun
    with pytest.raises(ZooError, match="1438 images and the recipe makes 2 networks of each"):
        build(INR, tmp_path / "more", workers=1, n=2877)
    with pytest.raises(ZooError, match="n must be"):
        build(INR, tmp_path / "none", n=0)
    monkeypatch.delenv("METANET_DATA", raising=False)
    with pytest.raises(ZooError, match="METANET_DATA"):
        build("inr-mnist", tmp_path / "mnist")
    assert not (tmp_path / "mnist").exists()


def test_a_changed_zoo_is_not_gone_on_with(tmp_path: Path) -> None:
    zoo = build(INR, tmp_path / "zoo", workers=1)
    zoo.set_card(complete=False)
    with zoo.index.transaction() as db:
        db.execute("UPDATE members SET id = 'x' WHERE id = ?", (zoo.query().ids[0],))
    with pytest.raises(ZooError, match="it was changed"):
        build(INR, tmp_path / "zoo", workers=1)


def killed(recipe, folder: Path, kills: int, workers: int) -> int:  # type: ignore[no-untyped-def]
    """Build with kills at random moments; returns how many hit a build under way."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metanet.zoo.make"])
    chance, hits = random.Random(0), 0
    for turn in range(200):
        process = context.Process(target=build, args=(recipe, str(folder)),
                                  kwargs={"workers": workers})
        process.start()
        if turn < kills:
            end = time.monotonic() + chance.uniform(0, 1.5)
            while time.monotonic() < end and process.is_alive():
                time.sleep(0.002)
            hits += process.is_alive()
            process.kill()
        process.join(60)
        if (folder / "zoo.json").exists():
            assert Zoo.open(folder).verify(leaks=False).ok
            if Zoo.open(folder).complete and turn >= kills:
                return hits
    raise AssertionError("the build never ended")


@pytest.mark.parametrize(("kills", "workers"), [
    (4, 1), pytest.param(20, 1, marks=pytest.mark.slow),
    pytest.param(6, 2, marks=pytest.mark.slow)])
def test_killed_builds_end_with_the_same_bytes(kills: int, workers: int, tmp_path: Path) -> None:
    assert isinstance(INR, INRRecipe)
    slow = replace(INR, fit=replace(INR.fit, steps=400, stop_psnr=None), n=kills * 20)
    build(slow, tmp_path / "whole", workers=1)
    hits = killed(slow, tmp_path / "killed", kills, workers)
    assert hits >= kills // 2
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_leak_gate_passes(tmp_path: Path) -> None:
    assert isinstance(INR, INRRecipe)
    recipe = replace(INR, keep_start=2, commit=32, chunk=16)
    found = build(recipe, tmp_path / "zoo", n=240, workers=1).verify()
    assert found.ok, str(found)
    assert {check.evidence for check in found.gate.checks} >= {"step-0 weights"}


def test_wild_families_have_the_tensors_of_the_wild(tmp_path: Path, shared_data: Path) -> None:
    import metanet

    for name, wild in (("wild-cnn21k", "wild_mnist_cnn21k"),
                       ("wild-lenet45k", "wild_mnist_lenet45k")):
        (tmp_path / f"{name}-short.yaml").write_text(f"base: {name}\nmembers: {{steps: 2}}\n")
        zoo = build(tmp_path / f"{name}-short.yaml", tmp_path / name, n=1, workers=1,
                    data=shared_data)
        theirs = metanet.open(shared_data / wild / "net_00.pth")
        ours = zoo.member("000000")
        assert {n: tuple(theirs.info(n).shape) for n in theirs.names} == {
            n: tuple(t.shape) for n, t in ours.items()}
        assert zoo.card.provenance["data"]["name"] == "mnist"


def test_default_sizes_fit_one_sitting() -> None:
    """Steps per run times runs, at the slow rates of a busy core, stay below 2.5 hours on two."""
    cost = {"small-cnn": 8e-3, "mlp": 1e-3, "mnist-cnn21k": 20e-3, "mnist-lenet45k": 20e-3}
    for name in names():
        found = load(name)
        if isinstance(found, INRRecipe):
            seconds = found.n * found.fit.steps * 0.6e-3
        else:
            steps = [make.drawn(found, run)["steps"] for run in range(0, found.n, 7)]
            seconds = found.n * (sum(steps) / len(steps) * cost[found.arch] + 3)
        assert seconds / 2 < 2.5 * 3600, name
