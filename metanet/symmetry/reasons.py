"""Why a factor is fixed: the cause, and the operations through which it got there."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from metanet.symmetry.factor import Expr, Factor, all_fixed, atoms, find, is_fixed, length
from metanet.symmetry.meta import Frozen
from metanet.symmetry.solve import Solver

_SHOWN = 4


class Reasons:
    """Shortest ways from every factor to what froze it."""

    def __init__(self, solver: Solver) -> None:
        near: dict[Factor, list[tuple[Factor, str]]] = {}
        for link in solver.links:
            near.setdefault(link.a, []).append((link.b, link.via))
            near.setdefault(link.b, []).append((link.a, link.via))
        self.origins = solver.origins
        self.next: dict[Factor, tuple[Factor, str] | None] = dict.fromkeys(solver.origins)
        queue = deque(solver.origins)
        while queue:
            factor = queue.popleft()
            for other, via in near.get(factor, ()):
                if other not in self.next:
                    self.next[other] = (factor, via)
                    queue.append(other)

    def why(self, factor: Factor) -> str:
        """Cause of one factor, and the way to it."""
        if factor not in self.next:
            return find(factor).cause or "fixed"
        steps = []
        while (step := self.next[factor]) is not None:
            factor, via = step
            steps.append(via)
        path = [a for a, b in pairwise([*steps, ""]) if a != b]
        if not path:
            return self.origins[factor]
        shown = path if len(path) <= _SHOWN else [*path[: _SHOWN - 1], "…", path[-1]]
        return f"{self.origins[factor]}; reached through {' → '.join(shown)}"

    def parts(self, axis: Expr) -> tuple[Frozen, ...]:
        """The fixed parts of an axis, in order."""
        if length(axis) == 1:
            return ()
        found = [part for factor in axis for part in self._walk(factor)]
        return tuple(_joined(found))

    def _walk(self, factor: Factor) -> list[Frozen]:
        root = find(factor)
        if root.split is None and root.blocks is None and root.cases is None:
            return [Frozen(root.size, self.why(factor))] if root.cause is not None else []
        if root.split is not None:
            whole = all_fixed((root,)) and factor in self.next
            if whole:
                return [Frozen(root.size, self.why(factor))]
            return [part for inner in root.split for part in self._walk(inner)]
        if is_fixed(root) and root.broken is None and factor in self.next:
            return [Frozen(root.size, self.why(factor))]
        found = []
        for part in root.blocks or (root.cases.values if root.cases else ()):
            if not atoms(part):
                found.append(Frozen(1, f"told apart at {root.broken or 'a sum'}"))
            found += [frozen for inner in part for frozen in self._walk(inner)]
        return found


def _joined(parts: list[Frozen]) -> list[Frozen]:
    """Runs of ones with one reason as one part."""
    out: list[Frozen] = []
    for part in parts:
        if out and out[-1].reason == part.reason and part.size == 1:
            out[-1] = Frozen(out[-1].size + 1, part.reason)
        else:
            out.append(part)
    return out
