"""Tools for tests of code that stands on metanet: random spaces, random tensors, assertions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metanet.errors import SymmetryError
from metanet.symmetry.axis import Axis, Fixed, Occ, Prod, Sum, axis_size
from metanet.symmetry.group import Group
from metanet.symmetry.space import TensorSpec, WeightSpace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metanet.symmetry.element import GroupElement

__all__ = [
    "assert_equivariant",
    "assert_function_preserved",
    "random_axis",
    "random_space",
    "random_tensors",
]


def assert_equivariant(layer: nn.Module, **options: Any) -> float:
    """Assert that a layer commutes with its space's group: ``metanet.nn.checks``, same options."""
    return float(importlib.import_module("metanet.nn.checks").assert_equivariant(layer, **options))


def random_space(
    seed: int, *, kinds: Sequence[str] = ("S",), max_tensors: int = 4, max_size: int = 4
) -> WeightSpace:
    """A random small space: shared, fibred (also doubly) and fixed groups, sums and products.

    Args:
        seed: the same seed gives the same space.
        kinds: kinds of the groups that are no bases.
    """
    rng = np.random.default_rng(seed)
    while True:
        groups = _random_groups(rng, kinds, max_size)
        sizes = {group.label: group.size for group in groups}
        tensors = {}
        for index in range(int(rng.integers(1, max_tensors + 1))):
            rank = int(rng.integers(0, 4))
            axes = tuple(random_axis(rng, groups) for _ in range(rank))
            shape = tuple(axis_size(axis, sizes) for axis in axes)
            if np.prod(shape, dtype=float) <= 3000:
                tensors[f"t{index}"] = TensorSpec(shape, axes)
        try:
            if tensors:  # none where all would have been too large
                return WeightSpace(_used(groups, tensors), tensors)
        except SymmetryError:
            continue  # an ambiguous base: draw again


def _random_groups(rng: np.random.Generator, kinds: Sequence[str], max_size: int) -> list[Group]:
    def size(low: int = 1) -> int:
        return int(rng.integers(low, max_size + 1))

    kind = str(rng.choice(list(kinds)))
    return [
        Group("a", size(), kind),
        Group("b", size(2), str(rng.choice(list(kinds)))),
        Group("h", size(), "S" if rng.random() < 0.8 else "fixed"),
        Group("d", size(), kind, over=("h",)),
        Group("k", size(), "S", over=("h",)),
        Group("e", size(), str(rng.choice(list(kinds))), over=("h", "k")),
        Group("f", size(), "fixed", reason="input"),
    ]


def random_axis(rng: np.random.Generator, groups: Sequence[Group], depth: int = 2) -> Axis:
    """A random tree over some groups; bases stand in front of what is fibred over them."""
    roll = rng.random()
    if depth == 0 or roll < 0.45:
        return _random_leaf(rng, groups)
    parts = tuple(random_axis(rng, groups, depth - 1) for _ in range(int(rng.integers(1, 4))))
    return Sum(parts) if roll < 0.75 else Prod(parts)


def _random_leaf(rng: np.random.Generator, groups: Sequence[Group]) -> Axis:
    if rng.random() < 0.25:
        return Fixed(int(rng.integers(1, 4)))
    group = groups[int(rng.integers(len(groups)))]
    table = {g.label: g for g in groups}
    occ = Occ(group.label, group.over)
    if not group.over or rng.random() < 0.1:
        return occ
    return Prod((*(Occ(base, table[base].over) for base in group.over), occ))


def _used(groups: Sequence[Group], tensors: Mapping[str, TensorSpec]) -> list[Group]:
    from metanet.symmetry.axis import occurrences

    used = {o.label for t in tensors.values() for axis in t.axes for o in occurrences(axis)}
    used |= {base for g in groups if g.label in used for base in g.over}
    return [group for group in groups if group.label in used]


def random_tensors(space: WeightSpace, seed: int = 0, dtype: Any = None) -> dict[str, Tensor]:
    """Normal values for every tensor of a space; aliases share their owner's tensor."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(spec.shape, generator=generator, dtype=torch.float64).to(
            dtype or torch.float64
        )
        for name, spec in space.tensors.items()
    }
    return tensors | {alias: tensors[owner] for alias, owner in space.aliases.items()}


def assert_function_preserved(
    module: nn.Module,
    element: GroupElement,
    inputs: Sequence[Any],
    *,
    atol: float = 1e-10,
    call: Callable[..., Any] | None = None,
) -> float:
    """Assert that an element leaves a module's outputs unchanged, in float64.

    Args:
        call: ``call(module, tensors, inputs)``; by default ``torch.func.functional_call``.

    Returns:
        The largest difference relative to the largest output.

    Raises:
        AssertionError: if the difference exceeds ``atol``.
    """
    import torch
    from torch.utils import _pytree as pytree

    def double(value: Any) -> Any:
        return value.double() if torch.is_tensor(value) and value.is_floating_point() else value

    run = call or (lambda m, t, x: torch.func.functional_call(m, t, x))
    state = {name: double(value) for name, value in module.state_dict().items()}
    args = tuple(double(value) for value in inputs)
    with torch.no_grad():
        before = pytree.tree_leaves(run(module, state, args))
        after = pytree.tree_leaves(run(module, element.apply(state), args))
    error = 0.0
    for one, other in zip(before, after, strict=True):
        scale = float(one.abs().max()) or 1.0
        error = max(error, float((one - other).abs().max()) / scale)
    if not error <= atol:
        raise AssertionError(f"the element changes the function: relative error {error:.3g}")
    return error
