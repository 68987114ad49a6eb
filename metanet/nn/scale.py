"""ScaleGMNLayer: messages that commute with signs and positive scales of neurons too.

After ScaleGMN (arXiv 2406.10685). A number of a block is multiplied, under an element of the
group, by a product of powers of its neurons' signs or scales: its *character*. The layer uses

- invariants of a number: ``f(x/‖x‖)``, plus ``f(−x/‖x‖)`` where signs occur; they pass both ways;
- products ``e ⊙ Π h_k`` whose character is that of the neuron they go to (along a weight, from its
  input to its output, that is ``w_ij·h_j``); no number is ever divided by a weight, so nothing can
  overflow (the published bidirectional layer sends 1/w backwards).

What has a character is only ever multiplied by invariants, and gets no bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.basis import node_basis
from metanet.nn.gmn import matrix, states_held
from metanet.nn.mixed import spread
from metanet.nn.unf import check_input, short
from metanet.symmetry import Block, WeightSpace
from metanet.symmetry.kinds import SCALING


@dataclass(frozen=True)
class End:
    """A digit of a block: its node set, its digits (bases first), how it moves under scales."""

    label: str
    digits: tuple[int, ...]
    kind: str
    exponent: int

    @property
    def moves(self) -> bool:
        """Whether a sign or scale of this neuron changes the numbers of the block."""
        return self.kind in SCALING and bool(self.exponent)


class ScaleGMNLayer(nn.Module):
    """Messages on a latent space, equivariant to permutations, signs and positive scales.

    Args:
        space: input and output are batches of this space, which holds node and global states
            (``nn.latent``). States move as a bias of their neurons does.
        c: channels in and out; embed without a bias, or signs are lost before they come here.
        hidden: width of the invariants; by default ``c``.

    At initialisation the layer is the identity (zero-init residual).

    Raises:
        SymmetryError: if the space lacks states.
    """

    coupled = True

    def __init__(self, space: WeightSpace, c: int, hidden: int | None = None) -> None:
        super().__init__()
        h = hidden or c
        self.space, self.c_in, self.c_out, self.hidden = space, c, c, h
        self.states = states_held(space, node_basis(space, "batch"))
        for label in ("", *(group.label for group in space.normal_groups)):
            if label not in self.states:
                raise SymmetryError(f"the space holds no states of {label or 'the whole'!r}; "
                                    f"work on nn.latent(space)")
        held = set(self.states.values())
        self.blocks = tuple(block for name in space.tensors for block in space.blocks(name)
                            if block.name not in held)
        self.ends = {block.name: _ends(space, block) for block in self.blocks}
        self.kinds = {group.label: group.kind for group in space.normal_groups}
        self.weights = nn.ModuleList(nn.ParameterDict({
            "see": matrix(c, h), "bias": nn.Parameter(torch.zeros(h)), "root": matrix(c, h),
            "scale": matrix(h, c, zero=True), "add": matrix(h, c, zero=True),
            "collect": matrix(h, h),
            **{f"give{i}": matrix(h, h) for i, _ in enumerate(self.ends[block.name])},
            **{f"take{i}": matrix(h, h) for i, _ in enumerate(self.ends[block.name])},
            **{f"factor{i}": matrix(c, c) for i, _ in enumerate(self.ends[block.name])},
            **{f"send{i}": matrix(c, c, zero=True)
               for i, _ in enumerate(self.ends[block.name])},
        }) for block in self.blocks)
        self.nodes = nn.ModuleDict({name: nn.ParameterDict({
            "see": matrix(c, h), "bias": nn.Parameter(torch.zeros(h)), "own": matrix(h, h),
            "root": matrix(c, h), "scale": matrix(h, c, zero=True),
            "gate": matrix(h, c), "add": matrix(h, c, zero=True),
        }) for name in self.kinds})
        self.own, self.update = matrix(c, h), matrix(h, c, zero=True)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *slots, c]`` → ``[N, *slots, c]``."""
        check_input(self.space, self.c_in, batch)
        blocks = dict(batch.blocks)
        root = blocks[self.states[""]]
        own = {label: cast(nn.ParameterDict, self.nodes[label]) for label in self.kinds}
        state = {label: blocks[self.states[label]] for label in self.kinds}
        seen = {label: _invariant(x, {self.kinds[label]}, own[label]["see"], own[label]["bias"])
                for label, x in state.items()}
        heard = {label: [x @ own[label]["own"]] for label, x in seen.items()}
        moved: dict[str, list[Tensor]] = {label: [] for label in state}
        whole = root @ self.own
        for block, weights in zip(self.blocks, self.weights, strict=True):
            weights, value = cast(nn.ParameterDict, weights), batch.blocks[block.name]
            found = self._message(block, value, seen, root, weights)
            for i, end in enumerate(self.ends[block.name]):
                heard[end.label].append(_mean(found, end.digits) @ weights[f"take{i}"])
                carried = _carried(value, self.ends[block.name], i, state, weights)
                if carried is not None:
                    moved[end.label].append(_mean(carried, end.digits) @ weights[f"send{i}"])
            new = value + value * (found @ weights["scale"])
            free = not any(end.moves for end in self.ends[block.name])
            blocks[block.name] = new + found @ weights["add"] if free else new
            whole = whole + _mean(found, ()) @ weights["collect"]
        for label, x in state.items():
            context = torch.stack(heard[label]).sum(0)
            context = F.gelu(context + spread(root @ own[label]["root"], (), x.ndim - 2))
            new = x + x * (context @ own[label]["scale"])
            for message in moved[label]:
                new = new + message * (1 + context @ own[label]["gate"])
            free = self.kinds[label] not in SCALING
            blocks[self.states[label]] = new + context @ own[label]["add"] if free else new
        blocks[self.states[""]] = root + F.gelu(whole) @ self.update
        return batch.with_blocks(blocks)

    def _message(self, block: Block, value: Tensor, seen: dict[str, Tensor], root: Tensor,
                 weights: nn.ParameterDict) -> Tensor:
        """Invariants of every entry, its neurons and the whole, ``[N, *slots, hidden]``."""
        ends, rank = self.ends[block.name], len(block.shape)
        kinds = {end.kind for end in ends if end.moves}
        found = _invariant(value, kinds, weights["see"], weights["bias"])
        found = found + spread(root @ weights["root"], (), rank)
        for i, end in enumerate(ends):
            found = found + spread(seen[end.label] @ weights[f"give{i}"], end.digits, rank)
        return F.gelu(found)

    def __repr__(self) -> str:
        return f"ScaleGMNLayer({short(self.space)} -> {short(self.space)}, {self.c_in})"


