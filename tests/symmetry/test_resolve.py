"""From files to spaces: by architecture, by a written space, and never by a guess."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
import torch
from symmetry_tools import signatures
from torch import nn

import metanet
from metanet.errors import CheckpointError, SpaceMismatch, SymmetryError, TraceError
from metanet.symmetry import WeightSpace, infer, resolve
from metanet.symmetry.resolve import with_names
from metanet.trace.archs import build, load

SPEC = """space v1
0.weight: a 8!
0.bias: a
2.weight: b a
2.bias: b
4.weight: 10! b
4.bias: 10!
"""


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return models.make("mlp").state_dict()


def test_by_architecture(state) -> None:
    found = resolve(state, arch="mlp", verify=True)
    assert found.space is not None and found.verification is not None
    assert found.space.status == "verified" and found.verification.ok
    assert signatures(found.space) == models.MODELS["mlp"].groups
    assert found.arch == "mlp" and isinstance(found.module, nn.Module)
    assert set(found.checkpoint.names) == set(state)


def test_infer_takes_a_checkpoint(state) -> None:
    assert infer(state, arch="mlp") == WeightSpace.parse(SPEC, shapes=state)
    assert infer(metanet.open(state), arch="mlp", verify=True).status == "verified"
    assert infer(state) == infer(state, arch="mlp")  # a numbered series of layers
    odd = {"a.weight": torch.zeros(4, 4), "b.weight": torch.zeros(4, 4)}
    for source, more in ((state, {"verify": True}), (state, {"kinds": ["signed"]}), (odd, {})):
        with pytest.raises(SymmetryError, match="name the architecture"):
            infer(source, **more)


def test_nothing_is_guessed(state) -> None:
    odd = {"a.weight": torch.randn(4, 4), "b.weight": torch.randn(4, 4)}
    found = resolve(odd)
    assert (found.space, found.arch, found.verification, found.module) == (None,) * 4
    assert found.route is None and "chain" in found.note
    for unproved in (odd, state):  # a series of layers is recognised, and has no code to run
        with pytest.raises(SymmetryError, match="Name the architecture"):
            resolve(unproved, verify=True)
    with pytest.raises(TraceError, match="unknown architecture"):
        resolve(state, arch="mpl")


def test_by_a_written_space(state, tmp_path: Path) -> None:
    text = resolve(state, spec=SPEC)
    assert text.space is not None and text.space.status == "declared"
    path = tmp_path / "mlp.space"
    path.write_text(SPEC, encoding="utf-8")
    assert resolve(state, spec=path).space == text.space
    assert resolve(state, spec=str(path)).space == text.space
    proved = resolve(state, spec=SPEC, arch="mlp", verify=True)
    assert proved.space is not None and proved.space.status == "verified"


def test_a_wrong_written_space_is_not_verified(state) -> None:
    wrong = resolve(state, spec=SPEC.replace("0.bias: a", "0.bias: 16!"), arch="mlp", verify=True)
    assert wrong.space is not None and wrong.verification is not None
    assert wrong.space.status == "declared" and not wrong.verification.ok


def test_bad_specs(state, tmp_path: Path) -> None:
    with pytest.raises(SymmetryError, match="cannot be read as text"):
        resolve(state, spec=tmp_path / "absent.space")
    binary = tmp_path / "binary.space"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SymmetryError, match="cannot be read as text"):
        resolve(state, spec=binary)
    with pytest.raises(CheckpointError):
        resolve(tmp_path / "absent.pt", arch="mlp")


def test_files_that_do_not_fit(state) -> None:
    with pytest.raises((SpaceMismatch, TraceError)):
        resolve({**state, "extra.weight": torch.zeros(3, 3)}, arch="resnet20-cifar")


def test_a_file_may_store_one_name_of_a_tied_tensor() -> None:
    golden = models.MODELS["char_lm"]
    module = golden.factory()
    space = infer(module, golden.example_inputs)
    assert space.aliases == {"wte.weight": "lm_head.weight"}
    state = {k: v for k, v in module.state_dict().items() if k != "lm_head.weight"}
    fitted = with_names(space, metanet.open(state))
    assert fitted.aliases == {} and "wte.weight" in fitted.tensors
    assert set(fitted.tensors) == set(state)
    assert signatures(fitted) == golden.groups
    assert fitted.meta.reasons["wte.weight"] == space.meta.reasons["lm_head.weight"]
    moved = fitted.random(0).apply(state)
    assert not torch.equal(moved["wte.weight"], state["wte.weight"])
    other = {k: v for k, v in module.state_dict().items() if k != "wte.weight"}
    assert set(with_names(space, metanet.open(other)).tensors) == set(other)


def test_resnet20_of_the_wild(shared_data: Path) -> None:
    path = shared_data / "resnet_cifar" / "resnet20-12fca82f.th"
    found = resolve(path, arch="resnet20-cifar", verify=True)
    assert found.space is not None and found.verification is not None
    assert found.space.status == "verified" and found.verification.max_error <= 1e-10
    assert signatures(found.space) == models.MODELS["resnet20a"].groups
    assert found.verification.controls.detected == found.verification.controls.total == 14
    built = build("resnet20-cifar", found.checkpoint)
    state = found.checkpoint.state_dict()
    moved = found.space.random(0).apply(state)
    with np.load(shared_data / "cifar10" / "cifar10_raw_subset.npz") as pack:
        images = torch.from_numpy(pack["x"]).float() / 255
    images = images.permute(0, 3, 1, 2) if images.shape[-1] == 3 else images
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean[:, None, None]) / spread[:, None, None]
    with torch.no_grad():
        a, b = (load(built, s)(images) for s in (state, moved))
    assert (a - b).abs().max() < 1e-4
    assert torch.equal(a.argmax(1), b.argmax(1))


@pytest.mark.parametrize(
    ("folder", "arch", "groups"),
    [
        ("wild_mnist_cnn21k", "mnist-cnn21k", models.s(10, 20, 50)),
        ("wild_mnist_lenet45k", "mnist-lenet45k", models.s(8, 16, 64, 128)),
        ("siren_orbit", "siren", models.s(32, 32)),
    ],
)
def test_wild_families(shared_data: Path, folder: str, arch: str, groups: list) -> None:
    files = sorted(p for p in (shared_data / folder).iterdir() if p.suffix != ".json")
    first = resolve(files[0], arch=arch, verify=True)
    assert first.space is not None and first.space.status == "verified"
    assert signatures(first.space) == sorted(groups)
    for path in files[1:4]:
        assert resolve(path, arch=arch).space == first.space
