"""Factors: the digits of axes while their freedom is being found."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias


@dataclass(eq=False, slots=True)
class Factor:
    """A digit of some axes, ``size`` long; a node of a union-find.

    A root is in one state: *split* (a product of other factors), *blocks* (a direct sum), *cases*
    (another expression for each piece of a base), *fixed* (``cause`` says why) or else *free*.
    ``bases`` of a free factor are those that its permutation may depend on; ``broken`` names the
    operation that turned a free or fixed factor into a direct sum.
    """

    number: int
    size: int
    kind: str = "S"
    parent: Factor | None = None
    split: tuple[Factor, ...] | None = None
    blocks: tuple[Expr, ...] | None = None
    cases: Cases | None = None
    cause: str | None = None
    broken: str | None = None
    bases: set[Factor] = field(default_factory=set)
    dropped: set[Factor] = field(default_factory=set)
    ranges: dict[tuple[int, int], Expr] = field(default_factory=dict)

    def __repr__(self) -> str:
        state = next((s for s in ("split", "blocks", "cases", "cause") if getattr(self, s)), "free")
        return f"<{self.number}:{self.size} {state}>"


Expr: TypeAlias = tuple[Factor, ...]
"""A product of factors, major to minor; ``()`` is an axis of size 1."""


@dataclass(frozen=True, slots=True)
class Cases:
    """What a factor is on each piece of ``base``: ``pieces[k]`` of the base meets ``values[k]``."""

    base: Factor
    pieces: tuple[Expr, ...]
    values: tuple[Expr, ...]


def length(expr: Expr) -> int:
    """Number of indices of a product."""
    return prod(factor.size for factor in expr)


def find(factor: Factor) -> Factor:
    """The root that stands for a factor."""
    root = factor
    while root.parent is not None:
        root = root.parent
    while factor.parent is not None:
        factor.parent, factor = root, factor.parent
    return root


def atoms(expr: Expr) -> list[Factor]:
    """The roots that a product consists of, splits written out."""
    found: list[Factor] = []
    for factor in expr:
        root = find(factor)
        if root.split is not None:
            found += atoms(root.split)
        else:
            found.append(root)
    return found


def parts_of(atom: Factor) -> tuple[Expr, ...]:
    """What a direct sum or a factor with cases is made of."""
    if atom.blocks is not None:
        return atom.blocks
    return atom.cases.values if atom.cases is not None else ()


def is_fixed(atom: Factor) -> bool:
    """Whether nothing in a root can move."""
    if atom.cause is not None:
        return True
    parts = parts_of(atom)
    if atom.blocks is None and atom.cases is None:
        return False
    return all(is_fixed(inner) for part in parts for inner in atoms(part))


def all_fixed(expr: Expr) -> bool:
    """Whether nothing in a product can move."""
    return all(is_fixed(atom) for atom in atoms(expr))


def leaves(expr: Expr) -> list[Factor]:
    """All free and fixed roots of a product, those inside sums and cases included."""
    found: list[Factor] = []
    for atom in atoms(expr):
        parts = parts_of(atom)
        if atom.blocks is None and atom.cases is None:
            found.append(atom)
        for part in parts:
            found += leaves(part)
    return found


def contains(atom: Factor, other: Factor) -> bool:
    """Whether ``other`` stands somewhere inside the sum or cases ``atom``."""
    return any(
        inner is other or contains(inner, other)
        for part in parts_of(atom)
        for inner in atoms(part)
    )


def base_atoms(factor: Factor) -> list[Factor]:
    """The roots that a free factor may depend on."""
    return [atom for base in factor.bases for atom in atoms((base,))]


def depends(atom: Factor, base: Factor) -> bool:
    """Whether a root varies with the index of ``base`` (a root)."""
    if atom is base:
        return False
    if atom.cases is not None and find(atom.cases.base) is base:
        return True
    if atom.blocks is not None or atom.cases is not None:
        return any(depends(inner, base) for part in parts_of(atom) for inner in atoms(part))
    return atom.cause is None and base in base_atoms(atom)
