"""Samples to calibrate on and to score on: ``.npz`` files with an array ``x`` and perhaps ``y``."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from metanet.checkpoint.names import printable
from metanet.errors import MetanetError

_LARGEST = 16 << 30


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and perhaps labels; ``source`` says where they are from.

    ``y`` is class numbers [N] (or [N T] for sequences), or real targets in the shape of the output.
    """

    x: Shaped[Tensor, " N *shape"]
    y: Shaped[Tensor, " N *rest"] | None = None
    source: str = "memory"

    def __post_init__(self) -> None:
        if len(self.x) < 1 or (self.y is not None and len(self.y) != len(self.x)):
            told = "none" if self.y is None else len(self.y)
            raise MetanetError(f"{printable(self.source)}: {len(self.x)} inputs and {told} labels; "
                               "each input needs one label, and at least one input is needed")

    def __len__(self) -> int:
        return len(self.x)

    def head(self, count: int) -> Samples:
        """The first ``count``."""
        return replace(self, x=self.x[:count], y=None if self.y is None else self.y[:count])

    def shuffled(self, seed: int = 0) -> Samples:
        """In random order: files are often sorted by class."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return replace(self, x=self.x[order], y=None if self.y is None else self.y[order])


def load(path: str | os.PathLike[str], normalize: Sequence[float] | None = None) -> Samples:
    """Read a ``.npz`` file.

    Args:
        path: with an array ``x`` and perhaps ``y``. Images of uint8 become floats in [0, 1].
        normalize: mean and standard deviation, taken off floats after that; one pair, or as many
            means as channels (axis 1) followed by as many deviations.

    Raises:
        MetanetError: the file cannot be read or does not hold such arrays.
    """
    where = printable(str(path))
    try:
        with np.load(path, allow_pickle=False) as found:
            if "x" not in found:
                raise MetanetError(f"{where}: no array 'x' in it; write one with "
                                   "numpy.savez(FILE, x=inputs, y=labels)")
            x, y = found["x"], found.get("y")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, KeyError) as error:
        raise MetanetError(f"{where}: not a .npz file that can be read ({error}). Write one with "
                           "numpy.savez(FILE, x=inputs, y=labels)") from error
    if x.dtype.kind not in "fiub" or (y is not None and y.dtype.kind not in "fiub"):
        raise MetanetError(f"{where}: arrays must be numbers, not {x.dtype}")
    if x.ndim < 1 or x.nbytes > _LARGEST:
        raise MetanetError(f"{where}: 'x' of shape {x.shape} has no rows, or is larger than 16 GB")
    return Samples(normalized(_number(x, where), normalize), None if y is None else _labels(y),
                   str(path))


def _number(x: np.ndarray, where: str) -> Tensor:
    if x.dtype == np.uint8:
        return torch.from_numpy(x).float() / 255
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    if not tensor.is_floating_point():
        return tensor.long()
    if not bool(tensor.isfinite().all()):
        raise MetanetError(f"{where}: 'x' holds values that are not finite")
    return tensor.float()


def _labels(y: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(y))
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def normalized(x: Tensor, pair: Sequence[float] | None) -> Tensor:
    """``(x - mean) / deviation``, for one pair or for pairs per channel."""
    if pair is None:
        return x
    half = len(pair) // 2
    mean, deviation = torch.tensor(pair[:half]), torch.tensor(pair[half:])
    if half < 1 or len(pair) % 2 or not bool((deviation > 0).all()):
        raise MetanetError(f"normalize takes MEAN,STD or as many means as deviations, all of them "
                           f"positive, not {list(pair)}")
    if not x.is_floating_point():
        raise MetanetError("normalize is for images and other floats; 'x' holds integers")
    if half == 1:
        return (x - mean) / deviation
    if x.ndim < 2 or x.shape[1] != half:
        raise MetanetError(f"normalize has {half} means, and axis 1 of 'x' {tuple(x.shape)} is not "
                           "that long: put the channels there")
    shape = (1, half, *[1] * (x.ndim - 2))
    return (x - mean.reshape(shape)) / deviation.reshape(shape)


def parse_normalize(text: str | None) -> list[float] | None:
    """``MEAN,STD`` as typed."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise MetanetError(f"--normalize takes MEAN,STD, not {printable(text)}") from error


def fitted(x: Tensor, example: Tensor) -> Tensor:
    """Inputs in the layout that a network takes: as the example, but for the number of rows.

    Raises:
        MetanetError: no reshaping leads there.
    """
    if example.is_floating_point() != x.is_floating_point():
        x = x.to(example.dtype) if example.is_floating_point() else x.long()
    want, have = example.shape[1:], x.shape[1:]
    if have == want:
        return x
    if prod(have) == prod(want):
        return x.reshape(len(x), *want)
    if (len(have) == len(want) and have[0] == want[0]) or not example.is_floating_point():
        return x  # another size of image or length of text
    if len(have) + 1 == len(want) and want[0] == 1:
        return x.unsqueeze(1)
    if len(have) == len(want) == 3 and have[-1] == want[0]:
        return x.movedim(-1, 1).contiguous()
    raise MetanetError(f"inputs of shape {tuple(x.shape)} do not fit a network that takes "
                       f"{tuple(example.shape)}: the first axis counts the inputs")


def shared_rows(one: Samples, other: Samples) -> int:
    """How many rows of ``other`` stand in ``one``, bit for bit."""
    if one.x.shape[1:].numel() != other.x.shape[1:].numel():
        return 0
    known = set(_hashes(one.x))
    return sum(row in known for row in _hashes(other.x))


def _hashes(x: Tensor) -> list[bytes]:
    rows = x.reshape(len(x), -1).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
