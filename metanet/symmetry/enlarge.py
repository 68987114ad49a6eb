"""Signs and positive scales beyond permutations: found from derivatives, proved by numbers.

A group of kind S whose neurons may also be scaled has, for each place where it stands, an exponent
e with ``sum over places of e · <∂L/∂t, t>_i = 0`` for every neuron i, every output L and all
weights: the derivative of the function along the scaling. The exponents are the null space of a
matrix with one row per neuron, functional and draw of the weights, and one column per place; a
backward pass gives the columns of all groups at once. Signs have no derivative: the few patterns
that odd functions and norms allow are tried. What is found counts only if random elements then
leave the network unchanged (scalings of neurons: Godfrey et al., NeurIPS 2022, section 3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.errors import SymmetryError
from metanet.symmetry.axis import Axis, Fixed, Occ, map_leaves
from metanet.symmetry.element import GroupElement
from metanet.symmetry.nullspace import Matrix, latest_scaling
from metanet.symmetry.space import TensorSpec, WeightSpace
from metanet.symmetry.verify import TOLERANCE, Trial, lifted, run_lifted
from metanet.trace.program import Op, Program

ENLARGED = ("positive", "signed")
"""Kinds that ``enlarge`` looks for, in the order in which they are tried."""
_DRAWS = 2
_FUNCTIONALS = 2
_MOST = 16


@dataclass(frozen=True, slots=True)
class _Place:
    """One occurrence of a group: which tensor, which axis, and how many stand before it there."""

    tensor: str
    axis: int
    index: int


def enlarge(
    program: Program, space: WeightSpace, kinds: Iterable[str] = ENLARGED, seed: int = 0
) -> WeightSpace:
    """The space with every group of kind S made ``positive`` or ``signed`` where that is proved.

    Groups that others are fibred over, dead groups and groups in one tensor only stay as they
    are. Where a neuron can be scaled both before and after a norm the later scaling is taken.

    Args:
        program: the recorded network.
        space: its space, with groups of kind S.
        kinds: which kinds to look for; a group gets the first that holds.
        seed: of weights, functionals and elements.

    Raises:
        SymmetryError: a kind that is not looked for by this function.
    """
    wanted = tuple(kinds)
    unknown = sorted(set(wanted) - set(ENLARGED))
    if unknown:
        raise SymmetryError(f"kinds to look for are {' and '.join(ENLARGED)}, got {unknown[0]!r}")
    found: dict[str, tuple[str, dict[_Place, int]]] = {}
    candidates = _candidates(space)
    scales = _scalings(program, space, candidates, seed) if "positive" in wanted else {}
    for label in candidates:
        for kind, exponents in _attempts(space, label, scales.get(label), "signed" in wanted):
            if _holds(program, _with_kinds(space, {label: (kind, exponents)}), seed):
                found[label] = kind, exponents
                break
    whole = _with_kinds(space, found)
    return whole if not found or _holds(program, whole, seed + 1) else space


def _attempts(
    space: WeightSpace, label: str, scaling: dict[_Place, int] | None, signs: bool
) -> Iterator[tuple[str, dict[_Place, int]]]:
    """A scaling of all that writes the neurons; then signs; then a scaling behind a norm."""
    outs = [p for p, occ in _places(space) if occ.label == label and space.tensor_meta(
        p.tensor).role == "weight" and p.axis in space.tensor_meta(p.tensor).out_axes]
    whole = scaling is not None and all(scaling[p] for p in outs)
    if scaling is not None and whole:
        yield "positive", scaling
    for pattern in _signs(space, label) if signs else ():
        yield "signed", pattern
    if scaling is not None and not whole:
        yield "positive", scaling


def _candidates(space: WeightSpace) -> list[str]:
    bases = {base for group in space.groups for base in group.over}
    return [g.label for g in space.groups if g.kind == "S" and g.label not in bases
            and not g.dead and len(g.tensors) > 1]


def _places(space: WeightSpace) -> Iterator[tuple[_Place, Occ]]:
    """All occurrences, tensor by tensor, axis by axis, left to right."""
    for name, spec in space.tensors.items():
        for at, axis in enumerate(spec.axes):
            for index, occ in enumerate(_occurrences(axis)):
                yield _Place(name, at, index), occ


def _occurrences(axis: Axis) -> list[Occ]:
    found: list[Occ] = []

    def note(leaf: Occ | Fixed) -> Axis:
        found.extend([leaf] if isinstance(leaf, Occ) else [])
        return leaf

    map_leaves(axis, note)
    return found


def _with_kinds(
    space: WeightSpace, found: Mapping[str, tuple[str, Mapping[_Place, int]]]
) -> WeightSpace:
    """The space with other kinds and, at each place of their groups, these exponents (else 0)."""
    groups = [replace(g, kind=found[g.label][0]) if g.label in found else g
              for g in (*space.groups, *space.fixed)]
    specs: dict[str, TensorSpec] = {}
    for name, spec in space.tensors.items():
        axes = []
        for at, axis in enumerate(spec.axes):
            count = iter(range(len(_occurrences(axis))))

            def leaf(node: Occ | Fixed, at: int = at, name: str = name,
                     count: Iterator[int] = count) -> Axis:
                if isinstance(node, Fixed):
                    return node
                place = _Place(name, at, next(count))
                if node.label not in found:
                    return node
                return replace(node, exponent=found[node.label][1].get(place, 0))

            axes.append(map_leaves(axis, leaf))
        specs[name] = replace(spec, axes=tuple(axes))
    return WeightSpace(groups, specs, dict(space.aliases), status=space.status, meta=space.meta)


def _holds(program: Program, space: WeightSpace, seed: int) -> bool:
    """Whether a few random elements, each of which flips some sign, change nothing."""
    trial = Trial(program, space)
    return all(trial.invariance(seed + k, _flipped(space.random(seed + k), k))[0] <= TOLERANCE
               for k in range(_DRAWS))


def _flipped(element: GroupElement, draw: int) -> GroupElement:
    values = {label: value.copy() for label, value in element.values.items()}
    for label, value in values.items():
        if element.space.group(label).kind == "signed":
            value[..., -(draw % 2)], value[..., 1 - 2 * (draw % 2)] = -1.0, 1.0
    return GroupElement(element.space, element.tables, values)


# ---------------------------------------------------------------- positive scales


def _scalings(
    program: Program, space: WeightSpace, labels: list[str], seed: int
) -> dict[str, dict[_Place, int]]:
    """Exponents of the latest scaling of each group, where there is one in whole numbers."""
    places: dict[str, list[_Place]] = defaultdict(list)
    for place, occ in _places(space):
        places[occ.label].append(place)
    number = {place: k + 2 for k, (place, _) in enumerate(_places(space))}
    # an exponent of its own for every place tells the digits of the factored view apart
    tagged = _with_kinds(space, {label: ("positive", number) for label in places
                                 if _kind(space, label) == "S"})
    short = max((len(places[label]) / space.group(label).size for label in labels), default=0.0)
    functionals = _FUNCTIONALS + min(int(short / _DRAWS), _MOST)
    rows: dict[str, list[Matrix]] = defaultdict(list)
    for draw in range(_DRAWS):
        for columns in _derivatives(program, tagged, seed + draw, functionals):
            for label in labels:
                rows[label].append(_side_by_side([columns.get(number[p]) for p in places[label]]))
    order = _first_use(program, space)
    found: dict[str, dict[_Place, int]] = {}
    for label in labels:
        own = places[label]
        ordered = sorted(range(len(own)), key=lambda k: (order[own[k].tensor], own[k].axis))
        reads = [n for n, k in enumerate(ordered) if _reads(space, own[k])]
        vector = latest_scaling(np.concatenate(rows[label])[:, ordered], reads)
        if vector is not None:
            found[label] = _completed(
                {own[k]: e for k, e in zip(ordered, vector, strict=True)})
    return found


def _side_by_side(columns: Sequence[Matrix | None]) -> Matrix:
    """Columns of a matrix; None is a column of zeros."""
    size = max((len(column) for column in columns if column is not None), default=0)
    return np.stack([np.zeros(size) if c is None else c for c in columns], axis=1)


def _reads(space: WeightSpace, place: _Place) -> bool:
    meta = space.tensor_meta(place.tensor)
    return place.axis in meta.in_axes and place.axis not in meta.out_axes


def _completed(exponents: Mapping[_Place, int | None]) -> dict[_Place, int]:
    """Where a tensor has no effect (a key's bias), the exponent of its neighbour in the module."""
    def beside(place: _Place) -> int:
        parent = place.tensor.rpartition(".")[0]
        return next((e for p, e in exponents.items() if e is not None
                     and p.tensor.rpartition(".")[0] == parent
                     and (p.axis, p.index) == (place.axis, place.index)), 0)

    return {place: beside(place) if e is None else e for place, e in exponents.items()}


def _kind(space: WeightSpace, label: str) -> str:
    return space.group(label).kind


def _derivatives(
    program: Program, tagged: WeightSpace, seed: int, functionals: int
) -> Iterator[dict[int, Matrix]]:
    """For each of a few functionals of the outputs: derivative along log-scale, by exponent."""
    trial = Trial(program, tagged)
    trial.draw(seed, 1.0)
    state = {name: t.requires_grad_(t.is_floating_point()) for name, t in trial.state.items()}
    found = run_lifted(program, trial.values(state), _smooth)
    outputs = [o for o in found if isinstance(o, Tensor) and o.requires_grad]
    rng = torch.Generator().manual_seed(seed)
    names = [name for name, t in state.items() if t.requires_grad]
    for k in range(functionals if outputs else 0):
        noise = [torch.randn(o.shape, generator=rng, dtype=torch.float64) for o in outputs]
        total = torch.stack([(n * (o.real if o.is_complex() else o)).sum()
                             for n, o in zip(noise, outputs, strict=True)]).sum()
        grads = torch.autograd.grad(total, [state[n] for n in names], allow_unused=True,
                                    retain_graph=k + 1 < functionals)
        yield _columns(tagged, {n: g * state[n].detach() for n, g in zip(names, grads, strict=True)
                                if g is not None})


def _smooth(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation; a batch norm written out, for torch has no derivative by its statistics."""
    if op.family != "aten.batch_norm" or args[3] is None or args[5]:
        return lifted(op, args, kwargs)
    x, weight, bias, mean, variance = args[:5]
    shape = (1, -1) + (1,) * (x.ndim - 2)
    out = (x - mean.reshape(shape)) * (variance.reshape(shape) + args[7]).rsqrt()
    out = out if weight is None else out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


def _columns(tagged: WeightSpace, products: Mapping[str, Tensor]) -> dict[int, Matrix]:
    """``<gradient, tensor>`` summed over all but one digit (and its bases), by exponent."""
    found: dict[int, Matrix] = {}
    for name, product in products.items():
        for block in tagged.blocks(name):
            view = block.view(product.contiguous())
            for position, digit in enumerate(block.digits):
                if digit.label is None or digit.exponent < 2:
                    continue
                kept = (*digit.bases, position)
                rest = [i for i in range(view.ndim) if i not in kept]
                column = view.sum(rest) if rest else view
                # summing leaves the axes in the order of the view; a table is bases, then digit
                axes = sorted(kept)
                column = column.permute([axes.index(i) for i in kept]).reshape(-1)
                entry = column.detach().numpy()
                found[digit.exponent] = found.get(digit.exponent, 0.0) + entry
    return found


def _first_use(program: Program, space: WeightSpace) -> dict[str, int]:
    """Number of the operation that first uses each tensor."""
    owner = {s.ref.index: space.owner(program.aliases.get(s.name, s.name))
             for s in program.sources if s.name in program.tensors}
    found: dict[str, int] = {}
    for k, op in enumerate(program.ops):
        for at, ref in enumerate(op.refs()):
            if ref.index in owner:
                found.setdefault(owner[ref.index], 100 * k + at)
    return defaultdict(lambda: 100 * len(program.ops), found)


# ---------------------------------------------------------------- signs


def _signs(space: WeightSpace, label: str) -> Iterator[dict[_Place, int]]:
    """Patterns of signs that odd functions and norms allow."""
    places = [place for place, occ in _places(space) if occ.label == label]
    role = {p: space.tensor_meta(p.tensor).role for p in places}
    reads = {p for p in places if _reads(space, p)}
    even = {p for p in places if role[p] == "running_var"}
    gains = {p for p in places if role[p] == "norm_weight"}
    shifts = {p for p in places if role[p] == "norm_bias"}
    before, after = set(places) - even - gains, gains | shifts | reads
    patterns = [set(places) - even]
    if gains:  # of the signs before and after a norm the space keeps those after
        patterns += [after, before] if even else [before, after]
    for pattern in patterns:
        if pattern:
            yield {place: int(place in pattern) for place in places}