def _ends(space: WeightSpace, block: Block) -> tuple[End, ...]:
    return tuple(End(digit.label, (*digit.bases, place), space.group(digit.label).kind,
                     digit.exponent)
                 for place, digit in enumerate(block.digits) if digit.label is not None)


def _invariant(value: Tensor, kinds: set[str], weight: Tensor, bias: Tensor) -> Tensor:
    """``[…, c]`` → invariants ``[…, h]`` of numbers that move with neurons of these kinds."""
    if "positive" in kinds:
        value = _direction(value)
    found = F.gelu(value @ weight + bias)
    return found + F.gelu(bias - value @ weight) if "signed" in kinds else found


def _direction(value: Tensor) -> Tensor:
    """``x/‖x‖`` over channels, and zero (with a finite gradient) at zero."""
    top = value.detach().abs().amax(-1, keepdim=True)
    # Squares of small numbers vanish; a factor without gradient changes neither value nor gradient.
    value = value / torch.where(top > 0, top, 1.0)
    size = value.norm(dim=-1, keepdim=True)
    return value / torch.where(size > 0, size, 1.0)


def _carried(value: Tensor, ends: tuple[End, ...], target: int, state: dict[str, Tensor],
             weights: nn.ParameterDict) -> Tensor | None:
    """A product of an entry and the states at its other ends that moves as the target does."""
    goal = ends[target]
    if goal.kind in SCALING and goal.exponent != 1:
        return None
    rank = value.ndim - 2
    for i, end in enumerate(ends):
        if i == target or not end.moves:
            continue
        if end.kind == "positive" and end.exponent != -1:
            return None
        factor = state[end.label] @ weights[f"factor{i}"]
        value = value * spread(factor, end.digits, rank)
    return value


def _mean(value: Tensor, digits: tuple[int, ...]) -> Tensor:
    """``[N, *slots, c]`` → ``[N, *digits in this order, c]``."""
    gone = [1 + i for i in range(value.ndim - 2) if i not in digits]
    found = value.mean(gone) if gone else value
    order = sorted(digits)
    return found.permute(0, *(1 + order.index(i) for i in digits), found.ndim - 1)
