"""What a solver of architectures reads from a checkpoint: names, shapes and metadata, no data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from metanet.checkpoint.names import natural_sorted, printable, some
from metanet.errors import SpaceMismatch, TraceError

Shape = tuple[int, ...]


def quoted(name: object) -> str:
    """A name from a file or a command line, safe to print, in quotes."""
    return repr(printable(name, 200))


@dataclass(frozen=True)
class Header:
    """Shapes by tensor name, in natural order of the names, never in the file's order."""

    shapes: Mapping[str, Shape]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = "the checkpoint"

    @classmethod
    def of(cls, checkpoint: Any) -> Header:
        """Adapt a Checkpoint (``names``, ``shape(name)``) or a mapping name -> tensor or shape.

        Raises:
            TraceError: ``checkpoint`` is neither.
        """
        if isinstance(checkpoint, Header):
            return checkpoint
        if isinstance(checkpoint, Mapping):
            return cls._sorted({name: _shape_of(value) for name, value in checkpoint.items()})
        if not hasattr(checkpoint, "names") or not hasattr(checkpoint, "shape"):
            raise TraceError(
                f"an architecture is solved from a checkpoint or a mapping of tensors, not from "
                f"{type(checkpoint).__name__}; open the file with metanet.open first"
            )
        shapes = {name: tuple(checkpoint.shape(name)) for name in checkpoint.names}
        source = getattr(getattr(checkpoint, "source", None), "uri", "the checkpoint")
        return cls._sorted(shapes, getattr(checkpoint, "metadata", None) or {},
                           printable(source, 200))

    @classmethod
    def _sorted(
        cls, shapes: Mapping[str, Shape], metadata: Mapping[str, Any] | None = None,
        source: str = "the checkpoint",
    ) -> Header:
        ordered = {name: shapes[name] for name in natural_sorted(shapes)}
        return cls(ordered, metadata or {}, source)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def shape(self, name: str, ndim: int | None = None) -> Shape:
        """Shape of one tensor that the architecture needs.

        Raises:
            SpaceMismatch: the tensor is absent, or has not ``ndim`` axes.
        """
        if name not in self.shapes:
            raise SpaceMismatch(
                f"{self.source} lacks the tensor {quoted(name)} that the architecture needs; it "
                f"has {self.preview()}; choose another --arch"
            )
        shape = self.shapes[name]
        if ndim is not None and len(shape) != ndim:
            raise SpaceMismatch(
                f"tensor {quoted(name)} of {self.source}: the architecture expects {ndim} axes, "
                f"found shape {shape}"
            )
        return shape

    def preview(self, count: int = 6) -> str:
        """The first few names, for error messages."""
        return some(self.shapes, count) or "no tensors"


def _shape_of(value: Any) -> Shape:
    shape: Iterable[int] = getattr(value, "shape", value)
    return tuple(int(size) for size in shape)
