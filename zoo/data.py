"""The data sets that zoos are made of: digits built in, the others from a file of your own.

The packs that are around are sorted by class, so every part is shuffled by a fixed seed before any
n is taken: the first n, and every chunk, hold all classes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped
from metanet.zoo.hub_data import fetched
from metanet.zoo.links import components
from metanet.zoo.packs import Part, read_images, read_text

from metanet.checkpoint.hub import SCHEME
from metanet.checkpoint.names import no_such, printable
from metanet.errors import ZooError

VARIABLE = "METANET_DATA"
SEED = 0
_HOW = {
    "mnist": "mnist.npz (arrays x_train, y_train, x_test, y_test), or the four files "
             "train-images-idx3-ubyte(.gz), … of the MNIST site",
    "fashion-mnist": "fashion-mnist.npz (arrays x_train, y_train, x_test, y_test), or the four "
                     "files train-images-idx3-ubyte(.gz), … of zalandoresearch/fashion-mnist",
    "cifar10": "cifar10.npz (arrays x_train, y_train, x_test, y_test), or the folder "
               "cifar-10-batches-bin of the CIFAR site (its binary version)",
    "tiny-shakespeare": "tinyshakespeare.txt, the file input.txt of karpathy/char-rnn",
}
# How the folders of a collection spell the names.
_ALSO = {"mnist": ("MNIST", "MNIST/raw"), "cifar10": ("cifar-10", "CIFAR10"),
         "fashion-mnist": ("fashion_mnist", "fashionmnist", "fashion", "FashionMNIST/raw"),
         "tiny-shakespeare": ("tinyshakespeare", "tiny_shakespeare", "text")}
NAMES = ("digits", *_HOW)
_SHAPES = {"digits": (8, 8), "mnist": (28, 28), "fashion-mnist": (28, 28), "cifar10": (32, 32, 3)}


@dataclass(frozen=True, eq=False)
class Dataset:
    """One part of a data set, shuffled.

    Attributes:
        name, part: such as ``mnist`` and ``train``.
        x: images ``[n, h, w]`` or ``[n, h, w, 3]``, uint8 (digits: 0 to 16); for text the
            characters, uint8 ``[n]``, in their own order.
        y: classes ``[n]``, int64; empty for text.
        index: place of every image in the part as its makers ordered it, ``[n]``: its id.
        source: where it came from.
        sha256: of the file, or of the lines ``HASH  NAME`` of several; of digits, of its arrays.
        content: hex sha256 of the arrays of the whole part, whatever file they came in.
        classes: how many.
    """

    name: str
    part: str
    x: Shaped[np.ndarray, "n ..."] = field(repr=False)
    y: Int64[np.ndarray, " n"] = field(repr=False)
    index: Int64[np.ndarray, " n"] = field(repr=False)
    source: str
    sha256: str
    content: str
    classes: int = 10

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """``mnist/train/123``: a name for every image, the same in every zoo."""
        return tuple(f"{self.name}/{self.part}/{i}" for i in self.index.tolist())

    def provenance(self) -> dict[str, Any]:
        """Name, part, source and checksums, as plain data for ``zoo.json``; no local path."""
        hub = {"hub": self.source} if self.source.startswith(SCHEME) else {}
        return {"name": self.name, "part": self.part, "file": Path(self.source).name,
                "sha256": self.sha256, "content": self.content, **hub}


def load(name: str, source: str | os.PathLike[str] | None = None, *, part: str = "train",
         n: int | None = None, seed: int = SEED) -> Dataset:
    """Load one part of a data set.

    Args:
        name: digits, mnist, fashion-mnist, cifar10 or tiny-shakespeare.
        source: an npz file, or a folder that holds the data set or a folder of its name; by
            default the folder in the environment variable METANET_DATA. Digits need none.
            ``hf://datasets/org/name`` takes it from the Hub, ``hub`` from its makers there.
        part: train or test. Every fifth image of digits is its test part, of
            tiny-shakespeare the last tenth.
        n: how many images, after shuffling; all by default.
        seed: of the shuffling.

    Raises:
        ZooError: if it is not there (with how to get it), or is not what it should be.
    """
    name = name.lower().replace("_", "-")
    if name not in NAMES:
        raise ZooError(no_such("data set", name, NAMES))
    if part not in ("train", "test"):
        raise ZooError(f"no part {printable(part, 40)!r}; there are train and test")
    if on_the_hub(source) and name != "digits":
        path, uri = fetched(name, str(source), (name, *_ALSO[name]), part)
        return replace(load(name, path, part=part, n=n, seed=seed), source=uri)
    if name == "tiny-shakespeare":
        return _text(name, _place(name, source), part, n)
    found = _digits(part) if name == "digits" else read_images(name, _place(name, source), part)
    _check(name, found)
    order = np.random.default_rng(seed).permutation(len(found.x))
    if n is not None:
        if not 0 < n <= len(order):
            raise ZooError(f"n = {n}: {name} has {len(order)} {part} images in {found.source}")
        order = order[:n]
    return Dataset(name, part, found.x[order], found.y[order], found.index[order], found.source,
                   found.sha256, _content(found.x, found.y))


def on_the_hub(source: object) -> bool:
    """Whether a source of data is meant to be on the Hub, not a path."""
    return isinstance(source, str) and (source == "hub" or source.startswith(SCHEME))


def _place(name: str, source: str | os.PathLike[str] | None) -> Path:
    """The file or folder to read a data set from; never MNIST's for Fashion-MNIST."""
    told = source if source is not None else os.environ.get(VARIABLE)
    how = (f"Get {_HOW[name]}, and name its folder with --data or in {VARIABLE}; or take it from "
           "the Hub with --data hf://datasets/org/name")
    if not told:
        raise ZooError(f"{name} is not shipped with metanet. {how}")
    path = Path(told)
    if not path.exists():
        raise ZooError(f"{path}: does not exist. {how}")
    if path.is_file():
        return path
    for spelling in (name, *_ALSO[name]):
        for found in (path / spelling, path / f"{spelling}.npz"):
            if found.exists():
                return found
    return path


