"""The space of layers in a row: which axes move together, and which doubts keep one fixed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.names import printable, some
from metanet.symmetry.row import Layer, Parts, Refused, place_of, ratio, shown
from metanet.symmetry.sketch import Place, Sketch
from metanet.symmetry.space import WeightSpace

_LAYER_NORM = re.compile(r"(^|[._0-9])(ln|layer_?norm)", re.IGNORECASE)


def row_space(
    checkpoint: Checkpoint, parts: Parts, orders: Sequence[Sequence[Layer]], positional: bool
) -> WeightSpace:
    """Groups for the hidden widths of rows of layers; all else is fixed.

    Args:
        checkpoint: names and shapes.
        parts: its layers and vectors.
        orders: rows, each in the order in which it runs.
        positional: vectors stand behind the layer that is numbered before them.

    Raises:
        Refused: a vector has no place, or nothing is free.
    """
    whole = len(orders) == 1 and len(orders[0]) == len(parts.layers)
    sketch = Sketch(checkpoint, "input or output of the network" if whole else
                    "not known who else reads or writes it")
    left = dict(parts.vectors)
    for order in orders:
        vectors = _placed(order, left) if positional else _matched(order, left)
        for i, (before, after) in enumerate(pairwise(order)):
            places = [*before.outs, (after.weight, 1), *vectors.get(i, ())]
            reason = _doubt(order, i, parts, vectors.get(i, ()), whole, positional)
            if reason:
                sketch.because(places, reason)
                continue
            sketch.tie(before.prefix, before.shape[0], [*places, *_exploration(checkpoint, after)])
    if left and whole:
        raise Refused(f"{some(left, 2)} cannot be placed between its layers")
    if not sketch.groups:
        why = next(iter(sketch.reasons.values()), "it has no hidden layer")
        raise Refused(f"no axis is known to be free ({why})")
    return sketch.space()


def _placed(
    order: Sequence[Layer], left: dict[str, dict[str, int]]
) -> dict[int, list[Place]]:
    """Vectors of the same nn.Sequential, by the number of the layer that they follow."""
    out: dict[int, list[Place]] = {}
    for prefix in [p for p in left if place_of(p)[0] == order[0].place[0]
                   and place_of(p)[1] == "" and place_of(p)[2] is not None]:
        number = place_of(prefix)[2] or 0
        before = [i for i, layer in enumerate(order) if (layer.place[2] or 0) < number
                  and layer.place[:2] == order[0].place[:2]]
        if before:
            i = before[-1]
            _check(prefix, left[prefix], order, i)
            out.setdefault(i, []).extend(_axes(prefix, left[prefix]))
        del left[prefix]
    return out


def _matched(
    order: Sequence[Layer], left: dict[str, dict[str, int]]
) -> dict[int, list[Place]]:
    """Vectors elsewhere: by their size, where one layer only has it."""
    out: dict[int, list[Place]] = {}
    for prefix, leaves in [*left.items()]:
        fits = [i for i in range(-1, len(order)) if {*leaves.values()} <= _sizes(order, i) | {1}]
        if len(fits) != 1 and {*leaves.values()} != {1}:
            raise Refused(f"{printable(prefix, 80)!r} of length {max(leaves.values())} may follow "
                          f"{len(fits)} of its layers")
        for i in fits[:1]:
            out.setdefault(i, []).extend(_axes(prefix, leaves))
        del left[prefix]
    return out


def _axes(prefix: str, leaves: dict[str, int]) -> list[Place]:
    return [(f"{prefix}.{leaf}", 0) for leaf, size in leaves.items() if size > 1]


def _sizes(order: Sequence[Layer], i: int) -> set[int]:
    """Lengths that a vector behind layer ``i`` may have; -1 is the input."""
    if i < 0:
        return {order[0].shape[1]}
    return {order[i].shape[0], *([order[i + 1].shape[1]] if i + 1 < len(order) else [])}


def _check(prefix: str, leaves: dict[str, int], order: Sequence[Layer], i: int) -> None:
    if not {*leaves.values()} <= _sizes(order, i) | {1}:
        raise Refused(f"{printable(prefix, 80)!r} of length {max(leaves.values())} does not fit "
                      f"{shown(order[i])} before it")


def _doubt(
    order: Sequence[Layer], i: int, parts: Parts, vectors: Iterable[Place], whole: bool,
    positional: bool,
) -> str:
    """Why the neurons of layer ``i`` stay where they are; empty where nothing speaks against."""
    before, after = order[i], order[i + 1]
    ones = after.conv and all(k == 1 for k in after.shape[2:])
    for layer in (before, after):
        if layer.conv and layer.shape[0] == layer.shape[1] and not all(
                k % 2 for k in layer.shape[2:]):
            return "it may be a transposed convolution, whose axes are the other way round"
    if i == 0 and before.conv and (not whole or (before.shape[1] == 1 and ones)):
        return "it may be a convolution in groups, which ties outputs to inputs"
    if ratio(before, after) > 1 and not positional:
        return "not known in which order the places of an image are flattened"
    if _owners(before, after):
        return "between two parts of the file, where others may read it"
    for name, _ in vectors:
        prefix = name.rpartition(".")[0]
        held = parts.vectors[prefix]
        if "bias" in held and "running_mean" not in held and not (
                _LAYER_NORM.search(prefix) or (positional and not before.conv)):
            return "a norm without running statistics may take neurons in groups"
    return ""


def _owners(before: Layer, after: Layer) -> bool:
    """Whether two layers stand in two containers, as encoder and decoder do."""
    roots = [layer.prefix.split(".") for layer in (before, after)]
    return roots[0][0] != roots[1][0] and all(
        len(path) > 2 or (len(path) == 2 and not path[0][-1:].isdigit()) for path in roots)


def _exploration(checkpoint: Checkpoint, after: Layer) -> list[Place]:
    """stable-baselines3: noise of state-dependent exploration is a product with features."""
    if after.prefix == "action_net" and "log_std" in checkpoint:
        shape = checkpoint.shape("log_std")
        if len(shape) == 2 and shape[0] == after.shape[1]:
            return [("log_std", 0)]
    return []
