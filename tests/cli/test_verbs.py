"""Each verb on a small network: the fields of its document, its text, its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_runs import Result, Run, network
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import metanet

SPEC = "\n".join(["space v1", "0.weight: a 6!", "0.bias: a", "2.weight: b a", "2.bias: b",
                  "4.weight: 3! b", "4.bias: 3!"])


def outputs(path: Path) -> torch.Tensor:
    net = network().double()
    net.load_state_dict({name: t.double() for name, t in load_file(path).items()})
    return net(torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(10, 6))


# ---------------------------------------------------------------- inspect

FIELDS = {"source", "arch", "status", "n_tensors", "n_parameters", "groups", "frozen",
          "unsupported_ops", "verification"}


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Weights that may be used in any way."""
    path = tmp_path / "odd.safetensors"
    save_file({"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}, path)
    return path


def test_inspect_without_architecture_guesses_nothing(run: Run, odd: Path) -> None:
    done = run("inspect", odd, "--json")
    assert done.code == 0
    assert done.json.keys() >= FIELDS | {"route", "note"}
    assert done.json["status"] is None and done.json["route"] is None
    assert done.json["groups"] == []
    assert done.json["n_tensors"] == 2
    assert done.json["n_parameters"] == 32
    assert {"name": "a.weight", "shape": [4, 4], "dtype": "float32"} in done.json["tensors"]
    assert "chain" in done.json["note"] and "--arch" in done.err


def test_inspect_text_lists_the_header(run: Run, odd: Path) -> None:
    done = run("inspect", odd)
    assert "2 tensors, 32 parameters" in done.out
    assert "a.weight  4x4    float32" in done.out and "not recognised" in done.out


def test_inspect_of_a_file_alone(run: Run, mlp: Path, tmp_path: Path) -> None:
    done = run("inspect", mlp, "--json", "--save-spec", tmp_path / "mlp.space")
    assert (done.json["route"], done.json["arch"], done.json["status"]) == (
        "pattern", None, "inferred")
    assert "numbered series" in done.json["note"]
    assert [g["size"] for g in done.json["groups"]] == [5, 4]
    assert (tmp_path / "mlp.space").read_text().startswith("space v1")
    text = run("inspect", mlp)
    assert "inferred from the file alone (pattern): one numbered series" in text.out
    assert run("inspect", mlp, "--verify").code == 3  # there is no network to run
    told = run("explain", mlp, "2.weight", 1)
    assert "moves" in told.out


@pytest.mark.parametrize("words", [
    ("inspect", "--save-spec", "y.space"), ("explain", "a.weight", 0), ("permute", "-o", "y.pt"),
    ("graph", "-o", "y.pt"),
])
def test_verbs_need_a_symmetry(run: Run, odd: Path, words: tuple[object, ...]) -> None:
    done = run(words[0], odd, *words[1:])
    assert done.code == 2 and not done.out
    assert "chain" in done.err and "--arch" in done.err


def test_a_permuted_file_of_which_nothing_is_said(run: Run, mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run("permute", mlp, "-o", out, "--seed", 5).code == 0
    assert not torch.equal(load_file(out)["2.weight"], load_file(mlp)["2.weight"])
    assert (outputs(out) - outputs(mlp)).abs().max() < 1e-12
    found = run("distance", mlp, out, "--json").json
    assert found["aligned"] < 1e-6 < found["naive"]


def test_inspect_with_architecture(run: Run, mlp: Path) -> None:
    done = run("inspect", mlp, "--arch", "mlp", "--json")
    document = done.json
    assert done.code == 0
    assert document.keys() >= FIELDS
    assert document["arch"] == "mlp"
    assert document["status"] == "inferred"
    assert document["verification"] is None
    assert [(g["size"], g["kind"], g["over"], g["copies"], g["dead"]) for g in document["groups"]
            ] == [(5, "S", [], 1, False), (4, "S", [], 1, False)]
    assert document["groups"][0]["tensors"] == ["0.bias", "0.weight", "2.weight"]
    assert {(row["tensor"], row["axis"]) for row in document["frozen"]} == {
        ("0.weight", 1), ("4.weight", 0), ("4.bias", 0)}
    assert all(row["reason"] for row in document["frozen"])


def test_inspect_verify(run: Run, mlp: Path) -> None:
    done = run("inspect", mlp, "--arch", "mlp", "--verify", "--json")
    proof = done.json["verification"]
    assert done.code == 0
    assert done.json["status"] == "verified"
    assert proof["ok"] is True
    assert proof["max_error"] <= 1e-10
    assert proof["samples"] >= 1
    assert "float64" in proof["dtype"]
    assert proof["controls"].keys() == {"total", "detected", "dead", "single"}
    assert proof["controls"]["detected"] == proof["controls"]["total"] > 0


def test_inspect_prints_the_space(run: Run, mlp: Path) -> None:
    done = run("inspect", mlp, "--arch", "mlp", "--verify")
    assert "2 groups, verified from mlp" in done.out
    assert "space v1" in done.out
    assert "verified: " in done.out


def test_spec_is_saved_and_read_back(run: Run, mlp: Path, tmp_path: Path) -> None:
    saved = tmp_path / "mlp.space"
    first = run("inspect", mlp, "--arch", "mlp", "--save-spec", saved, "--json")
    space = metanet.WeightSpace.parse(saved.read_text(encoding="utf-8"))
    assert space == metanet.WeightSpace.parse(SPEC, shapes=metanet.open(mlp))
    again = run("inspect", mlp, "--spec", saved, "--json")
    assert again.json["status"] == "declared"
    sizes = [group["size"] for group in first.json["groups"]]
    assert [group["size"] for group in again.json["groups"]] == sizes


def test_spec_written_by_hand_needs_no_sizes(run: Run, mlp: Path, tmp_path: Path) -> None:
    spec = tmp_path / "hand.space"
    spec.write_text(SPEC, encoding="utf-8")
    done = run("inspect", mlp, "--spec", spec, "--json")
    assert [group["size"] for group in done.json["groups"]] == [5, 4]
    assert {row["axis"] for row in done.json["frozen"] if row["tensor"] == "0.weight"} == {1}


def test_a_failed_proof_is_a_negative_finding(
    run: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, and the document is written all the same."""
    from dataclasses import replace

    from metanet import symmetry

    true = symmetry.resolve

    def resolve(*args: object, **options: object) -> object:
        resolved = true(*args, **options)
        return replace(resolved, verification=replace(resolved.verification, ok=False))

    monkeypatch.setattr(symmetry, "resolve", resolve)
    done = run("inspect", mlp, "--arch", "mlp", "--verify", "--json")
    assert done.code == 1
    assert done.json["verification"]["ok"] is False
    assert "NOT VERIFIED" in done.err


# ---------------------------------------------------------------- explain


def test_explain_a_group_and_a_frozen_axis(run: Run, mlp: Path) -> None:
    moving = run("explain", mlp, "0.weight", 0, "--arch", "mlp")
    frozen = run("explain", mlp, "0.weight", 1, "--arch", "mlp", "--json")
    assert moving.code == frozen.code == 0
    assert "S(5)" in moving.out
    assert frozen.json["tensor"] == "0.weight"
    assert frozen.json["axis"] == 1
    assert "input" in frozen.json["result"]


@pytest.mark.parametrize(("tensor", "axis"), [("no.such", 0), ("0.weight", 2)])
def test_explain_what_is_not_there(run: Run, mlp: Path, tensor: str, axis: int) -> None:
    done = run("explain", mlp, tensor, axis, "--arch", "mlp")
    assert done.code == 3
    assert done.err.startswith("error: ")


# ---------------------------------------------------------------- permute, convert


def test_permute_writes_the_same_function(run: Run, mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "twin.safetensors"
    done = run("permute", mlp, "--arch", "mlp", "-o", out, "--seed", 3, "--json")
    assert done.code == 0
    assert done.json["out"] == out.as_posix()
    assert not torch.equal(load_file(out)["0.weight"], load_file(mlp)["0.weight"])
    torch.testing.assert_close(outputs(out), outputs(mlp), rtol=0, atol=1e-13)
    with safe_open(out, "pt") as file:
        assert file.metadata()["metanet.seed"] == "3"
        assert len(file.metadata()["metanet.source_sha256"]) == 64


def test_permute_is_the_same_for_the_same_seed(run: Run, mlp: Path, tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    for out, seed in ((a, 1), (b, 1), (c, 2)):
        run("permute", mlp, "--arch", "mlp", "-o", out, "--seed", seed)
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()


def test_permute_refuses_another_file(run: Run, mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "twin.safetensors"
    words = ("permute", mlp, "--arch", "mlp", "-o", out, "--seed")
    assert run(*words, 1).code == 0
    kept = out.read_bytes()
    assert run(*words, 1).code == 0
    refused = run(*words, 2)
    assert refused.code == 3
    assert "--force" in refused.err
    assert out.read_bytes() == kept
    assert run(*words, 2, "--force").code == 0
    assert out.read_bytes() != kept


def test_convert(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "net.pt", tmp_path / "net.safetensors"
    torch.save({"state_dict": network().state_dict(), "epoch": 3}, source)
    done = run("convert", source, "-o", out, "--json")
    assert done.code == 0
    assert done.json["out"] == out.as_posix()
    for name, tensor in load_file(out).items():
        assert torch.equal(tensor, network().state_dict()[name])


# ---------------------------------------------------------------- graph, doctor


@pytest.mark.parametrize("suffix", ["pt", "graphml", "svg", "html"])
def test_graph(run: Run, mlp: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"g.{suffix}"
    done = run("graph", mlp, "--arch", "mlp", "-o", out, "--json")
    assert done.code == 0, done.err
    assert done.json["format"] == suffix
    assert out.stat().st_size > 200


def test_doctor_of_the_environment(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.code == (0 if done.json["ok"] else 1)
    assert "torch" in {check["check"] for check in done.json["result"]["environment"]}


def test_doctor_of_a_file(run: Run, mlp: Path) -> None:
    assert "mlp.safetensors" in run("doctor", mlp).out
    findings = {row["what"]: row for row in run("doctor", mlp, "--json").json["result"]["findings"]}
    assert findings["tensors"]["value"] == {"tensors": 6, "elements": 74}
    assert findings["format"]["value"] == "safetensors"


def test_doctor_finds_what_is_not_well(run: Run, tmp_path: Path) -> None:
    bad, none = tmp_path / "bad.safetensors", tmp_path / "none.safetensors"
    save_file({"a": torch.tensor([1.0, float("nan")])}, bad)
    done = run("doctor", bad, "--json")
    assert done.code == 1
    assert "nonfinite" in {row["what"] for row in done.json["result"]["findings"]}
    assert run("doctor", none).code == 3


# ---------------------------------------------------------------- usage


@pytest.mark.parametrize("words", [
    ("inspect",),
    ("explain", "x", "y", "-1", "--arch", "mlp"),
    ("graph", "x", "-o", "y.png", "--arch", "mlp"),
    ("nonsense",),
])
def test_usage_errors(run: Run, words: tuple[str, ...]) -> None:
    done: Result = run(*words)
    assert done.code == 2
    assert not done.out
