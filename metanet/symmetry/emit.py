"""From solved factors to a WeightSpace with labels, reasons, depths and wiring."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from metanet.errors import SymmetryError
from metanet.symmetry.axis import Axis, Fixed, Occ, Prod, Sum
from metanet.symmetry.factor import (
    Expr,
    Factor,
    atoms,
    base_atoms,
    depends,
    is_fixed,
    leaves,
    length,
    parts_of,
)
from metanet.symmetry.group import Group
from metanet.symmetry.liveness import live_digits
from metanet.symmetry.meta import Frozen, GroupMeta, Meta, TensorMeta, Wire
from metanet.symmetry.reasons import Reasons
from metanet.symmetry.space import TensorSpec, WeightSpace
from metanet.symmetry.track import Tracked

_PLAIN = {"weight", "bias", "running_mean", "running_var"}


def emit(found: Tracked) -> WeightSpace:
    """The space of a tracked and settled program, status ``inferred``."""
    return Emitter(found).space()


class Emitter:
    """Gives labels to the factors of one tracked and settled program."""

    def __init__(self, found: Tracked) -> None:
        self.found = found
        self.solver = found.solver
        program = found.program
        self.names = [name for name in program.tensors if name not in program.aliases]
        self.prefix = _common_prefix(self.names)
        self.bases: set[Factor] = set()
        for name in self.names:
            for leaf in leaves(_joined(found.axes[name])):
                if leaf.cause is None:
                    self.bases.update(base_atoms(leaf))
        self.labels: dict[Factor, str] = {}
        self.over: dict[Factor, tuple[Factor, ...]] = {}
        self.live = live_digits(found.program, found.env)

    def space(self) -> WeightSpace:
        """The space; call it once, before ``tree``."""
        self._name_groups()
        program, found = self.found.program, self.found
        trees = {name: self._axes(name) for name in self.names}
        specs = {
            name: TensorSpec(program.tensors[name][0], trees[name],
                             str(program.tensors[name][1]).removeprefix("torch."))
            for name in self.names
        }
        used = {label for name in self.names for axis in trees[name] for label in _labels(axis)}
        groups = [self._group(factor) for factor, label in self.labels.items() if label in used]
        meta = Meta(self._tensor_meta(), self._group_meta(), self._wiring(), self._reasons(),
                    tuple(found.unsupported), program.front_end)
        return WeightSpace(groups, specs, dict(program.aliases), status="inferred", meta=meta)

    # ------------------------------------------------------------ trees

    def tree(self, axis: Expr, name: str) -> Axis:
        """One axis of a value in the labels of the space; KeyError where it has none."""
        return self._tree(atoms(axis), name)

    def _axes(self, name: str) -> tuple[Axis, ...]:
        return tuple(self._tree(atoms(axis), name) for axis in self.found.axes[name])

    def _tree(self, digits: Sequence[Factor], name: str) -> Axis:
        parts: list[Axis] = []
        for k, atom in enumerate(digits):
            rest = tuple(digits[k + 1 :])
            if atom.blocks is not None and self._splits(atom, rest):
                parts.append(self._distribute(atom, rest, name))
                break
            parts.append(self._leaf(atom, name))
        if not parts:
            return Fixed(1)
        return parts[0] if len(parts) == 1 else Prod(tuple(parts))

    @staticmethod
    def _splits(atom: Factor, rest: Expr) -> bool:
        """Whether what follows a direct sum differs from summand to summand."""
        if any(_has_cases(o) for o in rest):
            return any(depends(o, atom) for o in rest)
        return not is_fixed(atom) and any(depends(o, atom) for o in rest)

    def _distribute(self, atom: Factor, rest: Expr, name: str) -> Axis:
        parts, start = [], 0
        for block in atom.blocks or ():
            stop = start + length(block)
            tail = self.solver.restrict(rest, atom, start, stop)
            parts.append(self._tree(atoms((*block, *tail)), name))
            start = stop
        return Sum(tuple(parts))

    def _leaf(self, atom: Factor, name: str) -> Axis:
        if is_fixed(atom):
            return Occ(self.labels[atom]) if atom in self.bases else Fixed(atom.size)
        if atom.blocks is not None:
            return Sum(tuple(self._tree(atoms(block), name) for block in atom.blocks))
        if atom.cases is not None:
            raise SymmetryError(
                f"{name}: an axis differs from index to index of another axis, which the text "
                "form cannot say; this is a bug of infer, please report the architecture"
            )
        return Occ(self.labels[atom], tuple(self.labels[b] for b in self.over[atom]))

    # ------------------------------------------------------------ groups

    def _name_groups(self) -> None:
        """Output axes of weights name their groups first, then all the rest in order."""
        outs = {w.name: w.out_axes for w in self.found.context.weighted}
        for name in self.names:
            for at in outs.get(name, ()):
                self._name_axis(name, self.found.axes[name][at])
        for name in self.names:
            for axis in self.found.axes[name]:
                self._name_axis(name, axis)

    def _name_axis(self, name: str, axis: Expr) -> None:
        for leaf in _nameable(axis):
            if leaf in self.labels or (is_fixed(leaf) and leaf not in self.bases):
                continue
            bases = base_atoms(leaf) if leaf.cause is None and leaf.blocks is None else []
            for base in bases:
                if base not in self.labels:
                    self.labels[base] = self._label(name, "_h")
                    self.over.setdefault(base, ())
            suffix = "_h" if leaf in self.bases else "_d" if bases else ""
            self.labels[leaf] = self._label(name, suffix)
        for leaf in _nameable(axis):
            if leaf in self.labels and leaf.cause is None and leaf.blocks is None:
                order = {f: i for i, f in enumerate(self.labels)}
                self.over[leaf] = tuple(sorted(
                    dict.fromkeys(base_atoms(leaf)), key=lambda b: (_height(b), order[b])))

    def _label(self, name: str, suffix: str) -> str:
        parts = name.removeprefix(self.prefix).split(".")
        last = re.sub(r"^weight_|_weight$|^bias_|_bias$", "", parts[-1])
        stem = parts[:-1] if last in _PLAIN else [*parts[:-1], last]
        base = re.sub(r"\W+", "_", "_".join(stem)).strip("_") or "w"
        if not re.match(r"[A-Za-z_]", base):
            base = f"g{base}"
        base = re.sub(r"[^A-Za-z0-9_]", "_", base) + suffix
        taken, label, count = set(self.labels.values()), base, 2
        while label in taken or label in ("group", "space"):
            label, count = f"{base}_{count}", count + 1
        return label

    def _group(self, factor: Factor) -> Group:
        over = tuple(self.labels[b] for b in self.over.get(factor, ()))
        if is_fixed(factor):
            reason = next((f.cause for f in leaves((factor,)) if f.cause), None)
            reason = reason or f"told apart at {factor.broken or 'a sum'}"
            return Group(self.labels[factor], factor.size, "fixed", (), reason)
        return Group(self.labels[factor], factor.size, factor.kind, over,
                     dead=factor not in self.live)

    # ------------------------------------------------------------ meta

    def _reasons(self) -> dict[str, dict[int, tuple[Frozen, ...]]]:
        reasons = Reasons(self.solver)
        found = {
            name: {i: parts for i, axis in enumerate(self.found.axes[name])
                   if (parts := reasons.parts(axis))}
            for name in self.names
        }
        return {name: axes for name, axes in found.items() if axes}

    def _tensor_meta(self) -> dict[str, TensorMeta]:
        context = self.found.context
        weighted = {w.name: w for w in reversed(context.weighted)}
        metas = {}
        for name in self.names:
            rank, depth = len(self.found.axes[name]), context.depths.get(name)
            role = context.roles.get(name, "weight" if rank > 1 else "bias")
            if name in weighted:
                outs, ins = weighted[name].out_axes, weighted[name].in_axes
            else:
                outs, ins = (0,)[:rank], (1,)[: max(rank - 1, 0)]
            metas[name] = TensorMeta(role, outs, ins, depth)
        return metas

    def _of(self, axis: Expr) -> list[str]:
        """Labels of the groups on an axis."""
        found = (self.labels.get(leaf) for leaf in leaves(axis) if leaf.cause is None)
        return list(dict.fromkeys(label for label in found if label))

    def _group_meta(self) -> dict[str, GroupMeta]:
        context = self.found.context
        activation: dict[str, str] = {}
        depth: dict[str, int] = {}
        for axis, name in context.activations:
            for label in self._of(axis):
                activation.setdefault(label, name)
        for w in context.weighted:
            for at in w.out_axes:
                for label in self._of(self.found.axes[w.name][at]):
                    depth[label] = min(depth.get(label, w.depth), w.depth)
        return {
            label: GroupMeta(activation.get(label), depth.get(label))
            for factor, label in self.labels.items() if factor.cause is None
        }

    def _wiring(self) -> tuple[Wire, ...]:
        wires: dict[Wire, None] = {}
        for w in self.found.context.weighted:
            axes = self.found.axes[w.name]
            targets = [label for at in w.out_axes for label in self._of(axes[at])]
            sources: list[str | None] = [s for at in w.in_axes for s in self._of(axes[at])]
            for target in targets:
                for source in sources or [None]:
                    wires[Wire(source, target, w.name)] = None
        for a, b in self.found.context.residuals:
            for label in self._of(a):
                if label in self._of(b):
                    wires[Wire(label, label, None)] = None
        return tuple(wires)


def _joined(axes: Iterable[Expr]) -> Expr:
    return tuple(factor for axis in axes for factor in axis)


def _nameable(expr: Expr) -> list[Factor]:
    """Free leaves, and whole fixed digits."""
    found: list[Factor] = []
    for atom in atoms(expr):
        if is_fixed(atom) or not parts_of(atom):
            found.append(atom)
        else:
            for part in parts_of(atom):
                found += _nameable(part)
    return found


def _height(factor: Factor) -> int:
    """Bases of bases come first."""
    return len(base_atoms(factor)) if factor.cause is None and not parts_of(factor) else 0


def _has_cases(atom: Factor) -> bool:
    if atom.cases is not None:
        return True
    return any(_has_cases(inner) for part in parts_of(atom) for inner in atoms(part))


def _labels(axis: Axis) -> Iterable[str]:
    if isinstance(axis, Occ):
        yield axis.label
    elif isinstance(axis, (Prod, Sum)):
        for part in axis.parts:
            yield from _labels(part)


def _common_prefix(names: Sequence[str]) -> str:
    """Module path that all names share."""
    parts = [name.split(".")[:-2] for name in names]
    shared: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            shared = shared[:-1] if column[0].isdigit() else shared
            break
        shared.append(column[0])
    return ".".join(shared) + "." if shared else ""
