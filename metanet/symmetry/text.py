"""The text form of a space (card `weight-space`): a recursive-descent parser and a printer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from metanet.errors import SymmetryError
from metanet.symmetry.axis import Axis, Fixed, Occ, Prod, Sum, tidy
from metanet.symmetry.group import Group
from metanet.symmetry.kinds import KINDS

HEADER = "space v1"

_MAX_DEPTH = 50

_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_./-]+\Z")


@dataclass
class Parsed:
    """Statements of a text form, before sizes are solved and axes checked."""

    groups: dict[str, Group] = field(default_factory=dict)
    tensors: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


def is_label(text: str) -> bool:
    """Whether ``text`` may stand as a group label."""
    return bool(_LABEL.match(text))


# ------------------------------------------------------------------ parsing


def parse_text(text: str) -> Parsed:
    """Read statements.

    Raises:
        SymmetryError: with line, column and what was expected.
    """
    parsed = Parsed()
    seen_header = False
    for number, raw in enumerate(text.split("\n"), start=1):
        line = _Line(raw, number)
        if line.done():
            continue
        if not seen_header:
            line.header()
            seen_header = True
        elif line.statement_is_group():
            group = line.group()
            if group.label in parsed.groups:
                raise line.error(f"group {group.label!r} is declared twice")
            parsed.groups[group.label] = group
        else:
            _tensor_statement(line, parsed)
    if not seen_header:
        raise SymmetryError(f"a space begins with the line {HEADER!r}; the text has no statement")
    return parsed


def parse_axes(text: str, where: str) -> tuple[Axis, ...]:
    """Axes of one tensor, ``"h1 784!"``."""
    line = _Line(text, 0, where)
    return line.axes()


def _tensor_statement(line: _Line, parsed: Parsed) -> None:
    name = line.name()
    if name in parsed.tensors or name in parsed.aliases:
        raise line.error(f"tensor {name!r} is declared twice")
    mark = line.expect(":", "=")
    if mark == ":":
        parsed.tensors[name] = line.axes()
    else:
        parsed.aliases[name] = line.name()
        line.end()


class _Line:
    """Cursor over one statement."""

    def __init__(self, text: str, number: int, where: str = "") -> None:
        self.text, self.number, self.where = text, number, where
        self.at = self.depth = 0
        self._skip()

    def error(self, message: str) -> SymmetryError:
        place = self.where or f"line {self.number}"
        shown = self.text.strip()[:200]
        return SymmetryError(f"{place}, column {self.at + 1}: {message}; in {shown!r}")

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t\r":
            self.at += 1
        if self.at < len(self.text) and self.text[self.at] == "#":
            self.at = len(self.text)

    def done(self) -> bool:
        return self.at >= len(self.text)

    def end(self) -> None:
        if not self.done():
            raise self.error("unexpected text after the statement")

    def take(self, pattern: str) -> str | None:
        """The match of ``pattern`` here, consumed with the blanks behind it."""
        match = re.compile(pattern).match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        self._skip()
        return match.group()

    def expect(self, *marks: str) -> str:
        for mark in marks:
            if self.text.startswith(mark, self.at):
                self.at += len(mark)
                self._skip()
                return mark
        raise self.error(f"expected {' or '.join(map(repr, marks))}")

    def peek(self, mark: str) -> bool:
        return self.text.startswith(mark, self.at)

    # -- statements

    def header(self) -> None:
        if self.take(r"space\b") is None or self.take(r"v[0-9]+\b") != "v1":
            raise self.error(f"a space begins with the line {HEADER!r}")
        self.end()

    def statement_is_group(self) -> bool:
        return re.compile(r"group[ \t]+[A-Za-z_]").match(self.text, self.at) is not None

    def group(self) -> Group:
        self.take("group")
        label = self.label()
        self.expect("=")
        kind = self.label()
        if kind not in KINDS:
            raise self.error(f"unknown kind {kind!r}; known are {', '.join(KINDS)}")
        self.expect("(")
        size = self.integer()
        self.expect(")")
        over = self.bases() if self.peek("/") else ()
        reason = self.string() if self.peek('"') else None
        self.end()
        return Group(label, size, kind, over, reason)

    def bases(self) -> tuple[str, ...]:
        self.expect("/")
        if not self.peek("("):
            return (self.label(),)
        self.expect("(")
        labels = [self.label(), self.label()]
        while not self.peek(")"):
            labels.append(self.label())
        self.expect(")")
        return tuple(labels)

    def label(self) -> str:
        label = self.take(r"[A-Za-z_][A-Za-z0-9_]*")
        if label is None:
            raise self.error("expected a label ([A-Za-z_][A-Za-z0-9_]*)")
        return label

    def integer(self, signed: bool = False) -> int:
        digits = self.take(r"-?[0-9]{1,18}(?![0-9])" if signed else r"[0-9]{1,18}(?![0-9])")
        if digits is None:
            raise self.error("expected an integer of at most 18 digits")
        return int(digits)

    def string(self) -> str:
        literal = self.take(r'"(?:[^"\\]|\\.)*"')
        try:
            return str(json.loads(literal or ""))
        except ValueError:
            raise self.error("expected a JSON string") from None

    def name(self) -> str:
        if self.peek('"'):
            return self.string()
        name = self.take(r"[A-Za-z0-9_./-]+")
        if name is None:
            raise self.error('expected a tensor name; quote it ("...") if it has other characters')
        return name

    # -- axes

    def axes(self) -> tuple[Axis, ...]:
        axes = []
        while not self.done():
            axes.append(self.term())
        return tuple(axes)

    def term(self) -> Axis:
        if self.peek("("):
            self.expect("(")
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise self.error(f"parentheses are nested more than {_MAX_DEPTH} deep")
            parts = [self.product()]
            while self.peek("+"):
                self.expect("+")
                parts.append(self.product())
            self.expect(")")
            self.depth -= 1
            return parts[0] if len(parts) == 1 else Sum(tuple(parts))
        if self.take(r"(?=[0-9])") is not None:
            size = self.integer()
            self.expect("!")
            return Fixed(size)
        return self.occurrence()

    def product(self) -> Axis:
        parts = [self.term()]
        while not (self.done() or self.peek("+") or self.peek(")")):
            parts.append(self.term())
        return parts[0] if len(parts) == 1 else Prod(tuple(parts))

    def occurrence(self) -> Occ:
        label = self.label()
        bases = self.bases() if self.peek("/") else ()
        at, exponent = None, 1
        if bases and self.peek("@"):
            self.expect("@")
            at = self.integer()
        if self.peek("^"):
            self.expect("^")
            exponent = self.integer(signed=True)
        return Occ(label, bases, at, exponent)


# ------------------------------------------------------------------ printing


def print_name(name: str) -> str:
    """A tensor name as it stands in the text form."""
    plain = _PLAIN_NAME.match(name) and name not in ("group", "space")
    return name if plain else json.dumps(name)


def print_group(group: Group) -> str:
    """One group statement."""
    over = f" / {_print_bases(group.over)}" if group.over else ""
    reason = f" {json.dumps(group.reason)}" if group.reason is not None else ""
    return f"group {group.label} = {group.kind}({group.size}){over}{reason}"


def print_axes(axes: Sequence[Axis]) -> str:
    """One term per axis."""
    return " ".join(_print_term(tidy(axis)) for axis in axes)


def _print_bases(bases: Sequence[str]) -> str:
    return bases[0] if len(bases) == 1 else f"({' '.join(bases)})"


def _print_term(axis: Axis) -> str:
    if isinstance(axis, Fixed):
        return f"{axis.size}!"
    if isinstance(axis, Occ):
        bases = f"/{_print_bases(axis.bases)}" if axis.bases else ""
        at = f"@{axis.at}" if axis.at is not None else ""
        exponent = f"^{axis.exponent}" if axis.exponent != 1 else ""
        return f"{axis.label}{bases}{at}{exponent}"
    if not axis.parts:
        return "1!" if isinstance(axis, Prod) else "0!"
    return f"({_print_product(axis) if isinstance(axis, Prod) else _print_sum(axis)})"


def _print_product(axis: Axis) -> str:
    if isinstance(axis, Prod) and axis.parts:
        return " ".join(_print_term(part) for part in axis.parts)
    return _print_term(axis)


def _print_sum(axis: Sum) -> str:
    return " + ".join(_print_product(part) for part in axis.parts)
