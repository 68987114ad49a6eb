"""What is known about a tensor before it is read, and plain data out of untrusted data."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from metanet.checkpoint.names import printable

# dtype name -> bytes per element
ITEMSIZE: dict[str, int] = {
    "bool": 1, "uint8": 1, "int8": 1,
    "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2,
    "uint32": 4, "int32": 4, "float32": 4,
    "uint64": 8, "int64": 8, "float64": 8,
    "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}
MAX_DIMS = 64
_MAX_NODES = 20_000
_MAX_DEPTH = 32


def is_floating(dtype: str) -> bool:
    """Whether a dtype name stands for real or complex floating-point numbers."""
    return dtype.startswith(("float", "bfloat", "complex"))


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor.

    ``place`` names the memory that it occupies: two tensors of equal shape and equal, not-None
    place are one tensor under two names.
    """

    shape: tuple[int, ...]
    dtype: str
    place: Hashable = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes when stored densely."""
        return self.numel * ITEMSIZE[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Opaque:
    """A value that is known by its type's name only; nothing of it was built."""

    name: str

    def __str__(self) -> str:
        return f"<{self.name}>"


class _Plain:
    """Copies nested data into str-keyed dicts, lists and scalars, within a budget of nodes."""

    def __init__(self) -> None:
        self.left = _MAX_NODES

    def copy(self, value: Any, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0 or depth > _MAX_DEPTH:
            return "…"
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            return self._sequence(value, depth)
        if isinstance(value, TensorInfo):
            return f"<tensor {value}>"
        if isinstance(value, bytes | bytearray):
            return f"<{len(value)} bytes>"
        return str(value) if isinstance(value, Opaque | complex) else f"<{type(value).__name__}>"

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, item in value.items():
            if self.left < 0:
                break
            out[str(key)] = self.copy(item, depth + 1)
        return out

    def _sequence(self, value: Any, depth: int) -> list[Any]:
        out: list[Any] = []
        for item in value:
            if self.left < 0:
                break
            out.append(self.copy(item, depth + 1))
        return out


def plain(value: Any) -> Any:
    """``value`` as JSON-like data: tensors and unknown objects become short descriptions."""
    return _Plain().copy(value)


def described(name: str, info: TensorInfo) -> str:
    """``'fc.weight' float32[10, 5]``, safe to print."""
    return f"{printable(name, 80)!r} {info}"
