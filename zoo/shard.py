"""Shards: safetensors files that hold every parameter of many members stacked, ``[n, …]``."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from metanet.zoo.index import MAX_ROWS
from metanet.zoo.layout import Layout
from torch import Tensor

from metanet.checkpoint.info import ITEMSIZE, TensorInfo
from metanet.checkpoint.names import printable
from metanet.checkpoint.safetensors_file import read_header
from metanet.checkpoint.write import payload, write_safetensors
from metanet.errors import CheckpointError, ZooError

FOLDER = "shards"
_TEMPORARY = re.compile(r"^\.+(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-")
_BLOCK = 1 << 20
_DAY = 86400.0
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Written:
    """A shard on disk that has not got its number yet."""

    path: Path
    layout: Layout
    hashes: tuple[str, ...]
    nbytes: int
    sha256: str


def name_of(shard: int) -> str:
    """File name of a shard; a name is never read from an index."""
    return f"{shard:06d}.safetensors"


def path_of(folder: Path, shard: int) -> Path:
    """Path of a shard in the folder of a zoo."""
    return folder / FOLDER / name_of(shard)


# ------------------------------------------------------------ writing


def stack(members: Sequence[Tensors], layout: Layout) -> dict[str, Shaped[Tensor, "n ..."]]:
    """Stacked tensors of members that all have this layout."""
    return {name: torch.stack([m[name].detach().cpu() for m in members])
            for name, _, _ in layout.tensors}


def content_hashes(layout: Layout, tensors: Tensors) -> tuple[str, ...]:
    """Hex sha256 of every member: of the state-dict layout and of the bytes in natural order."""
    parts = []
    for name, shape, dtype in layout.tensors:
        parts.append((payload(tensors[name]), TensorInfo(shape, dtype).nbytes))
    start = hashlib.sha256(layout.signature.encode())
    found = []
    for row in range(tensors[layout.tensors[0][0]].shape[0]):
        digest = start.copy()
        for data, size in parts:
            digest.update(data[row * size:(row + 1) * size])
        found.append(digest.hexdigest())
    return tuple(found)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def write(folder: Path, layout: Layout, tensors: Tensors) -> Written:
    """Write a shard under a temporary name, flushed to the disk, and hash it."""
    (folder / FOLDER).mkdir(exist_ok=True)
    path = folder / FOLDER / f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    plain = {name: tensors[name] for name, _, _ in layout.tensors}
    write_safetensors(plain, path, {"metanet.zoo": "1"}, dict(layout.aliases))
    hashes = content_hashes(layout, tensors)
    return Written(path, layout, hashes, path.stat().st_size, file_hash(path))


def place(folder: Path, written: Written, shard: int) -> Path:
    """Give a written shard its number; an orphan of that name, left by a kill, is replaced."""
    target = path_of(folder, shard)
    os.replace(written.path, target)
    sync(target.parent)
    return target


def sync(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def file_hash(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------ what a kill leaves behind


def abandoned(path: Path) -> bool:
    """Whether nobody is writing this temporary file any more."""
    found = _TEMPORARY.match(path.name)
    if found is None:
        return False
    if found["host"] != _host():
        return time.time() - path.stat().st_mtime > _DAY
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def is_temporary(path: Path) -> bool:
    """Whether a file is a shard that is being written, or was when its writer was killed."""
    return _TEMPORARY.match(path.name) is not None


# ------------------------------------------------------------ reading


@lru_cache(maxsize=512)
def _table(path: Path, size: int, changed: int) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    """Tensors of a file, and where in it each begins; ``size`` and ``changed`` key the cache."""
    del size, changed
    infos, _ = read_header(path)
    with path.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        entries = json.loads(handle.read(length))
    return infos, {name: 8 + length + entries[name]["data_offsets"][0] for name in infos}


def header(path: Path, layout: Layout, members: int
           ) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    """Tensors of a shard and where in the file each begins, checked against the index.

    Raises:
        ZooError: if the file is missing, damaged, or not what the index says.
    """
    try:
        stat = path.stat()
        infos, begins = _table(path, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        raise ZooError(f"{path}: missing; pull or build the zoo again") from None
    except CheckpointError as error:
        raise ZooError(str(error)) from None
    want = {name: ((members, *shape), dtype) for name, shape, dtype in layout.tensors}
    have = {name: (info.shape, info.dtype) for name, info in infos.items()}
    if want != have:
        odd = sorted(n for n in want.keys() | have.keys() if want.get(n) != have.get(n))[0]
        raise ZooError(f"{path}: tensor {printable(odd, 80)!r} is {have.get(odd)}, the index says "
                       f"{want.get(odd)}; pull or build the zoo again")
    return infos, begins


def read(path: Path, layout: Layout, members: int, shared: bool = False
         ) -> dict[str, Shaped[Tensor, "n ..."]]:
    """All tensors of a shard, memory-mapped: nothing is read before it is used.

    Writing into them changes this mapping only, never the file. ``shared`` reuses one mapping per
    process: for those who copy out of it and never write.
    """
    infos, begins = header(path, layout, members)
    start = min(begins.values())
    size = sum(info.nbytes for info in infos.values())
    if not size:
        return {n: torch.empty(i.shape, dtype=getattr(torch, i.dtype)) for n, i in infos.items()}
    changed = path.stat().st_mtime_ns
    data = (_shared if shared else _mapped)(path, start, size, changed)
    return {name: _view(data, begins[name] - start, infos[name]) for name, _, _ in layout.tensors}


def _mapped(path: Path, start: int, size: int, changed: int) -> Tensor:
    del changed  # keys the cache of _shared
    with path.open("rb") as handle:
        view = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(view, dtype=torch.uint8, count=size, offset=start)


_shared = lru_cache(maxsize=128)(_mapped)  # each holds a file descriptor


def _view(data: Tensor, at: int, info: TensorInfo) -> Tensor:
    dtype = getattr(torch, info.dtype)
    if at % ITEMSIZE[info.dtype]:
        return data[at:at + info.nbytes].clone().view(dtype).view(info.shape)
    return data[at:at + info.nbytes].view(dtype).view(info.shape)


def consecutive(rows: Int64[np.ndarray, " k"]) -> bool:
    """Whether the rows stand side by side, in order."""
    return len(rows) > 0 and bool(np.all(np.diff(rows) == 1))


def take(tensors: Mapping[str, Shaped[Tensor, "n ..."]], rows: Int64[np.ndarray, " k"]
         ) -> dict[str, Shaped[Tensor, "k ..."]]:
    """Rows of stacked tensors; consecutive ones are views, without a copy."""
    if consecutive(rows):
        first, last = int(rows[0]), int(rows[-1]) + 1
        return {name: tensor[first:last] for name, tensor in tensors.items()}
    index = torch.from_numpy(rows)
    return {name: tensor.index_select(0, index) for name, tensor in tensors.items()}


def numbers(places: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
    """Shard of every place."""
    return places // MAX_ROWS
