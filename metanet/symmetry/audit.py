"""``audit``: numerical swaps on axes that are not free, in search of freedom that was missed.

``verify`` proves that what a space claims is true; an audit asks whether more is true. It takes
samples of what is fixed, and of digits that are tied over the index of another digit, moves them in
every tensor that has them, and runs the network. A swap that changes nothing although the entries
matter is freedom that the rules did not find. An audit is a test on samples, no proof that nothing
more is free: freedom that needs moves of several fixed digits at once is not seen. Digits that
were fixed because they do not fit together (a view across them, say) are all tried: there a rule
gave up, and only numbers tell whether their order counts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from metanet.symmetry.emit import emit
from metanet.symmetry.factor import Expr, Factor, atoms, is_fixed, leaves, length
from metanet.symmetry.fibre import settle
from metanet.symmetry.learned import codebooks
from metanet.symmetry.track import Tracked, running_statistics, track
from metanet.symmetry.verify import Trial
from metanet.trace.program import Program

_SAME = 1e-10
_PAIRS = 4
_DRAWS = 8
_DIFFERENT = 1e-8
_OTHERS = 6
_SCALES = (30.0, 3.0, 1.0, 0.3, 0.1)
_MISFIT = "digits do not fit"
_MISFITS = 64
"""How many digits that do not fit are tried at most."""


@dataclass(frozen=True, slots=True)
class Missed:
    """A swap of ``indices`` of a digit, in these tensors, that left every output unchanged."""

    tensors: tuple[str, ...]
    size: int
    indices: tuple[int, int]
    reason: str


@dataclass(frozen=True, slots=True)
class Audit:
    """How many digits were tried and which of them turned out to have missed freedom.

    ``doubtful`` counts digits that are fixed because they do not fit, of which no swap was seen to
    change an output.
    """

    tried: int
    missed: tuple[Missed, ...]
    doubtful: int = 0


@dataclass(frozen=True, slots=True)
class _Probe:
    """A digit to try, or several that may be the same one.

    ``base``, if any, is the digit at whose index 0 alone it is moved.
    """

    factor: frozenset[Factor]
    size: int
    base: Factor | None
    tensors: tuple[str, ...]
    reason: str

    @property
    def misfit(self) -> bool:
        """Whether a rule gave up here."""
        return len(self.factor) == 1 and self.reason.startswith(_MISFIT)


def audit_program(program: Program, most: int = 12, seed: int = 0) -> Audit:
    """Try up to ``most`` digits of a recorded program, one for each kind of reason first."""
    found = track(program)
    owners = [found.axes[name] for name in program.tensors if name not in program.aliases]
    settle(found.solver, owners, found.values)
    trial = Trial(program, emit(found))
    trial.draw(seed, 0.3)
    rng = random.Random(seed)
    probes = list(_probes(found))
    chosen = _chosen(probes, most, rng)
    chosen += [p for p in probes if p.misfit and p not in chosen][:_MISFITS]
    tried = [(probe, _try(trial, found, probe, rng)) for probe in chosen]
    hits = [(probe, hit) for probe, hit in tried if isinstance(hit, Missed)]
    pinned = {f for probe, hit in tried if hit is True for f in probe.factor}
    doubtful = [f for f in _misfits(found) if f not in pinned]
    for again in range(1, _DRAWS + 1):  # dead units, saturation, choices hide what a swap changes
        if not hits:
            break
        trial.draw(seed + again, 1.0 / again)
        hits = [(probe, hit) for probe, hit in hits
                if not _changes(trial, found, probe, hit.indices)]
    missed = [hit for probe, hit in hits if not _stirred(trial, found, probe, hit.indices)]
    return Audit(len(chosen), tuple(missed), len(doubtful))


def _misfits(found: Tracked) -> list[Factor]:
    """Digits of weights that are fixed because they do not fit."""
    weights = _weights(found.program)
    every = dict.fromkeys(leaf for name, axes in found.axes.items() if name in weights
                          for axis in axes for leaf in leaves(axis))
    return [leaf for leaf in every if leaf.size > 1 and (leaf.cause or "").startswith(_MISFIT)]


def _probes(found: Tracked) -> Iterator[_Probe]:
    program = found.program
    same = _guessed(found)
    weights = _weights(program)
    where: dict[Factor, dict[str, None]] = {}
    before: dict[Factor, list[set[Factor]]] = {}
    for name in program.tensors:
        if name in program.aliases:
            continue
        for axis in found.axes[name]:
            for leaf, over in _seen(axis):
                where.setdefault(leaf, {})[name] = None
                before.setdefault(leaf, []).append(over)
    for leaf, every in where.items():
        names = [name for name in every if name in weights]  # constants stay where they are
        if leaf.size < 2:
            continue
        if is_fixed(leaf):
            if not names or (leaf.cause or "").startswith("Python reads"):
                # Entries of a constant may be equal in the module at hand: no weight moves. And
                # what was recorded is the network only where Python reads the same values again.
                continue
            cause = leaf.cause or "a sum"
            yield _Probe(frozenset({leaf}), leaf.size, None, tuple(names), cause)
            together = frozenset(f for f in same.get(leaf, {leaf}) if f in where)
            if len(together) > 1:
                joined = dict.fromkeys(name for other in together for name in where[other])
                yield _Probe(together, leaf.size, None,
                             tuple(name for name in joined if name in weights), cause)
            continue
        known = set(leaf.bases)
        for base in set.intersection(*before[leaf]) - known:
            if not any(base is b for k in known for b in atoms((k,))):
                yield _Probe(frozenset({leaf}), leaf.size, base, tuple(names),
                             "one permutation for all of another digit")


def _weights(program: Program) -> set[str]:
    """Tensors of the state that training changes: all but buffers whose values are constants."""
    learned = running_statistics(program) | {ref.index for ref in codebooks(program)}
    constants = {s.name for s in program.sources
                 if s.kind != "parameter" and s.ref.index not in learned}
    return set(program.tensors) - constants


def _guessed(found: Tracked) -> dict[Factor, set[Factor]]:
    """Fixed digits that would be one if operations without a rule were entrywise."""
    groups: dict[Factor, set[Factor]] = {}
    for a, b in found.guesses:
        for x, y in zip(atoms(a), atoms(b), strict=False):
            if x.size != y.size or x is y or not (is_fixed(x) and is_fixed(y)):
                continue
            joined = groups.get(x, {x}) | groups.get(y, {y})
            groups |= dict.fromkeys(joined, joined)
    return groups


def _seen(
    axis: Expr, over: frozenset[Factor] = frozenset()
) -> Iterator[tuple[Factor, set[Factor]]]:
    """Digits of an axis outside cases, each with the digits before it."""
    so_far = set(over)
    for atom in atoms(axis):
        if atom.cases is not None:
            continue
        if atom.blocks is not None:
            for block in atom.blocks:
                yield from _seen(block, frozenset(so_far))
            continue
        yield atom, set(so_far)
        so_far.add(atom)


def _chosen(probes: list[_Probe], most: int, rng: random.Random) -> list[_Probe]:
    """One of each kind of reason, then others."""
    rng.shuffle(probes)
    kinds: dict[str, list[_Probe]] = {}
    for probe in probes:
        kinds.setdefault(_kind(probe.reason), []).append(probe)
    turns = max((len(group) for group in kinds.values()), default=0)
    ordered = [group[k] for k in range(turns) for group in kinds.values() if k < len(group)]
    return ordered[:most]


def _kind(reason: str) -> str:
    """A reason without names of layers and numbers."""
    return re.sub(r"\(.*?\)|'.*?'|\d+", "", reason)


def _try(trial: Trial, found: Tracked, probe: _Probe, rng: random.Random) -> Missed | bool:
    """Swaps until one changes an output (True: nothing is missed) or one of live entries does not.

    False where nothing was seen: no swap changed an output, nor did other values.
    """
    for _ in range(_PAIRS):
        pair = tuple(sorted(rng.sample(range(probe.size), 2)))
        if _changes(trial, found, probe, pair):
            return True
        noisy = (_noisy(trial.state, found, probe, index) for index in pair)
        if all(trial.error(state) > _DIFFERENT for state in noisy):
            return Missed(probe.tensors, probe.size, (pair[0], pair[1]), probe.reason)
    return False


def _stirred(trial: Trial, found: Tracked, probe: _Probe, pair: tuple[int, int]) -> bool:
    """Whether a swap counts after all, at weights at which its entries are likelier to be chosen.

    A swap of two that are never the largest changes nothing. So the entries of others are put in
    their place, or noise is added to them. Where what was recorded cannot be run to its end there,
    because sizes depend on the choice, those sizes tell: a symmetry moves entries of the values
    inside a network and leaves their sizes. What is rounded hides small changes from the outputs,
    so its values are compared before: a symmetry at most moves them.
    """
    before = trial.state
    table = _swapped(probe.size, pair)
    if rounds_differently(trial, _moved(before, found, probe, table)):
        return True
    try:
        return any(
            _counts(trial, found, probe, table) if trial.take(point) else
            trial.sizes(point) != trial.sizes(_moved(point, found, probe, table))
            for point in _points(before, found, probe, pair))
    finally:
        trial.take(before)


def rounds_differently(trial: Trial, moved: Mapping[str, Tensor]) -> bool:
    """Whether other numbers are rounded after a move."""
    before, after = trial.rounded(trial.state), trial.rounded(moved)
    return len(before) != len(after) or any(
        one.shape != other.shape or not torch.allclose(one, other, rtol=_DIFFERENT, atol=_DIFFERENT)
        for one, other in zip(before, after, strict=True))


def _counts(trial: Trial, found: Tracked, probe: _Probe, table: Int[np.ndarray, " n"]) -> bool:
    """Whether a move changes an output, by more than rounding does at weights of any size."""
    error = trial.error(_moved(trial.state, found, probe, table))
    if not np.isfinite(error):
        return bool(trial.program.recorded)
    return error > max(_SAME, 1e3 * trial.noise(0))


def _points(state: Mapping[str, Tensor], found: Tracked, probe: _Probe, pair: tuple[int, int]
            ) -> Iterator[dict[str, Tensor]]:
    """Weights with noise at two indices of a digit, or with the entries of a third in one place."""
    for seed, scale in enumerate(_SCALES * _OTHERS):
        point = dict(state)
        for k, index in enumerate(pair):
            point = _noisy(point, found, probe, index, scale, 2 * seed + k)
        yield point
    for other in [k for k in range(probe.size) if k not in pair][:_OTHERS]:
        yield _moved(state, found, probe, _swapped(probe.size, (pair[0], other)))


def _swapped(size: int, pair: Sequence[int]) -> Int[np.ndarray, " n"]:
    table = np.arange(size)
    table[list(pair)] = table[list(reversed(pair))]
    return table


def _changes(trial: Trial, found: Tracked, probe: _Probe, pair: Sequence[int]) -> bool:
    table = _swapped(probe.size, pair)
    return trial.error(_moved(trial.state, found, probe, table)) > _SAME


def _moved(state: Mapping[str, Tensor], found: Tracked, probe: _Probe,
           table: Int[np.ndarray, " n"]) -> dict[str, Tensor]:
    moved = dict(state)
    for name in probe.tensors:
        for at, axis in enumerate(found.axes[name]):
            index, _ = _source(axis, probe.factor, probe.base, table)
            moved[name] = moved[name].index_select(at, torch.from_numpy(index))
    return moved


def _noisy(state: Mapping[str, Tensor], found: Tracked, probe: _Probe, index: int,
           scale: float = 1.0, seed: int = 1) -> dict[str, Tensor]:
    """All entries at one index of the digit changed."""
    rng = torch.Generator().manual_seed(seed)
    moved = dict(state)
    for name in probe.tensors:
        for at, axis in enumerate(found.axes[name]):
            _, hit = _source(axis, probe.factor, probe.base, np.arange(probe.size), index)
            if hit.any():
                tensor = moved[name].clone()
                rows = torch.from_numpy(np.flatnonzero(hit))
                part = tensor.index_select(at, rows)
                noise = torch.randn(part.shape, generator=rng, dtype=part.dtype)
                moved[name] = tensor.index_copy(at, rows, part + scale * noise)
    return moved


def _source(
    expr: Expr, factor: frozenset[Factor], base: Factor | None, table: Int[np.ndarray, " n"],
    index: int = -1,
) -> tuple[Int[np.ndarray, " m"], np.ndarray]:
    """For each place of an axis, the place to read; and which places have ``index``."""
    digits = atoms(expr)
    source = np.zeros(1, dtype=np.int64)
    hit = np.zeros(1, dtype=bool)
    first = np.ones(1, dtype=bool)  # where the base has index 0
    for atom in digits:
        own, here = _own(atom, factor, base, table, index)
        rows = np.repeat(source, atom.size) * atom.size
        hit, first = np.repeat(hit, atom.size), np.repeat(first, atom.size)
        tiled = np.tile(own, len(source))
        if atom in factor and base is not None:
            tiled = np.where(first, tiled, np.tile(np.arange(atom.size), len(source)))
        hit = hit | (np.tile(here, len(source)) & (first if atom in factor else True))
        if atom is base:
            first = first & np.tile(np.arange(atom.size) == 0, len(source))
        source = rows + tiled
    return source, hit


def _own(atom: Factor, factor: frozenset[Factor], base: Factor | None,
         table: Int[np.ndarray, " n"], index: int) -> tuple[Int[np.ndarray, " n"], np.ndarray]:
    if atom in factor:
        return table, np.arange(atom.size) == index
    if atom.blocks is None or not any(leaf in factor for leaf in leaves((atom,))):
        return np.arange(atom.size), np.zeros(atom.size, dtype=bool)
    return _joined(atom.blocks, factor, base, table, index)


def _joined(blocks: Sequence[Expr], factor: frozenset[Factor], base: Factor | None,
            table: Int[np.ndarray, " n"], index: int) -> tuple[Int[np.ndarray, " m"], np.ndarray]:
    sources, hits, start = [], [], 0
    for block in blocks:
        source, hit = _source(block, factor, base, table, index)
        sources.append(source + start)
        hits.append(hit)
        start += length(block)
    return np.concatenate(sources), np.concatenate(hits)
