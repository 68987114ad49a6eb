"""WeightSpace: named tensors whose axes carry typed groups (card `weight-space`).

Small, immutable, hashable, without tensors and without torch. Two spaces are equal when their
normal forms are: labels, reasons, status, dtypes and meta do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from metanet.checkpoint.names import natural_key
from metanet.errors import SymmetryError
from metanet.symmetry import text as _text
from metanet.symmetry.axis import Axis, axis_size, occurrences
from metanet.symmetry.checks import check_groups, check_tensors
from metanet.symmetry.forms import normal_tensors, relabelled
from metanet.symmetry.group import Group
from metanet.symmetry.layout import Block, blocks
from metanet.symmetry.meta import Meta, TensorMeta
from metanet.symmetry.sizes import solve_groups

if TYPE_CHECKING:
    from torch import Tensor

    from metanet.symmetry.canonicalise import Canonical
    from metanet.symmetry.element import GroupElement
    from metanet.symmetry.resize import Resized

STATUSES = ("declared", "inferred", "verified")


class Shaped(Protocol):
    """Anything that knows names and shapes: a Checkpoint, say."""

    @property
    def names(self) -> Iterable[str]:
        """All names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and axes of one tensor; ``dtype`` is for people and does not count in equality."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    dtype: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return _text.print_axes(self.axes)


