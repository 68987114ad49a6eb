"""Alignment: portable, proved, and planted elements come back by weights and by activations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import metanet
from metanet.errors import CheckpointError, MetanetError, SpaceMismatch, SymmetryError
from metanet.symmetry import GroupElement, WeightSpace, match
from metanet.tasks.merge import Alignment, Runner, Samples, align
from metanet.tasks.merge.activations import SIDES, activation_gains
from metanet.tasks.merge.align import Candidate, Pair, certificate, choose
from metanet.tasks.merge.data import fitted, load, normalized, parse_normalize, shared_rows
from tests.tasks.merge_nets import Attention, Residual, inputs, mlp, state


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(mlp(), example_inputs=torch.randn(3, 8))


# ---------------------------------------------------------------- the object


def test_saved_and_loaded(runner: Runner, tmp_path: Path) -> None:
    a, b = state(mlp(0)), state(mlp(1))
    found = align(a, b, runner=runner)
    path = tmp_path / "alignment.safetensors"
    found.save(path)
    again = metanet.Alignment.load(path)
    assert again.element == found.element
    assert again.space == found.space
    assert (again.objective, again.method, again.seed) == (found.objective, found.method, 0)
    assert again.certificate == found.certificate
    assert again.to_json() == found.to_json()
    moved = found.apply(b)
    assert all(torch.equal(again.act(name, b[name]), moved[name]) for name in b)
    back = found.inverse().apply(moved)
    assert all(torch.equal(back[name], b[name]) for name in b)


def test_integers_pass_and_unknown_floats_do_not(runner: Runner) -> None:
    found = align(state(mlp(0)), state(mlp(1)), runner=runner, certify=False)
    steps = torch.tensor(3)
    assert found.act("steps", steps) is steps
    with pytest.raises(SymmetryError, match="does not know"):
        found.act("extra", torch.zeros(3))
    with pytest.raises(SymmetryError, match="another space"):
        replace(found, element=GroupElement(WeightSpace.parse("space v1\ngroup a = S(2)\nw: a")))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state(mlp()), path)
    with pytest.raises(SymmetryError, match="no alignment"):
        Alignment.load(path)
    path.write_bytes(b"{}")
    with pytest.raises(CheckpointError):
        Alignment.load(path)
    for bad in ('{"format": "metanet.alignment"}', "[]", "3", "{"):
        metanet.checkpoint.write_safetensors({"x": torch.zeros(1)}, path,
                                             {"metanet.alignment": bad})
        with pytest.raises((SymmetryError, CheckpointError)):
            Alignment.load(path)


def test_a_table_that_is_no_permutation_is_refused(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "alignment.safetensors"
    align(state(mlp(0)), state(mlp(1)), runner=runner, certify=False).save(path)
    stored = metanet.open(path)
    tensors = dict(stored.state_dict())
    name = next(iter(tensors))
    tensors[name] = torch.zeros_like(tensors[name])
    metanet.checkpoint.write_safetensors(tensors, path, stored.metadata)
    with pytest.raises(SymmetryError, match="permutation"):
        Alignment.load(path)


# ---------------------------------------------------------------- planted elements


@pytest.mark.parametrize("method", ["weights", "activations", "auto"])
def test_planted_element_of_an_mlp(runner: Runner, method: str) -> None:
    a = state(mlp())
    planted = runner.space.random(3)
    calib = None if method == "weights" else inputs()
    found = align(a, planted.apply(a), method=method, calib=calib, runner=runner)
    assert found.element == planted.inverse()
    assert found.certificate is not None
    assert found.certificate.ok
    assert found.objective == pytest.approx(sum(float(t.square().sum()) for t in a.values()))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("module", "x"), [
    (Residual(), torch.randn(40, 2, 5, 6, generator=torch.Generator().manual_seed(1))),
    (Attention(), torch.randn(40, 3, 6, generator=torch.Generator().manual_seed(2))),
], ids=["residual", "attention"])
def test_activations_alone_find_planted_elements(
    module: nn.Module, x: Tensor, side: str
) -> None:
    """Streams that several layers write to, running statistics, digits fibred over heads."""
    space = metanet.infer(module, x[:2])
    runner = Runner(module, space, x[:2])
    a, planted = state(module), space.random(7)
    found = activation_gains(runner, a, planted.apply(a), x, side=side)
    assert found.element() == planted.inverse()
    assert found.rows == 40


def test_gains_are_correlations(runner: Runner) -> None:
    """Against the correlation of whole activations; the stream is cut in uneven batches."""
    a, b, x = state(mlp(0)), state(mlp(1)), inputs(50)
    cut = Runner(mlp(), runner.space, torch.randn(3, 8), batch=20)
    seen = activation_gains(cut, a, b, x, side="write")
    one, other = ((x @ s["0.weight"].T + s["0.bias"]).double() for s in (a, b))
    want = np.corrcoef(one.T, other.T)[:16, 16:]
    root = next(r for r in seen.roots if r.group.size == 16)
    assert np.allclose(root.plain, want, atol=1e-5)


def test_dead_neurons_correlate_with_nothing(runner: Runner) -> None:
    a = state(mlp())
    a["0.weight"][3], a["0.bias"][3] = 0, -1
    seen = activation_gains(runner, a, state(mlp(1)), inputs(), side="write")
    root = next(r for r in seen.roots if r.group.size == 16)
    assert np.abs(root.plain[3]).max() < 1e-3


# ---------------------------------------------------------------- the choice and the proof


def test_the_choice_is_by_calibration_loss(runner: Runner) -> None:
    a = state(mlp())
    planted = runner.space.random(3)
    pair = Pair.of(a, planted.apply(a), runner=runner)
    good = Candidate("good", planted.inverse(), 1.0)
    bad = Candidate("bad", runner.space.identity(), 2.0)
    with_inputs, told = choose(pair, [bad, good], Samples(inputs()), "none")
    assert with_inputs.name == "good"
    assert "without labels" in told["chosen_by"]
    labelled = Samples(inputs(), torch.zeros(64, dtype=torch.long))
    assert choose(pair, [bad, good], labelled, "none")[1]["chosen_by"] == "calibration loss"
    assert choose(pair, [bad, good], None, "none")[0].name == "bad"


def test_the_proof_fails_where_the_space_is_wrong() -> None:
    """A declared space that lets the outputs move: what is moved computes something else."""
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    text = "space v1\n0.weight: a 4!\n0.bias: a\n2.weight: b a\n2.bias: b"
    space = WeightSpace.parse(text, shapes=metanet.open(module.state_dict()))
    pair = Pair.of(state(module), state(module), runner=Runner(module, space, torch.randn(3, 4)))
    proof = certificate(pair, space.random(1), None)
    assert proof is not None
    assert not proof.ok
    assert proof.max_error > 0.01


def test_bad_input(runner: Runner) -> None:
    a = state(mlp())
    with pytest.raises(MetanetError, match="give inputs"):
        align(a, a, runner=runner, method="activations")
    with pytest.raises(MetanetError, match="no method"):
        align(a, a, runner=runner, method="magic")
    with pytest.raises(SymmetryError, match="which symmetry"):
        align(a, a)
    with pytest.raises(MetanetError, match="network to run"):
        align(a, a, runner.space, calib=inputs())
    with pytest.raises(SpaceMismatch):
        Runner(mlp(), WeightSpace.parse("space v1\ngroup a = S(2)\nw: a"), torch.randn(3, 8))


def test_restarts_are_candidates(runner: Runner) -> None:
    found = align(state(mlp(0)), state(mlp(1)), runner=runner, restarts=4, certify=False)
    rows = found.details["candidates"]
    assert [row["name"] for row in rows][1:] == [f"weights, restart {i}" for i in (1, 2, 3)]
    assert found.objective == max(row["objective"] for row in rows)
    assert found.objective >= match(state(mlp(0)), state(mlp(1)), runner.space).objective - 1e-9


# ---------------------------------------------------------------- samples


def test_samples_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.full((4, 2, 2), 255, dtype=np.uint8), y=np.arange(4))
    found = load(path, [0.5, 0.5])
    assert found.x.unique().tolist() == [1.0]
    assert found.y.dtype == torch.long
    assert fitted(found.x, torch.randn(2, 1, 2, 2)).shape == (4, 1, 2, 2)
    assert fitted(found.x, torch.randn(2, 4)).shape == (4, 4)
    assert shared_rows(found, found.head(2)) == 2
    assert normalized(torch.ones(1, 2, 3), [0.0, 1.0, 1.0, 2.0])[0, :, 0].tolist() == [1.0, 0.0]


def test_bad_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(MetanetError, match="npz"):
        load(path)
    with pytest.raises(MetanetError, match="npz"):
        load(tmp_path / "absent.npz")
    np.savez(path, z=np.ones(3))
    with pytest.raises(MetanetError, match="no array 'x'"):
        load(path)
    np.savez(path, x=np.array([object()], dtype=object))
    with pytest.raises(MetanetError, match="npz"):
        load(path)
    np.savez(path, x=np.ones((3, 2)), y=np.ones(2))
    with pytest.raises(MetanetError, match="one label"):
        load(path)
    np.savez(path, x=np.full((3, 2), np.nan))
    with pytest.raises(MetanetError, match="finite"):
        load(path)
    with pytest.raises(MetanetError, match="MEAN,STD"):
        parse_normalize("a,b")
    with pytest.raises(MetanetError, match="positive"):
        normalized(torch.ones(3), [0.0, 0.0])
    with pytest.raises(MetanetError, match="do not fit"):
        fitted(torch.ones(3, 7), torch.randn(2, 1, 4, 4))
