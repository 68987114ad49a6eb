"""``verify``: numerical proof that a space's group leaves a network's function unchanged.

The recorded program is run, never the module (which may keep caches), in float64 with its casts
lifted, with parameters and running statistics randomised, for fresh initialisation hides wrong
permutations behind zeros and ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metanet.errors import SpaceMismatch
from metanet.symmetry.action import act
from metanet.symmetry.element import GroupElement, table_shape
from metanet.symmetry.group import Group
from metanet.symmetry.infer import record
from metanet.symmetry.kinds import ROTATING, SCALING
from metanet.symmetry.narrow import trivial
from metanet.symmetry.randomise import fill, inputs
from metanet.symmetry.rerun import Rerun
from metanet.symmetry.rotations import random_rotation
from metanet.symmetry.rules.source import CHECKS
from metanet.symmetry.space import WeightSpace
from metanet.trace.program import Call, Op, Program, substitute_leaves

TOLERANCE = 1e-10
"""Largest relative change of an output that counts as rounding."""
AMPLIFIED = "the network amplifies rounding errors whatever the size of its weights"
"""Remark on a change of the outputs that rounding of the weights makes as well."""
_DETECTED = 1e-8
_ROUNDING = frozenset(f"aten.{op}" for op in ("ceil", "floor", "round", "trunc", "fix"))
_SILENT = 1e-12
_STEPS = (0.1, 1e-2, 1e-3, 1e-5)
_FAILURES = (RuntimeError, IndexError, ValueError)
_GAINS = (1.0, 0.3, 0.1)
_RETRIES = (0.3, 1.0, 0.5, 2.0, 1.0, 0.3, 1.0)
"""Gains of further draws for controls that nobody heard: a saturated softmax hides its inputs, and
a choice of the largest few hides what does not change the choice."""


@dataclass(frozen=True, slots=True)
class Controls:
    """Negative controls: each live group that occurs in several tensors is moved in one alone.

    ``total`` such groups, ``detected`` those whose move changed an output; ``dead`` groups, which
    no output depends on, silent ones included, and ``single`` groups in one tensor only, or in
    one that matters beside silent ones, are counted and not tried.
    """

    total: int
    detected: int
    dead: int
    single: int


@dataclass(frozen=True, slots=True)
class Verification:
    """What was tried and what came out; ``ok`` needs every part of it.

    ``silent`` lists groups of which no move shows because no output depends on them (queries and
    keys of attention to values that are all alike): all their weights were replaced by others, on
    three draws, and nothing changed. They count as dead, except where inputs of larger sizes
    might wake them (a softmax over one entry): then they count as undetected.
    """

    ok: bool
    max_error: float
    samples: int
    dtype: str
    controls: Controls
    undetected: tuple[str, ...] = ()
    empty: bool = False
    notes: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()

    def report(self) -> str:
        """A few lines for people."""
        c = self.controls
        lines = [
            "verified" if self.ok else "NOT VERIFIED",
            f"  {self.samples} random elements change the outputs by at most "
            f"{self.max_error:.1e} (relative, {self.dtype})",
            f"  negative controls: {c.detected} of {c.total} detected; {c.single} groups in one "
            f"tensor only, {c.dead} dead",
        ]
        if self.undetected:
            lines.append(f"  undetected: {', '.join(self.undetected)}")
        if self.silent:
            lines.append(f"  nothing depends on: {', '.join(self.silent)}")
        if self.empty:
            lines.append("  the space has no live group although the network has hidden layers: "
                         "nothing was proved")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(self.report())}</pre>"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"undetected": list(self.undetected), "notes": list(self.notes),
                               "silent": list(self.silent)}


def verify(
    module: nn.Module, space: WeightSpace, example_inputs: Any = None, samples: int = 3,
    seed: int = 0,
) -> Verification:
    """Try ``samples`` random elements on random weights, and one negative control per group.

    Args:
        module: the network; its own weights do not matter and are not touched.
        space: any space of its tensors, inferred or written by hand.
        example_inputs: as for ``infer``.
        samples: number of (weights, element) pairs.
        seed: of the random numbers.

    Raises:
        SpaceMismatch: the space is about other tensors.
        TraceError: the forward cannot be recorded.
    """
    return verify_program(record(module, example_inputs), space, samples, seed)


def verify_program(
    program: Program, space: WeightSpace, samples: int = 3, seed: int = 0
) -> Verification:
    """``verify`` for a recorded program."""
    check_names(program, space)
    trial = Trial(program, space)
    error, notes = 0.0, []
    for sample in range(max(samples, 1)):
        found, note = trial.invariance(seed + sample)
        error = max(error, found)
        notes += [note] if note else []
    live = [group for group in space.groups if not group.dead]
    several = [group for group in live if len(group.tensors) > 1]
    missed = [group for group in several if not trial.control(group, error)]
    silent = [group for group in missed if trial.silent(group, seed)]
    for retry, gain in enumerate(_RETRIES):
        if missed and (retry < 2 or len(silent) < len(missed)):
            trial.draw(seed + 1000 + retry, gain)
            missed = [group for group in missed if not trial.control(group, error)]
            silent = [group for group in silent if trial.silent(group, seed + retry)]
    unread = () if trivial(program) else tuple(group.label for group in silent)
    lone = {group.label for group in missed if group.label not in unread
            and not trivial(program) and trial.alone(group, seed)}
    undetected = tuple(group.label for group in missed if group.label not in {*unread, *lone})
    total = len(several) - len(unread) - len(lone)
    heard = len(live) > len(unread)
    empty = not heard and sum(len(spec.shape) > 1 for spec in space.tensors.values()) > 1
    controls = Controls(total, total - len(undetected),
                        len(space.groups) - len(live) + len(unread),
                        len(live) - len(several) + len(lone))
    ok = error <= TOLERANCE and not undetected and not empty
    return Verification(ok, error, max(samples, 1), "float64", controls, undetected, empty,
                        tuple(dict.fromkeys(notes)), unread)


def check_names(program: Program, space: WeightSpace) -> None:
    """Names and shapes of the space and of the program must be the same."""
    known = {*space.tensors, *space.aliases}
    classes: dict[str, list[str]] = {}
    for name in program.tensors:
        classes.setdefault(program.aliases.get(name, name), []).append(name)
    missing = [names[0] for names in classes.values() if not known.intersection(names)]
    extra = sorted(known - program.tensors.keys())
    if missing or extra:
        raise SpaceMismatch(
            f"the space and the network have different tensors: {_few(missing)} only in the "
            f"network, {_few(extra)} only in the space. Infer the space from this network."
        )
    for name in known:
        expected, found = program.tensors[name][0], space.tensors[space.owner(name)].shape
        if expected != found:
            raise SpaceMismatch(f"tensor {name!r} has shape {expected} in the network and {found} "
                                "in the space")
    for names in classes.values():
        owners = {space.owner(name) for name in names if name in known}
        if len(owners) > 1:
            raise SpaceMismatch(
                f"{' and '.join(map(repr, sorted(owners)))} are one tensor in the network and two "
                f"in the space: write '{sorted(owners)[1]} = {sorted(owners)[0]}' there"
            )


def _few(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:4])) or "none"
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


class Trial:
    """One program with one set of random values at a time."""

    def __init__(self, program: Program, space: WeightSpace) -> None:
        self.program = program
        self.space = space
        self.gain = _GAINS[0]
        self.state: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        self.output: list[Tensor] = []
        self.rerun = Rerun(program)
        self.owners = {program.aliases.get(n, n): space.owner(n)
                       for n in (*space.tensors, *space.aliases)}

    def invariance(
        self, seed: int, element: GroupElement | None = None
    ) -> tuple[float, str | None]:
        """Largest relative change of an output under an element (a random one), and a remark.

        Weights that make the network amplify rounding errors prove nothing: where a change is no
        larger than what a perturbation by one part in 1e15 does, smaller weights are taken.
        """
        note = None
        for gain in [g for g in _GAINS if g <= self.gain]:
            self.gain = gain
            self.draw(seed, gain)
            error = self.error(self._moved(element or self.space.random(seed)))
            if error <= TOLERANCE or not self._unstable(error, seed):
                return error, note
            note = f"weights were scaled by {gain / 3:.1g} or less: the network amplifies rounding"
        return error, AMPLIFIED if error <= 100 * self.noise(seed) else note

    def control(self, group: Group, noise: float) -> bool:
        """Whether moving a group in one tensor alone changes an output, for some tensor."""
        element = self._cycle(group)
        least = max(_DETECTED, 1e3 * noise if np.isfinite(noise) else 0.0)
        for name in group.tensors:
            moved = dict(self.state)
            moved[name] = act(element, name, self.state[name])
            if not self.error(moved) <= least:
                return True
        return False

    def alone(self, group: Group, seed: int) -> bool:
        """Whether all tensors of a group but one are silent, so that there is nothing to control.

        A bias that the next norm takes away is moved or not: no output tells.
        """
        heard = [name for name in group.tensors if not self.silent(group, seed, (name,))]
        if len(heard) > 1:
            return False
        for retry, gain in enumerate(_GAINS):
            self.draw(seed + 2000 + retry, gain)
            rest = tuple(name for name in group.tensors if name not in heard)
            if rest and not self.silent(group, seed + retry, rest):
                return False
        return len(heard) == 1

    def silent(self, group: Group, seed: int, names: Sequence[str] | None = None) -> bool:
        """Whether other values at all places of a group, in all its tensors or in some of them,
        change nothing but rounding."""
        other = fill(self.program, torch.Generator().manual_seed(seed + 7919), _GAINS[1])
        drawn = {owner: other[name] for name, owner in self.owners.items()}
        element = GroupElement(self.space, self._cycle(group).tables)
        state, count = dict(self.state), 0
        for name in group.tensors if names is None else names:
            places = torch.arange(state[name].numel()).reshape(state[name].shape)
            moved = act(element, name, places) != places
            count += int(moved.sum())
            state[name] = torch.where(moved, drawn[name], state[name])
        return count > 0 and self.error(state) <= _SILENT

    def _cycle(self, group: Group) -> GroupElement:
        """One step of every index of a group; a random turn of one that turns."""
        shape = table_shape(self.space, group)
        if group.kind in ROTATING:
            turn = random_rotation(group.kind, group.size, np.random.default_rng(0))
            return GroupElement(self.space, values={
                group.label: np.broadcast_to(turn, (*shape, group.size))})
        table = np.broadcast_to(np.roll(np.arange(group.size), 1), shape).copy()
        values = {}
        if group.kind in SCALING:
            values[group.label] = np.full(shape, -1.0 if group.kind == "signed" else 2.0)
        return GroupElement(self.space, {group.label: table}, values)

    def draw(self, seed: int, gain: float) -> None:
        """Take new weights and inputs."""
        rng = torch.Generator().manual_seed(seed)
        drawn = fill(self.program, rng, gain)
        self.state = {space: drawn[name] for name, space in self.owners.items()}
        self.given = inputs(self.program, rng)
        try:
            self._first()
        except _FAILURES:
            if not self.program.recorded:
                raise
            self._draw_near(rng)

    def take(self, state: Mapping[str, Tensor]) -> bool:
        """Go on from these weights, if what was recorded can be run with them."""
        before, self.state = self.state, dict(state)
        try:
            self._first()
        except _FAILURES:
            self.state = before
            self._first()
            return False
        return True

    def sizes(self, state: Mapping[str, Tensor]) -> list[list[torch.Size]]:
        """Sizes of all that is made with these weights, until something cannot be run."""
        found: list[list[torch.Size]] = []

        def noted(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = lifted(op, args, kwargs)
            found.append([t.shape for t in (out if isinstance(out, (tuple, list)) else (out,))
                          if isinstance(t, Tensor)])
            return out

        self._watched(state, noted)
        return found

    def rounded(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """All that is rounded to whole numbers with these weights, sorted, as far as they run."""
        found: list[Tensor] = []

        def noted(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if op.family in _ROUNDING:
                found.append(args[0].double().flatten().sort().values)
            return lifted(op, args, kwargs)

        self._watched(state, noted)
        return found

    def _watched(self, state: Mapping[str, Tensor], call: Call) -> None:
        """Run until something cannot be run."""
        with suppress(*_FAILURES), torch.no_grad():
            run_lifted(self.program, self.values(state), call)

    def _first(self) -> None:
        with torch.no_grad(), _lifting():
            self.output = _tensors(self.rerun.run(self.values(self.state), lifted))

    def _draw_near(self, rng: torch.Generator) -> None:
        """Weights near those of the recording, where sizes that depend on values are the same.

        Never those of the recording themselves, whose zeros and ones would hide wrong claims.
        """
        self.given = {s.name: widened(s.value) for s in self.program.sources
                      if s.value is not None and s.name not in self.program.tensors}
        recorded = {space: widened(self.program.recorded[name])
                    for name, space in self.owners.items()}
        noise = {name: torch.randn(t.shape, generator=rng, dtype=torch.float64)
                 for name, t in recorded.items()}
        for step in _STEPS:
            self.state = {name: t * (1 + step * noise[name]) + 0.1 * step * noise[name]
                          for name, t in recorded.items()}
            try:
                self._first()
            except _FAILURES:
                if step == _STEPS[-1]:
                    raise
            else:
                return

    def _moved(self, element: GroupElement) -> dict[str, Tensor]:
        return {name: act(element, name, tensor) for name, tensor in self.state.items()}

    def _run(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        moved = frozenset(name for name in self.program.tensors
                          if state[self._owner(name)] is not self.state[self._owner(name)])
        with torch.no_grad(), _lifting():
            return _tensors(self.rerun.again(self.values(state), moved, lifted))

    def values(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of all sources of the program, for weights by the names of the space."""
        return dict(self.given) | {name: state[self._owner(name)]
                                   for name in self.program.tensors}

    def _owner(self, name: str) -> str:
        return self.owners[self.program.aliases.get(name, name)]

    def error(self, state: Mapping[str, Tensor]) -> float:
        """Largest relative change of an output when these are the weights.

        Infinite where what was recorded cannot be run with them: sizes depend on values.
        """
        try:
            found = self._run(state)
        except _FAILURES:
            if not self.program.recorded:
                raise
            return float("inf")
        return max((relative_change(a, b) for a, b in zip(self.output, found, strict=True)),
                   default=0.0)

    def _unstable(self, error: float, seed: int) -> bool:
        return not np.isfinite(error) or error <= 100 * self.noise(seed)

    def noise(self, seed: int) -> float:
        """Largest change of an output when the weights change by one part in 1e15."""
        rng = torch.Generator().manual_seed(seed + 1)
        noisy = {
            name: t * (1 + 1e-15 * torch.randn(t.shape, generator=rng, dtype=t.dtype))
            for name, t in self.state.items()
        }
        return self.error(noisy)