class WeightSpace:
    """Tensors × axes × factors, and the group that acts on them.

    Args:
        groups: all groups, fixed ones included; each must occur.
        tensors: name → TensorSpec; the axes may be any tree that fits the shape.
        aliases: second names of a tensor → its name.
        status: ``declared`` (by a person), ``inferred`` or ``verified``.
        meta: roles, depths, wiring and reasons.

    Raises:
        SymmetryError: for anything malformed, naming the tensor, axis or group.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        tensors: Mapping[str, TensorSpec],
        aliases: Mapping[str, str] | None = None,
        *,
        status: str = "declared",
        meta: Meta | None = None,
    ) -> None:
        if status not in STATUSES:
            raise SymmetryError(f"unknown status {status!r}; known are {', '.join(STATUSES)}")
        self.status = status
        self.meta = meta or Meta()
        declared = check_groups(groups)
        named, self.aliases = _own(tensors, aliases or {})
        check_tensors(declared, {name: (spec.shape, spec.axes) for name, spec in named.items()})
        self.tensors: dict[str, TensorSpec] = named
        self._declared = declared
        sizes = {label: group.size for label, group in declared.items()}
        trees = {name: spec.axes for name, spec in named.items()}
        self._normal_groups, self._normal_axes = normal_tensors(declared, trees, sizes)
        self._groups = _with_places(self._normal_groups, self._normal_axes)

    # ------------------------------------------------------------ groups

    @property
    def groups(self) -> tuple[Group, ...]:
        """Live and dead groups with some freedom, by first occurrence in normal form."""
        return tuple(group for group in self._groups.values() if group.kind != "fixed")

    @property
    def fixed(self) -> tuple[Group, ...]:
        """Labelled groups without freedom, as declared."""
        return tuple(group for group in self._declared.values() if group.kind == "fixed")

    @property
    def normal_groups(self) -> tuple[Group, ...]:
        """Groups and fixed bases of the normal form, by first occurrence."""
        return tuple(self._groups.values())

    def group(self, label: str) -> Group:
        """The group (or fixed base) of this label, in normal form."""
        try:
            return self._groups[label]
        except KeyError:
            raise SymmetryError(
                f"no group {label!r} in this space; it has {', '.join(self._groups) or 'none'}"
            ) from None

    # ------------------------------------------------------------ layout

    @cached_property
    def _blocks(self) -> dict[str, tuple[Block, ...]]:
        sizes = {label: group.size for label, group in self._groups.items()}
        return {name: blocks(name, axes, sizes) for name, axes in self._normal_axes.items()}

    def blocks(self, name: str) -> tuple[Block, ...]:
        """Factored view of a tensor: its blocks and their digits, in normal form."""
        return self._blocks[self.owner(name)]

    def owner(self, name: str) -> str:
        """The tensor that a name, perhaps an alias, stands for."""
        owner = self.aliases.get(name, name)
        if owner not in self.tensors:
            import difflib

            near = difflib.get_close_matches(str(name), self.tensors, 1)
            hint = f". Did you mean {near[0]!r}?" if near else ""
            raise SymmetryError(
                f"no tensor {name!r} in this space of {len(self.tensors)} tensors{hint}")
        return owner

    def normal_axes(self, name: str) -> tuple[Axis, ...]:
        """Axes of a tensor in normal form."""
        return self._normal_axes[self.owner(name)]

    @property
    def n_parameters(self) -> int:
        """Number of scalars, aliases counted once."""
        return sum(prod(spec.shape) for spec in self.tensors.values())

    def tensor_meta(self, name: str) -> TensorMeta:
        """Meta of a tensor; by default axis 0 is out and axis 1 is in."""
        known = self.meta.tensors.get(self.owner(name))
        if known is not None:
            return known
        rank = len(self.tensors[self.owner(name)].shape)
        return TensorMeta("weight" if rank > 1 else "bias", (0,)[:rank], (1,)[: max(rank - 1, 0)])

    # ------------------------------------------------------------ equality

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        return relabelled(self._normal_groups, self._normal_axes, self.aliases)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightSpace) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the normal form: equal for equal spaces, on every machine."""
        return hashlib.sha256(repr(self._key).encode()).hexdigest()

    def normal(self) -> WeightSpace:
        """The same space with every tree in normal form (labels kept, fixed labels dissolved)."""
        tensors = {
            name: replace(spec, axes=self._normal_axes[name]) for name, spec in self.tensors.items()
        }
        groups = self._normal_groups.values()
        return WeightSpace(groups, tensors, self.aliases, status=self.status, meta=self.meta)

    # ------------------------------------------------------------ text and JSON

    def __str__(self) -> str:
        lines = [_text.HEADER, *map(_text.print_group, self._declared.values())]
        for name, spec in self.tensors.items():
            axes = _text.print_axes(spec.axes)
            lines.append(f"{_text.print_name(name)}:{' ' if axes else ''}{axes}{self._note(name)}")
        for alias, owner in self.aliases.items():
            lines.append(f"{_text.print_name(alias)} = {_text.print_name(owner)}")
        return "\n".join(lines)

    def _note(self, name: str) -> str:
        reasons = self.meta.reasons.get(name, {})
        parts = dict.fromkeys(part.reason for axis in sorted(reasons) for part in reasons[axis])
        clean = "; ".join("".join(c if c.isprintable() else "?" for c in part) for part in parts)
        return f"  # {clean}" if clean else ""

    def __repr__(self) -> str:
        return (
            f"WeightSpace({len(self.tensors)} tensors, {self.n_parameters:,} parameters, "
            f"{len(self.groups)} groups, {self.status})"
        )

    def _repr_html_(self) -> str:
        import html

        lines = str(self).splitlines()
        shown = lines if len(lines) <= 60 else [*lines[:60], f"… and {len(lines) - 60} lines more"]
        return f"<p><code>{self!r}</code></p><pre>{html.escape(chr(10).join(shown))}</pre>"

    @classmethod
    def parse(cls, text: str, shapes: Shaped | Mapping[str, Iterable[int]] | None = None
              ) -> WeightSpace:
        """Read the text form.

        Args:
            text: see the card `weight-space`.
            shapes: a checkpoint, or name → shape; then group lines may be left out and the sizes
                are solved.

        Raises:
            SymmetryError: with line and column, or the sizes that could not be solved.
        """
        parsed = _text.parse_text(text)
        if shapes is not None:
            parsed.groups = solve_groups(parsed.groups, parsed.tensors, _shape_table(shapes))
        sizes = {label: group.size for label, group in parsed.groups.items()}
        tensors = {}
        for name, axes in parsed.tensors.items():
            unknown = {occ.label for axis in axes for occ in occurrences(axis)} - sizes.keys()
            if unknown:
                raise SymmetryError(
                    f"{name}: group {sorted(unknown)[0]!r} is not declared; add a group line, "
                    f"or give the shapes of a checkpoint"
                )
            tensors[name] = TensorSpec(tuple(axis_size(axis, sizes) for axis in axes), axes)
        return cls(parsed.groups.values(), tensors, parsed.aliases)

    def to_json(self) -> dict[str, Any]:
        """Plain data with everything: groups, axes as text, aliases, status, meta."""
        return {
            "format": "metanet.space",
            "version": 1,
            "status": self.status,
            "groups": [
                {"label": g.label, "size": g.size, "kind": g.kind, "over": list(g.over),
                 "reason": g.reason, "dead": g.dead}
                for g in self._declared.values()
            ],
            "tensors": {
                name: {"shape": list(spec.shape), "axes": _text.print_axes(spec.axes),
                       "dtype": spec.dtype}
                for name, spec in self.tensors.items()
            },
            "aliases": dict(self.aliases),
            "meta": self.meta.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WeightSpace:
        """Inverse of ``to_json``."""
        if not isinstance(data, Mapping) or data.get("format") != "metanet.space":
            raise SymmetryError("not the JSON of a space: its 'format' is not 'metanet.space'")
        if data.get("version") != 1:
            raise SymmetryError(f"version {data.get('version')!r} of the format is unknown (1 is)")
        try:
            groups = [Group(**{**group, "over": tuple(group["over"])}) for group in data["groups"]]
            tensors = {
                name: TensorSpec(tuple(spec["shape"]), _text.parse_axes(spec["axes"], name),
                                 spec["dtype"])
                for name, spec in data["tensors"].items()
            }
            aliases, status = data["aliases"], data["status"]
            meta = Meta.from_json(data["meta"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SymmetryError(f"the JSON of the space is malformed: {error!r}") from error
        return cls(groups, tensors, aliases, status=status, meta=meta)

    def with_status(self, status: str) -> WeightSpace:
        """The same space with another status."""
        groups = self._declared.values()
        return WeightSpace(groups, self.tensors, self.aliases, status=status, meta=self.meta)

    # ------------------------------------------------------------ what stands on it

    def identity(self) -> GroupElement:
        """The element that moves nothing."""
        from metanet.symmetry.element import identity

        return identity(self)

    def random(self, seed: int = 0) -> GroupElement:
        """A random element; the same for the same seed."""
        from metanet.symmetry.element import random

        return random(self, seed)

    def explain(self, name: str, axis: int) -> str:
        """Which groups act on an axis, and why the rest of it is frozen."""
        from metanet.symmetry.explain import explain

        return explain(self, name, axis)

    def canonical(self, state_dict: Mapping[str, Tensor]) -> Canonical:
        """The member of the orbit that stands for all of them."""
        from metanet.symmetry.canonicalise import canonical

        return canonical(self, state_dict)

    def select(self, group: str, index: Any) -> Resized:
        """The smaller space that keeps ``index`` of a group, and its map of tensors."""
        from metanet.symmetry.resize import select

        return select(self, group, index)

    def widen(self, group: str, mapping: Any) -> Resized:
        """The larger space whose neuron ``i`` copies ``mapping[i]``, and its map of tensors."""
        from metanet.symmetry.resize import widen

        return widen(self, group, mapping)


def _own(
    tensors: Mapping[str, TensorSpec], aliases: Mapping[str, str]
) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """Natural order; each alias class is owned by its first name in natural order."""
    root: dict[str, str] = {}
    for alias in aliases:
        target, seen = aliases[alias], {alias}
        while target in aliases and target not in seen:
            seen.add(target)
            target = aliases[target]
        if alias in tensors or target not in tensors:
            raise SymmetryError(f"alias {alias!r} = {aliases[alias]!r} does not name one tensor")
        root[alias] = target
    classes: dict[str, list[str]] = {name: [name] for name in tensors}
    for alias, target in root.items():
        classes[target].append(alias)
    named, owned = {}, {}
    for target, names in classes.items():
        owner, *others = sorted(names, key=natural_key)
        named[owner] = tensors[target]
        owned.update(dict.fromkeys(others, owner))
    order = sorted(named, key=natural_key)
    alias_order = sorted(owned, key=natural_key)
    return {name: named[name] for name in order}, {name: owned[name] for name in alias_order}


def _with_places(
    groups: Mapping[str, Group], axes: Mapping[str, tuple[Axis, ...]]
) -> dict[str, Group]:
    """Groups with their copies and the tensors that they occur in."""
    places: dict[str, dict[str, None]] = {label: {} for label in groups}
    for name, trees in axes.items():
        for occ in (occ for tree in trees for occ in occurrences(tree)):
            places[occ.label][name] = None
    return {
        label: replace(
            group,
            copies=prod(groups[base].size for base in group.over),
            tensors=tuple(places[label]),
        )
        for label, group in groups.items()
    }


def _shape_table(shapes: Shaped | Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
    if isinstance(shapes, Mapping):
        table = {}
        for name, value in shapes.items():
            table[name] = tuple(getattr(value, "shape", value))
        return table
    return {name: shapes.shape(name) for name in shapes.names}
