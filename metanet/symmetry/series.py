"""Networks whose layers follow each other, from names and shapes alone.

Two kinds of evidence. Names: a numbered series (``0.weight 2.weight``, ``fc1 fc2``) whose shapes
chain, or several such series, each taken alone. Shapes: an order of all layers that is the only
possible one, and in which no two widths are equal, so that nothing can be added around a layer.
What neither settles is refused or stays fixed; nobody has run these networks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.info import is_floating
from metanet.checkpoint.names import natural_key, printable, some
from metanet.symmetry.sketch import Place, Sketch
from metanet.symmetry.space import WeightSpace

_NUMBERED = re.compile(r"([A-Za-z_]*?)_?([0-9]{1,6})")
_WORDS = frozenset({"", "conv", "fc", "linear", "lin", "dense", "layer", "l", "hidden"})
"""What plain layers are called before their number."""
_FOLLOW = (("mlp_extractor.policy_net", "action_net"), ("mlp_extractor.value_net", "value_net"))
"""stable-baselines3: which layer reads the last one of a series."""
_PER_CHANNEL = frozenset({"weight", "bias", "running_mean", "running_var"})
_LAYER_NORM = re.compile(r"(^|[._0-9])(ln|layer_?norm)", re.IGNORECASE)
_ASSUMED = ("taken to follow each other with nothing but functions of single neurons, pooling and "
            "the norms of the file between them; nobody ran it")
_MOST = 4096


@dataclass(frozen=True)
class Layer:
    """A weight of shape (out, in, *kernel) and its bias, if any."""

    prefix: str
    shape: tuple[int, ...]
    bias: bool

    @cached_property
    def place(self) -> tuple[str, str, int | None]:
        """(path of the parent, word, number); the number is None where there is none."""
        return place_of(self.prefix.removesuffix(".linear"))

    @property
    def conv(self) -> bool:
        """Whether it has a kernel."""
        return len(self.shape) > 2

    @property
    def weight(self) -> str:
        """Name of the weight."""
        return f"{self.prefix}.weight"

    @property
    def outs(self) -> tuple[Place, ...]:
        """Axes that its neurons stand on."""
        return ((self.weight, 0), *([(f"{self.prefix}.bias", 0)] if self.bias else []))


def place_of(prefix: str) -> tuple[str, str, int | None]:
    """Path of the parent, word and number of a name such as ``net.fc_2``."""
    parent, _, last = prefix.rpartition(".")
    found = _NUMBERED.fullmatch(last)
    return (parent, found[1].lower(), int(found[2])) if found else (parent, last, None)


def ratio(before: Layer, after: Layer) -> int:
    """Inputs that ``after`` has for each neuron of ``before``; 0 where it cannot read them."""
    if len(before.shape) == len(after.shape):
        return int(before.shape[0] == after.shape[1])
    if before.conv and not after.conv and after.shape[1] % before.shape[0] == 0:
        return after.shape[1] // before.shape[0]
    return 0


class Refused(Exception):
    """Why this is no sequence of layers."""


@dataclass(frozen=True)
class Parts:
    """Layers of a file, its vectors by prefix (leaf → size), and what is neither."""

    layers: tuple[Layer, ...]
    vectors: dict[str, dict[str, int]]
    odd: tuple[str, ...]


def parts_of(checkpoint: Checkpoint) -> Parts:
    """Sort the tensors of a file."""
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    layers: dict[str, Layer] = {}
    for name, shape in shapes.items():
        prefix, dot, leaf = name.rpartition(".")
        floating = is_floating(checkpoint.dtype(name))
        if dot and leaf == "weight" and 2 <= len(shape) <= 5 and floating and 0 not in shape:
            layers[prefix] = Layer(prefix, shape, shapes.get(f"{prefix}.bias") == shape[:1])
    vectors: dict[str, dict[str, int]] = {}
    odd = []
    for name, shape in shapes.items():
        prefix, dot, leaf = name.rpartition(".")
        floating = is_floating(checkpoint.dtype(name))
        if prefix in layers:
            if leaf != "weight" and not (leaf == "bias" and layers[prefix].bias):
                odd.append(name)
        elif dot and len(shape) == 1 and leaf in _PER_CHANNEL and floating:
            vectors.setdefault(prefix, {})[leaf] = shape[0]
        elif leaf != "num_batches_tracked":
            odd.append(name)
    return Parts(tuple(sorted(layers.values(), key=lambda la: natural_key(la.prefix))), vectors,
                 tuple(odd))


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
            raise Refused(f"{_shown(after)} cannot read what {_shown(before)} puts out")
    if all(layer.shape[0] == layer.shape[1] for layer in order):
        raise Refused("all layers are square, so they may as well stand side by side")
    return _space(checkpoint, parts, [order], _sequential(order))


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
    return _space(checkpoint, parts, [order], False)


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
            raise Refused(f"more than one layer may follow {_shown(path[-1])}: "
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
    return _space(checkpoint, parts, found, True)


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


# ---------------------------------------------------------------- the space


def _space(
    checkpoint: Checkpoint, parts: Parts, orders: Sequence[Sequence[Layer]], positional: bool
) -> WeightSpace:
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
                      f"{_shown(order[i])} before it")


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


def _shown(layer: Layer) -> str:
    return f"{printable(layer.prefix, 80)!r} {list(layer.shape)}"


def found_by(checkpoint: Checkpoint) -> tuple[str, str, WeightSpace] | str:
    """(route, note, space) of a network of layers in a row, or why it is none."""
    refusals: list[str] = []
    for route, what, make in (
        ("pattern", "one numbered series of layers", numbered),
        ("chain", "layers whose shapes chain in one way only", by_shapes),
        ("pattern", "numbered series of layers, each looked at alone", series),
    ):
        try:
            return route, f"{what}, {_ASSUMED}", make(checkpoint)
        except Refused as refusal:
            refusals.append(str(refusal))
    return "; ".join(dict.fromkeys(refusals))
