"""What is known about a space beyond its type: roles, depths, wiring, reasons.

Meta is printed as comments and kept in JSON; it is no part of equality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Role of a tensor: ``weight``, ``bias``, ``norm_weight``, ``running_mean``, ``embedding`` …

    ``out_axes`` and ``in_axes`` are axis numbers; ``depth`` counts weighted layers from the input.
    """

    role: str = "weight"
    out_axes: tuple[int, ...] = (0,)
    in_axes: tuple[int, ...] = (1,)
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class GroupMeta:
    """Activation applied to the neurons of a group, and their depth."""

    activation: str | None = None
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class Wire:
    """An edge of the wiring: a tensor that feeds a group, or (tensor None) an unweighted one."""

    source: str | None
    target: str
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class Frozen:
    """A part of an axis without freedom, ``size`` long, and why."""

    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unsupported:
    """An operation without a rule, where it stands, and how many dims were frozen for it."""

    op: str
    where: str
    lost: int


@dataclass(frozen=True, slots=True)
class Meta:
    """All meta of a space; ``reasons[tensor][axis]`` lists the frozen parts of that axis.

    ``front_end`` says what recorded the network: ``export`` or ``dispatch``.
    """

    tensors: Mapping[str, TensorMeta] = field(default_factory=dict)
    groups: Mapping[str, GroupMeta] = field(default_factory=dict)
    wiring: tuple[Wire, ...] = ()
    reasons: Mapping[str, Mapping[int, tuple[Frozen, ...]]] = field(default_factory=dict)
    unsupported: tuple[Unsupported, ...] = ()
    front_end: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "tensors": {name: asdict(meta) for name, meta in self.tensors.items()},
            "groups": {label: asdict(meta) for label, meta in self.groups.items()},
            "wiring": [asdict(wire) for wire in self.wiring],
            "reasons": {
                name: {str(axis): [asdict(part) for part in parts] for axis, parts in axes.items()}
                for name, axes in self.reasons.items()
            },
            "unsupported": [asdict(op) for op in self.unsupported],
            "front_end": self.front_end,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Meta:
        """Inverse of ``to_json``."""

        def tensor(meta: Mapping[str, Any]) -> TensorMeta:
            axes = {key: tuple(meta[key]) for key in ("out_axes", "in_axes")}
            return TensorMeta(meta["role"], **axes, depth=meta["depth"])

        return cls(
            {name: tensor(meta) for name, meta in data["tensors"].items()},
            {label: GroupMeta(**meta) for label, meta in data["groups"].items()},
            tuple(Wire(**wire) for wire in data["wiring"]),
            {
                name: {int(a): tuple(Frozen(**p) for p in parts) for a, parts in axes.items()}
                for name, axes in data["reasons"].items()
            },
            tuple(Unsupported(**op) for op in data["unsupported"]),
            data.get("front_end", ""),
        )
