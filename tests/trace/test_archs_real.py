"""Architectures against real files: outputs must be what the files' authors measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import metanet
from metanet.trace.archs import build, load

NORMS = {"std": (0.1307, 0.3081), "half": (0.5, 0.5), "raw": (0.0, 1.0)}
FAMILIES = {"wild_mnist_cnn21k": "mnist-cnn21k", "wild_mnist_lenet45k": "mnist-lenet45k"}


@torch.no_grad()
def accuracy(file: Path, arch: str, x: Tensor, y: Tensor) -> float:
    checkpoint = metanet.open(file)
    module = load(build(arch, checkpoint), checkpoint)
    right = [module(part).argmax(1) for part in x.split(2000)]
    return float((torch.cat(right) == y).double().mean())


@pytest.mark.parametrize(("file", "arch", "expected"), [
    ("resnet20-12fca82f.th", "resnet20-cifar", 0.925),
    ("resnet32-d509ac18.th", "resnet32-cifar", 0.915),
])
def test_cifar_accuracy(shared_data: Path, file: str, arch: str, expected: float) -> None:
    with np.load(shared_data / "cifar10" / "cifar10_raw_subset.npz") as pack:
        x = torch.from_numpy(pack["x"]).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(pack["y"]).long()
    mean, sd = torch.tensor([.485, .456, .406]), torch.tensor([.229, .224, .225])
    x = (x - mean.view(3, 1, 1)) / sd.view(3, 1, 1)
    assert accuracy(shared_data / "resnet_cifar" / file, arch, x, y) == expected


def check_mnist(data: Path, family: str, every: int) -> None:
    with np.load(data / "mnist" / "mnist.npz") as pack:
        x = torch.from_numpy(pack["x_test"]).float().div(255)[:, None]
        y = torch.from_numpy(pack["y_test"]).long()
    manifest = json.loads((data / family / "manifest.json").read_text())
    for i, entry in enumerate(manifest[::every]):
        for norm, (mean, sd) in NORMS.items() if every == 1 else [[*NORMS.items()][i % 3]]:
            file = data / family / entry["file"]
            got = accuracy(file, FAMILIES[family], (x - mean) / sd, y)
            assert abs(got - entry["test_acc"][norm]) <= 5e-4, (file.name, norm)


@pytest.mark.parametrize("family", FAMILIES)
def test_some_wild_nets_have_the_manifests_accuracy(shared_data: Path, family: str) -> None:
    check_mnist(shared_data, family, every=6)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_wild_nets_have_the_manifests_accuracy(shared_data: Path, family: str) -> None:
    check_mnist(shared_data, family, every=1)


@torch.no_grad()
def test_siren_orbit_is_one_function(shared_data: Path) -> None:
    line = torch.linspace(-1, 1, 28)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    outputs = []
    for file in sorted((shared_data / "siren_orbit").glob("*.pth")):
        checkpoint = metanet.open(file)
        outputs.append(load(build("siren", checkpoint), checkpoint)(grid))
    images = torch.stack(outputs)
    assert len(images) == 64
    assert (images - images[0]).abs().max() <= 1.5e-6
    # the authors add .5: the raw values are those of an MNIST digit less one half
    assert images[0].median() == pytest.approx(-0.5, abs=0.02)
    assert images[0].std() > 0.2
