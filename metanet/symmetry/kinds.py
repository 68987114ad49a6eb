"""Kinds of groups and their meet (card `weight-space`, "Kinds").

``S`` permutations; ``signed`` and ``positive`` permutations with signs or positive scales;
``O`` and ``GL`` orthogonal and general linear maps; ``O1`` the orthogonal maps that keep the
vector of ones, which is what a LayerNorm leaves of ``O`` (it takes the mean away); ``SO`` rotations
without reflections, which is what rotary positions leave of a pair; ``rope`` one complex scalar per
pair; ``fixed`` the trivial group.
"""

from __future__ import annotations

KINDS = ("S", "signed", "positive", "O", "O1", "SO", "GL", "rope", "fixed")

# What lies at or below each kind, greatest first.
_BELOW = {
    "GL": ("GL", "O", "positive", "rope", "O1", "SO", "signed", "S", "fixed"),
    "O": ("O", "O1", "SO", "signed", "S", "fixed"),
    "O1": ("O1", "S", "fixed"),
    "SO": ("SO", "fixed"),
    "signed": ("signed", "S", "fixed"),
    "positive": ("positive", "S", "fixed"),
    "S": ("S", "fixed"),
    "rope": ("rope", "fixed"),
    "fixed": ("fixed",),
}

SCALING = frozenset({"signed", "positive"})
"""Kinds whose element has a value per neuron beside its permutation table."""

PERMUTING = SCALING | {"S"}
"""Kinds whose element is a permutation table."""

ROTATING = frozenset({"O", "O1", "SO"})
"""Kinds whose element is an orthogonal matrix."""


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
    if kind in ROTATING or kind == "GL":
        if exponent not in (-1, 0, 1):
            return None
        return exponent if kind == "GL" else abs(exponent)
    return exponent
