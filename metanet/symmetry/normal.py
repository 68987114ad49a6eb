"""The structural normal form of an axis (see the card `weight-space`, "Normal form").

An axis is first written as a list of *terms*, the summands of a direct sum. A term is
``(k, body)``: ``k`` private fixed digits in front of a body that never begins with a fixed digit.
A body holds occurrences, ints (inner fixed sizes) and at most one nested list of terms, at its
end. The list is run-merged and written out; only when an axis is rebuilt is a repeated list
folded to ``k! (…)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from metanet.errors import SymmetryError
from metanet.symmetry.axis import Axis, Fixed, Occ, Prod, Sum

_MAX_TERMS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Tail:
    terms: tuple[_Term, ...]


_Atom: TypeAlias = "Occ | int | _Tail"
_Term: TypeAlias = "tuple[int, tuple[_Atom, ...]]"
_UNIT: list[_Term] = [(1, ())]


def normal_axis(axis: Axis) -> Axis:
    """The one tree that stands for everything that denotes the same axis."""
    return _build(_terms(axis))


def _terms(axis: Axis) -> list[_Term]:
    if isinstance(axis, Fixed):
        return [(axis.size, ())] if axis.size else []
    if isinstance(axis, Occ):
        return [(1, (axis,))]
    if isinstance(axis, Sum):
        return _merge([term for part in axis.parts for term in _terms(part)])
    terms = _UNIT
    for part in reversed(axis.parts):
        terms = _merge([t for head in _terms(part) for t in _times(head, terms)])
    return terms


def _merge(terms: Sequence[_Term]) -> list[_Term]:
    """``j! X + k! X`` becomes ``(j+k)! X``."""
    merged: list[_Term] = []
    for k, body in terms:
        if merged and merged[-1][1] == body:
            merged[-1] = (merged[-1][0] + k, body)
        else:
            merged.append((k, body))
    return merged


def _times(head: _Term, terms: list[_Term]) -> list[_Term]:
    """One term times everything that is more minor."""
    k, body = head
    if body and isinstance(body[-1], _Tail):
        terms = _merge([t for inner in body[-1].terms for t in _times(inner, terms)])
        body = body[:-1]
    for atom in reversed(body):
        terms = _times_atom(atom, terms)
    return _times_atom(k, terms)


def _times_atom(atom: _Atom, terms: list[_Term]) -> list[_Term]:
    if not terms:
        return []
    if isinstance(atom, int):
        if len(terms) == 1:
            return [(atom * terms[0][0], terms[0][1])]
        if atom * len(terms) > _MAX_TERMS:
            raise SymmetryError(
                f"an axis of {atom} x {len(terms)} summands is too large to write out; "
                f"label the fixed factor or split the tensor (limit {_MAX_TERMS})"
            )
        return _merge(terms * atom)
    return [(1, (atom, *_folded(terms)))]


def _folded(terms: list[_Term]) -> tuple[_Atom, ...]:
    """Terms as atoms; a k-fold repetition becomes ``k! (…)``."""
    if len(terms) == 1:
        k, body = terms[0]
        return (k, *body) if k > 1 else body
    times, root = _period(terms)
    tail = _Tail(tuple(root))
    return (times, tail) if times > 1 else (tail,)


def _period(terms: list[_Term]) -> tuple[int, list[_Term]]:
    n = len(terms)
    # Knuth-Morris-Pratt: the shortest period is n minus the longest proper border.
    border = [0] * n
    j = 0
    for i in range(1, n):
        while j and terms[i] != terms[j]:
            j = border[j - 1]
        j += terms[i] == terms[j]
        border[i] = j
    period = n - border[-1]
    return (n // period, terms[:period]) if n % period == 0 else (1, terms)


def _build(terms: list[_Term]) -> Axis:
    if not terms:
        return Fixed(0)
    return _product(_folded(terms)) if terms != _UNIT else Fixed(1)


def _product(atoms: Sequence[_Atom]) -> Axis:
    parts = tuple(_atom(atom) for atom in atoms)
    return parts[0] if len(parts) == 1 else Prod(parts)


def _atom(atom: _Atom) -> Axis:
    if isinstance(atom, int):
        return Fixed(atom)
    if isinstance(atom, Occ):
        return atom
    return Sum(tuple(_summand(term) for term in atom.terms))


def _summand(term: _Term) -> Axis:
    k, body = term
    if not body:
        return Fixed(k)
    return _product((k, *body) if k > 1 else body)
