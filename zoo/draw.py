"""Values that differ from member to member: fixed, chosen, or drawn from a range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Scalar: TypeAlias = "int | float | str"
KINDS = ("fixed", "choice", "uniform", "log_uniform", "integer", "log_integer")


@dataclass(frozen=True)
class Draw:
    """A value, or where it is drawn from.

    Attributes:
        kind: ``fixed``, ``choice`` (each equally likely), ``uniform``, ``log_uniform``,
            ``integer`` or ``log_integer`` (both ends included).
        values: the value, the choices, or the two ends.
    """

    kind: str
    values: tuple[Scalar, ...]

    def problem(self) -> str | None:
        """What is wrong with it, or None."""
        if self.kind not in KINDS:
            return f"no draw {self.kind!r}; there are {', '.join(KINDS[1:])}"
        if self.kind in ("fixed", "choice"):
            return None if self.values else "a choice needs at least one value"
        if len(self.values) != 2 or any(isinstance(v, str) for v in self.values):
            return f"{self.kind} needs two numbers, [lowest, highest]"
        low, high = (float(v) for v in self.values)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            return f"{self.kind} needs lowest ≤ highest, got {list(self.values)}"
        return f"{self.kind} needs numbers above 0" if "log" in self.kind and low <= 0 else None

    def __call__(self, rng: np.random.Generator) -> Scalar:
        """One value; every kind takes one number from ``rng``, so draws do not shift each other."""
        u = float(rng.random())
        if self.kind in ("fixed", "choice"):
            return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
        low, high = (float(v) for v in self.values)
        if self.kind == "integer":
            return min(int(low) + int(u * (int(high) - int(low) + 1)), int(high))
        value = low * (high / low) ** u if "log" in self.kind else low + u * (high - low)
        return round(value) if self.kind == "log_integer" else value

    def plain(self) -> Scalar | dict[str, list[Scalar]]:
        """Plain data, as written in a recipe."""
        return self.values[0] if self.kind == "fixed" else {self.kind: list(self.values)}

    def among(self, allowed: Sequence[str]) -> str | None:
        """What is wrong with it where only some words are allowed, or None."""
        odd = [v for v in self.values if v not in allowed]
        if self.kind not in ("fixed", "choice") or odd:
            shown = f", not {odd[0]!r}" if odd else ""
            return f"must be one of {', '.join(allowed)}{shown}"
        return None


def fixed(value: Scalar) -> Draw:
    """A value that is the same for every member."""
    return Draw("fixed", (value,))
