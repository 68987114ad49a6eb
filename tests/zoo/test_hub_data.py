"""Data sets from a Hub on loopback: an npz, files of the makers, Parquet; pinned and checked."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import FakeHub, served
from metanet.zoo import Zoo, data, hub_data
from metanet.zoo.build import build
from metanet.zoo.recipe import parse

from metanet.errors import HubError, ZooError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (40, 28, 28), dtype=np.uint8)
Y = (np.arange(40) % 10).astype(np.uint8)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.delenv(data.VARIABLE, raising=False)
    with served(monkeypatch, tmp_path / "cache") as server:
        yield server


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, x_train=X, y_train=Y, x_test=X[:10], y_test=Y[:10])
    return out.getvalue()


def idx() -> dict[str, bytes]:
    images = b"\0\0\x08\x03" + struct.pack(">III", *X.shape) + X.tobytes()
    labels = b"\0\0\x08\x01" + struct.pack(">I", len(Y)) + Y.tobytes()
    return {"raw/train-images-idx3-ubyte.gz": gzip.compress(images),
            "raw/train-labels-idx1-ubyte.gz": gzip.compress(labels)}


def png(image: np.ndarray) -> bytes:  # type: ignore[type-arg]
    """A gray PNG, written by hand."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    height, width = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    return (b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def parquet() -> dict[str, bytes]:
    files = {}
    for i, rows in enumerate((slice(0, 25), slice(25, 40))):
        table = pa.table({"image": [{"bytes": png(x), "path": None} for x in X[rows]],
                          "label": Y[rows].tolist()})
        out = io.BytesIO()
        pq.write_table(table, out)
        files[f"mnist/train-0000{i}-of-00002.parquet"] = out.getvalue()
    return files


@pytest.mark.parametrize("files", [{"mnist.npz": npz(), "README.md": b"x"}, idx(), parquet()])
def test_every_form(fake: FakeHub, files: dict[str, bytes]) -> None:
    sha = fake.add("org/digits", files, kind="datasets")
    found = data.load("mnist", "hf://datasets/org/digits")
    assert np.array_equal(found.x, X[found.index]) and np.array_equal(found.y, Y[found.index])
    assert found.source == f"hf://datasets/org/digits@{sha}" == found.provenance()["hub"]
    asked = len(fake.asked)
    again = data.load("mnist", f"{found.source}", n=5)
    assert (again.content, again.sha256) == (found.content, found.sha256)
    assert not [a for a in fake.asked[asked:] if a[0] == "GET" and "storage" in a[1]]


def test_one_file_and_the_makers(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("org/many", {"a/mnist.npz": npz()})
    assert len(data.load("mnist", "hf://org/many/a/mnist.npz", part="test")) == 10
    monkeypatch.setitem(hub_data.KNOWN, "mnist", "hf://org/many")
    assert len(data.load("mnist", "hub")) == 40
    with pytest.raises(ZooError, match="no repository"):
        data.load("tiny-shakespeare", "hub")


def test_text(fake: FakeHub) -> None:
    fake.add("org/bard", {"input.txt": b"To be, or not to be. " * 50})
    found = data.load("tiny-shakespeare", "hf://org/bard")
    assert bytes(found.x[:5].tolist()) == b"To be" and found.source.startswith("hf://org/bard@")


def test_what_is_not_there_or_wrong(fake: FakeHub, tmp_path: Path) -> None:
    fake.add("org/empty", {"README.md": b"x"})
    with pytest.raises(ZooError, match="holds no mnist"):
        data.load("mnist", "hf://org/empty")
    with pytest.raises(HubError, match="log in"):
        data.load("mnist", "hf://org/absent")
    fake.add("org/digits", {"mnist.npz": npz()})
    fake.corrupt.add("mnist.npz")
    with pytest.raises(HubError, match="is not what the Hub lists"):
        data.load("mnist", "hf://org/digits")
    fake.corrupt.clear()
    assert len(data.load("mnist", "hf://org/digits")) == 40
    fake.add("org/odd", {"train-0.parquet": b"PAR1 not"})
    with pytest.raises(ZooError, match="cannot be read"):
        data.load("mnist", "hf://org/odd")


def test_a_build_is_pinned(fake: FakeHub, tmp_path: Path) -> None:
    sha = fake.add("org/digits", {"mnist.npz": npz()})
    recipe = parse("about: x\nfactory: inr\nn: 4\ndata: {name: mnist}\nchunk: 4\n"
                   "model: {sizes: [2, 4, 1]}\nfit: {steps: 2}\n", "tiny")
    build(recipe, tmp_path / "zoo", workers=1, data="hf://org/digits")
    card = Zoo.open(tmp_path / "zoo").card
    assert card.provenance["data"]["hub"] == f"hf://org/digits@{sha}"
