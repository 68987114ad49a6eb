"""Networks whose layers follow each other, from names and shapes alone.

Two kinds of evidence. Names: a numbered series (``0.weight 2.weight``, ``fc1 fc2``) whose shapes
chain, or several such series, each taken alone. Shapes: an order of all layers that is the only
possible one, and in which no two widths are equal, so that nothing can be added around a layer.
What neither settles is refused or stays fixed; nobody has run these networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.names import printable, some
from metanet.symmetry.row import Layer, Parts, Refused, parts_of, place_of, ratio, shown
from metanet.symmetry.row_space import row_space
from metanet.symmetry.space import WeightSpace

_WORDS = frozenset({"", "conv", "fc", "linear", "lin", "dense", "layer", "l", "hidden"})
"""What plain layers are called before their number."""
_FOLLOW = (("mlp_extractor.policy_net", "action_net"), ("mlp_extractor.value_net", "value_net"))
"""stable-baselines3: which layer reads the last one of a series."""
_ASSUMED = ("taken to follow each other with nothing but functions of single neurons, pooling and "
            "the norms of the file between them; nobody ran it")
_MOST = 4096


# ---------------------------------------------------------------- all layers in one line


def numbered(checkpoint: Checkpoint) -> WeightSpace:
    """A file that is one numbered series of plain layers.

    Raises:
        Refused: it is not.
    """
    parts = _whole(checkpoint)
    order = _in_numbers(parts.layers)
    for before, after in pairwise(order):
        if not ratio(before, after):
            raise Refused(f"{shown(after)} cannot read what {shown(before)} puts out")
    if all(layer.shape[0] == layer.shape[1] for layer in order):
        raise Refused("all layers are square, so they may as well stand side by side")
    return row_space(checkpoint, parts, [order], _sequential(order))


def by_shapes(checkpoint: Checkpoint) -> WeightSpace:
    """A file whose layers have one possible order, without two equal widths.

    Raises:
        Refused: there is no order, or more than one.
    """
    parts = _whole(checkpoint)
    order = _only_order(parts.layers)
    widths = [order[0].shape[1], *(layer.shape[0] for layer in order)]
    if len({*widths}) < len(widths):
        raise Refused("its layers chain by their shapes, but two widths are equal, so something "
                      "may be added around a layer, or layers may stand side by side")
    return row_space(checkpoint, parts, [order], False)


def _whole(checkpoint: Checkpoint) -> Parts:
    parts = parts_of(checkpoint)
    if parts.odd or checkpoint.aliases:
        raise Refused(f"{some(parts.odd or checkpoint.aliases, 2)} "
                      f"{'is' if len(parts.odd or checkpoint.aliases) == 1 else 'are'} no part of "
                      "a sequence of plain layers")
    if not 2 <= len(parts.layers) <= _MOST:
        raise Refused(f"it has {len(parts.layers)} layers")
    return parts


def _in_numbers(layers: Sequence[Layer]) -> list[Layer]:
    series: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        parent, word, number = layer.place
        if number is None or word not in _WORDS:
            raise Refused(f"{printable(layer.prefix, 80)!r} is no numbered plain layer")
        series.setdefault((parent, word), []).append(layer)
    found = [sorted(part, key=lambda la: la.place[2] or 0) for part in series.values()]
    if len(found) == 1:
        return found[0]
    convs = [part for part in found if all(layer.conv for layer in part)]
    dense = [part for part in found if not any(layer.conv for layer in part)]
    parents = {parent for parent, _ in series}
    if (len(convs), len(dense), len(parents)) == (1, 1, 1):
        return convs[0] + dense[0]
    raise Refused(f"it has {len(found)} series of layers, from "
                  f"{some([part[0].prefix for part in found], 3)}, that may be joined in any way")


def _only_order(layers: Sequence[Layer]) -> list[Layer]:
    after: dict[str, list[Layer]] = {}
    for a in layers:
        after[a.prefix] = [b for b in layers if b is not a and ratio(a, b) == 1
                           and a.conv == b.conv]
    read = {b.prefix for found in after.values() for b in found}
    for a in layers:  # the one place where convolutions end and dense layers begin
        if a.conv and not after[a.prefix]:
            after[a.prefix] = [b for b in layers if not b.conv and b.prefix not in read
                               and ratio(a, b)]
    read = {b.prefix for found in after.values() for b in found}
    path = [layer for layer in layers if layer.prefix not in read][:1]
    while path and (found := after[path[-1].prefix]):
        if len(found) > 1 or found[0] in path:
            raise Refused(f"more than one layer may follow {shown(path[-1])}: "
                          f"{some([layer.prefix for layer in found], 3)}")
        path.append(found[0])
    if len(path) < len(layers):
        raise Refused("its layers cannot be chained by their shapes")
    return path


def _sequential(order: Sequence[Layer]) -> bool:
    """Whether nn.Sequential holds them all: then they run in the order of their numbers."""
    return len({layer.place[:2] for layer in order}) == 1 and order[0].place[1] == ""


# ---------------------------------------------------------------- several series in one file


def series(checkpoint: Checkpoint) -> WeightSpace:
    """The series of nn.Sequential in a file, each alone; everything around them stays fixed.

    Raises:
        Refused: there is none, or none with a hidden layer.
    """
    parts = parts_of(checkpoint)
    if checkpoint.aliases:
        raise Refused("it has tied tensors")
    found = [order for order in _containers(parts) if _spaced(order)]
    known = {layer.prefix: layer for layer in parts.layers}
    for order in found:
        for path, reader in _FOLLOW:
            if order[-1].place[0] == path and reader in known and ratio(order[-1], known[reader]):
                order.append(known[reader])
    found = [order for order in found if len(order) > 1]
    if not found:
        raise Refused("it has no numbered series of plain layers")
    return row_space(checkpoint, parts, found, True)


def _containers(parts: Parts) -> list[list[Layer]]:
    """Layers by their parent, where the parent holds numbered plain layers and vectors only."""
    held: dict[str, list[Layer]] = {}
    for layer in parts.layers:
        if layer.place[1] == "" and layer.place[2] is not None:
            held.setdefault(layer.place[0], []).append(layer)
    others = [*(la.prefix for la in parts.layers), *parts.vectors, *parts.odd]

    def direct(parent: str) -> bool:
        inside = [n for n in others if n.startswith(f"{parent}.")] if parent else others
        return all(place_of(n.removesuffix(".linear"))[0] == parent
                   and place_of(n.removesuffix(".linear"))[1] == "" for n in inside)

    return [sorted(layers, key=lambda la: la.place[2] or 0) for parent, layers in held.items()
            if direct(parent)]


def _spaced(order: Sequence[Layer]) -> bool:
    """Whether something stands between the layers, as between those that run one by one."""
    return all(ratio(a, b) and (b.place[2] or 0) > (a.place[2] or 0) + 1
               for a, b in pairwise(order))


def _warning(space: WeightSpace) -> str:
    """Where a sum of two layers would fit, say so."""
    sizes = [group.size for group in space.groups]
    equal = len({*sizes}) < len(sizes)
    return "; where widths are equal, nothing may be added around a layer" if equal else ""


def found_by(checkpoint: Checkpoint) -> tuple[str, str, WeightSpace] | str:
    """(route, note, space) of a network of layers in a row, or why it is none."""
    refusals: list[str] = []
    for route, what, make in (
        ("pattern", "one numbered series of layers", numbered),
        ("chain", "layers whose shapes chain in one way only", by_shapes),
        ("pattern", "numbered series of layers, each looked at alone", series),
    ):
        try:
            space = make(checkpoint)
            return route, f"{what}, {_ASSUMED}{_warning(space)}", space
        except Refused as refusal:
            refusals.append(str(refusal))
    return "; ".join(dict.fromkeys(refusals))
