"""The whole demo, in its quick size."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from metanet.errors import MetanetError
from metanet.tasks.demo import run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    told: list[str] = []
    folder = tmp_path_factory.mktemp("demo")
    return run(folder / "page.html", quick=True, say=told.append), told


def test_page_and_figures_are_written(made: tuple[dict[str, Any], list[str]]) -> None:
    figures, told = made
    page = Path(figures["page"])
    assert sorted(p.name for p in page.parent.iterdir()) == ["page.html", "page.json"]
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["seed"] == 0
    assert str(page) in told[-1]
    html = page.read_text(encoding="utf-8")
    for title in ("1 See", "2 Scramble", "3 Meet", "4 Read", "Every axis explained"):
        assert title in html
    assert not re.findall(r'(?:src|srcset)="(?!data:image/svg)', html)
    assert "http" not in re.sub(r'"data:[^"]*"', "", html).replace("http-equiv", "")


def test_see_is_proved(made: tuple[dict[str, Any], list[str]]) -> None:
    resnet, llama = made[0]["see"]
    assert (resnet["groups"], resnet["status"]) == (14, "verified")
    assert (llama["groups"], llama["status"]) == (9, "inferred")
    for seen in (resnet, llama):
        assert seen["proof"]["ok"]
        assert seen["proof"]["max_error"] < 1e-10


def test_scramble_finds_the_element(made: tuple[dict[str, Any], list[str]]) -> None:
    found = made[0]["scramble"]
    assert abs(found["cosine"]) < 0.1
    assert found["max_change"] <= 1e-13
    assert found["recovered"]
    assert not found["other_same"]


def test_meet_ruins_the_naive_midpoint(made: tuple[dict[str, Any], list[str]]) -> None:
    met = made[0]["meet"]
    assert len(met["naive"]["t"]) == 25
    assert min(met["naive"]["accuracy"][0], met["naive"]["accuracy"][-1]) > 0.9
    assert met["naive"]["accuracy"][12] < 0.8
    assert met["aligned"]["accuracy"][12] > 0.9
    assert met["barrier"]["aligned"] < met["barrier"]["naive"] / 4


def test_read_has_every_row_and_its_controls(made: tuple[dict[str, Any], list[str]]) -> None:
    read = made[0]["read"]
    tracks = {row["name"]: row["track"] for row in read["rows"]}
    assert len(tracks) == 9
    assert tracks["accuracy on 100 labelled images"] == "D"
    assert tracks["hyper-parameters only, boosted"] == "-"
    assert tracks["weight statistics, boosted"] == tracks["metanet, mean of both"] == "W"
    for row in read["rows"]:
        assert row["tau"]["low"] <= row["tau"]["value"] <= row["tau"]["high"]
    census = read["census"]
    assert census["runs"] == census["diverged"] + census["chance"] + sum(
        census[f"{part}_runs"] for part in ("train", "validation", "test"))
    assert read["proof"]["ok"]
    assert read["permuted_change"] < 1e-5 < 1e-4 < read["shuffled_change"]
    assert 0.8 < read["ceiling"]["tau"] < 1


@pytest.mark.parametrize("place", ["file/page.html", "folder.html"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    (tmp_path / "folder.html").mkdir()
    told: list[str] = []
    with pytest.raises(MetanetError, match="choose another place"):
        run(tmp_path / place, quick=True, say=told.append)
    assert told == []
