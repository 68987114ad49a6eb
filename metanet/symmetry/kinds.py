"""Kinds of groups and their meet (card `weight-space`, "Kinds").

``S`` permutations; ``signed`` and ``positive`` permutations with signs or positive scales;
``O`` and ``GL`` orthogonal and general linear maps; ``rope`` one complex scalar per pair;
``fixed`` the trivial group.
"""

from __future__ import annotations

KINDS = ("S", "signed", "positive", "O", "GL", "rope", "fixed")

# What lies at or below each kind, greatest first.
_BELOW = {
    "GL": ("GL", "O", "positive", "rope", "signed", "S", "fixed"),
    "O": ("O", "signed", "S", "fixed"),
    "signed": ("signed", "S", "fixed"),
    "positive": ("positive", "S", "fixed"),
    "S": ("S", "fixed"),
    "rope": ("rope", "fixed"),
    "fixed": ("fixed",),
}

PERMUTING = frozenset({"S", "signed", "positive"})
"""Kinds whose element is a permutation table, with values for all but ``S``."""


def meet(a: str, b: str) -> str:
    """Greatest kind below both ``a`` and ``b``."""
    return next(kind for kind in _BELOW[a] if kind in _BELOW[b])


def contains_permutations(kind: str) -> bool:
    """Whether S_n is a subgroup of this kind (rope and fixed have no permutation)."""
    return "S" in _BELOW[kind]


def normal_exponent(kind: str, exponent: int) -> int | None:
    """Representative of an exponent, or None where the kind has no such action."""
    if kind in ("S", "fixed"):
        return 1
    if kind == "signed":
        return exponent % 2
    if kind in ("O", "GL"):
        if exponent not in (-1, 0, 1):
            return None
        return abs(exponent) if kind == "O" else exponent
    return exponent
