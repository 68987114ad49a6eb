"""YAML into frozen dataclasses: every unknown key and wrong value is named with its line.

Only plain scalars, lists and maps are read; tags build nothing.
"""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, Union

import yaml
from metanet.zoo.draw import KINDS, Draw, Scalar, fixed

from metanet.checkpoint.names import printable
from metanet.checkpoint.nesting import MAX_NESTING, nested_too_deep
from metanet.errors import ZooError

T = TypeVar("T")
_MAX = 1 << 16
_NULL = ("", "null", "~")
_BOOL = {"true": True, "false": False}


class Document:
    """One YAML file: its name, for messages, and its tree."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        if len(text) > _MAX:
            raise ZooError(f"{name}: longer than {_MAX} characters; this is no recipe")
        if nested_too_deep(text):
            raise ZooError(f"{name}: brackets nested more than {MAX_NESTING} deep; this is no "
                           "recipe")
        try:
            self.root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            raise ZooError(f"{name}: is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(self.root, yaml.MappingNode):
            raise ZooError(f"{name}: a recipe is a map of keys to values")

    def fail(self, node: Any, message: str) -> ZooError:
        """An error that names file and line."""
        return ZooError(f"{self.name}, line {node.start_mark.line + 1}: {message}")

    def pairs(self, node: Any, path: str) -> dict[str, tuple[Any, Any]]:
        """Key → (node of the key, node of the value) of a map."""
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"{path or 'the recipe'} must be a map of keys to values")
        out: dict[str, tuple[Any, Any]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.fail(key, f"a key of {path or 'the recipe'} is not a word")
            if key.value in out:
                raise self.fail(key, f"key {printable(key.value, 80)!r} occurs twice")
            out[key.value] = (key, value)
        return out


class Reader:
    """Documents laid over each other, the last one strongest, read as a dataclass."""

    def __init__(self, documents: typing.Sequence[Document]) -> None:
        self.documents = documents

    def top(self) -> dict[str, list[tuple[Document, Any, Any]]]:
        """Key → its (document, key node, value node) in all documents, weakest first."""
        out: dict[str, list[tuple[Document, Any, Any]]] = {}
        for document in self.documents:
            for key, (k, v) in document.pairs(document.root, "").items():
                out.setdefault(key, []).append((document, k, v))
        return out

    def read(self, kind: type[T], given: dict[str, list[tuple[Document, Any, Any]]], path: str = "",
             **preset: Any) -> T:
        """A dataclass of the values given, and of those preset."""
        known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
        hints = typing.get_type_hints(kind)
        found: dict[str, Any] = dict(preset)
        for key, places in given.items():
            document, node, _ = places[-1]
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise document.fail(node, f"unknown key {printable(path + key, 80)!r}{hint} "
                                          f"Keys here: {', '.join(known)}")
            found[key] = self._value(hints[key], places, path + key)
        self._complete(known, found, path)
        return kind(**found)

    def _complete(self, known: dict[str, Field[Any]], found: dict[str, Any], path: str) -> None:
        for name, field in known.items():
            needed = field.default is MISSING and field.default_factory is MISSING
            if needed and name not in found:
                raise ZooError(f"{self.documents[-1].name}: key {path + name!r} is missing")

    def _value(self, hint: Any, places: list[tuple[Document, Any, Any]], path: str) -> Any:
        if is_dataclass(hint) and hint is not Draw:
            inner: dict[str, list[tuple[Document, Any, Any]]] = {}
            for document, _, value in places:
                for key, (k, v) in document.pairs(value, path).items():
                    inner.setdefault(key, []).append((document, k, v))
            return self.read(hint, inner, f"{path}.")  # type: ignore[arg-type]
        document, _, node = places[-1]
        return _convert(document, hint, node, path)


def _convert(document: Document, hint: Any, node: Any, path: str) -> Any:
    if typing.get_origin(hint) in (Union, types.UnionType):
        if isinstance(node, yaml.ScalarNode) and node.value in _NULL and node.style is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if hint is Draw:
        return _draw(document, node, path)
    if typing.get_origin(hint) is tuple:
        return _tuple(document, typing.get_args(hint), node, path)
    if not isinstance(node, yaml.ScalarNode):
        raise document.fail(node, f"{path} must be a single {hint.__name__}")
    try:
        return _BOOL[node.value.lower()] if hint is bool else hint(node.value)
    except (ValueError, KeyError):
        raise document.fail(node, f"{path} must be of type {hint.__name__}, not "
                                  f"{printable(node.value, 80)!r}") from None


def _tuple(document: Document, args: tuple[Any, ...], node: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise document.fail(node, f"{path} must be a list, such as [1, 2]")
    if args[-1] is not Ellipsis and len(args) != len(node.value):
        raise document.fail(node, f"{path} must have {len(args)} values")
    return tuple(_convert(document, args[0], item, path) for item in node.value)


def _draw(document: Document, node: Any, path: str) -> Draw:
    if isinstance(node, yaml.ScalarNode):
        return fixed(_scalar(node))
    pairs = document.pairs(node, path)
    if len(pairs) != 1:
        raise document.fail(node, f"{path} must be a value or one of {', '.join(KINDS[1:])}")
    kind, (key, value) = next(iter(pairs.items()))
    if not isinstance(value, yaml.SequenceNode) or any(
            not isinstance(item, yaml.ScalarNode) for item in value.value):
        raise document.fail(value, f"{path}: {printable(kind, 40)} needs a list of values")
    draw = Draw(kind, tuple(_scalar(item) for item in value.value))
    problem = draw.problem()
    if problem is not None:
        raise document.fail(key, f"{path}: {problem}")
    return draw


def _scalar(node: Any) -> Scalar:
    text = str(node.value)
    if node.style in ("'", '"'):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
