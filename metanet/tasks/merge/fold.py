"""Folding: gains of norms into the layers that read them, so that a residual stream may turn.

A pre-norm residual stream is written by linear layers, read through norms, and added up. Once the
gains of the norms are part of the readers, an RMSNorm commutes with every orthogonal map of the
stream, a LayerNorm with every one that keeps the ones (it takes the mean along the ones away):
kinds ``O`` and ``O1`` (Ashkboos et al., "SliceGPT", ICLR 2024, who fold the centring as well; here
the network stays as it is). Values of a head may turn (``O``) against its rows of the output layer,
queries against keys, and with rotary positions each pair of them (``SO``).

Nothing is taken for granted from names or operations: every kind is tried, and kept only if random
elements then leave the network unchanged, in float64, on random weights with unit gains.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint.names import printable
from metanet.errors import SymmetryError
from metanet.symmetry import Group, GroupElement, TensorSpec, WeightSpace
from metanet.symmetry.axis import Axis, Fixed, Occ, Prod, map_leaves, occurrences, tidy
from metanet.symmetry.enlarge import enlarge
from metanet.symmetry.verify import TOLERANCE, Trial, relative_change
from metanet.tasks.merge.norms import Norm, norms
from metanet.tasks.merge.runner import Runner
from metanet.trace.program import Program

_LEAST = 1e-6
"""A gain below this share of the largest cannot be divided by."""


@dataclass(frozen=True, eq=False)
class Folded:
    """A network whose streams may turn.

    ``runner`` runs it: the module with its tied weights untied, in ``runner.space``, the space
    of folded weights. ``apply`` folds a model; it computes what it did before.
    """

    runner: Runner
    norms: tuple[Norm, ...]
    ties: Mapping[str, str]

    @property
    def space(self) -> WeightSpace:
        """Of folded weights; norms are constants in it."""
        return self.runner.space

    def apply(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model with all gains 1, tied weights untied and the same outputs.

        Raises:
            SymmetryError: a gain is zero (next to the others) where the shift cannot be moved
                into biases.
        """
        out = {name: tensor.detach() for name, tensor in state_dict.items()}
        for name, owner in self.ties.items():
            known = out.get(name, out.get(owner))
            if known is None:
                raise SymmetryError(f"tensor {printable(owner)} of the network is missing")
            out[name], out[owner] = known.clone(), out.get(owner, known)
        for norm in self.norms:
            _fold(out, norm)
        return out

    def error(self, state_dict: Mapping[str, Tensor]) -> float:
        """Largest relative change of an output by folding, in float64, on the example inputs."""
        wide = {k: v.double() if v.is_floating_point() else v for k, v in state_dict.items()}
        tied = wide | {n: wide[o] for n, o in self.ties.items() if n not in wide}
        before, after = self.runner.doubled([tied, self.apply(wide)], self.runner.sample)
        return relative_change(before, after)


def _fold(out: dict[str, Tensor], norm: Norm) -> None:
    gain = out[norm.gain].double()
    shift = None if norm.shift is None else out[norm.shift].double()
    biased = all(reader.bias for reader in norm.readers)
    for reader in norm.readers:
        weight = out[reader.weight]
        wide = weight.double().movedim(reader.axis, -1)
        out[reader.weight] = (wide * gain).movedim(-1, reader.axis).to(weight.dtype)
        if shift is not None and biased:
            bias = out[str(reader.bias)]
            out[str(reader.bias)] = (bias.double() + wide @ shift).to(bias.dtype)
    out[norm.gain] = torch.ones_like(out[norm.gain])
    if norm.shift is None or shift is None:
        return
    if not biased and bool((gain.abs() < _LEAST * gain.abs().max()).any()):
        raise SymmetryError(f"{printable(norm.gain)} has a gain of about zero, and what reads it "
                            "has no bias to take the shift; this model cannot be folded")
    rest = torch.zeros_like(gain) if biased else shift / gain
    out[norm.shift] = rest.to(out[norm.shift].dtype)


def fold(module: nn.Module, example_inputs: Any = None) -> Folded:
    """Find the streams, heads and pairs of a network that may turn, and how to fold its models.

    Args:
        module: the network; its weights do not matter and are not touched.
        example_inputs: as for ``metanet.infer``; the proofs run on inputs of this shape.

    Raises:
        SymmetryError: no pre-norm residual stream, or none that random elements confirm.
    """
    plain = Runner(_untied(module), None, example_inputs)
    program = plain.program(plain.sample)
    found = norms(program, plain.space)
    scaled = enlarge(program, plain.space, ("positive",))
    space = _turning(program, _constant(scaled, found), found)
    runner = Runner(plain.module, space.with_status("verified"), plain.example)
    return Folded(runner, found, _ties(module))


def _ties(module: nn.Module) -> dict[str, str]:
    """Second names of tied parameters -> first names."""
    first: dict[int, str] = {}
    return {name: first[id(p)] for name, p in module.named_parameters(remove_duplicate=False)
            if first.setdefault(id(p), name) != name}


def _untied(module: nn.Module) -> nn.Module:
    """A copy in which each tied parameter is one of its own."""
    made = copy.deepcopy(module)
    for name in _ties(made):
        path, _, leaf = name.rpartition(".")
        holder = made.get_submodule(path)
        setattr(holder, leaf, nn.Parameter(getattr(holder, leaf).detach().clone()))
    return made


# ---------------------------------------------------------------- the space


