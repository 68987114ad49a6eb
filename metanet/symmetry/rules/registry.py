"""Which rule reads which operation; users add theirs with ``rule``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from metanet.errors import SymmetryError

Rule = Callable[..., Any]
F = TypeVar("F", bound=Rule)

_OPS: dict[str, Rule] = {}
_MODULES: dict[str, Rule] = {}
_UNIFORM: set[str] = set()


@dataclass(frozen=True, slots=True)
class Coverage:
    """Names of the operations and module classes that have a rule."""

    ops: tuple[str, ...]
    modules: tuple[str, ...]


def rule(*targets: str | type, uniform: bool = False) -> Callable[[F], F]:
    """Register how an operation (or a whole module) carries symmetry.

    Args:
        targets: ``"namespace.op"`` or ``"namespace.op.overload"`` of operations, or module
            classes, whose inner operations are then not looked at.
        uniform: whether constant inputs give a constant output (pointwise and shape operations).

    An operation's rule is called as ``rule(ctx, *args, **kwargs)`` with a ``Value`` in place of
    each tensor, a module's as ``rule(ctx, inputs, parameters)`` with lists and a dict of values
    by name inside the module. It ties axes through ``ctx`` and returns the axes of the output
    (a sequence of axes, a ``Value``, or a tuple of ``Value`` for several outputs). Raising
    ``ctx.refuse(why)`` freezes everything that the operation touches.

    >>> @rule("mylib.scale_rows")
    ... def scale_rows(ctx, x, w):
    ...     ctx.tie(x.axes[-1], w.axes[0])
    ...     return x.axes
    """
    if not targets or not all(isinstance(target, (str, type)) for target in targets):
        raise SymmetryError(
            f"rule{targets!r}: name an operation like 'mylib.op' or give a module class"
        )

    def register(function: F) -> F:
        for target in targets:
            if isinstance(target, str):
                _OPS[target] = function
                if uniform:
                    _UNIFORM.add(target)
            else:
                _MODULES[f"{target.__module__}.{target.__qualname__}"] = function
        return function

    return register


def forget(*targets: str | type) -> None:
    """Take rules back."""
    for target in targets:
        if isinstance(target, str):
            _OPS.pop(target, None)
            _UNIFORM.discard(target)
        else:
            _MODULES.pop(f"{target.__module__}.{target.__qualname__}", None)


def rule_for(name: str, family: str) -> Rule | None:
    """The rule of ``namespace.op.overload``, or of its family ``namespace.op``."""
    return _OPS.get(name) or _OPS.get(family)


def keeps_uniform(name: str, family: str) -> bool:
    """Whether constant inputs of this operation give a constant output."""
    return name in _UNIFORM or family in _UNIFORM


def module_rules() -> Mapping[str, Rule]:
    """Rules of module classes, by qualified class name."""
    return _MODULES


def coverage() -> Coverage:
    """What the registry knows."""
    return Coverage(tuple(sorted(_OPS)), tuple(sorted(_MODULES)))
