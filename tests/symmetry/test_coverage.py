"""The coverage sweep: order, rows, resuming, summary; every exclusion has a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from metanet.symmetry import WeightSpace, coverage, infer
from metanet.symmetry.coverage_card import card
from metanet.symmetry.coverage_excluded import excluded
from metanet.symmetry.coverage_row import unexplained


def row(name: str, **fields: object) -> coverage.Row:
    return {"name": name, "built": True, "verified": True, "failure": None, "seconds": 1.0,
            "sound": True, "missed": [], **fields}


def test_summary_counts_and_shares() -> None:
    rows = [row("timm/a"), row("timm/b", verified=False, failure="audit: 3 of 'x'", missed=["s"]),
            row("transformers/c", built=False, verified=False, failure="build: 'y' is 4"),
            row("transformers/d", verified=False, sound=False, failure="FALSE CLAIM: 2"),
            row("transformers/e", excluded="a part of d", verified=False)]
    found = coverage.summary(rows)
    assert found["timm"]["verified share"] == 0.5
    assert found["timm"]["missed swaps"] == 1
    assert found["transformers"]["rows"] == 2
    assert found["transformers"]["built share"] == 0.5
    assert found["transformers"]["false claims"] == 1


def test_rows_are_appended_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def measured(name: str) -> coverage.Row:
        calls.append(name)
        return row(name)

    monkeypatch.setattr(coverage, "_isolated", measured)
    lines = tmp_path / "found.jsonl"
    first = coverage.sweep(["timm/a", "timm/b"], lines, {})
    assert coverage.read_rows(lines) == first
    coverage.sweep(["timm/a", "timm/b", "timm/c"], lines, coverage.read_rows(lines))
    assert calls == ["timm/a", "timm/b", "timm/c"]
    coverage.write(tmp_path / "found.json", coverage.read_rows(lines))
    assert len(json.loads((tmp_path / "found.json").read_text())["rows"]) == 3


@pytest.mark.slow
def test_one_family_is_measured_in_a_process_of_its_own() -> None:
    coverage._warm(False, True)
    found = coverage._isolated("transformers/gpt2")
    assert found["verified"], found["failure"]
    assert found["groups"] == 9
    assert found["free"] > 0.5 * found["total"]
    assert found["missed"] == []


@pytest.mark.slow
def test_exclusions_have_reasons_and_are_about_models_that_exist() -> None:
    every = coverage.names(False, True)
    left_out = [name for name in every if excluded(name)]
    assert 0 < len(left_out) < 0.25 * len(every)
    assert all(len(str(excluded(name))) > 20 for name in left_out)
    assert every == coverage.names(False, True)
    assert every != sorted(every)


def test_the_card_names_every_failure() -> None:
    good = row("timm/a", variant="a_tiny", groups=3, free=5, total=9, frozen={"input": 4},
               **{"front end": "export"})
    bad = row("timm/b", verified=False, failure="frozen by x | y")
    part = row("transformers/c", excluded="a part of d", verified=False)
    rows = [good, bad, part]
    text = card(rows, coverage.summary(rows), {"timm": 7})
    assert "| timm | 7 | 2 | 2 (100.0%) | 1 (50.0%) |" in text
    assert "| timm/b | yes | frozen by x \\| y |" in text
    assert "| timm/a | a_tiny | export | 3 | 5 / 9 | input 4 |" in text
    assert "- a part of d: c" in text


def test_an_axis_without_a_group_and_without_a_reason_is_named() -> None:
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    found = infer(module, (torch.randn(2, 5),))
    assert unexplained(found) == []
    silent = WeightSpace(found.groups, found.tensors)  # no reasons kept
    assert sorted(unexplained(silent)) == ["0.weight[1]", "2.bias[0]", "2.weight[0]"]