def _constant(space: WeightSpace, found: Sequence[Norm]) -> WeightSpace:
    """Folded gains, and shifts that became zero, are constants: no group acts on them."""
    still = {norm.gain for norm in found} | {
        str(norm.shift) for norm in found if all(r.bias for r in norm.readers)}
    specs = {name: replace(spec, axes=(Fixed(spec.shape[0]),)) if name in still else spec
             for name, spec in space.tensors.items()}
    return _space(space, (*space.groups, *space.fixed), specs)


def _space(
    space: WeightSpace, groups: Sequence[Group], specs: Mapping[str, TensorSpec]
) -> WeightSpace:
    used = {occ.label for spec in specs.values() for axis in spec.axes for occ in occurrences(axis)}
    return WeightSpace([g for g in groups if g.label in used], specs, space.aliases,
                       status=space.status, meta=space.meta)


def _turning(program: Program, space: WeightSpace, found: Sequence[Norm]) -> WeightSpace:
    """The space with all kinds that hold; raises SymmetryError where no stream turns."""
    streams = {norm.label for norm in found}
    for label in streams:
        best = next((s for kind in ("O", "O1") if _holds(
            program, s := _with_kind(space, label, kind), found, (label,))), None)
        if best is None:
            raise SymmetryError(f"the stream {label} looks like one that may turn once gains are "
                                "folded, but random rotations change the outputs (a gain that is "
                                "stored less 1, say); align without rotation")
        space = best
    bases = {base for group in space.groups for base in group.over}
    for group in space.groups:
        if group.over and group.label not in bases and not group.dead:
            trial = _with_kind(space, group.label, "O")
            space = trial if _holds(program, trial, found, (group.label,)) else space
    for group in space.groups:
        if group.kind == "positive":  # scales are not aligned, but signs that stand with them are
            signed = _with_kind(space, group.label, "signed", whole=False)
            space = signed if _holds(program, signed, found, (group.label,)) else _with_kind(
                space, group.label, "S")
    for head, size, where in _frozen_digits(space):
        for halves in (True, False):
            trial, label = _paired(space, head, size, where, halves)
            if _holds(program, trial, found, (label,)):
                space = trial
                break
    if not _holds(program, space, found):
        raise SymmetryError("each group turns alone, but not all together; align without rotation")
    return space


def _with_kind(space: WeightSpace, label: str, kind: str, whole: bool = True) -> WeightSpace:
    """The space with another kind of one group; ``whole`` lets it act wherever it stands."""
    def leaf(node: Occ | Fixed) -> Axis:
        if whole and isinstance(node, Occ) and node.label == label:
            return replace(node, exponent=1)
        return node

    groups = [replace(g, kind=kind) if g.label == label else g
              for g in (*space.groups, *space.fixed)]
    specs = {name: replace(spec, axes=tuple(map_leaves(axis, leaf) for axis in spec.axes))
             for name, spec in space.tensors.items()}
    return _space(space, groups, specs)


def _frozen_digits(space: WeightSpace) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Frozen even digits that end a head in several tensors: head, size, (tensor, axis)s."""
    places: dict[tuple[str, int], list[tuple[str, int]]] = defaultdict(list)
    for name, spec in space.tensors.items():
        for at, axis in enumerate(spec.axes):
            last = axis.parts[-1] if isinstance(axis, Prod) else None
            if isinstance(last, Fixed) and last.size % 2 == 0:
                for occ in occurrences(axis):
                    places[occ.label, last.size].append((name, at))
    return [(head, size, where) for (head, size), where in places.items() if len(where) > 1]


def _paired(
    space: WeightSpace, head: str, size: int, where: Sequence[tuple[str, int]], halves: bool
) -> tuple[WeightSpace, str]:
    """The space in which these digits are pairs that turn, and the label of their turn.

    A pair is the same place of both halves of the digit, or two neighbours.
    """
    pairs, turn = f"{head}_pairs{size}", f"{head}_turn{size}"
    over = (*space.group(head).over, head, pairs)
    specs = dict(space.tensors)
    for name, at in where:
        axes = list(specs[name].axes)
        head_digits = axes[at].parts[:-1]  # type: ignore[union-attr]  # a product, as was seen
        two = (Occ(turn, over, at), Occ(pairs))
        axes[at] = tidy(Prod((*head_digits, *(two if halves else two[::-1]))))
        specs[name] = replace(specs[name], axes=tuple(axes))
    groups = (*space.groups, *space.fixed, Group(turn, 2, "SO", over),
              Group(pairs, size // 2, "fixed", reason="pairs of rotary positions"))
    return _space(space, groups, specs), turn


# ---------------------------------------------------------------- proof


class _Unit(Trial):
    """A trial on weights with unit gains, and no shifts where these are folded."""

    def __init__(self, program: Program, space: WeightSpace, found: Sequence[Norm]) -> None:
        super().__init__(program, space)
        self.norms = found

    def draw(self, seed: int, gain: float) -> None:
        """Take new weights; those of the norms are what folding makes of them."""
        super().draw(seed, gain)
        for norm in self.norms:
            self.state[norm.gain] = torch.ones_like(self.state[norm.gain])
            if norm.shift is not None and all(reader.bias for reader in norm.readers):
                self.state[norm.shift] = torch.zeros_like(self.state[norm.shift])
        self._first()


def _holds(
    program: Program, space: WeightSpace, found: Sequence[Norm], labels: Sequence[str] = ()
) -> bool:
    """Whether random elements of some groups, by default of all, change nothing."""
    trial = _Unit(program, space, found)
    for seed in range(2):
        element = space.random(seed)
        if labels:
            element = GroupElement(space, values={k: element.values[k] for k in labels})
        if trial.invariance(seed, element)[0] > TOLERANCE:
            return False
    return True
