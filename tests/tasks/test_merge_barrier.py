"""Barriers: the formula, the flags, and what every variant must be at its ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import run_command
from safetensors.torch import save_file

from metanet.errors import MetanetError
from metanet.tasks.merge import Runner, Samples, barrier
from metanet.tasks.merge.barrier import Path as Line
from metanet.tasks.merge.barrier import Point
from metanet.tasks.merge.scores import scored
from tests.tasks.merge_nets import inputs, mlp, state

FIELDS = {"contaminated", "variants", "chosen"}


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(mlp(), example_inputs=torch.randn(3, 8))


@pytest.fixture(scope="module")
def labelled() -> Samples:
    x = inputs(120, seed=9)
    with torch.no_grad():
        return Samples(x, (3 * mlp(0)(x)).argmax(1))


def test_the_formula() -> None:
    line = Line((Point(0.0, 1.0, None), Point(0.5, 5.0, None), Point(1.0, 2.0, None)))
    assert line.barrier == 3.5
    assert line.midpoint.loss == 5.0


def test_a_permuted_copy_has_no_barrier(runner: Runner, labelled: Samples) -> None:
    a = state(mlp(0))
    found = barrier(a, runner.space.random(1).apply(a), labelled, runner=runner, points=5)
    document = found.to_json()
    assert document.keys() >= FIELDS
    assert document["variants"].keys() >= {"naive", "aligned", "repaired", "ensemble"}
    for path in document["variants"].values():
        assert path.keys() >= {"points", "barrier_loss", "midpoint"}
        assert [p["t"] for p in path["points"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert document["variants"]["aligned"]["barrier_loss"] == pytest.approx(0, abs=1e-5)
    assert document["variants"]["repaired"]["barrier_loss"] == pytest.approx(0, abs=1e-5)
    assert document["variants"]["naive"]["barrier_loss"] > 0.01
    assert document["contaminated"] is False
    assert document["chosen"] == "repaired"


def test_with_calibration(runner: Runner, labelled: Samples) -> None:
    a, b = state(mlp(0)), state(mlp(1))
    calib = Samples(inputs(80, seed=3))
    found = barrier(a, b, labelled, calib, runner=runner, points=3)
    want = {"naive", "aligned", "repaired", "calibrated", "naive_calibrated", "ensemble"}
    assert set(found.variants) >= want
    assert not found.contaminated
    assert found.chosen in ("naive", "aligned", "repaired")
    for name in ("naive", "aligned", "repaired"):
        ends = [found.variants[name].points[i] for i in (0, -1)]
        for end, model in zip(ends, (a, b), strict=True):
            assert end.loss == pytest.approx(scored(runner.outputs(model, labelled.x),
                                                    labelled.y).loss)
    middle = runner.outputs({n: (a[n] + b[n]) / 2 for n in a}, labelled.x)
    assert found.variants["naive"].midpoint.loss == pytest.approx(
        scored(middle, labelled.y).loss, rel=1e-5)
    assert found.variants["repaired"].told["repair"] in ("rescale", "repair", "least-squares")


def test_shared_rows_contaminate(runner: Runner, labelled: Samples) -> None:
    a, b = state(mlp(0)), state(mlp(1))
    calib = Samples(torch.cat([inputs(40, seed=3), labelled.x[:2]]))
    found = barrier(a, b, labelled, calib, runner=runner, points=3, fixes=["rescale"])
    assert found.contaminated
    assert found.shared == 2


def test_real_targets(runner: Runner) -> None:
    """Mean square instead of cross-entropy, no accuracy, no temperature."""
    x = inputs(50)
    with torch.no_grad():
        data = Samples(x, mlp(0)(x))
    found = barrier(state(mlp(0)), state(mlp(1)), data, runner=runner, points=3)
    assert found.variants["naive"].points[0].loss == pytest.approx(0, abs=1e-10)
    assert found.variants["naive"].points[0].accuracy is None
    assert "calibrated" not in found.variants


def test_bad_requests(runner: Runner, labelled: Samples) -> None:
    a = state(mlp())
    with pytest.raises(MetanetError, match="odd"):
        barrier(a, a, labelled, runner=runner, points=4)
    with pytest.raises(MetanetError, match="no labels"):
        barrier(a, a, Samples(labelled.x), runner=runner)
    with pytest.raises(MetanetError, match="4 classes"):
        barrier(a, a, Samples(labelled.x, labelled.y + 9), runner=runner)
    with pytest.raises(MetanetError, match="one class number"):
        scored(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long))


# ---------------------------------------------------------------- from the shell


@pytest.fixture
def files(tmp_path: Path, labelled: Samples) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("a.safetensors", "b.safetensors", "calib.npz",
                                                "data.npz", "unlabelled.npz")}
    save_file(state(mlp(0)), found["a.safetensors"])
    save_file(state(mlp(1)), found["b.safetensors"])
    np.savez(found["calib.npz"], x=inputs(60, seed=3).numpy())
    np.savez(found["data.npz"], x=labelled.x.numpy(), y=labelled.y.numpy())
    return {name.partition(".")[0]: path for name, path in found.items()}


def test_command_barrier(files: dict[str, Path], tmp_path: Path) -> None:
    plot = tmp_path / "paths.svg"
    done = run_command("barrier", files["a"], files["b"], "--arch", "mlp", "--calib",
                       files["calib"], "--data", files["data"], "--points", 3, "--plot", plot,
                       "--json")
    assert done.code == 0
    assert done.json.keys() >= FIELDS
    assert {"naive", "aligned", "repaired", "calibrated"} <= done.json["variants"].keys()
    assert plot.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    text = run_command("barrier", files["a"], files["b"], "--arch", "mlp", "--data",
                       files["data"], "--points", 3)
    assert text.code == 0
    assert "accuracy at 1/2" in text.out


def test_one_file_for_both_is_told(files: dict[str, Path]) -> None:
    done = run_command("barrier", files["a"], files["b"], "--arch", "mlp", "--calib",
                       files["data"], "--data", files["data"], "--points", 3, "--json")
    assert done.json["contaminated"] is True
    assert "warning" in done.err


def test_command_align_and_distance(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "alignment.safetensors"
    done = run_command("align", files["a"], files["b"], "--arch", "mlp", "--calib",
                       files["calib"], "-o", out, "--json")
    assert done.code == 0
    assert done.json["certificate"]["ok"] is True
    assert out.exists()
    assert run_command("align", files["a"], files["b"], "--arch", "mlp").out
    far = run_command("distance", files["a"], files["b"], "--arch", "mlp", "--json",
                      "--fail-above", 0.5)
    assert far.code == 1
    assert far.json["aligned"] < far.json["naive"]
    near = run_command("distance", files["a"], files["a"], "--arch", "mlp", "--json",
                       "--fail-above", 0.5)
    assert (near.code, near.json["aligned"]) == (0, 0)


@pytest.mark.parametrize("words", [
    ("--points", 4), ("--normalize", "x"), ("--calib", "absent.npz"), ("--arch", "nonsense"),
])
def test_bad_input_is_told(files: dict[str, Path], words: tuple[object, ...]) -> None:
    done = run_command("barrier", files["a"], files["b"], "--data", files["data"], *(
        () if "--arch" in words else ("--arch", "mlp")), *words, "--json")
    assert done.code == 3
    assert done.json["error"]["message"]
