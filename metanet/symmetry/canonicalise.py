"""The canonical member of an orbit: colour refinement, then bounded individualisation.

Refinement (``metanet.symmetry.colours``) tells neurons apart by what does not depend on their
order. Where it leaves ties, the search of McKay and Piperno (Practical graph isomorphism II, 2014)
singles out each tied neuron in turn and keeps the smallest result. Ties of neurons that are exact
copies of each other are broken without branching, and a branch is cut when its first result was
already seen, since an automorphism then maps it to an explored one. The search visits at most
``budget`` nodes; beyond that, the ties are broken arbitrarily and ``unique`` is False.

Negative zeros are written as zeros and every NaN as one NaN, so that weights which compare equal
have bit-equal forms; otherwise ``canonical(...).state_dict`` is ``element.apply(state_dict)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metanet.errors import SymmetryError
from metanet.symmetry.action import act, check
from metanet.symmetry.colours import Colours, Refiner, plain
from metanet.symmetry.element import GroupElement
from metanet.symmetry.inputs import Weights, tensors_of
from metanet.symmetry.kinds import PERMUTING
from metanet.symmetry.scales import balance, sort_scaled
from metanet.symmetry.space import WeightSpace
from metanet.symmetry.ties import (
    by_index,
    element_of,
    first_tie,
    generators,
    single_out,
    spread_cell,
    tied_cells,
)


@dataclass(frozen=True, eq=False)
class Canonical:
    """The canonical form of a checkpoint.

    ``element.apply`` takes the checkpoint to ``state_dict`` (up to the sign of zeros).
    ``unique`` says that every member of the orbit has this form; where it is False, ties could
    not be broken, and another member may get another form.
    """

    state_dict: dict[str, Tensor]
    element: GroupElement
    unique: bool


def canonical(space: WeightSpace, state_dict: Weights, *, budget: int = 256) -> Canonical:
    """The member of the orbit of ``state_dict`` that stands for all of them.

    Bit-equal over an orbit for groups of kinds S and signed. With groups of kind positive the
    scales are balanced first and the forms agree to rounding.

    Args:
        space: its groups are of kinds S, signed, positive and fixed.
        state_dict: tensors or a checkpoint that fits the space.
        budget: number of refinements that the search for ties may spend.

    Raises:
        SymmetryError: for groups of other kinds.
        SpaceMismatch: if the tensors do not fit the space.
    """
    tensors = tensors_of(state_dict)
    other = [str(g) for g in space.groups if g.kind not in PERMUTING]
    if other:
        raise SymmetryError(f"no canonical form for group {other[0]}: only the kinds S, signed "
                            f"and positive have one; compare with metanet.symmetry.distance")
    check(space, tensors)
    if any(g.kind == "positive" for g in space.groups):
        element, unique = _scaled(space, tensors)
        return Canonical(_normal(space, element.apply(tensors)), element, unique)
    owned = {name: plain(tensors[name]) for name in space.tensors}
    search = _Search(space, owned, budget)
    search.run(search.root())
    return Canonical(_normal(space, search.element.apply(tensors)), search.element, search.exact)


def _scaled(space: WeightSpace, tensors: Mapping[str, Tensor]) -> tuple[GroupElement, bool]:
    """Element and uniqueness where some groups carry positive scales."""
    eps = [torch.finfo(tensors[n].dtype).eps for n in space.tensors
           if tensors[n].is_floating_point()]
    balanced, scales, settled = balance(space, tensors)
    element, unique = sort_scaled(space, balanced, max([32 * e for e in eps] + [1e-9]))
    return element @ scales, unique and settled


def _normal(space: WeightSpace, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One spelling of zero and NaN in the tensors of the space; aliases stay tied."""
    done = {name: plain(tensors[name]).to(tensors[name].device) for name in space.tensors}
    known = done.keys() | space.aliases.keys()
    return {name: done[space.owner(name)] if name in known else tensor
            for name, tensor in tensors.items()}


class _Search:
    """Smallest discrete colouring of one checkpoint, by the digest of the form it gives."""

    def __init__(self, space: WeightSpace, tensors: dict[str, Tensor], budget: int) -> None:
        self.space, self.tensors, self.left = space, tensors, budget
        self.refiner = Refiner(space, tensors)
        self.exact = True
        self.element = GroupElement(space)
        self.digest: bytes | None = None

    def root(self) -> Colours:
        """Colours before anything is singled out."""
        return self.refiner.refine(self.refiner.start())[0]

    def run(self, colours: Colours) -> set[bytes]:
        """Explore all that lies below a node; the digests of the forms found."""
        colours, children = self._children(colours)
        if not children:
            return {self._leaf(colours)}
        seen: set[bytes] = set()
        for child in children:
            if seen and (not self.exact or self._first(child) in seen):
                continue
            seen |= self.run(child)
        return seen

    def _first(self, colours: Colours) -> bytes:
        """The form at the end of the first branch below a node."""
        while True:
            colours, children = self._children(colours)
            if not children:
                return self._leaf(colours)
            colours = children[0]

    def _children(self, colours: Colours) -> tuple[Colours, list[Colours]]:
        """A node's colours without trivial ties, and its children of least trace."""
        colours = self._without_copies(colours)
        tie = first_tie(self.space, colours)
        if tie is None:
            return colours, []
        label, cell = tie
        if len(cell) > self.left:
            self.exact, self.left = False, 0
            return by_index(colours), []
        self.left -= len(cell)
        found = [self.refiner.refine(single_out(colours, label, int(v))) for v in cell]
        least = min(trace for _, trace in found)
        return colours, [child for child, trace in found if trace == least]

    def _leaf(self, colours: Colours) -> bytes:
        element = element_of(self.space, colours)
        hashed = hashlib.sha256()
        for name, tensor in self.tensors.items():
            moved = plain(act(element, name, tensor)).contiguous()
            hashed.update(moved.reshape(-1).view(torch.uint8).numpy().tobytes())
        digest = hashed.digest()
        if self.digest is None or digest < self.digest:
            self.digest, self.element = digest, element
        return digest

    def _without_copies(self, colours: Colours) -> Colours:
        """Break the ties of neurons that every permutation among them leaves in place."""
        while True:
            split = colours
            for group in self.space.groups:
                # Later cells of the group keep their vertices while earlier ones are spread.
                for cell in tied_cells(colours[group.label]):
                    if self._are_copies(group.label, cell):
                        split = spread_cell(split, group.label, cell)
            if split is colours:
                return colours
            colours = self.refiner.refine(split)[0]

    def _are_copies(self, label: str, cell: np.ndarray) -> bool:
        """Whether all permutations (and signs) within a cell leave the checkpoint as it is."""
        names = self.space.group(label).tensors
        moves = list(generators(self.space, label, cell))
        return bool(moves) and all(
            torch.equal(act(move, name, self.tensors[name]), self.tensors[name])
            for move in moves for name in names
        )
