"""Data sets: digits built in, the others from files; shuffled before any n is taken."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from metanet.zoo import data

from metanet import ZooError


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.VARIABLE, raising=False)


def pack(path: Path, n: int = 200, shape: tuple[int, ...] = (28, 28)) -> Path:
    """An npz sorted by class."""
    rng = np.random.default_rng(0)
    y = np.sort(np.arange(n) % 10).astype(np.uint8)
    x = rng.integers(0, 255, (n, *shape), dtype=np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    return path


def test_digits_are_built_in() -> None:
    train, test = data.load("digits"), data.load("digits", part="test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.x.shape[1:] == (8, 8)
    assert train.x.dtype == np.uint8
    assert not set(train.ids) & set(test.ids)
    assert len(set(train.ids) | set(test.ids)) == 1797


def test_ids_are_named_once() -> None:
    """Zoos ask for one of them per member: naming all every time made building quadratic."""
    train = data.load("digits")
    assert train.ids is train.ids


def test_the_first_n_hold_all_classes(tmp_path: Path) -> None:
    found = data.load("mnist", pack(tmp_path / "mnist.npz"), n=60)
    assert len(found) == 60
    assert set(found.y.tolist()) == set(range(10))
    whole = data.load("mnist", tmp_path)
    assert found.ids == whole.ids[:60]
    assert (found.content, found.sha256) == (whole.content, whole.sha256)
    assert data.load("mnist", tmp_path, seed=1).ids != whole.ids
    raw = np.load(tmp_path / "mnist.npz")
    assert np.array_equal(whole.x, raw["x_train"][whole.index])
    assert np.array_equal(whole.y, raw["y_train"][whole.index])


def test_the_variable_names_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fashion").mkdir()
    pack(tmp_path / "fashion" / "fashion-mnist.npz", 100)
    pack(tmp_path / "mnist.npz", 200)
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    assert len(data.load("fashion_mnist")) == 100
    assert len(data.load("MNIST")) == 200


def test_mnist_is_never_taken_for_fashion(tmp_path: Path) -> None:
    pack(tmp_path / "mnist.npz")
    with pytest.raises(ZooError, match=r"fashion-mnist here"):
        data.load("fashion-mnist", tmp_path)


def test_the_makers_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (30, 28, 28), dtype=np.uint8), np.arange(30) % 10
    image = struct.pack(">4I", 0x803, 30, 28, 28) + x.tobytes()
    label = struct.pack(">2I", 0x801, 30) + y.astype(np.uint8).tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(image)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(label, mtime=0))
    found = data.load("fashion-mnist", tmp_path)
    assert np.array_equal(found.x, x[found.index])
    assert np.array_equal(found.y, y[found.index])
    (tmp_path / "train-images-idx3-ubyte").write_bytes(image[:-5])
    with pytest.raises(ZooError, match="its header says"):
        data.load("fashion-mnist", tmp_path)


def test_the_binary_batches_of_cifar(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 10, (20, 3073), dtype=np.uint8)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows.tofile(folder / name)
    found = data.load("cifar10", tmp_path)
    assert found.x.shape == (100, 32, 32, 3)
    first = int(np.flatnonzero(found.index == 3)[0])
    assert np.array_equal(found.x[first][5, 7], rows[3, 1:].reshape(3, 32, 32)[:, 5, 7])


@pytest.mark.parametrize(("name", "told"), [
    ("mnist", "mnist.npz"), ("fashion-mnist", "fashion-mnist.npz"), ("cifar10", "batches-bin"),
    ("tiny-shakespeare", r"tinyshakespeare\.txt")])
def test_what_is_absent_says_how_to_get_it(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(ZooError, match=told) as error:
        data.load(name)
    assert data.VARIABLE in str(error.value)
    with pytest.raises(ZooError):
        data.load(name, tmp_path)
    with pytest.raises(ZooError, match="does not exist"):
        data.load(name, tmp_path / "nowhere")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="there are digits"):
        data.load("imagenet")
    with pytest.raises(ZooError, match="there are train and test"):
        data.load("digits", part="val")
    with pytest.raises(ZooError, match="has 1438 train images"):
        data.load("digits", n=5000)
    with pytest.raises(ZooError, match=r"\(20, 20\)"):
        data.load("mnist", pack(tmp_path / "odd.npz", shape=(20, 20)))
    (tmp_path / "data_batch_1").write_bytes(b"")
    with pytest.raises(ZooError, match="never opened"):
        data.load("cifar10", tmp_path)


def test_a_pickled_npz_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    evil = np.array([{"a": 1}], dtype=object)
    np.savez(path, x_train=evil, y_train=evil, allow_pickle=True)
    with pytest.raises(ZooError, match="no npz of plain arrays"):
        data.load("mnist", path)


def test_near_duplicates_are_found() -> None:
    x = data.load("digits", n=120).x.astype(float)
    noisy = np.clip(x[:10] + np.random.default_rng(0).normal(size=(10, 8, 8)) * 0.3, 0, 16)
    groups = data.near_duplicates(np.concatenate([x, noisy]))
    for i in range(10):
        assert groups[i] == groups[120 + i]
    assert len(set(groups[:120].tolist())) > 110


def test_real_packs(shared_data: Path) -> None:
    mnist = data.load("mnist", shared_data, n=1000)
    assert np.bincount(mnist.y).min() > 60
    assert mnist.sha256.startswith("e1212d38")
    text = data.load("tiny-shakespeare", shared_data)
    assert text.classes == 65
    assert bytes(text.x[:13]) == b"First Citizen"
    cifar = data.load("cifar10", shared_data, part="test", n=50)
    assert cifar.x.shape == (50, 32, 32, 3)
