"""A table of spaces that were verified, by the names and shapes of their tensors.

``python -m metanet.symmetry.cache`` makes it: every architecture of ``known_sources`` is built,
traced, and its space proved on random weights. A file whose tensors have these names and shapes is
taken for that architecture; it stays ``inferred``, for nobody has run the file itself.

Names say more than sizes do: a network of other widths, or with other classes, has the same names,
and its space is the same but for sizes. How far sizes may differ is said by each entry:

- ``widths``: sizes of groups and of fixed axes; where a width is part of a product or a sum, it
  must come out as in the table. For networks in which shapes tell everything.
- ``classes``: sizes of fixed axes only.
- ``exact``: none. For networks with heads, whose number no shape tells, and for small ones whose
  names are everybody's.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.info import is_floating
from metanet.symmetry.axis import Axis, Fixed, Occ, axis_size
from metanet.symmetry.group import Group
from metanet.symmetry.meta import Frozen, Meta
from metanet.symmetry.space import TensorSpec, WeightSpace
from metanet.symmetry.text import parse_text

FILE = "known_spaces.json.gz"
VERSION = 1
FITS = ("widths", "classes", "exact")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A verified space.

    Attributes:
        name: of the architecture, for people.
        arch: what ``--arch`` takes for it, or None.
        fit: how far sizes may differ: ``widths``, ``classes``, ``exact``.
        error: largest relative change of an output under random elements, in float64.
        space: in text form.
        dead: labels of groups that no output depends on.
        reasons: tensor → axis → why what is fixed there is fixed.
    """

    name: str
    arch: str | None
    fit: str
    error: float
    space: str
    dead: tuple[str, ...] = ()
    reasons: Mapping[str, Mapping[str, str]] | None = None

    @classmethod
    def of(cls, name: str, arch: str | None, fit: str, error: float, space: WeightSpace) -> Entry:
        """An entry for a space that was verified with this error."""
        plain = WeightSpace(space._declared.values(), space.tensors, space.aliases)
        reasons = {tensor: {str(axis): parts[0].reason for axis, parts in axes.items() if parts}
                   for tensor, axes in space.meta.reasons.items()}
        dead = tuple(group.label for group in space.groups if group.dead)
        return cls(name, arch, fit, float(f"{error:.1e}"), str(plain), dead,
                   {tensor: axes for tensor, axes in reasons.items() if axes})


@dataclass(frozen=True)
class Hit:
    """An entry that fits a file, and the file's space."""

    entry: Entry
    space: WeightSpace
    exact: bool


def structure(shapes: Mapping[str, Sequence[int]]) -> str:
    """Hash of the names of floating tensors and of their numbers of axes."""
    told = sorted((name, len(shape)) for name, shape in shapes.items())
    return hashlib.sha256(json.dumps(told).encode("utf-8", "backslashreplace")).hexdigest()[:24]


def find(checkpoint: Checkpoint) -> Hit | str:
    """The entry of the table that fits a file, or why none does."""
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names
              if is_floating(checkpoint.dtype(name)) and name not in checkpoint.aliases}
    entries = [Entry(**told) for told in table().get(structure(shapes), ())]
    hits = [hit for hit in (_hit(entry, shapes, checkpoint.aliases) for entry in entries) if hit]
    exact = [hit for hit in hits if hit.exact] or hits
    if not entries:
        return "no network of the table of known ones has tensors of these names"
    names = " or ".join(dict.fromkeys(entry.name for entry in entries))
    if not hits:
        return f"its tensors have the names of {names}, but other shapes"
    if len({hit.space for hit in exact}) > 1:
        return f"its tensors fit {names}, which have different symmetries"
    return exact[0]


@cache
def table() -> Mapping[str, list[dict[str, Any]]]:
    """The table that is shipped: structure → entries."""
    raw = files("metanet.symmetry").joinpath(FILE).read_bytes()
    told = json.loads(gzip.decompress(raw))
    found: Mapping[str, list[dict[str, Any]]] = told["entries"]
    return found


