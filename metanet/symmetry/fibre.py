"""The fixpoint for fibres: a digit may depend on another only where both are seen together.

A factor may be fibred over a base only if every tensor (parameter, activation or hidden
intermediate) that has the factor has the base as well. What fails is dropped, which merges what
was told apart, until nothing changes. The result does not depend on the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metanet.symmetry.factor import (
    Expr,
    Factor,
    atoms,
    base_atoms,
    depends,
    find,
    is_fixed,
    leaves,
    length,
    parts_of,
)
from metanet.symmetry.solve import Solver

Axes = tuple[Expr, ...]


def settle(solver: Solver, parameters: Iterable[Axes], values: Iterable[Axes]) -> None:
    """Drop dependences until all that are left hold in every tensor."""
    solver.via = "fibre consistency"
    tensors = [(axes, True) for axes in parameters]
    tensors += [(axes, False) for axes in dict.fromkeys(values)]
    fixpoint = _Fixpoint(solver)
    while True:
        fixpoint.changed = False
        for axes, written in tensors:
            fixpoint.check(axes, written)
        fixpoint.close()
        if not fixpoint.changed:
            return


class _Fixpoint:
    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.changed = False
        self.seen: dict[Factor, None] = {}

    def check(self, axes: Sequence[Expr], written: bool) -> None:
        """One tensor; ``written`` says that its axes must be printable (a parameter)."""
        digits = [atoms(axis) for axis in axes]
        if not any(_movable_dependent(atom) for axis in digits for atom in axis):
            return
        self._merge_invisible(digits, written)
        digits = [atoms(axis) for axis in axes]
        place = self._branching(digits, written)
        if place is not None:
            self._branch(digits, place, written)
            return
        for d, axis in enumerate(digits):
            for k, atom in enumerate(axis):
                if atom.blocks is not None and not is_fixed(atom):
                    self._check_blocks(digits, d, k, written)
                elif atom.cases is None and atom.cause is None and atom.blocks is None:
                    self._check_free(digits, d, k, written)

    # ------------------------------------------------------------ cases

    def _merge_invisible(self, digits: list[list[Factor]], written: bool) -> None:
        for d, axis in enumerate(digits):
            for k, atom in enumerate(axis):
                if atom.cases is None or atom.parent is not None:
                    continue
                base = find(atom.cases.base)
                visible = base in axis[:k] or (not written and _elsewhere(digits, d, base) == 1)
                if base.split is not None or not visible:
                    self.solver.merge(atom)
                    self.changed = True

    def _branching(self, digits: list[list[Factor]], written: bool) -> tuple[int, int] | None:
        """A direct sum on whose summand something else depends."""
        for d, axis in enumerate(digits):
            for k, atom in enumerate(axis):
                if atom.blocks is None:
                    continue
                rest = axis[k + 1 :]
                others = [o for e, other in enumerate(digits) if e != d for o in other]
                cased = any(_cased_over(o, atom) for o in (*rest, *others))
                free_base = not is_fixed(atom) and any(
                    depends(o, atom) for o in (rest if written else (*rest, *others)))
                if cased or free_base:
                    return d, k
        return None

    def _branch(self, digits: list[list[Factor]], place: tuple[int, int], written: bool) -> None:
        d, k = place
        base, start = digits[d][k], 0
        if written:
            self._drop_elsewhere(digits, d, base)
        for block in base.blocks or ():
            stop = start + length(block)
            axes: list[Expr] = []
            for e, axis in enumerate(digits):
                if e == d:
                    rest = self.solver.restrict(tuple(axis[k + 1 :]), base, start, stop)
                    axes.append((*axis[:k], *block, *rest))
                else:
                    axes.append(self.solver.restrict_axis(tuple(axis), base, start, stop))
            start = stop
            self.check(axes, written)

    def _drop_elsewhere(self, digits: list[list[Factor]], d: int, base: Factor) -> None:
        """A direct sum can be written out along its own axis only."""
        for e, axis in enumerate(digits):
            if e == d or base in axis:
                continue
            for atom in axis:
                while (cased := _find_cased(atom, base)) is not None:
                    self.solver.merge(cased)
                    self.changed = True
                for leaf in leaves((atom,)):
                    bases = base_atoms(leaf)
                    if base in bases:
                        self._keep(leaf, {b for b in bases if b is not base}, bases)

    def _check_blocks(self, digits: list[list[Factor]], d: int, k: int, written: bool) -> None:
        atom = digits[d][k]
        for block in atom.blocks or ():
            if any(_movable_dependent(leaf) for leaf in leaves(block)):
                axes = [tuple(axis) for axis in digits]
                axes[d] = (*digits[d][:k], *block, *digits[d][k + 1 :])
                self.check(axes, written)

    # ------------------------------------------------------------ free factors

    def _check_free(self, digits: list[list[Factor]], d: int, k: int, written: bool) -> None:
        atom = digits[d][k]
        self.seen[atom] = None
        bases = base_atoms(atom)
        kept = {
            base for base in bases
            if base is not atom and base not in atom.dropped
            and (not written or is_fixed(base) or not parts_of(base))
            and (base in digits[d][:k] or _elsewhere(digits, d, base) == 1)
        }
        self._keep(atom, kept, bases)

    def _keep(self, atom: Factor, kept: set[Factor], bases: list[Factor]) -> None:
        gone = set(bases) - kept
        if gone:
            self.changed = True
            atom.dropped |= gone
        atom.bases = kept

    def close(self) -> None:
        """What a base depends on, its members depend on too; circles are cut."""
        for atom in list(self.seen):
            if atom.parent is not None or atom.split or atom.blocks or atom.cases or atom.cause:
                continue
            bases = base_atoms(atom)
            kept = set(bases)
            for base in bases:
                above = base_atoms(base) if base.cause is None and base.blocks is None else []
                if atom in above or kept & set(above) & atom.dropped or any(
                        b in atom.dropped for b in above):
                    kept.discard(base)
                elif not set(above) <= kept:
                    kept |= set(above)
                    self.changed = True
            if kept != set(bases):
                self._keep(atom, kept, bases)


def _elsewhere(digits: list[list[Factor]], d: int, base: Factor) -> int:
    """How often a digit stands in the other axes."""
    return sum(axis.count(base) for e, axis in enumerate(digits) if e != d)


def _find_cased(atom: Factor, base: Factor) -> Factor | None:
    """Something in ``atom`` that differs from piece to piece of ``base``."""
    for inner in atoms((atom,)):
        if inner.cases is not None and find(inner.cases.base) is base:
            return inner
        for part in parts_of(inner):
            for deeper in atoms(part):
                if (found := _find_cased(deeper, base)) is not None:
                    return found
    return None


def _cased_over(atom: Factor, base: Factor) -> bool:
    if atom.cases is not None and find(atom.cases.base) is base:
        return True
    return any(_cased_over(inner, base) for part in parts_of(atom) for inner in atoms(part))


def _movable_dependent(atom: Factor) -> bool:
    """Whether a digit depends on another one in any way."""
    if atom.cases is not None:
        return True
    if atom.blocks is not None:
        return any(_movable_dependent(inner) for part in atom.blocks for inner in atoms(part))
    return atom.cause is None and bool(atom.bases)
