"""UNFLinear: the complete linear equivariant layer of any space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.basis import Basis, Bucket, Pattern, Piece, basis
from metanet.nn.engine import Stage, Weight, mix, plan
from metanet.nn.grid import is_complete, positions
from metanet.nn.roles import Shared, Sharing, share
from metanet.symmetry import WeightSpace

MIXING = ("exact", "lowrank", "role")
REDUCTIONS = ("mean", "max")
_PE = 8


@dataclass(frozen=True)
class Term:
    """A basis term: slots of the output and of the input block in one class are equal.

    The output sums ``weight`` times the mean of the input over the classes that only it has.
    """

    out: str
    inp: str
    out_classes: tuple[int, ...]
    in_classes: tuple[int, ...]
    weight: Float[Tensor, "wc_in wc_out"]


class UNFLinear(nn.Module):
    """Complete linear basis at any rank, fibred groups included (after arXiv 2402.05232).

    Blocks ``[N, *factors, c_in]`` → ``[N, *factors, c_out]``. Every output block gets, from every
    input block, each way of taking diagonals and means of it and broadcasting the rest.

    Args:
        space: input and output are batches of this space.
        c_in: channels in.
        c_out: channels out.
        mixing: ``exact``: one weight per basis term, pair of channels and pair of folded fixed
            indices. ``lowrank``: where blocks are reduced before they are mixed, the matrix of
            their signature is a product of two of rank ``rank``, so that its size is linear and
            not quadratic in the number of blocks: for deep nets. ``role``: blocks that stand in
            one structural position share weights (``metanet.nn.roles``), so that their number
            does not grow with the number of repeated blocks.
        rank: of ``lowrank``; by default ``2·c_out``. Matrices that this would not shrink stay.
        frozen: see ``metanet.nn.grid``.
        bias: one vector per output pattern, and a positional bias along large fixed axes.
        reduce: ``mean``, or ``max`` over the classes that a term drops; the layer is then no
            longer linear.

    Attributes:
        complete: whether the layer can be every linear map that commutes with the space's
            permutations; only so with ``mixing="exact"``.
        n_terms: terms, per pair of folded fixed indices.

    Raises:
        SymmetryError: for an unknown ``mixing`` or ``frozen``, or a block of more than six slots.
    """

    coupled = True

    def __init__(self, space: WeightSpace, c_in: int, c_out: int, mixing: str = "exact",
                 frozen: str = "auto", bias: bool = True, reduce: str = "mean",
                 rank: int | None = None) -> None:
        super().__init__()
        if reduce not in REDUCTIONS:
            raise SymmetryError(f"reduce={reduce!r} is not known; known are "
                                f"{', '.join(REDUCTIONS)}")
        if mixing not in MIXING:
            raise SymmetryError(f"mixing={mixing!r} is not known; known are {', '.join(MIXING)}")
        self.space, self.c_in, self.c_out, self.reduce = space, c_in, c_out, reduce
        self.basis: Basis = basis(space, frozen)
        self.complete = is_complete(space, frozen) and mixing == "exact"
        self.n_terms = self.basis.n_terms
        self.plan = plan(self.basis, c_in, c_out)
        self.mixing, self.rank = mixing, rank or 2 * c_out
        # Of a factored matrix, ``weights`` holds the second factor and ``first`` the other one.
        # Of roles, ``weights`` holds the matrices within an instance and ``first`` those of means.
        self.weights, self.first = nn.ParameterList(), nn.ParameterDict()
        self.sharing: Sharing | None = None
        if mixing == "role":
            self.sharing = self._share()
        else:
            self._allot()
        # The terms without survivors come first: one constant per output block and pattern.
        self.bias = nn.Parameter(torch.empty(self.plan.stages[0].columns.width)) if bias else None
        self.positional = nn.ParameterDict()
        for key, (block, _, _) in enumerate(self.plan.places if bias else ()):
            width = self.plan.widths_out[block]
            self.positional[str(key)] = nn.Parameter(torch.empty(_PE, width))
        self.reset_parameters()

    def _allot(self) -> None:
        """One matrix, or two factors, per signature."""
        for number, stage in enumerate(self.plan.stages):
            rows, columns = stage.rows.width, stage.columns.width
            if self._factored(stage):
                self.first[str(number)] = nn.Parameter(torch.empty(rows, self.rank))
                rows = self.rank
            self.weights.append(nn.Parameter(torch.empty(rows, columns)))

    def _share(self) -> Sharing:
        """One matrix per role of a signature, or two where it joins several instances."""
        sharing = share(self.basis, self.c_in, self.c_out)
        for key, (rows, columns) in enumerate(sharing.sizes):
            self.weights.append(nn.Parameter(torch.empty(rows, columns)))
            if sharing.crossing[key]:
                self.first[str(key)] = nn.Parameter(torch.empty(rows, columns))
        return sharing

    def _factored(self, stage: Stage) -> bool:
        rows, columns = stage.rows.width, stage.columns.width
        return (self.mixing == "lowrank" and not stage.whole
                and self.rank * (rows + columns) < rows * columns)

    def _matrices(self) -> list[Weight]:
        """The matrix of every stage, its factors, or the matrices of its roles."""
        if self.sharing is not None:
            first = dict(self.first.items())
            return [Shared(layout, self.weights[layout.key], first.get(str(layout.key)))
                    for layout in self.sharing.layouts]
        return [(self.first[str(i)], weight) if str(i) in self.first else weight
                for i, weight in enumerate(self.weights)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Variance-preserving: each way into an output pattern gets an equal share of one.

        Reduced features count as having unit variance, as they have once numbers correlate.
        """
        shares: dict[str, int] = {}
        for bucket in self.basis.buckets:
            for piece in bucket.terms:
                shares[piece.block] = shares.get(piece.block, 0) + 1
        if self.sharing is not None:
            self._reset_roles(self.sharing, shares)
        else:
            for bucket, weight in zip(self.basis.buckets, self.weights, strict=True):
                for piece, (start, width) in self._columns(bucket):
                    scale = 1 / sqrt(shares[piece.block] * weight.shape[0])
                    weight[:, start:start + width].normal_(0, scale)
            for first in self.first.values():
                first.normal_(0, 1 / sqrt(len(first)))
        for extra in (self.bias, *self.positional.values()):
            if extra is not None:
                extra.zero_()

    def _reset_roles(self, sharing: Sharing, shares: dict[str, int]) -> None:
        """As without roles; the means over instances get half of what comes in."""
        for bucket, layout in zip(self.basis.buckets, sharing.layouts, strict=True):
            both = [self.weights[layout.key]]
            if sharing.crossing[layout.key]:
                both.append(self.first[str(layout.key)])
            for piece, (start, width) in zip(bucket.terms, layout.columns, strict=True):
                for weight in both:
                    scale = 1 / sqrt(shares[piece.block] * len(weight) * len(both))
                    weight[:, start:start + width].normal_(0, scale)

    def _columns(self, bucket: Bucket) -> Iterator[tuple[Piece, tuple[int, int]]]:
        start = 0
        for piece in bucket.terms:
            width = self.basis.grids[piece.block].width * self.c_out
            yield piece, (start, width)
            start += width

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c_in]`` → ``[N, *factors, c_out]`` in every block."""
        check_input(self.space, self.c_in, batch)
        return batch.with_blocks(self._mixed(batch.blocks))

    def _mixed(self, blocks: dict[str, Tensor]) -> dict[str, Tensor]:
        grids = self.basis.grids
        values = [grid.fold(blocks[name]) for name, grid in grids.items()]
        found = mix(self.plan, values, self._matrices(), self.bias, self._positions(),
                    self.reduce)
        return {name: grid.unfold(value) for (name, grid), value in zip(
            grids.items(), found, strict=True)}

    def _positions(self) -> list[Tensor]:
        """What is added along each large fixed axis, ``[n, wc_out]``."""
        sizes = [self.plan.sizes[block][slot] for block, _, slot in self.plan.places]
        return [positions(size, _PE, like=weight) @ weight
                for size, weight in zip(sizes, self.positional.values(), strict=False)]

    def terms(self) -> Iterator[Term]:
        """Every basis term with its weight (a view): the slow, obvious meaning of this layer."""
        for bucket, matrix in zip(self.basis.buckets, self._matrices(), strict=True):
            weight = _dense(matrix)
            row = 0
            for feature in bucket.features:
                height = self.basis.grids[feature.block].width * self.c_in
                for piece, (start, width) in self._columns(bucket):
                    yield _term(feature, piece, weight[row:row + height, start:start + width])
                row += height

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Spaces, channels, terms, and whether they are all."""
        kind = "complete" if self.complete else "not complete"
        return (f"{short(self.space)} -> {short(self.space)}, "
                f"{self.c_in} -> {self.c_out}, {self.n_terms} terms, {kind}")


