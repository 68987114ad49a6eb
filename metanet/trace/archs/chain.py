"""Finding the order of layers in a file: a chain in which each width feeds the next."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from metanet.checkpoint.names import natural_key, some
from metanet.errors import SpaceMismatch, TraceError
from metanet.trace.archs.header import Header, Shape, quoted

_FIRST = re.compile(r"(^|[._])(in|inp|input|first|embed|stem)([._0-9]|$)", re.IGNORECASE)
_LAST = re.compile(r"(^|[._])(out|output|last|final|head|classifier)([._0-9]|$)", re.IGNORECASE)
_MAX_DEPTH = 32
_MAX_STEPS = 20_000


@dataclass(frozen=True)
class Layer:
    """A weight of shape (out, in, *kernel) at ``prefix``, and whether it has a bias."""

    prefix: str
    shape: Shape
    bias: bool

    @property
    def stem(self) -> str:
        """The prefix without its numbers: layers of one stem are ordered by their numbers."""
        return re.sub(r"[0-9]+", "#", self.prefix)

    @property
    def weight(self) -> str:
        """Name of the weight."""
        return f"{self.prefix}.weight"


def collect(header: Header, what: str, ndims: tuple[int, ...]) -> list[Layer]:
    """All layers of a file that holds nothing but weights of ``ndims`` axes and their biases.

    Raises:
        TraceError: another tensor is there, or there is no layer.
        SpaceMismatch: a bias has another length than its weight's first axis.
    """
    layers = []
    used: set[str] = set()
    for name, shape in header.shapes.items():
        prefix, dot, leaf = name.rpartition(".")
        if dot and leaf == "weight" and len(shape) in ndims:
            bias = f"{prefix}.bias"
            layers.append(Layer(prefix, shape, bias in header))
            used |= {name, bias}
            if 0 in shape:
                raise TraceError(f"tensor {quoted(name)} of shape {shape} has an axis of size 0: "
                                 "there is nothing to permute")
            if bias in header and header.shapes[bias] != shape[:1]:
                raise SpaceMismatch(
                    f"tensor {quoted(bias)}: expected shape {shape[:1]}, found "
                    f"{header.shapes[bias]}"
                )
    extra = [name for name in header.shapes if name not in used]
    if extra or not layers:
        odd = "it has no weights"
        if extra:
            odd = f"tensor {quoted(extra[0])} of shape {header.shapes[extra[0]]} is not part of one"
        raise TraceError(f"{header.source} is not {what}: {odd}; write a factory: --arch "
                         "file.py:factory")
    return layers


def ordered(layers: list[Layer], what: str) -> list[Layer]:
    """Layers in the only order in which each one's inputs are the outputs of the one before.

    Layers whose names differ in numbers only stand in the order of their numbers; layers named
    input or output (and the like) stand first or last. What is then left to the shapes must have
    one solution.

    Raises:
        SpaceMismatch: numbered layers do not chain.
        TraceError: no chain, or several.
    """
    layers = sorted(layers, key=lambda layer: natural_key(layer.prefix))
    if len({layer.stem for layer in layers}) == 1:
        _check_links(layers, what)
        return layers
    found = _search(layers)
    if len(found) > 1:
        hinted = [path for path in found if _agrees_with_words(path)]
        found = hinted or found
    if len(found) == 1:
        return found[0]
    names = some([layer.prefix for layer in layers], 8)
    raise TraceError(
        f"the layers {names} can be chained by their shapes in "
        f"{'more than one order' if found else 'no order'}, so this is not {what} that can be "
        "read from its shapes alone; write a factory: --arch file.py:factory"
    )


def _check_links(layers: list[Layer], what: str) -> None:
    for before, after in pairwise(layers):
        if not _feeds(before, after):
            expected = (after.shape[0], before.shape[0], *after.shape[2:])
            raise SpaceMismatch(
                f"tensor {quoted(after.weight)} breaks the chain of {what}: expected shape "
                f"{expected} after {quoted(before.weight)}, found {after.shape}"
            )


def _feeds(before: Layer, after: Layer) -> bool:
    return before.shape[0] == after.shape[1] and len(before.shape) == len(after.shape)


def _search(layers: list[Layer]) -> list[list[Layer]]:
    """Chains through all layers, by depth first search; stops after 200 or too many steps."""
    found: list[list[Layer]] = []
    steps = 0

    def extend(path: list[Layer], rest: list[Layer]) -> None:
        nonlocal steps
        steps += 1
        if not rest:
            found.append(path)
        seen: set[str] = set()
        for i, layer in enumerate(rest):
            blocked = layer.stem in seen  # a lower number of this stem comes first
            seen.add(layer.stem)
            if blocked or len(found) >= 200 or steps > _MAX_STEPS:
                continue
            if not path or _feeds(path[-1], layer):
                extend([*path, layer], rest[:i] + rest[i + 1:])

    extend([], layers)
    return found if steps <= _MAX_STEPS else []


def _agrees_with_words(path: list[Layer]) -> bool:
    middle_or_last = [layer.prefix for layer in path[1:]]
    middle_or_first = [layer.prefix for layer in path[:-1]]
    return not any(map(_FIRST.search, middle_or_last)) and not any(
        map(_LAST.search, middle_or_first))


def place(root: nn.Module, prefix: str, child: nn.Module) -> None:
    """Put ``child`` at a dotted path below ``root``, making plain containers on the way.

    Raises:
        TraceError: the path is too deep, taken, or collides with an attribute of nn.Module.
    """
    *parents, leaf = prefix.split(".")
    if len(parents) > _MAX_DEPTH:
        raise TraceError(f"the name {quoted(prefix)} is nested more than {_MAX_DEPTH} deep")
    try:
        for part in parents:
            if part not in root._modules:
                root.add_module(part, nn.Module())
            root = root.get_submodule(part)
        if leaf in root._modules:
            raise KeyError("it is taken by other tensors")
        root.add_module(leaf, child)
    except (KeyError, AttributeError) as error:
        raise TraceError(f"no module can stand at the name {quoted(prefix)}: {error}") from None
