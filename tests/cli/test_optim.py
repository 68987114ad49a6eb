"""``metanet optim``."""

from __future__ import annotations

from pathlib import Path

from cli_runs import Run

from metanet.tasks.optimize import Net, fresh

PLAN = """kind: element
tasks: [mlp-digits]
estimator: pes
steps: 3
truncation: 2
pairs: 1
horizon: [2, 4]
"""


def test_train_goes_on_and_refuses_another(run: Run, tmp_path: Path) -> None:
    recipe, out = tmp_path / "plan.yaml", tmp_path / "run"
    recipe.write_text(PLAN, encoding="utf-8")
    done = run("optim", "train", recipe, "-o", out, "--json")
    assert done.code == 0
    assert done.json["outer_steps"] == 3
    assert Net.load(out / "net.safetensors").hash == done.json["hash"]
    assert run("optim", "train", recipe, "-o", out, "--json").json["hash"] == done.json["hash"]
    other = run("optim", "train", recipe, "-o", out, "--seed", 4)
    assert other.code == 3
    assert "another recipe" in other.err
    assert run("optim", "train", recipe, "-o", out, "--seed", 4, "--force").code == 0
    recipe.write_text(PLAN + "colour: red\n", encoding="utf-8")
    wrong = run("optim", "train", recipe, "-o", tmp_path / "x")
    assert wrong.code == 3
    assert "colour" in wrong.err


def test_bench_writes_table_card_and_plot(run: Run, tmp_path: Path) -> None:
    net = fresh().save(tmp_path / "mine.safetensors")
    done = run("optim", "bench", "-o", tmp_path / "out", "--net", net, "--tasks",
               "deep-mlp-digits", "--rivals", "adamw,muon", "--no-tune", "--seeds", 1, "--steps",
               10, "--json")
    assert done.code == 0
    assert {row["model"] for row in done.json["rows"]} == {
        "mine (as it comes)", "adamw (usual)", "muon (usual)"}
    assert "deep-mlp-digits" in (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "curves.svg").exists()
    text = run("optim", "bench", "-o", tmp_path / "out", "--net", net, "--tasks",
               "deep-mlp-digits", "--rivals", "adamw", "--no-tune", "--seeds", 1, "--steps", 10)
    assert "mine below adamw (usual)" in text.out
    assert run("optim", "bench", "-o", tmp_path / "y", "--net", "absent.net").code == 3
