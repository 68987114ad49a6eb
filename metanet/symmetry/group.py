"""A group: one symmetric (or other) group, shared by every place where its factor stands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Group:
    """A labelled group.

    ``over`` are the labels, major to minor, of the groups that it is fibred over: its element may
    differ for each of their ``copies`` index tuples. ``dead`` says that nothing reachable from an
    output depends on it. ``copies`` and ``tensors`` are filled in by the WeightSpace.
    """

    label: str
    size: int
    kind: str = "S"
    over: tuple[str, ...] = ()
    reason: str | None = field(default=None, compare=False)
    dead: bool = field(default=False, compare=False)
    copies: int = field(default=1, compare=False)
    tensors: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        over = f"/[{'x'.join(self.over)}]" if self.over else ""
        return f"{self.label}={self.kind}({self.size}){over}"
