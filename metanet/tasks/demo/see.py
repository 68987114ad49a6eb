"""Part 1: the text form of two architectures that have no weights at all."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import torch
from torch import Tensor, nn

from metanet.report import Block, Code, Fold, Heading, Note, Section, Table, Text
from metanet.symmetry import Verification, WeightSpace, infer, verify
from metanet.symmetry.text import print_axes
from metanet.tasks.demo.llama import Shape, llama_on_meta
from metanet.tasks.demo.words import count
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.resnet import CifarResNet, Widths


@dataclass(frozen=True)
class Seen:
    """One architecture, its space, how long it took to find, and the proof.

    ``proof`` belongs to the network itself or, where that is too large to run, to ``proved``.
    """

    name: str
    space: WeightSpace
    seconds: float
    proof: Verification
    proved: str


def see() -> tuple[Seen, ...]:
    """Infer and verify the spaces of a ResNet-20 and of a network of Llama's shape.

    The proof needs weights to run: random ones for the ResNet, and for Llama a narrow sibling
    from the same code.
    """
    resnet, images = _resnet20()
    tokens = torch.randint(0, 97, (2, 5), generator=torch.Generator().manual_seed(0))
    small = llama_on_meta(Shape(97, 32, 2, 4, 2, 8, 56))
    return (
        _infer("ResNet-20 for CIFAR-10, without weights", resnet, images, resnet,
               "on random weights"),
        _infer("Llama shape: two layers of the widths of Llama-3.2-1B", llama_on_meta(), (tokens,),
               small, "on a narrow sibling from the same code"),
    )


def section(spaces: tuple[Seen, ...]) -> Section:
    """The part of the page."""
    blocks: list[Block] = []
    for seen in spaces:
        blocks += _show(seen)
    return Section(
        "1 See",
        "A network is named tensors and a group that moves their entries without changing the "
        "function. `metanet.infer` reads that group off the code. These two networks have no "
        "weights; one line per tensor says what may move: a name is a group, `3!` is fixed, "
        "`d/h` may move in its own way for each `h`, `(a + b)` are neighbours on one axis.",
        blocks,
    )


def _show(seen: Seen) -> list[Block]:
    space = seen.space
    groups = [[g.label, g.kind, str(g.size), " ".join(g.over) or "–", str(g.copies),
               str(len(g.tensors))] for g in space.groups]
    return [
        Heading(seen.name),
        Text(f"{count(space.n_parameters)} parameters in {len(space.tensors)} tensors, "
             f"{len(space.groups)} groups, found in {seen.seconds:.1f} s; status: "
             f"{space.status}."),
        _proof(seen),
        Code(str(space)),
        Fold(f"The {len(space.groups)} groups", [Table(
            ["group", "kind", "size", "over", "copies", "tensors"], groups,
            numbers=frozenset({2, 4, 5}),
            caption="A group is one way to reorder neurons, shared by all tensors it moves. A "
                    "group over another acts separately for each index of it.")]),
        Fold("Every axis explained", [
            Table(["tensor", "axis", "term", "why"], _explained(space), numbers=frozenset({1}))]),
    ]


def _proof(seen: Seen) -> Note:
    proof, c = seen.proof, seen.proof.controls
    if not proof.ok:
        return Note(f"Not verified {seen.proved}: {proof.report()}", "bad")
    return Note(
        f"Verified in float64 {seen.proved}: random elements change the outputs by at most "
        f"{proof.max_error:.0e} (relative), and {c.detected} of {c.total} negative controls, "
        f"moving a group in one tensor only, are detected.", "good")


def _explained(space: WeightSpace) -> list[list[str]]:
    return [[name, str(axis), print_axes((tree,)), _why(space, name, axis)]
            for name, spec in space.tensors.items() for axis, tree in enumerate(spec.axes)]


def _why(space: WeightSpace, name: str, axis: int) -> str:
    """The explanation without its first line, which repeats the table's first columns."""
    return "; ".join(line.strip() for line in space.explain(name, axis).splitlines()[1:])


def _infer(name: str, module: nn.Module, inputs: tuple[Tensor, ...], runnable: nn.Module,
           proved: str) -> Seen:
    start = perf_counter()
    space = infer(module, inputs)
    seconds = perf_counter() - start
    if runnable is module:
        proof = verify(module, space, inputs)
        space = space.with_status("verified" if proof.ok else "inferred")
    else:
        proof = verify(runnable, infer(runnable, inputs), inputs)
    return Seen(name, space, seconds, proof, proved)


def _resnet20() -> tuple[CifarResNet, tuple[Tensor, ...]]:
    """Three stages of three blocks, widths 16, 32, 64, zero-padded shortcuts (He et al. 2015)."""
    widths, stages = (16, 16, 32, 64), []
    for ins, outs in pairwise(widths):
        first = Widths(ins, outs, outs, 1 if ins == outs else 2, "")
        stages.append([first, *[Widths(outs, outs, outs, 1, "")] * 2])
    with meta_parameters():
        module = CifarResNet(3, stages, "linear", 10)
    return module.eval(), (torch.randn(2, 3, 16, 24),)
