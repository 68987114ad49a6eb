"""Canonical form where neurons carry positive scales: balance the scales, then sort.

The scales are chosen to make the sum of squares of all weights least (Stock et al., "Equi-
normalization of neural networks", ICLR 2019, for any tensors and exponents): the problem is convex
in the logarithms, and its solution does not depend on the order of the neurons. Rescaled weights
are equal only to rounding, so neurons are told apart by one real feature each, and only where the
gaps between the features are far above rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from metanet.symmetry.action import spread
from metanet.symmetry.colours import mix, salt
from metanet.symmetry.element import GroupElement, table_shape
from metanet.symmetry.group import Group
from metanet.symmetry.layout import Block
from metanet.symmetry.space import WeightSpace

_SWEEPS = 2000
_SETTLED = 1e-11
_Real = Float64[np.ndarray, "*over n"]


@dataclass(frozen=True)
class _Place:
    """A digit of one group in one block."""

    block: Block
    position: int
    exponent: int

    @property
    def axes(self) -> tuple[int, ...]:
        return (*self.block.digits[self.position].bases, self.position)

    def reduce(self, view: Tensor) -> _Real:
        """Sum of a view over all other axes, as ``[*over, n]``."""
        others = [p for p in range(view.ndim) if p not in self.axes]
        kept = view.sum(others) if others else view
        order = tuple(int(i) for i in np.argsort(np.argsort(self.axes)))
        return np.asarray(kept.permute(order).numpy(), dtype=np.float64)


def balance(
    space: WeightSpace, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], GroupElement, bool]:
    """Rescaled tensors in float64, the element that rescales, and whether the scales settled."""
    squares = {name: tensors[name].detach().cpu().double().abs() ** 2 for name in space.tensors}
    logs = {g.label: np.zeros(table_shape(space, g)) for g in space.groups if g.kind == "positive"}
    step = 0.0
    for _ in range(_SWEEPS):
        step = 0.0
        for label in logs:
            places = [p for p in _places(space, label) if p.exponent]
            change = _least(space.group(label), places, squares) / max(_repeats(places), 1)
            logs[label] += change
            step = max(step, float(np.abs(change).max(initial=0.0)))
            for place in places:
                factor = torch.from_numpy(np.exp(2 * place.exponent * change))
                view = place.block.view(squares[place.block.tensor])
                view *= spread(factor, place.axes, view)
        if step < _SETTLED:
            break
    element = GroupElement(space, values={label: np.exp(u) for label, u in logs.items()})
    wide = {name: tensors[name].detach().cpu().double() for name in space.tensors}
    scaled = element.apply(wide)
    return scaled, element, step < _SETTLED


def _places(space: WeightSpace, label: str) -> list[_Place]:
    return [
        _Place(block, position, digit.exponent)
        for name in space.group(label).tensors for block in space.blocks(name)
        for position, digit in enumerate(block.digits) if digit.label == label
    ]


def _repeats(places: list[_Place]) -> int:
    """How often the group stands in one block: a full step for each at once would overshoot."""
    names = [place.block.name for place in places]
    return max((names.count(name) for name in names), default=0)


def _least(group: Group, places: list[_Place], squares: Mapping[str, Tensor]) -> _Real:
    """Change of the log scales that makes the sum of squares least, others held."""
    weight: dict[int, _Real] = {}
    for place in places:
        found = place.reduce(place.block.view(squares[place.block.tensor]))
        weight[place.exponent] = weight.get(place.exponent, 0.0) + found
    change = np.zeros(next(iter(weight.values())).shape if weight else group.size)
    for _ in range(60):  # Newton's method; one step where all exponents have one size
        grown = {e: w * np.exp(2 * e * change) for e, w in weight.items()}
        rise, up = _side(grown, 1, change)
        fall, down = _side(grown, -1, change)
        slope = 2 * (up + down)
        step = np.divide(np.log(fall / rise), slope, out=np.zeros_like(change), where=slope > 0)
        change = change + step
        if float(np.abs(step).max(initial=0.0)) < 1e-14:
            break
    return change


def _side(grown: Mapping[int, _Real], sign: int, like: _Real) -> tuple[_Real, _Real]:
    """Sum of the squares on one side, times their exponents, and their mean exponent.

    A neuron that has one side only has no least point; its other side is taken to be 1.
    """
    total = sum((abs(e) * w for e, w in grown.items() if e * sign > 0), np.zeros_like(like))
    moment = sum((e * e * w for e, w in grown.items() if e * sign > 0), np.zeros_like(like))
    some = total > 0
    return np.where(some, total, 1.0), np.divide(moment, total, out=np.zeros_like(like), where=some)


def sort_scaled(
    space: WeightSpace, tensors: Mapping[str, Tensor], tolerance: float
) -> tuple[GroupElement, bool]:
    """The element that sorts balanced tensors by real features, and whether the gaps are safe."""
    sure = True
    tables: dict[str, np.ndarray] = {}
    for group in sorted(space.groups, key=lambda g: len(g.over)):
        rows = GroupElement(space, tables).base_rows(group).reshape(-1)
        feature = _feature(space, group.label, tensors).reshape(-1, group.size)[rows]
        table = np.argsort(feature, axis=-1, kind="stable")
        gaps = np.diff(np.take_along_axis(feature, table, axis=-1), axis=-1)
        sure &= bool((gaps > tolerance * np.abs(feature).max(initial=1e-300)).all())
        tables[group.label] = table.reshape(table_shape(space, group))
    element = GroupElement(space, tables)
    signs, certain = _signs(space, element.apply(tensors), tolerance)
    return signs @ element, sure and certain


def _feature(space: WeightSpace, label: str, tensors: Mapping[str, Tensor]) -> _Real:
    """Sums of absolute values, weighted by the index where an axis is fixed."""
    found = np.zeros(table_shape(space, space.group(label)))
    for number, place in enumerate(_places(space, label)):
        view = place.block.view(tensors[place.block.tensor]).abs()
        found = found + place.reduce(_weighted(space, place.block, view, number, fixed=True))
    return found


def _weighted(
    space: WeightSpace, block: Block, view: Tensor, number: int, *, fixed: bool
) -> Tensor:
    """Entries times pseudo-random weights in [1/2, 3/2) of their (fixed or all) indices."""
    moving = {group.label for group in space.groups}
    for position, digit in enumerate(block.digits):
        if fixed and digit.label in moving:
            continue
        bits = mix(np.arange(digit.size, dtype=np.uint64) + salt(number, position, 13))
        weights = torch.from_numpy(0.5 + bits / 2.0**64)
        view = view * spread(weights, [position], view)
    return view * float(0.5 + salt(number, 17)[0] / 2.0**64)


def _signs(
    space: WeightSpace, tensors: Mapping[str, Tensor], tolerance: float
) -> tuple[GroupElement, bool]:
    """Signs that make an odd feature positive, over entries with one signed digit only."""
    sure, values = True, {}
    for group in space.groups:
        if group.kind != "signed":
            continue
        total, size = np.zeros(table_shape(space, group)), np.zeros(table_shape(space, group))
        for number, place in enumerate(_odd_places(space, group.label)):
            view = place.block.view(tensors[place.block.tensor])
            total = total + place.reduce(_weighted(space, place.block, view, number, fixed=False))
            size = size + place.reduce(view.abs())
        sure &= bool((np.abs(total) > tolerance * size).all())
        values[group.label] = np.where(total < 0, -1.0, 1.0)
    return GroupElement(space, values=values), sure


def _odd_places(space: WeightSpace, label: str) -> Iterator[_Place]:
    for place in _places(space, label):
        odd = [d for d in place.block.digits
               if d.label and space.group(d.label).kind == "signed" and d.exponent % 2]
        if len(odd) == 1 and place.exponent % 2:
            yield place
