"""What a reader hands to the rest of the room: a tree of plain data with TensorInfo leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.checkpoint.problems import guarded, refusal

if TYPE_CHECKING:
    from torch import Tensor

Path_ = tuple[Any, ...]  # keys from the root of a tree down to a leaf


@dataclass(frozen=True)
class Stamp:
    """Size and time of a file when its header was read; ``check`` refuses if it has changed."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file as it is now."""
        with guarded(path, "looking at it", "Check that the file can be read"):
            stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)

    def check(self) -> None:
        """Raise CheckpointError if the file is not the one whose header was read."""
        if Stamp.of(self.path) != self:
            raise refusal(self.path, "the file has changed since it was opened", "Open it again")


@dataclass(frozen=True)
class Content:
    """One opened source.

    ``tree``: dicts, lists and scalars with ``TensorInfo`` leaves. ``read`` takes the keys from the
    root to a leaf. ``format`` is for people. ``metadata`` is what the format itself keeps apart.
    ``fetch``, where the bytes are elsewhere: download all of them and say where they are now.
    """

    tree: Any
    read: Callable[[Path_], Tensor]
    files: tuple[Path, ...]
    format: str
    metadata: dict[str, Any] = field(default_factory=dict)
    fetch: Callable[[], tuple[Path, ...]] | None = None
