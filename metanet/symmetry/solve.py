"""Union-find over factors: which digits of which axes are one and the same.

Every call only removes freedom, so a wrong order costs maximality and never soundness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from metanet.symmetry.factor import (
    Cases,
    Expr,
    Factor,
    all_fixed,
    atoms,
    base_atoms,
    contains,
    depends,
    find,
    is_fixed,
    leaves,
    length,
)
from metanet.symmetry.kinds import meet


@dataclass(frozen=True, slots=True)
class Link:
    """Two factors that one operation made equal (or part of each other)."""

    a: Factor
    b: Factor
    via: str


class Solver:
    """Makes factors and ties them. ``via`` names the operation that is being looked at."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.origins: dict[Factor, str] = {}
        self.clashes: list[tuple[str, list[Factor]]] = []
        self.via = ""
        self._count = 0

    # ------------------------------------------------------------ making

    def _new(self, size: int, **fields: object) -> Factor:
        self._count += 1
        return Factor(self._count, size, **fields)  # type: ignore[arg-type]

    def free(self, size: int, bases: Sequence[Factor] = (), kind: str = "S") -> Expr:
        """A new digit that may move, perhaps differently for each index of ``bases``."""
        if not size:
            return self.fixed(0, "nothing is in it")
        return () if size == 1 else (self._new(size, bases=set(bases), kind=kind),)

    def fixed(self, size: int, cause: str) -> Expr:
        """A new digit that cannot move."""
        if size == 1:
            return ()
        made = self._new(size, cause=cause)
        self.origins[made] = cause
        return (made,)

    def cat(self, parts: Sequence[Expr]) -> Expr:
        """The direct sum of products; empty ones vanish."""
        parts = [part for part in parts if length(part)] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        size = sum(length(part) for part in parts)
        return (self._new(size, blocks=tuple(parts)),)

    def cases(self, base: Expr, pieces: Sequence[Expr], values: Sequence[Expr]) -> Expr:
        """What is ``values[k]`` where the base's index lies in ``pieces[k]``."""
        if all(atoms(value) == atoms(values[0]) for value in values[1:]):
            return values[0]
        if len(base) != 1:
            for value in values[1:]:
                self.tie(values[0], value)
            return values[0]
        case = Cases(base[0], tuple(pieces), tuple(values))
        return (self._new(length(values[0]), cases=case),)

    # ------------------------------------------------------------ freezing

    def freeze(self, expr: Expr, cause: str) -> None:
        """Take all freedom from a product."""
        for leaf in leaves(expr):
            if leaf.cause is None:
                self.origins[leaf] = cause
        self._fix(expr, cause)

    @staticmethod
    def _fix(expr: Expr, cause: str) -> None:
        for leaf in leaves(expr):
            if leaf.cause is None:
                leaf.cause, leaf.bases = cause, set()

    # ------------------------------------------------------------ tying

    def tie(self, a: Expr, b: Expr) -> None:
        """Identify two products index by index; freeze both where their digits do not fit."""
        if length(a) != length(b):
            raise ValueError(f"axes of sizes {length(a)} and {length(b)} cannot be tied")
        if not length(a):  # no entries that could be told apart
            return
        pairs = self._align(a, b)
        if pairs is None:
            self.clash((a, b))
            return
        for x, y in reversed(pairs):  # major digits first: minor ones may depend on them
            self._union(x, y)

    def clash(self, exprs: Sequence[Expr]) -> None:
        """Freeze products whose digits do not fit together, and count what is lost."""
        lost = self.lost(exprs)
        if lost:
            self.clashes.append((self.via, lost))
        for expr in exprs:
            self.freeze(expr, f"digits do not fit at {self.via}")

    def _align(self, a: Expr, b: Expr) -> list[tuple[Factor, Factor]] | None:
        left, right = atoms(a), atoms(b)
        pairs = []
        while left and right:
            left[-1:], right[-1:] = atoms((left[-1],)), atoms((right[-1],))
            x, y = left[-1], right[-1]
            if x.size == y.size:
                pairs.append((x, y))
                left.pop()
                right.pop()
                continue
            big, small, where = (x, y, left) if x.size > y.size else (y, x, right)
            halves = self.halve(big, small.size)
            if halves is None:
                return None
            where[-1:] = atoms(halves[0] + halves[1])
        return pairs

    def _union(self, x: Factor, y: Factor) -> None:
        x, y = find(x), find(y)
        if x is y:
            return
        if x.split is not None or y.split is not None:
            self.tie((x,), (y,))
            return
        self.links.append(Link(x, y, self.via))
        if is_fixed(x) or is_fixed(y):
            cause = next((f.cause for f in (*leaves((x,)), *leaves((y,))) if f.cause), self.via)
            self._fix((x, y), cause)
        simple_x, simple_y = (f.blocks is None and f.cases is None for f in (x, y))
        if simple_x and simple_y:
            self._join(x, y)
        elif simple_x:
            self._become(x, y)
        elif simple_y:
            self._become(y, x)
        else:
            self._union_composite(x, y)

    def _join(self, x: Factor, y: Factor) -> None:
        kind = meet(x.kind, y.kind)
        x.bases |= y.bases
        x.dropped |= y.dropped
        x.kind, y.parent = kind, x
        if kind == "fixed" and x.cause is None:
            self.freeze((x,), f"kinds do not meet at {self.via}")

    def _become(self, simple: Factor, composite: Factor) -> None:
        """A free or fixed factor turns out to be a sum or to have cases."""
        if contains(composite, simple):
            self.merge(composite)
            return
        for leaf in leaves((composite,)):
            if leaf.cause is None and leaf is not simple:
                leaf.bases |= {b for b in simple.bases if not self._circular(leaf, b)}
                leaf.dropped |= simple.dropped
        simple.parent = composite

    @staticmethod
    def _circular(leaf: Factor, base: Factor) -> bool:
        return any(atom is leaf or depends(atom, leaf) for atom in atoms((base,)))

    def _union_composite(self, x: Factor, y: Factor) -> None:
        if contains(x, y) or contains(y, x):
            self.merge(x if contains(x, y) else y)
            self.tie((x,), (y,))
        elif x.blocks is not None and y.blocks is not None:
            self._refine(x.blocks, y.blocks)
            self._link(y, x)
        elif x.cases is not None and y.cases is not None:
            self._union_cases(x, y)
        else:
            blocks, cased = (x, y) if x.blocks is not None else (y, x)
            base = find(cased.cases.base)  # type: ignore[union-attr]
            if not depends(blocks, base):
                self.merge(cased)
            else:
                self._tie_cases(cased, (blocks,))
            self.tie((blocks,), (cased,)) if cased.cases is None else self._link(blocks, cased)

    @staticmethod
    def _link(child: Factor, parent: Factor) -> None:
        child, parent = find(child), find(parent)
        if child is not parent and child.split is None and not contains(parent, child):
            child.parent = parent

    def _union_cases(self, x: Factor, y: Factor) -> None:
        mine, theirs = x.cases, y.cases
        if mine is None or theirs is None:
            return
        if find(mine.base) is find(theirs.base):
            self._tie_cases(x, (y,))
            self._link(y, x)
            return
        self.merge(x)
        self.merge(y)
        self.tie((x,), (y,))

    def _tie_cases(self, cased: Factor, other: Expr) -> None:
        case, start = cased.cases, 0
        if case is None:
            return
        base = find(case.base)
        for piece, value in zip(case.pieces, case.values, strict=True):
            stop = start + length(piece)
            self.tie(value, self.restrict(other, base, start, stop))
            start = stop

    def _refine(self, a: Sequence[Expr], b: Sequence[Expr]) -> None:
        left, right = list(a), list(b)
        while left and right:
            x, y = left.pop(0), right.pop(0)
            short = min(length(x), length(y))
            if length(x) > short:
                left.insert(0, self.cut(x, short, length(x)))
                x = self.cut(x, 0, short)
            if length(y) > short:
                right.insert(0, self.cut(y, short, length(y)))
                y = self.cut(y, 0, short)
            self.tie(x, y)

    def merge(self, cased: Factor) -> None:
        """Give up that a factor differs from piece to piece of its base."""
        case = cased.cases
        if case is None:
            return
        for value in case.values[1:]:
            self.tie(case.values[0], value)
        if cased.cases is None or cased.parent is not None:
            return
        fit = [value for value in case.values
               if all(a is not cased and not contains(a, cased) for a in atoms(value))]
        cased.cases = None
        cased.split = fit[0] if fit else self.free(cased.size)

    # ------------------------------------------------------------ splitting

    def halve(self, atom: Factor, minor: int) -> tuple[Expr, Expr] | None:
        """A root as (major, minor) digits, or None where that is impossible."""
        if atom.size % minor:
            return None
        major = atom.size // minor
        if atom.cases is not None:
            split = self._halve_cases(atom.cases, minor)
        elif atom.blocks is not None:
            split = self._halve_blocks(atom.blocks, minor)
        elif atom.cause is not None:
            split = self.fixed(major, atom.cause), self.fixed(minor, atom.cause)
        else:
            bases = tuple(atom.bases)
            top = self.free(major, bases, atom.kind)
            split = top, self.free(minor, bases + top, atom.kind)
        if split is not None:
            atom.split = split[0] + split[1]
            atom.cases = None
            self.links += [Link(atom, part, self.via) for part in atom.split]
        return split

    def split_product(self, expr: Expr, minor: int) -> tuple[Expr, Expr] | None:
        """A product as (major, minor) products with ``minor`` indices in the second."""
        left, size = atoms(expr), 1
        right: list[Factor] = []
        while size < minor:
            if not left:
                return None
            atom = left.pop()
            want = minor // size
            if minor % size:
                return None
            if atom.size > want:
                halves = self.halve(atom, want)
                if halves is None:
                    return None
                left += atoms(halves[0] + halves[1])
                continue
            right.insert(0, atom)
            size *= atom.size
        return (tuple(left), tuple(right)) if size == minor else None

    def _halve_blocks(self, blocks: tuple[Expr, ...], minor: int) -> tuple[Expr, Expr] | None:
        tops: list[Expr] = []
        lows: list[Expr] = []
        run: list[Expr] = []
        for block in blocks:
            if not run and length(block) % minor == 0:
                halves = self.split_product(block, minor)
                if halves is None:
                    return None
                tops.append(halves[0])
                lows.append(halves[1])
                continue
            run.append(block)
            size = sum(map(length, run))
            if size > minor:
                return None
            if size == minor:
                tops.append(())
                lows.append(self.cat(run))
                run = []
        if run:
            return None
        base = self.cat(tops)
        return base, self.cases(base, tops, lows) if base else lows[0]

    def _halve_cases(self, case: Cases, minor: int) -> tuple[Expr, Expr] | None:
        halves = [self.split_product(value, minor) for value in case.values]
        if any(half is None for half in halves):
            return None
        pairs = [half for half in halves if half is not None]
        tops, lows = [top for top, _ in pairs], [low for _, low in pairs]
        base = (case.base,)
        return self.cases(base, case.pieces, tops), self.cases(base, case.pieces, lows)

    def regroup(self, exprs: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
        """The same indices under another shape (view): digits regrouped, major to minor."""
        out: list[Expr] = []
        right, sizes = list(exprs), list(shape)
        while right or sizes:
            run, want = [right.pop()] if right else [], [sizes.pop()] if sizes else []
            have, need = _total(run), prod(want)
            while have != need:
                if have < need:
                    run.insert(0, right.pop())
                else:
                    want.insert(0, sizes.pop())
                have, need = _total(run), prod(want)
            out = self._regroup_run(run, want) + out
        return out

    def _regroup_run(self, run: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
        left: Expr = tuple(factor for expr in run for factor in expr)
        out: list[Expr] = []
        for size in reversed(shape):
            halves = self.split_product(left, size)
            if halves is None:
                self.clash((*run, *out))
                return [self.fixed(n, f"digits do not fit at {self.via}") for n in shape]
            left = halves[0]
            out.insert(0, halves[1])
        return out

    # ------------------------------------------------------------ ranges

    def cut(self, expr: Expr, lo: int, hi: int) -> Expr:
        """The indices ``lo <= i < hi`` of a product."""
        return self.cut_axes([expr], 0, lo, hi)[0]

    def cut_axes(self, axes: Sequence[Expr], dim: int, lo: int, hi: int) -> list[Expr]:
        """Axes of a tensor of which only ``lo <= i < hi`` of axis ``dim`` are kept."""
        steps: list[tuple[Factor, int, int]] = []
        piece = self._cut(axes[dim], lo, hi, steps)
        out = list(axes)
        for i, axis in enumerate(axes):
            for base, start, stop in steps if i != dim else ():
                axis = self.restrict_axis(axis, base, start, stop)
            out[i] = axis
        out[dim] = piece
        return out

    def _cut(self, expr: Expr, lo: int, hi: int, steps: list[tuple[Factor, int, int]]) -> Expr:
        if lo == 0 and hi == length(expr):
            return expr
        if lo >= hi:
            return self.fixed(0, f"nothing is taken at {self.via}")
        digits = atoms(expr)
        head, rest = digits[0], tuple(digits[1:])
        minor = length(rest)
        if lo % minor == 0 and hi % minor == 0:
            start, stop = lo // minor, hi // minor
        elif lo // minor == (hi - 1) // minor:
            start, stop = lo // minor, lo // minor + 1
        else:
            self.clash((expr,))
            return self.fixed(hi - lo, f"a part across digits is taken at {self.via}")
        kept = self.piece(head, start, stop)
        steps.append((find(head), start, stop))
        rest = self.restrict(rest, find(head), start, stop)
        if lo % minor == 0 and hi % minor == 0:
            return kept + rest
        return self._cut(rest, lo - start * minor, hi - start * minor, steps)

    def piece(self, atom: Factor, lo: int, hi: int) -> Expr:
        """The indices ``lo <= i < hi`` of one root, which becomes a direct sum."""
        atom = find(atom)
        if lo == 0 and hi == atom.size:
            return (atom,)
        if (lo, hi) in atom.ranges:
            return atom.ranges[lo, hi]
        if atom.cases is not None:
            case = atom.cases
            cuts = [self.cut(value, lo, hi) for value in case.values]
            return self.cases((case.base,), case.pieces, cuts)
        if atom.blocks is None:
            self._break(atom, lo, hi)
        pieces, start = [], 0
        for block in atom.blocks or ():
            stop = start + length(block)
            if start < hi and lo < stop:
                pieces.append(self.cut(block, max(lo - start, 0), min(hi, stop) - start))
            start = stop
        atom.ranges[lo, hi] = self.cat(pieces)
        return atom.ranges[lo, hi]

    def _break(self, atom: Factor, lo: int, hi: int) -> None:
        sizes = [n for n in (lo, hi - lo, atom.size - hi) if n]
        if atom.cause is not None:
            blocks = [self.fixed(n, atom.cause) for n in sizes]
        else:
            blocks = [self.free(n, tuple(atom.bases), atom.kind) for n in sizes]
        self.links += [Link(atom, part, self.via) for block in blocks for part in block]
        atom.blocks, atom.broken, atom.bases = tuple(blocks), self.via, set()

    def restrict_axis(self, axis: Expr, base: Factor, lo: int, hi: int) -> Expr:
        """``restrict`` for another axis of the tensor: its own digits ``base`` shield the rest."""
        digits = atoms(axis)
        if base in digits:
            at = digits.index(base)
            return self.restrict(tuple(digits[:at]), base, lo, hi) + tuple(digits[at:])
        return self.restrict(axis, base, lo, hi)

    def restrict(self, expr: Expr, base: Factor, lo: int, hi: int) -> Expr:
        """What a product is where the index of ``base`` lies in ``lo <= i < hi``."""
        if lo == 0 and hi == base.size:
            return expr
        return tuple(f for atom in atoms(expr) for f in self._restrict(atom, base, lo, hi))

    def _restrict(self, atom: Factor, base: Factor, lo: int, hi: int) -> Expr:
        if not depends(atom, base):
            return (atom,)
        if atom.blocks is not None:
            return self.cat([self.restrict(block, base, lo, hi) for block in atom.blocks])
        if atom.cases is None:
            self._distinguish(atom, base)
        case = atom.cases
        if case is None:  # the pieces turned out equal
            return tuple(atoms((atom,)))
        if find(case.base) is base:
            return self._pick(atom, case, base, lo, hi)
        if depends(find(case.base), base):
            self.merge(atom)
            return self.restrict((atom,), base, lo, hi)
        values = [self.restrict(value, base, lo, hi) for value in case.values]
        return self.cases((case.base,), case.pieces, values)

    def _distinguish(self, atom: Factor, base: Factor) -> None:
        """A free factor over a direct sum gets a factor of its own for each summand."""
        if base.cases is not None:
            atom.bases = {b for b in base_atoms(atom) if b is not base}
            return
        if base.blocks is None:
            self._break(base, 0, 1)
        values, start = [], 0
        others = [b for b in base_atoms(atom) if b is not base and not depends(b, atom)]
        atom.bases = set(others)
        for piece in base.blocks or ():
            stop = start + length(piece)
            inner = [f for b in others for f in self.restrict((b,), base, start, stop)]
            values.append(self.free(atom.size, (*inner, *piece), atom.kind))
            start = stop
        self.links += [Link(atom, factor, self.via) for value in values for factor in value]
        if base.blocks is not None:
            atom.cases, atom.bases = Cases(base, base.blocks, tuple(values)), set()

    def _pick(self, atom: Factor, case: Cases, base: Factor, lo: int, hi: int) -> Expr:
        pieces: list[Expr] = []
        values: list[Expr] = []
        start = 0
        for piece, value in zip(case.pieces, case.values, strict=True):
            stop = start + length(piece)
            low, high = max(lo, start) - start, min(hi, stop) - start
            start = stop
            if low >= high:
                continue
            digits = atoms(piece)
            if high - low < length(piece) and len(digits) != 1:
                self.merge(atom)
                return tuple(atoms((atom,)))
            if high - low < length(piece):
                value = self.restrict(value, digits[0], low, high)
                piece = self.piece(digits[0], low, high)
            pieces.append(piece)
            values.append(value)
        if len(values) == 1:
            return values[0]
        return self.cases(self.piece(base, lo, hi), pieces, values)

    def lost(self, exprs: Sequence[Expr]) -> list[Factor]:
        """What would lose its freedom if these products were frozen."""
        free = dict.fromkeys(f for expr in exprs if not all_fixed(expr) for f in leaves(expr))
        return [leaf for leaf in free if leaf.cause is None]


def _total(run: Sequence[Expr]) -> int:
    return prod(map(length, run))
