"""Every real file of the data folder with no code given: recognised, or refused with a reason.

Nothing may be called verified, for nothing is run. The expectation stands once for each family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import models
import pytest
from symmetry_tools import signatures

import metanet
from metanet.errors import CheckpointError
from metanet.symmetry import resolve


@dataclass(frozen=True)
class Expected:
    """Route and groups, or the reason of a refusal; ``count`` files."""

    count: int
    route: str | None = None
    groups: tuple[int, ...] | None = None
    note: str = ""


NOT_ONE_ROW = "more than one layer may follow"
FAMILIES: dict[str, Expected] = {
    "wild_mnist_cnn21k/*": Expected(24, "cache", (10, 20, 50), "mnist-cnn21k"),
    "wild_mnist_lenet45k/*": Expected(23, "cache", (8, 16, 64, 128), "mnist-lenet45k"),
    "siren_orbit/*": Expected(64, "pattern", (32, 32), "one numbered series"),
    "resnet_cifar/resnet20*": Expected(1, "cache", None, "resnet20-cifar"),
    "resnet_cifar/resnet32*": Expected(1, "cache", None, "resnet32-cifar"),
    "kw_provable/*har.pth": Expected(1, "pattern", (500,), "one numbered series"),
    "kw_provable/*svhn.pth": Expected(1, "pattern", (16, 32, 100), "one numbered series"),
    "auto_lirpa/cifar_2c2f.pth": Expected(1, "pattern", (4, 4, 32), "one numbered series"),
    "auto_lirpa/kw_mnist.pth": Expected(1, "pattern", (16, 32, 100), "one numbered series"),
    "auto_lirpa/mnist_cnn_small.pth": Expected(1, "pattern", (8, 256), "one numbered series"),
    "auto_lirpa/mnist_fc_3layer.pth": Expected(1, "pattern", (64, 128), "one numbered series"),
    "auto_lirpa/spectral_NOR_MLP_B.pth": Expected(1, "pattern", (100, 100), "one numbered"),
    "auto_lirpa/test_min_max.pth": Expected(1, "pattern", (100,), "each looked at alone"),
    "ultraface/*": Expected(5, None, None, "groups, which ties outputs to inputs"),
    "mtcnn/*": Expected(3, None, None, NOT_ONE_ROW),
    "lpips/*": Expected(6, None, None, "cannot be chained"),
    "silero_vad/*": Expected(1, None, None, "no part of a sequence"),
    "ppo_pytorch/*": Expected(6, "pattern", (64, 64, 64, 64), "each looked at alone"),
    "nino/nino_mlp.pt": Expected(1, "pattern", (128, 128, 128), "each looked at alone"),
    "nino/nino_mlp_h32.pt": Expected(1, "pattern", (32, 32, 32), "each looked at alone"),
    "nino/nino_no_posw.pt": Expected(1, "pattern", (128,), "each looked at alone"),
    "sb3_policies/*": Expected(37, "pattern", (64, 64, 64, 64), "each looked at alone"),
}
ROUTES = ("config", "timm", "adapter", "cache", "pattern", "chain", None)


def files(data: Path, pattern: str) -> list[Path]:
    return sorted(path for path in data.glob(pattern) if path.suffix not in (".json", ".md"))


def check(path: Path, expected: Expected) -> None:
    found = resolve(path)
    assert found.route == expected.route, (path.name, found.note)
    assert expected.note in found.note, path.name
    assert found.verification is None and (found.space is None) == (expected.route is None)
    if found.space is not None:
        assert found.space.status == "inferred"
        assert set(found.space.tensors) <= set(found.checkpoint.names)
        if expected.groups is not None:
            assert signatures(found.space) == sorted(models.s(*expected.groups)), path.name


@pytest.mark.parametrize("family", FAMILIES)
def test_some_of_each_family(shared_data: Path, family: str) -> None:
    found = files(shared_data, family)
    assert len(found) == FAMILIES[family].count
    for path in found[::12]:
        check(path, FAMILIES[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_each_family(shared_data: Path, family: str) -> None:
    for path in files(shared_data, family):
        check(path, FAMILIES[family])


def others(data: Path) -> Iterator[Path]:
    known = {path for family in FAMILIES for path in files(data, family)}
    for folder in ("kw_provable", "auto_lirpa", "burn_fixtures", "celo"):
        yield from (p for p in files(data, f"{folder}/**/*") if p.is_file() and p not in known)


def test_odd_files_are_never_verified(shared_data: Path) -> None:
    """One layer of each kind, views, broken files, a list of state dicts: a reason, or a space."""
    opened = 0
    for path in others(shared_data):
        try:
            checkpoint = metanet.open(path)
        except CheckpointError as refusal:
            assert str(refusal)
            continue
        opened += 1
        found = resolve(checkpoint)
        assert found.route in ROUTES and found.note and found.verification is None
        assert (found.space is None) == (found.route is None)
        assert found.space is None or found.space.status == "inferred"
    assert opened > 50


def test_a_part_of_a_file_with_several_state_dicts(shared_data: Path) -> None:
    path = next(p for p in files(shared_data, "kw_provable/*") if _refused(p))
    found = resolve(metanet.open(path, key="state_dict.0"))
    assert found.route == "pattern" and found.space is not None


def _refused(path: Path) -> bool:
    try:
        metanet.open(path)
    except CheckpointError as error:
        return "state_dict.0" in str(error)
    return False