def _digits(part: str) -> Part:
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = found.images.astype(np.uint8), found.target.astype(np.int64)
    rows = np.arange(len(x))
    rows = rows[(rows % 5 == 4) == (part == "test")]
    return Part(x[rows], y[rows], rows, "scikit-learn", _content(x, y))


def _text(name: str, path: Path, part: str, n: int | None) -> Dataset:
    data, source, sha256 = read_text(path)
    cut = len(data) - len(data) // 10
    rows = np.arange(len(data))[:cut] if part == "train" else np.arange(len(data))[cut:]
    rows = rows[:n] if n is not None else rows
    empty = np.empty(0, np.int64)
    return Dataset(name, part, data[rows], empty, rows, source, sha256, _content(data, empty),
                   len(np.unique(data)))


def _check(name: str, found: Part) -> None:
    shape = _SHAPES[name]
    if found.x.shape[1:] != shape or found.x.dtype != np.uint8:
        raise ZooError(f"{found.source}: images of shape {found.x.shape[1:]} and "
                       f"{found.x.dtype}; {name} has {shape}, uint8")
    if len(found.y) != len(found.x) or not len(found.x) or found.y.min() < 0 or found.y.max() > 9:
        raise ZooError(f"{found.source}: {len(found.y)} classes for {len(found.x)} images, or "
                       f"classes outside 0 to 9; this is not {name}")


def _content(*arrays: np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def near_duplicates(x: Shaped[np.ndarray, "n ..."], threshold: float = 0.05
                    ) -> Int64[np.ndarray, " n"]:
    """Group number of every image; near-duplicates, directly or in a chain, share one.

    Two images are near-duplicates if the squared distance between them is below ``threshold`` of
    the mean of their squared norms around the mean image. Quadratic in n.
    """
    flat = x.reshape(len(x), -1).astype(np.float32)
    flat -= flat.mean(0)
    norms = np.square(flat).sum(1)
    rows, columns = [], []
    for start in range(0, len(flat), 1024):
        part = slice(start, start + 1024)
        mean = (norms[part, None] + norms[None]) / 2
        near = 2 * mean - 2 * flat[part] @ flat.T <= threshold * mean
        i, j = np.nonzero(near)
        rows.append(i + start)
        columns.append(j)
    return components(np.concatenate(rows), np.concatenate(columns), len(flat))