def _dense(weight: Weight) -> Tensor:
    if isinstance(weight, Shared):
        return weight.dense()
    return weight if isinstance(weight, Tensor) else weight[0] @ weight[1]


def _term(feature: Piece, piece: Piece, weight: Tensor) -> Term:
    matched = dict(zip(feature.order, piece.order, strict=True))
    fresh = len(piece.pattern.classes)
    names = [matched.get(i, fresh + i) for i in range(len(feature.pattern.classes))]
    return Term(piece.block, feature.block, slot_classes(piece.pattern, range(fresh)),
                slot_classes(feature.pattern, names), weight)


def slot_classes(pattern: Pattern, names: range | list[int]) -> tuple[int, ...]:
    """Name of the class of every slot."""
    home = {slot: name for members, name in zip(pattern.classes, names, strict=True)
            for slot in members}
    return tuple(home[slot] for slot in sorted(home))


def short(space: WeightSpace) -> str:
    """A space in a few words, for reprs."""
    return f"[{len(space.tensors)} tensors, {len(space.groups)} groups]"


def check_input(space: WeightSpace, c_in: int, batch: WeightBatch) -> None:
    """Whether a batch is of the space and channels that a layer was built for.

    Raises:
        SpaceMismatch: saying what came and what was expected.
    """
    if batch.space is not space and batch.space != space:
        raise SpaceMismatch(f"the batch is of another space ({batch.space!r}) than the layer "
                            f"({space!r})")
    if batch.channels != c_in:
        raise SpaceMismatch(f"the batch has {batch.channels} channels, the layer takes {c_in}")
