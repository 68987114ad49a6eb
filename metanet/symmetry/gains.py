"""Gains of assigning neurons: Gram matrices of the factored view, in one group at a time.

The objective of matching is the sum over tensors of ``<a, g b>``. With all groups but one held, it
is linear in that group's permutation: row ``i``, column ``j`` of its Gram matrix is what the output
neuron ``i`` gains by reading neuron ``j`` of ``b``. A base group moves whatever is fibred over it,
so the Gram matrices of its *family* (itself and all that is fibred over it) are needed for every
pair of base indices; they are the blocks of one GEMM.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from metanet.symmetry.action import gather, weighed
from metanet.symmetry.group import Group
from metanet.symmetry.layout import Block, Digit
from metanet.symmetry.space import WeightSpace

Gram = Float64[np.ndarray, "*held_then_chain_of_a_then_chain_of_b"]


@dataclass
class Gains:
    """Gram matrices of one group of a family.

    Axes: the bases that are held (outputs of the current element choose their rows), then the
    chain from the family's root down to this group for ``a``, then the same chain for ``b``.
    ``plain`` sums the places where signs do not act, ``odd`` those where they do.
    """

    group: Group
    held: dict[str, int]
    chain: dict[str, int]
    plain: Gram
    odd: Gram
    members: list[Gains] = field(default_factory=list)


def family(space: WeightSpace, root: Group) -> tuple[Group, ...]:
    """A group and all that is fibred over it, bases first."""
    members = [group for group in space.groups if root.label in group.over]
    return (root, *sorted(members, key=lambda g: len(g.over)))


def collect(
    space: WeightSpace,
    root: Group,
    pair: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    tables: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    settled: Collection[str] | None = None,
) -> Gains:
    """Gains of a group, with those of its members below it.

    Args:
        space: the space of both checkpoints.
        root: the group.
        pair: tensors of ``a`` and of ``b`` that count.
        tables: of the current element.
        values: signs and matrices of the current element.
        settled: if given, only blocks whose other groups are all among these labels count.

    Where one group stands several times in a tensor, each place is taken with the others held.
    A block in which two branches of the family meet over one base index says nothing about the
    pairs of base indices, and is left out.
    """
    nodes = tree(space, root)
    groups = {label: node.group for label, node in nodes.items()}
    for label, node in nodes.items():
        for block in (b for n in groups[label].tensors if n in pair[0] for b in space.blocks(n)):
            tensors = pair[0][block.tensor], pair[1][block.tensor]
            for position, digit in enumerate(block.digits):
                own = {p for p in (*digit.bases, position) if block.digits[p].label in groups}
                if digit.label == label and (settled is None or anchored(block, own, settled)):
                    _add(node, block, position, tensors, tables, values)
    return nodes[root.label]


def tree(space: WeightSpace, root: Group) -> dict[str, Gains]:
    """Empty gains of a family, root first, each with its members below it."""
    groups = {group.label: group for group in family(space, root)}
    nodes = {label: _empty(space, group, groups) for label, group in groups.items()}
    for label, node in nodes.items():
        for parent in nodes.values():
            if [*parent.chain, label] == list(node.chain):
                parent.members.append(node)
    return nodes


def anchored(block: Block, own: Collection[int], settled: Collection[str]) -> bool:
    """Whether all digits of a block but ``own`` are fixed or settled."""
    return all(p in own or label is None or label in settled
               for p, label in enumerate(block.labels))


def _empty(space: WeightSpace, group: Group, groups: Mapping[str, Group]) -> Gains:
    held = {base: space.group(base).size for base in group.over if base not in groups}
    chain = {base: groups[base].size for base in group.over if base in groups}
    chain[group.label] = group.size
    zeros = np.zeros((*held.values(), *chain.values(), *chain.values()))
    return Gains(group, held, chain, zeros, zeros.copy())


def _add(
    node: Gains,
    block: Block,
    position: int,
    pair: tuple[Tensor, Tensor],
    tables: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
) -> None:
    """Add what one place of ``node.group`` in one block gains."""
    digits = block.digits
    chain = [p for p in (*digits[position].bases, position) if digits[p].label in node.chain]
    held = [p for p in digits[position].bases if p not in chain]
    if any(set(digit.bases) & set(chain) for p, digit in enumerate(digits) if p not in chain):
        return
    moved = moved_view(block, block.view(pair[1]), tables, values, free=chain)
    order = [*held, *chain, *(p for p in range(len(digits)) if p not in (*held, *chain))]
    lead, size = prod(node.held.values()), prod(node.chain.values())
    left = block.view(pair[0]).permute(order).reshape(lead, size, -1)
    right = moved.permute(order).reshape(lead, size, -1)
    found = (left @ right.transpose(1, 2)).numpy().reshape(node.plain.shape)
    signed = node.group.kind == "signed" and digits[position].exponent % 2
    target = node.odd if signed else node.plain
    target += found


def moved_view(
    block: Block,
    view: Tensor,
    tables: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    free: Sequence[int] = (),
) -> Tensor:
    """A block of ``b``, moved in all digits but the free ones."""
    digits = tuple(
        Digit(digit.size, digit.axis)
        if p in free or (digit.label not in values and _stays(digit, tables)) else digit
        for p, digit in enumerate(block.digits)
    )
    view = gather(view, replace(block, digits=digits), tables)
    here = {d.label for d in digits if d.label is not None} & values.keys()
    return weighed(view, digits, {label: torch.from_numpy(values[label]) for label in here})


def _stays(digit: Digit, tables: Mapping[str, np.ndarray]) -> bool:
    """Whether a digit need not be gathered: its table is the identity."""
    table = tables.get(digit.label) if digit.label is not None else None
    return table is not None and table.ndim == 1 and not digit.bases and bool(
        (table[:-1] < table[1:]).all())
