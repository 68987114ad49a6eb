"""Part 2: a permuted network looks like another one, and is the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metanet.report import Block, Facts, Note, Section, Text
from metanet.symmetry import WeightSpace, match
from metanet.tasks.demo.mlp import Weights, cosine, outputs


@dataclass(frozen=True)
class Scrambled:
    """What a random element does to a trained net, and whether ``match`` finds it back.

    Args:
        cosine: of the weights with the permuted ones.
        max_change: largest change of a logit, over all test images.
        largest_logit: for comparison.
        recovered: the element found undoes the planted one bit for bit.
        other_cosine: cosine with a net of another seed after matching: the control.
        other_same: whether the same test calls that one the same network.
    """

    cosine: float
    max_change: float
    largest_logit: float
    recovered: bool
    cosine_after: float
    other_cosine: float
    other_same: bool


def scramble(space: WeightSpace, net: Weights, other: Weights,
             x: Tensor, seed: int) -> Scrambled:
    """Permute ``net`` with a random element and look for it again.

    Args:
        space: of both nets.
        net: weights in float64.
        other: weights of an independently trained net, for control.
        x: images to compare outputs on.
        seed: of the element.
    """
    permuted = space.random(seed).apply(net)
    before, after = outputs(net, x), outputs(permuted, x)
    back = match(net, permuted, space).element.apply(permuted)
    control = match(net, other, space).element.apply(other)
    return Scrambled(
        cosine(net, permuted), float((before - after).abs().max()), float(before.abs().max()),
        same(net, back), cosine(net, back), cosine(net, control), same(net, control))


def same(a: Weights, b: Weights) -> bool:
    """Whether two networks have equal numbers in equal places."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def section(found: Scrambled) -> Section:
    """The part of the page."""
    verdict = ("`metanet.match` finds the element back, bit for bit: the same network."
               if found.recovered else
               "`metanet.match` did not find the element back: nothing can be said.")
    control = ("also called the same, which is wrong" if found.other_same
               else "not called the same")
    blocks: list[Block] = [
        Facts([(f"{found.cosine:+.3f}", "cosine of the permuted weights with the original"),
               (f"{found.max_change:.0e}", "largest change of any logit, on 797 images in float64"),
               (f"{found.cosine_after:.6f}", "cosine after `match`")]),
        Note(verdict, "good" if found.recovered else "bad"),
        Text(f"For scale: logits reach {found.largest_logit:.1f}. The control, a net trained from "
             f"another seed, is {control}: after matching its cosine is "
             f"{found.other_cosine:.3f}."),
    ]
    return Section("2 Scramble", "A random element of the group applied to an MLP with three "
                   "hidden layers of 256, trained a moment ago.", blocks)