def run_doubled(program: Program, values: Mapping[str, Tensor]) -> list[Any]:
    """Outputs of a program on float64 values, with its casts lifted."""
    with torch.no_grad():
        return run_lifted(program, values, lifted)


def run_lifted(program: Program, values: Mapping[str, Tensor], call: Call) -> list[Any]:
    """Outputs of a program whose operations ``call`` runs, with the same noise each time."""
    with _lifting():
        return program.run(values, call)


@contextmanager
def _lifting() -> Iterator[None]:
    with _double_by_default(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def widened(value: Tensor) -> Tensor:
    """Floats in float64, complex in complex128; all else as it is."""
    value = value.detach()
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value


def relative_change(a: Tensor, b: Tensor) -> float:
    """Largest change of an entry over the largest entry; infinite for values that are not finite.

    Integers and booleans change by 1 or not at all.
    """
    if a.shape != b.shape:
        return float("inf")
    if not (a.is_floating_point() or a.is_complex()):
        return float(not torch.equal(a, b))
    if a.numel() == 0:
        return 0.0
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0 if bool((~a.isnan()).any()) else float("inf")
    a, b = a[~same], b[~same]
    change = (a - b).abs().max().item()
    scale = max(a.abs().max().item(), b.abs().max().item())
    return change / scale if np.isfinite(change) and np.isfinite(scale) else float("inf")


def lifted(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation with every cast to a smaller float made a cast to float64."""
    if op.family in CHECKS:
        return None
    args, kwargs = substitute_leaves((args, kwargs), torch.dtype, _wide)
    return op.function(*args, **kwargs)


def _wide(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


@contextmanager
def _double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
