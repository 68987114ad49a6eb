"""``assert_equivariant``: does a layer commute with its space's group, and need the coupling?"""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from metanet.graph import WeightBatch
from metanet.symmetry import GroupElement, WeightSpace
from metanet.symmetry.kinds import PERMUTING

Output: TypeAlias = WeightBatch | Tensor


def assert_equivariant(layer: nn.Module, seed: int = 0, n: int = 2, atol: float = 1e-10,
                       coupled: bool | None = None) -> float:
    """Assert that a layer commutes with the permutations of its space.

    A float64 copy of the layer with random parameters gets a random batch: ``layer(g·x)`` must be
    ``g·layer(x)`` (for pools and networks: ``layer(x)``), and so must the gradients with respect
    to the input and to the parameters. As a negative control, moving a group in one of its places
    only must change what the layer gives.

    Args:
        layer: has ``space`` and ``c_in``; takes a WeightBatch, gives one (of any space with the
            same group labels) or a tensor.
        n: members of the batch.
        atol: bound on the error, relative to the largest value where that exceeds 1.
        coupled: whether the control is wanted; by default ``layer.coupled``, which is False for
            pointwise layers: they commute with uncoupled permutations too.

    Returns:
        The largest error.

    Raises:
        AssertionError: with the error, or the place that can be moved alone.
    """
    space: WeightSpace = layer.space  # type: ignore[assignment]
    layer = randomised(layer, seed)
    batch = random_batch(space, int(layer.c_in), seed, n)  # type: ignore[arg-type]
    element = random_permutations(space, seed)
    plain, moved = batch, batch.apply(element)
    errors = _errors(layer, plain, moved, element, seed)
    for what, error in errors.items():
        if not error <= atol:
            raise AssertionError(f"{type(layer).__name__}: {what} differ by {error:.3e} > {atol} "
                                 f"under {element!r}")
    if getattr(layer, "coupled", True) if coupled is None else coupled:
        with torch.no_grad():
            still = layer(batch)
        for place in _uncoupled_places(space):
            if not _sensitive(layer, batch, still, place, atol):
                raise AssertionError(f"{type(layer).__name__}: group {place[0]!r} can be moved in "
                                     f"{place[1]!r} (digit {place[2]}) alone")
    return max(errors.values())


def random_batch(space: WeightSpace, channels: int, seed: int = 0, n: int = 2) -> WeightBatch:
    """Normal values in float64."""
    generator = torch.Generator().manual_seed(seed)
    return WeightBatch(space, {
        block.name: torch.randn(n, *block.shape, channels, generator=generator,
                                dtype=torch.float64)
        for name in space.tensors for block in space.blocks(name)})


def random_permutations(space: WeightSpace, seed: int = 0) -> GroupElement:
    """A random element without signs and scales; no table is the identity if it can be avoided."""
    rng = np.random.default_rng(seed)
    tables = {}
    for group in space.groups:
        if group.kind in PERMUTING:
            shape = (*(space.group(base).size for base in group.over), group.size)
            table = rng.permuted(np.broadcast_to(np.arange(group.size), shape), axis=-1)
            while group.size > 1 and (table == np.arange(group.size)).all():
                table = rng.permuted(table, axis=-1)
            tables[group.label] = table
    return GroupElement(space, tables)


@torch.no_grad()
def randomised(layer: nn.Module, seed: int = 0) -> Any:
    """A float64 copy in eval mode whose parameters are random: zero-init branches count too."""
    layer = copy.deepcopy(layer).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        fan = parameter.shape[0] if parameter.ndim > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_((noise / fan ** 0.5).to(parameter.device))
    return layer


def _carry(element: GroupElement, output: Output) -> Output:
    """The element acting on an output: on a batch of any space with these labels, by label."""
    if not isinstance(output, WeightBatch):
        return output
    if output.space is element.space:
        return output.apply(element)
    known = {group.label for group in output.space.groups}
    tables = {label: table for label, table in element.tables.items() if label in known}
    return output.apply(GroupElement(output.space, tables))


def _run(layer: nn.Module, batch: WeightBatch) -> tuple[Output, WeightBatch]:
    leaf = batch.map(lambda block: block.detach().clone().requires_grad_())
    return layer(leaf), leaf


def _values(output: Output) -> list[Tensor]:
    return list(output.blocks.values()) if isinstance(output, WeightBatch) else [output]


def _errors(layer: nn.Module, plain: WeightBatch, moved: WeightBatch, element: GroupElement,
            seed: int) -> dict[str, float]:
    a, a_leaf = _run(layer, plain)
    b, b_leaf = _run(layer, moved)
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=torch.float64)

    weights = a.map(draw) if isinstance(a, WeightBatch) else draw(a)
    a_grad, a_parameters = _gradients(layer, a, weights, a_leaf)
    b_grad, b_parameters = _gradients(layer, b, _carry(element, weights), b_leaf)
    return {
        "outputs": _distance(_values(_carry(element, a)), _values(b)),
        "gradients of the input": _distance(_values(a_grad.apply(element)), _values(b_grad)),
        "gradients of the parameters": _distance(a_parameters, b_parameters),
    }


def _gradients(layer: nn.Module, output: Output, weights: Output, leaf: WeightBatch
               ) -> tuple[WeightBatch, list[Tensor]]:
    pairs = zip(_values(output), _values(weights), strict=True)
    total = torch.stack([(value * weight).sum() for value, weight in pairs]).sum()
    inputs, parameters = list(leaf.blocks.values()), list(layer.parameters())
    found = torch.autograd.grad(total, [*inputs, *parameters], allow_unused=True,
                                materialize_grads=True)
    blocks = dict(zip(leaf.blocks, found, strict=False))
    return leaf.with_blocks(blocks), list(found[len(inputs):])


def _distance(want: list[Tensor], got: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(want, got, strict=True):
        if a.numel():
            scale = max(1.0, float(a.detach().abs().max()))
            worst = max(worst, float((a - b).detach().abs().max()) / scale)
    return worst


def _uncoupled_places(space: WeightSpace) -> list[tuple[str, str, int]]:
    """The first place of every group that stands in several: label, block, digit."""
    places: dict[str, list[tuple[str, str, int]]] = {}
    for name in space.tensors:
        for block in space.blocks(name):
            for position, label in enumerate(block.labels):
                if label is not None and space.group(label).kind in PERMUTING:
                    places.setdefault(label, []).append((label, block.name, position))
    return [found[0] for found in places.values() if len(found) > 1]


@torch.no_grad()
def _sensitive(layer: nn.Module, batch: WeightBatch, still: Output, place: tuple[str, str, int],
               atol: float) -> bool:
    """Whether moving one digit of one block alone is seen by the layer; ``still`` is its output."""
    label, block, position = place
    index = torch.arange(batch.space.group(label).size).roll(1)

    def move(output: WeightBatch) -> WeightBatch:
        value = output.blocks[block].index_select(1 + position, index)
        return output.with_blocks({**output.blocks, block: value})

    got = layer(move(batch))
    same = isinstance(still, WeightBatch) and still.space == batch.space
    want = move(still) if same and isinstance(still, WeightBatch) else still
    return _distance(_values(want), _values(got)) > 100 * atol
