"""train, evaluate, predict, bench and report on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_runs import Run
from predict_zoos import task, zoo
from safetensors.torch import save_file

SMALL = ("--epochs", 2, "--width", 4, "--batch-size", 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a tiny zoo."""
    from cli_runs import run_command

    out = tmp_path_factory.mktemp("run") / "r"
    done = run_command("train", "accuracy", zoo("net").path, "--model", "unf", "-o", out, *SMALL,
                       "--json")
    assert done.code == 0, done.err
    document = done.json
    assert document["track"] == "W" and document["split"] == "iid"
    assert set(document["scores"]) == {"tau", "tau_top", "r2", "mae"}
    return out


def test_train_resumes_and_refuses(run: Run, trained: Path) -> None:
    words = ("train", "accuracy", zoo("net").path, "--model", "unf", "-o", trained)
    again = run(*words, *SMALL, "--json")
    before = json.loads((trained / "result.json").read_text())
    assert again.json["predicted"] == before["predicted"]
    other = run(*words, "--epochs", 3, "--width", 4, "--batch-size", 8)
    assert other.code == 3 and "another run" in other.err
    boosted = run("train", "accuracy", zoo("net").path, "--model", "statistics", "-o",
                  trained.parent / "x")
    assert boosted.code == 3 and "no reader to store" in boosted.err


def test_train_on_what_others_trained(run: Run, tmp_path: Path) -> None:
    folder, mine, out = (tmp_path / name for name in ("folder", "mine", "run"))
    run("zoo", "export", zoo("inr").path, "-o", folder)
    assert run("zoo", "ingest", folder, "-o", mine, "--arch", "siren").code == 0
    done = run("train", "label", mine, "--model", "flagship-w", "-o", out, *SMALL, "--json")
    assert done.code == 0 and done.json["n"] > 2
    file = sorted((folder / "weights").iterdir())[0]
    assert run("predict", out, file, "--json").code in (0, 1)
    probing = run("train", "label", mine, "--model", "probing", "-o", tmp_path / "q", *SMALL)
    assert probing.code == 3 and "does not suit mine" in probing.err


def test_evaluate_and_report(run: Run, trained: Path) -> None:
    done = run("evaluate", trained, zoo("net").path, "--json")
    stored = json.loads((trained / "result.json").read_text())
    assert done.json["scores"] == pytest.approx(stored["scores"])
    page = run("report", trained, "--json").json["out"]
    text = Path(page).read_text(encoding="utf-8")
    assert "Predicted against true" in text and "<script" not in text
    assert run("report", zoo("net").path).code == 3


def test_predict(run: Run, trained: Path, tmp_path: Path) -> None:
    part = task("net").parts["test"]
    state = part.batch.unstack()[0]
    save_file(state, tmp_path / "a.safetensors")
    space = task("net").space
    save_file({k: v.contiguous() for k, v in space.random(5).apply(state).items()},
              tmp_path / "b.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "c.pth")
    save_file({k: 5 * v for k, v in state.items()}, tmp_path / "d.safetensors")
    save_file({"x": torch.zeros(3)}, tmp_path / "e.safetensors")
    (tmp_path / "f.pt").write_bytes(b"nothing")
    save_file({**state, "fc.bias": state["fc.bias"] * float("nan")}, tmp_path / "g.safetensors")
    found = {Path(one["source"]).stem: one for one in run(
        "predict", trained, tmp_path, "--json").json}
    assert set(found) == set("abcdefg")
    one = found["a"]["prediction"]
    assert abs(found["b"]["prediction"] - one) < 1e-5 and found["c"]["prediction"] == one
    assert 0 < one < 1
    assert found["d"]["out_of_distribution"] and found["d"]["interval"] is None
    assert "no interval" in found["d"]["note"]
    assert "knows no other network" in found["e"]["error"] and found["f"]["error"]
    assert "finite" in found["g"]["error"]
    text = run("predict", trained, tmp_path / "e.safetensors")
    assert text.code == 3 and "refused" in text.out


def test_predict_refuses_what_is_no_predictor(run: Run, tmp_path: Path) -> None:
    assert run("predict", tmp_path / "none", "x.pt").code == 3
    (tmp_path / "predictor.json").write_text("{}")
    done = run("predict", tmp_path, "x.pt")
    assert done.code == 3 and "cannot be read as a predictor" in done.err


def test_bench_quick(run: Run, tmp_path: Path) -> None:
    words = ("bench", "seed-only", "--quick", "-o", tmp_path, "--rows", "mean,norm,statistics,unf",
             "--json")
    document = run(*words).json
    assert {r["track"] for r in document["rows"]} == {"-", "W"}
    assert all({"model", "split", "metric", "mean", "sd", "seeds", "seconds", "parameters"} <=
               set(r) for r in document["rows"])
    unf = next(r for r in document["rows"] if r["model"] == "unf")
    assert unf["seeds"] == 2 and unf["against_statistics"]["p_holm"] >= unf[
        "against_statistics"]["p"]
    assert "| UNF | W |" in (tmp_path / "card.md").read_text()
    fits = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("fits/**/*.json")}
    assert run(*words).json["rows"] == document["rows"]
    assert {p: p.stat().st_mtime_ns for p in fits} == fits, "a finished suite is not run again"
    other = run(*words[:-1], "--epochs", 3)
    assert other.code == 3 and "another plan" in other.err
    assert "Out of distribution" in (tmp_path / "report.html").read_text(encoding="utf-8")


SUITES = ["headline", "inr-digits", "inr-mnist", "seed-only", "small-cnn", "wild"]


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_has_a_quick_size(run: Run, tmp_path: Path, suite: str) -> None:
    document = run("bench", suite, "--quick", "-o", tmp_path, "--rows", "mean,statistics,wiring,"
                   "flagship-w", "--json").json
    assert {r["model"] for r in document["rows"]} >= {"mean", "statistics", "wiring", "flagship-w"}


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_the_quick_size_with_all_rows(run: Run, tmp_path: Path, suite: str) -> None:
    document = run("bench", suite, "--quick", "-o", tmp_path, "--json").json
    models = {r["model"] for r in document["rows"]}
    assert {"mean", "statistics", "flagship-w", "flagship-q", "probing"} <= models
    assert run("report", tmp_path).code == 0
