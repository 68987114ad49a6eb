"""The commands on real checkpoints by other people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import Run, run_command
from torch import Tensor, nn

import metanet
from metanet.trace.archs import Built, build, load

RESNETS = {"resnet20-12fca82f.th": ("resnet20-cifar", 14), "resnet32-d509ac18.th": (
    "resnet32-cifar", 20)}
FAMILIES = {"wild_mnist_cnn21k": "mnist-cnn21k", "wild_mnist_lenet45k": "mnist-lenet45k"}
FAMILY_SIZES = {"wild_mnist_cnn21k": [10, 20, 50], "wild_mnist_lenet45k": [8, 16, 128, 64]}


def proved(path: Path, arch: str) -> dict:
    """Document of ``inspect --verify``, after the checks that every real network must pass."""
    done = run_command("inspect", path, "--arch", arch, "--verify", "--json", "-q")
    assert done.code == 0, done.out
    document, proof = done.json, done.json["verification"]
    assert document["status"] == "verified"
    assert proof["ok"]
    assert proof["max_error"] <= 1e-10
    assert proof["controls"]["detected"] == proof["controls"]["total"]
    live = [g for g in document["groups"] if not g["dead"] and len(g["tensors"]) > 1]
    assert proof["controls"]["total"] == len(live)
    assert not document["unsupported_ops"]
    return document


def loaded(path: Path, arch: str) -> nn.Module:
    """The network with the weights of a file."""
    checkpoint = metanet.open(path)
    built: Built = build(arch, checkpoint)
    return load(built, checkpoint).eval()


def images(shared_data: Path) -> tuple[Tensor, Tensor]:
    """200 lossless CIFAR-10 test images, normalised as the networks expect, and their labels."""
    with np.load(shared_data / "cifar10" / "cifar10_raw_subset.npz") as data:
        x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    mean, sd = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((x / 255 - mean) / sd).permute(0, 3, 1, 2), y.long()


@pytest.mark.parametrize("name", RESNETS)
def test_resnet(run: Run, shared_data: Path, tmp_path: Path, name: str) -> None:
    arch, groups = RESNETS[name]
    path, out = shared_data / "resnet_cifar" / name, tmp_path / "twin.safetensors"
    assert len(proved(path, arch)["groups"]) == groups
    assert run("permute", path, "--arch", arch, "-o", out, "--seed", 5).code == 0
    x, y = images(shared_data)
    with torch.no_grad():
        before, after = loaded(path, arch)(x), loaded(out, arch)(x)
    assert (before.argmax(1) == y).float().mean() > 0.9
    assert (before - after).abs().max() < 1e-4
    assert torch.equal(before.argmax(1), after.argmax(1))
    moved = metanet.open(out).read("layer1.0.conv1.weight")
    assert not torch.equal(moved, metanet.open(path).read("layer1.0.conv1.weight"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_wild_network_is_proved(shared_data: Path, family: str) -> None:
    files = sorted((shared_data / family).glob("net_*.pth"))
    assert len(files) > 20
    for path in files:
        sizes = [group["size"] for group in proved(path, FAMILIES[family])["groups"]]
        assert sizes == FAMILY_SIZES[family], path


def test_header_of_every_readable_file(run: Run, shared_data: Path) -> None:
    """Any file gives exit code 0 or 3, and one JSON document."""
    codes = []
    for path in sorted((shared_data / "burn_fixtures").glob("*"))[:-1]:
        done = run("inspect", path, "--json", "-q")
        assert isinstance(done.json, dict)
        assert done.code in (0, 3), path
        codes.append(done.code)
    assert codes.count(0) > 40