def packed(entries: Iterable[Entry]) -> bytes:
    """A table as it is shipped; the same bytes for the same entries.

    Files store tied tensors under one of their names, and which one is not told: an entry stands
    under every choice.
    """
    out: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        for variant in _variants(entry):
            parsed = WeightSpace.parse(variant.space)
            key = structure({n: spec.shape for n, spec in parsed.tensors.items()})
            out.setdefault(key, []).append(vars(variant) | {"dead": list(variant.dead)})
    document = {"version": VERSION, "entries": out}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return gzip.compress(text.encode(), 9, mtime=0)


def _variants(entry: Entry) -> list[Entry]:
    """The entry, and those with another name as the owner of tied tensors."""
    parsed = parse_text(entry.space)
    space = WeightSpace.parse(entry.space)
    found = [entry]
    if len(parsed.aliases) == 1:
        (alias, owner), = space.aliases.items()
        tensors = {alias if n == owner else n: s for n, s in space.tensors.items()}
        plain = WeightSpace(space._declared.values(), tensors)
        reasons = {alias if n == owner else n: r for n, r in (entry.reasons or {}).items()}
        found.append(replace(entry, space=str(plain), reasons=reasons))
    return found


# ---------------------------------------------------------------- fitting


def _hit(entry: Entry, shapes: Mapping[str, Shape], aliases: Mapping[str, str]) -> Hit | None:
    known = WeightSpace.parse(entry.space)
    wanted = {name: spec.shape for name, spec in known.tensors.items()}
    if wanted.keys() != shapes.keys():
        return None
    exact = wanted == shapes
    if not exact and entry.fit == "exact":
        return None
    sizes = _sizes(known, shapes, entry.fit == "widths")
    if sizes is None:
        return None
    tensors = {}
    for name, spec in known.tensors.items():
        axes = tuple(Fixed(n) if isinstance(axis, Fixed) else axis
                     for axis, n in zip(spec.axes, shapes[name], strict=True))
        if tuple(axis_size(axis, sizes) for axis in axes) != shapes[name]:
            return None
        tensors[name] = TensorSpec(shapes[name], axes)
    groups = [replace(group, size=sizes[group.label], dead=group.label in entry.dead)
              for group in known._declared.values()]
    ties = {alias: owner for alias, owner in aliases.items() if owner in tensors}
    meta = Meta(reasons=_reasons(entry, tensors))
    return Hit(entry, WeightSpace(groups, tensors, ties, status="inferred", meta=meta), exact)


def _sizes(
    known: WeightSpace, shapes: Mapping[str, Shape], free: bool
) -> dict[str, int] | None:
    """Sizes of the groups in a file; None where two axes of one group differ."""
    old: dict[str, Group] = dict(known._declared)
    sizes: dict[str, int] = {}
    for name, spec in known.tensors.items():
        for axis, size in zip(spec.axes, shapes[name], strict=True):
            if isinstance(axis, Occ) and sizes.setdefault(axis.label, size) != size:
                return None
    changed = {label for label, size in sizes.items() if size != old[label].size}
    if changed and (not free or any(old[label].kind == "fixed" for label in changed)):
        return None
    return {label: sizes.get(label, group.size) for label, group in old.items()}


def _reasons(
    entry: Entry, tensors: Mapping[str, TensorSpec]
) -> dict[str, dict[int, tuple[Frozen, ...]]]:
    told = entry.reasons or {}
    out: dict[str, dict[int, tuple[Frozen, ...]]] = {}
    for name, spec in tensors.items():
        for axis, tree in enumerate(spec.axes):
            reason = told.get(name, {}).get(str(axis))
            if reason is not None:
                out.setdefault(name, {})[axis] = (Frozen(_fixed(tree, spec.shape[axis]), reason),)
    return out


def _fixed(tree: Axis, size: int) -> int:
    """Length of the fixed part of an axis that has one part."""
    if isinstance(tree, (Fixed, Occ)):
        return size
    return next((part.size for part in tree.parts if isinstance(part, Fixed)), size)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see ``known_sources``."""
    from metanet.symmetry.known_sources import make

    return make(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
