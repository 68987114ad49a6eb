"""Reduce blocks by a pattern, expand terms into blocks: the two ends of every layer.

Reductions are diagonals (views) followed by means, each computed once and from the smallest
reduction that already holds it. Expansions add low ranks into higher ones first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from metanet.nn.basis import Pattern

_CACHE = 1 << 20  # bytes of a block that are worked on at once, so that they stay in the cache


def diagonal(value: Tensor, pattern: Pattern) -> Tensor:
    """View ``[N, *classes, c]`` of ``value [N, *slots, c]`` where the slots of a class agree."""
    left = [slot for members in pattern.classes for slot in members]
    left.sort()
    for members in pattern.classes:
        for slot in members[1:]:
            at, gone = 1 + left.index(members[0]), 1 + left.index(slot)
            value = torch.diagonal(value, dim1=at, dim2=gone).movedim(-1, at)
            left.remove(slot)
    return value


class Reductions:
    """All reductions of one block, memoised.

    Args:
        value: ``[N, *slots, c]``.
        how: ``mean``, ``sum`` or ``max``.
    """

    def __init__(self, value: Tensor, how: str = "mean") -> None:
        self.value, self.how = value, how
        self._done: dict[tuple[Pattern, frozenset[int]], Tensor] = {}
        self._parents: dict[tuple[Pattern, frozenset[int]], int] = {}  # the class reduced last

    def get(self, pattern: Pattern, kept: frozenset[int]) -> Tensor:
        """Reductions over the classes not ``kept``: ``[N, *kept classes in order, c]``."""
        key = (pattern, kept)
        if key not in self._done:
            self._done[key] = self._compute(pattern, kept)
        return self._done[key]

    def ordered(self, pattern: Pattern, order: Sequence[int]) -> Tensor:
        """The same, with the kept classes in this order."""
        value = self.get(pattern, frozenset(order))
        return from_sorted(value, order)

    def _compute(self, pattern: Pattern, kept: frozenset[int]) -> Tensor:
        gone = [i for i in range(len(pattern.classes)) if i not in kept]
        if not gone:
            return self.value if pattern.discrete else diagonal(self.value, pattern)
        # One class more, among those whose bases are kept (so that the set stays closed).
        ready = [i for i in gone if set(pattern.bases[i]) <= kept]
        known = [i for i in ready if (pattern, kept | {i}) in self._done]
        extra = (known or ready)[-1]
        parent = self.get(pattern, kept | {extra})
        place = 1 + sorted(kept | {extra}).index(extra)
        self._parents[pattern, kept] = extra
        if self.how == "max":
            return parent.amax(place)
        return parent.mean(place) if self.how == "mean" else parent.sum(place)


    def add_gradient(self, total: Tensor, pattern: Pattern,
                     gradients: dict[frozenset[int], Tensor]) -> None:
        """Add to ``total [N, *slots, c]`` the adjoint of maxima over one pattern.

        Equal maxima get equal shares, as in ``torch.amax``.

        Args:
            gradients: of reductions that were asked for before, by what they kept.
        """
        whole = len(pattern.classes)
        for size in range(whole):
            for kept in [k for k in gradients if len(k) == size]:
                extra = self._parents[pattern, kept]
                above = kept | {extra}
                place = 1 + sorted(above).index(extra)
                value = self.get(pattern, above)
                if len(above) < whole:
                    # Fresh: what is there may be a view of a matrix product.
                    into = gradients[above].clone() if above in gradients else \
                        torch.zeros_like(value)
                    gradients[above] = into
                else:
                    into = total if pattern.discrete else diagonal(total, pattern)
                _add_won(into, value, self.get(pattern, kept), gradients.pop(kept), place)


def _add_won(into: Tensor, value: Tensor, top: Tensor, gradient: Tensor, place: int) -> None:
    """Add shares of the gradient where ``value`` attains its maximum ``top`` along a class."""
    each = value.element_size() * max(1, value[0].numel())
    for rows in torch.arange(len(value)).split(max(1, _CACHE // each)):
        at = slice(int(rows[0]), int(rows[-1]) + 1)
        # Arithmetic and not a comparison: on CPUs booleans cost three times as much.
        won = (value[at] - top[at].unsqueeze(place)).sign_().add_(1)
        into[at].addcmul_(won, (gradient[at] / won.sum(place)).unsqueeze(place))


def from_sorted(value: Tensor, order: Sequence[int]) -> Tensor:
    """``[N, *classes sorted, c]`` → ``[N, *classes in order, c]``."""
    rank = sorted(order)
    if list(order) == rank:
        return value
    return value.permute(0, *(1 + rank.index(i) for i in order), value.ndim - 1)


def to_sorted(value: Tensor, order: Sequence[int]) -> Tensor:
    """``[N, *classes in order, c]`` → ``[N, *classes sorted, c]``."""
    if list(order) == sorted(order):
        return value
    return value.permute(0, *(1 + order.index(i) for i in sorted(order)), value.ndim - 1)


def combine(parts: Iterable[tuple[frozenset[int], Tensor]], rank: int) -> list[Tensor]:
    """Parts ``[N or 1, *kept classes sorted, c]`` whose sum, broadcast to all classes, is wanted.

    Small parts are added into the smallest part that holds them, so that few additions are of
    full size; if one part keeps every class, all end in it.

    Returns:
        Tensors of full rank, broadcastable to ``[N, *classes, c]``.
    """
    sums: dict[frozenset[int], Tensor] = {}
    for kept, value in parts:
        sums[kept] = sums[kept] + value if kept in sums else value
    whole, left = frozenset(range(rank)), []
    for kept in sorted(sums, key=len):
        value = sums.pop(kept)
        larger = [other for other in sums if kept < other]
        if larger:
            into = _smallest(larger, sums)
            sums[into] = sums[into] + _spread(value, kept, into)
        else:
            left.append(_spread(value, kept, whole))
    return left


def _smallest(names: Sequence[frozenset[int]], sums: dict[frozenset[int], Tensor]
              ) -> frozenset[int]:
    """The first name of the smallest sum (a loop: the compiler does not know ``min`` by a key)."""
    found = names[0]
    for name in names:
        if sums[name].numel() < sums[found].numel():
            found = name
    return found


def _spread(value: Tensor, kept: frozenset[int], into: frozenset[int]) -> Tensor:
    for place, name in enumerate(sorted(into)):
        if name not in kept:
            value = value.unsqueeze(1 + place)
    return value


def expand(parts: dict[Pattern, list[tuple[frozenset[int], Tensor]]]) -> Tensor:
    """The block ``[N, *slots, c]`` that is the sum of parts of several patterns.

    The discrete pattern must be among them, with a part that keeps every class and, if there are
    other patterns, another one (so that the sum is fresh); those are added to its diagonals.
    """
    whole = next(pattern for pattern in parts if pattern.discrete)
    (total,) = combine(parts[whole], len(whole.classes))
    for pattern, terms in parts.items():
        for value in combine(terms, len(pattern.classes)) if pattern is not whole else ():
            diagonal(total, pattern).add_(value)
    return total
