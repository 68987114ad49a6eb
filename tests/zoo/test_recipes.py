"""Recipes: the shipped ones, their hashes, and what a wrong one is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from metanet.zoo import recipe as recipes
from metanet.zoo.draw import Draw
from metanet.zoo.make import drawn
from metanet.zoo.recipe import INRRecipe, NetRecipe, key_of, load, parse

from metanet import ZooError

INR = "about: x\nfactory: inr\nn: 3\ndata: {name: digits}\n"
NET = "about: x\nfactory: net\nn: 3\narch: mlp\ndata: {name: digits}\n"
MEMBERS = "members: {lr: 0.1, steps: 3}\n"


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_load(name: str) -> None:
    found = load(name)
    assert found.name == name and found.about.endswith(".") and found.n > 0
    if isinstance(found, INRRecipe) and found.init.kind != "independent":
        assert found.init.kind in name, "an init that all share is named in the zoo"


def test_the_promised_recipes_are_there() -> None:
    assert {"inr-digits", "inr-mnist", "inr-mnist-siren", "inr-fashion", "inr-cifar", "small-cnn",
            "wild-cnn21k", "wild-lenet45k", "seed-only", "mlp-digits", "merge-mnist-mlp"
            } <= set(recipes.names())


def test_the_recipe_of_dwsnets() -> None:
    found = load("inr-mnist")
    assert isinstance(found, INRRecipe)
    assert (found.model.sizes, found.model.w0, found.model.shift) == ((2, 32, 32, 1), 30, 0.5)
    assert (found.fit.lr, found.fit.steps, found.fit.stop_psnr) == (5e-4, 1000, 40)
    assert load("inr-mnist-siren").init.scheme == "siren"  # type: ignore[union-attr]


def test_equal_recipes_have_equal_keys_whatever_n() -> None:
    one = parse(INR)
    assert key_of(one) == key_of(replace(one, n=100, about="y")) == key_of(parse(INR, "other"))
    assert key_of(one) != key_of(replace(one, seed=1))
    assert len({key_of(load(name)) for name in recipes.names()}) == len(recipes.names())


@pytest.mark.parametrize(("text", "words"), [
    (INR + "fti: {}\n", r"line 5: unknown key 'fti'; did you mean 'fit'"),
    (INR + "fit:\n  steps: 3\n  lrate: 1\n", r"line 7: unknown key 'fit.lrate'"),
    (INR + "fit: {steps: many}\n", r"line 5: fit.steps must be of type int, not 'many'"),
    (INR + "fit: {betas: [0.9]}\n", "must have 2 values"),
    (INR + "model: {sizes: 3}\n", "must be a list"),
    (INR + "model: {activation: cosine}\n", "model.activation must be one of sine, relu"),
    (INR + "model: {sizes: [2, 8, 3]}\n", "end with 1"),
    (INR + "init: {kind: learned}\n", "init.kind must be one of"),
    (INR + "n: 4\n", "line 5: key 'n' occurs twice"),
    (INR + "commit: 9\n", "multiple of chunk"),
    (INR + "name: me\n", "that of its file"),
    (INR.replace("digits", "letters"), "data.name 'letters'"),
    ("n: 3\n", "'factory' is missing"),
    ("factory: gan\n", "line 1: factory must be one of inr, net"),
    ("factory: inr\nabout: x\nn: 3\n", "key 'data' is missing"),
    ("- 1\n", "a map of keys"),
    ("a: [\n", "is not YAML"),
    ("a: !!python/object/apply:os.system [ls]\n", "'factory' is missing"),
    ("base: no-such\n", "line 1: no recipe 'no-such'"),
    ("base: ../../etc/passwd.yaml\n", "no recipe"),
    (NET, "key 'members' is missing"),
    (NET + "members: {steps: 3}\n", "key 'members.lr' is missing"),
    (NET + "members: {lr: {log_uniform: [0, 1]}, steps: 3}\n", "line 6.*above 0"),
    (NET + "members: {lr: {uniform: [2, 1]}, steps: 3}\n", "lowest ≤ highest"),
    (NET + "members: {lr: {chance: [2, 1]}, steps: 3}\n", "no draw 'chance'"),
    (NET + "members: {lr: 0.1, steps: {uniform: [1, 9]}}\n", "members.steps must be whole"),
    (NET + "members: {lr: 0.1, steps: 3, optimizer: adan}\n", "members.optimizer must be one of"),
    (NET + "members: {lr: -1, steps: 3}\n", "members.lr must be from 0"),
    (NET + MEMBERS + "checkpoints: [0.5, 0.2, 1]\n", "checkpoints must grow"),
    (NET + MEMBERS + "checkpoints: [0]\n", "checkpoints must grow"),
])
def test_what_a_wrong_recipe_is_told(text: str, words: str) -> None:
    with pytest.raises(ZooError, match=words):
        parse(text)


def test_no_such_recipe() -> None:
    with pytest.raises(ZooError, match="no recipe 'inr'; there are inr-cifar"):
        load("inr")
    with pytest.raises(ZooError, match="cannot be read"):
        load("no/such/file.yaml")


def test_a_file_on_top_of_a_shipped_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: wild-lenet45k\nmembers: {steps: 7}\n", encoding="utf-8")
    found, base = load(path), load("wild-lenet45k")
    assert isinstance(found, NetRecipe) and isinstance(base, NetRecipe)
    assert found.name == "mine" and found.members.steps.values == (7,)
    assert replace(found, name=base.name, members=base.members) == base
    assert replace(found.members, steps=base.members.steps) == base.members


def test_draws_stay_in_range_and_do_not_depend_on_each_other() -> None:
    rng = np.random.default_rng(0)
    draws = {"choice": Draw("choice", ("a", "b")), "integer": Draw("integer", (1, 3)),
             "log_integer": Draw("log_integer", (1, 100)), "uniform": Draw("uniform", (2.0, 3.0)),
             "log_uniform": Draw("log_uniform", (0.1, 10.0))}
    found = {name: [draw(rng) for _ in range(400)] for name, draw in draws.items()}
    assert set(found["choice"]) == {"a", "b"} and set(found["integer"]) == {1, 2, 3}
    assert all(isinstance(v, int) and 1 <= v <= 100 for v in found["log_integer"])
    assert all(2 <= v <= 3 for v in found["uniform"])
    assert 0.4 < np.mean([v < 1 for v in found["log_uniform"]]) < 0.6
    a = parse(NET + "members: {lr: {uniform: [0, 1]}, steps: 3}\n")
    assert isinstance(a, NetRecipe)
    assert drawn(a, 0)["lr"] == drawn(a, 0)["lr"] != drawn(a, 1)["lr"]


def test_families_share_their_draws() -> None:
    found = load("merge-mnist-mlp")
    assert isinstance(found, NetRecipe)
    first = [drawn(found, run) for run in range(8)]
    assert first[0] == first[3] != first[4] == first[7]
    alone = load("seed-only")
    assert isinstance(alone, NetRecipe)
    assert drawn(alone, 0) == drawn(alone, alone.n - 1)
