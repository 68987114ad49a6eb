"""Checkpoints made by others. Skipped where the folder of real files is absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import metanet.checkpoint as door
from metanet.errors import CheckpointError

PURE = ("auto_lirpa", "lpips", "mtcnn", "nino", "ppo_pytorch", "resnet_cifar", "sb3_policies",
        "silero_vad", "siren_orbit", "ultraface", "wild_mnist_cnn21k", "wild_mnist_lenet45k")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != "manifest.json")


def manifest(folder: Path) -> dict[str, Any]:
    told = json.loads((folder / "manifest.json").read_text())
    rows = told if isinstance(told, list) else told.get("files", [])
    return {row["file"]: row for row in rows}


@pytest.mark.parametrize("folder", PURE)
def test_folder_of_real_nets(shared_data: Path, folder: str) -> None:
    told = manifest(shared_data / folder)
    for path in files(shared_data / folder):
        ckpt = door.open(path)
        row = told.get(path.name, {})
        if "params" in row:
            assert ckpt.n_parameters == row["params"], path.name
        if "sha256" in row:
            assert ckpt.source.sha256 == row["sha256"] == hashlib.sha256(
                path.read_bytes()).hexdigest()
        assert sum(t.numel() for n, t in ckpt.state_dict().items()
                   if n not in ckpt.aliases) == ckpt.n_parameters


def leaves(value: Any, trail: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested object by its dotted name: the obvious reference."""
    if isinstance(value, torch.Tensor):
        return {trail: value}
    items = value.items() if isinstance(value, dict) else enumerate(
        value if isinstance(value, list) else [])
    out: dict[str, torch.Tensor] = {}
    for key, item in items:
        out |= leaves(item, f"{trail}.{key}" if trail else str(key))
    return out


def test_burn_fixtures(shared_data: Path) -> None:
    """57 load and give exactly torch's tensors; the 7 that torch refuses are refused."""
    opened, refused = [], []
    for path in files(shared_data / "burn_fixtures"):
        try:
            ckpt = door.open(path)
        except CheckpointError:
            refused.append(path)
            continue
        opened.append(path)
        if path.suffix == ".safetensors":
            continue
        told = leaves(torch.load(path, weights_only=True, map_location="cpu"))
        start = f"{ckpt.wrapper}." if ckpt.wrapper else ""
        for name in ckpt.names:
            expected = told[start + name]
            assert expected.dtype == ckpt.read(name).dtype
            assert torch.equal(expected.nan_to_num() if expected.is_floating_point() else expected,
                               ckpt.read(name).nan_to_num() if expected.is_floating_point()
                               else ckpt.read(name))
    assert (len(opened), len(refused)) == (57, 7)
    for path in refused:
        with pytest.raises(Exception):  # noqa: B017 - torch uses many types
            torch.load(path, weights_only=True, map_location="cpu")


def test_resnet_details(shared_data: Path) -> None:
    ckpt = door.open(shared_data / "resnet_cifar" / "resnet20-12fca82f.th")
    assert ckpt.wrapper == "state_dict" and len(ckpt.renamed) == len(ckpt) == 97
    assert ckpt.shape("layer3.0.conv1.weight") == (64, 32, 3, 3)
    told = torch.load(ckpt.source.files[0], weights_only=True, map_location="cpu")
    assert ckpt.metadata == {"best_prec1": told["best_prec1"]}


def test_list_of_state_dicts_is_offered(shared_data: Path) -> None:
    path = shared_data / "kw_provable" / "models_scaled__mnist_small_0_3.pth"
    with pytest.raises(CheckpointError, match=r"state_dict\.0.*state_dict\.2"):
        door.open(path)
    assert door.open(path, key="state_dict.1").shape("0.weight")[0] == 16


def test_foreign_files_are_named(shared_data: Path) -> None:
    with pytest.raises(CheckpointError, match="msgpack"):
        door.open(shared_data / "celo" / "celo.theta.state")
    with pytest.raises(CheckpointError, match="npz"):
        door.open(shared_data / "mnist" / "mnist.npz")


@pytest.mark.parametrize("name", ["kw_provable/models__mnist.pth", "mtcnn/onet.pt",
                                  "resnet_cifar/resnet20-12fca82f.th",
                                  "sb3_policies/a2c__Ant-v3.pth"])
def test_conversion_is_exact(shared_data: Path, name: str, tmp_path: Path) -> None:
    ckpt = door.open(shared_data / name)
    again = door.open(ckpt.convert(tmp_path / "x.safetensors"))
    assert again.names == ckpt.names and again.aliases == ckpt.aliases
    assert all(torch.equal(again.read(n), ckpt.read(n)) for n in ckpt.names)
