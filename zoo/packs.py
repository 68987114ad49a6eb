"""The files that data sets come in: npz, IDX, CIFAR's binary batches, packed JPEG, plain text.

All of them are read without unpickling anything.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from metanet.errors import ZooError

_MOST = 4 << 30  # bytes that a pack may unfold to
_TEXTS = ("tinyshakespeare.txt", "tiny-shakespeare.txt", "input.txt")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Part:
    """Images ``[n, …]``, classes ``[n]``, places ``[n]`` in the original order, and the source."""

    x: Shaped[np.ndarray, "n ..."]
    y: Int64[np.ndarray, " n"]
    index: Int64[np.ndarray, " n"]
    source: str
    sha256: str


def read_images(name: str, path: Path, part: str) -> Part:
    """One part of an image data set, in the order of its makers.

    Raises:
        ZooError: if nothing readable is there.
    """
    for reader in (_npz, _idx, _cifar, _jpeg, _parquet):
        found = reader(name, path, part)
        if found is not None:
            return found
    inside = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else [path.name]
    batches = any(p.startswith("data_batch") for p in inside)
    hint = ("these are pickles, which are never opened: take the binary version "
            "(cifar-10-batches-bin)" if batches else
            f"give {name}.npz with arrays x_{part} and y_{part}, or the files of its makers")
    raise ZooError(f"{path}: no {part} part of {name} here (found {', '.join(inside)}); {hint}")


def read_text(path: Path) -> tuple[UInt8[np.ndarray, " n"], str, str]:
    """Characters as bytes, the file, and its sha256."""
    inside = (path / name for name in _TEXTS if (path / name).is_file())
    file = path if path.is_file() else next(inside, None)
    if file is None:
        raise ZooError(f"{path}: holds none of {', '.join(_TEXTS)}")
    if file.stat().st_size > _MOST:
        raise ZooError(f"{file}: larger than {_MOST} bytes; this is not tiny-shakespeare")
    raw = file.read_bytes()
    return np.frombuffer(raw, np.uint8).copy(), str(file), hashlib.sha256(raw).hexdigest()


def _sha256(files: Iterable[Path]) -> str:
    hashes = [(hashlib.sha256(p.read_bytes()).hexdigest(), p.name) for p in sorted(files)]
    if len(hashes) == 1:
        return hashes[0][0]
    return hashlib.sha256("".join(f"{h}  {n}\n" for h, n in hashes).encode()).hexdigest()


def _part(x: Array, y: Array, files: list[Path]) -> Part:
    source = files[0] if len(files) == 1 else files[0].parent
    return Part(x, y.astype(np.int64).reshape(-1), np.arange(len(x)), str(source), _sha256(files))


def _arrays(path: Path) -> Mapping[str, Array]:
    """Arrays of an npz, none of them unpickled."""
    try:
        with zipfile.ZipFile(path) as pack:
            size = sum(entry.file_size for entry in pack.infolist())
        if size > _MOST:
            raise ZooError(f"{path}: would unfold to {size} bytes; the limit is {_MOST}")
        with np.load(path, allow_pickle=False) as pack:
            return {name: pack[name] for name in pack.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise ZooError(f"{path}: is no npz of plain arrays ({error}); download it again") from None


def _npz(name: str, path: Path, part: str) -> Part | None:
    files = [path] if path.is_file() else [path / f"{name}.npz",
                                           path / f"{name.replace('-', '_')}.npz"]
    for file in files:
        if not file.is_file() or file.suffix != ".npz":
            continue
        arrays = _arrays(file)
        x, y = arrays.get(f"x_{part}"), arrays.get(f"y_{part}")
        if x is not None and y is not None:
            return _part(x, y, [file])
    return None


def _parquet(name: str, path: Path, part: str) -> Part | None:
    """``train-*.parquet`` with PNG images and labels, as data sets lie on the Hub."""
    files = sorted(path.glob(f"{part}-*.parquet")) if path.is_dir() else [path]
    if not files or files[0].suffix != ".parquet":
        return None
    try:
        from pyarrow.parquet import read_table
    except ImportError:
        raise ZooError(f"{path}: reading Parquet needs pyarrow; run: pip install "
                       "'metanet-toolkit[data]'") from None
    tables = []
    for file in files:
        try:
            tables.append(read_table(file).to_pydict())
        except (OSError, ValueError) as error:
            raise ZooError(f"{file}: cannot be read ({error}); download it again") from None
    column = next((c for c in ("image", "img") if all(c in t for t in tables)), None)
    if column is None or any("label" not in t for t in tables):
        raise ZooError(f"{path}: has no columns image and label; this is not {name}")
    x = np.stack([_png(files[0], item) for t in tables for item in t[column]])
    return _part(x, np.array([y for t in tables for y in t["label"]]), files)


def _png(path: Path, item: Any) -> Array:
    from matplotlib.image import imread

    data = item.get("bytes") if isinstance(item, dict) else None
    if not isinstance(data, bytes) or not data.startswith(b"\x89PNG"):
        raise ZooError(f"{path}: holds an image that is no PNG")
    try:
        found = imread(io.BytesIO(data), format="png")
    except (OSError, ValueError, SyntaxError) as error:
        raise ZooError(f"{path}: holds an image that cannot be read ({error})") from None
    return np.rint(np.asarray(found) * 255).astype(np.uint8)


# ------------------------------------------------------------ IDX, of MNIST and Fashion-MNIST


def _idx(name: str, path: Path, part: str) -> Part | None:
    if name == "cifar10" or not path.is_dir():
        return None
    stem = "train" if part == "train" else "t10k"
    files = []
    for kind in ("images-idx3", "labels-idx1"):
        names = [f"{stem}-{kind}-ubyte{z}" for z in ("", ".gz")]
        names += [f"{stem}-{kind.replace('-idx', '.idx')}-ubyte{z}" for z in ("", ".gz")]
        found = next((path / n for n in names if (path / n).is_file()), None)
        if found is None:
            return None
        files.append(found)
    return _part(_read_idx(files[0]), _read_idx(files[1]), files)


def _read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(raw)) as unfolded:
                raw = unfolded.read(_MOST)
    except (OSError, EOFError) as error:
        raise ZooError(f"{path}: cannot be read ({error}); download it again") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ZooError(f"{path}: is no IDX file of bytes; download it again")
    shape = tuple(np.frombuffer(raw, ">u4", raw[3], 4).tolist()) if len(raw) > 4 * raw[3] else ()
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if data.size != int(np.prod(shape, dtype=np.int64)):
        raise ZooError(f"{path}: holds {data.size} bytes, its header says {shape}; download again")
    return data.reshape(shape).copy()


# ------------------------------------------------------------ CIFAR-10


def _cifar(name: str, path: Path, part: str) -> Part | None:
    if name != "cifar10" or not path.is_dir():
        return None
    folder = next((p for p in (path, path / "cifar-10-batches-bin")
                   if (p / "test_batch.bin").is_file()), None)
    if folder is None:
        return None
    files = ([folder / f"data_batch_{i}.bin" for i in range(1, 6)] if part == "train"
             else [folder / "test_batch.bin"])
    absent = [p.name for p in files if not p.is_file()]
    if absent:
        raise ZooError(f"{folder}: {absent[0]} is missing; unpack the archive again")
    raw = np.concatenate([np.fromfile(p, np.uint8) for p in files])
    if raw.size % 3073:
        raise ZooError(f"{folder}: the batches are cut off; unpack the archive again")
    rows = raw.reshape(-1, 3073)
    x = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy()
    return _part(x, rows[:, 0], files)


def _jpeg(name: str, path: Path, part: str) -> Part | None:
    """Packed JPEG: arrays bytes, offsets and y, in a file that has the part in its name."""
    if name != "cifar10":
        return None
    files = [path] if path.is_file() else sorted(path.glob(f"*{part}*.npz"))
    for file in files:
        if file.suffix != ".npz":
            continue
        arrays = _arrays(file)
        if {"bytes", "offsets", "y"} <= set(arrays) and (path.is_dir() or part in file.name):
            return _part(_decoded(file, arrays), arrays["y"], [file])
    return None


def _decoded(path: Path, arrays: Mapping[str, Array]) -> UInt8[np.ndarray, "n 32 32 3"]:
    from matplotlib.image import imread

    raw, ends = arrays["bytes"].tobytes(), arrays["offsets"].tolist()
    out = np.empty((len(ends) - 1, 32, 32, 3), np.uint8)
    for i, (begin, end) in enumerate(pairwise(ends)):
        data = raw[begin:end]
        if not data.startswith(b"\xff\xd8\xff"):
            raise ZooError(f"{path}: image {i} is no JPEG")
        try:
            image = imread(io.BytesIO(data), format="jpg")
        except (OSError, ValueError) as error:
            raise ZooError(f"{path}: image {i} cannot be read ({error})") from None
        if image.shape != (32, 32, 3):
            raise ZooError(f"{path}: image {i} has shape {image.shape}, not (32, 32, 3)")
        out[i] = image
    return out
