"""Recipes from YAML: mergekit's keys and ``align:``. What is unknown is refused with its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from metanet.checkpoint.names import printable
from metanet.checkpoint.nesting import MAX_NESTING, nested_too_deep
from metanet.errors import MetanetError
from metanet.tasks.merge.methods import Method
from metanet.tasks.merge.methods import method as find_method
from metanet.tasks.merge.recipe import (
    AlignOptions,
    Part,
    Recipe,
    Rule,
    Scalar,
    Setting,
    Slice,
    checked_dtype,
)

_MAX_TEXT, _MAX_NODES = 1 << 18, 20_000
_TOP = ("merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype",
        "out_dtype", "tokenizer_source", "tokenizer", "random_seed", "name", "align")
_ALIGN = ("method", "arch", "spec", "calib", "normalize", "restarts", "seed", "load")
# Keys of mergekit that cannot be honoured, with the reason.
_REFUSED = {
    "chat_template": "copy the template into the result's tokenizer_config.json yourself",
    "allow_crimes": "what it allows is refused here",
    "input_model": "it belongs to mergekit's multi-step files: run the steps one by one",
    "experts": "mixture-of-experts recipes are another format",
}
_IGNORED = frozenset({"int8_mask"})  # of memory alone: blocks need no smaller masks


class Document:
    """One YAML file: its name, for messages, and its tree."""

    def __init__(self, text: str, name: str) -> None:
        self.name, self.nodes = printable(name, 200), 0
        if len(text) > _MAX_TEXT:
            raise MetanetError(f"{self.name}: longer than {_MAX_TEXT} characters; no recipe is")
        if nested_too_deep(text):
            raise MetanetError(f"{self.name}: brackets nested more than {MAX_NESTING} deep; no "
                               "recipe is")
        try:
            self.root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            told = printable(" ".join(str(error).split()), 300)
            raise MetanetError(f"{self.name}: is not YAML: {told}") from None
        if self.root is None:
            raise MetanetError(f"{self.name}: the recipe is empty")

    def fail(self, node: Any, message: str) -> MetanetError:
        """An error that names file and line."""
        return MetanetError(f"{self.name}, line {node.start_mark.line + 1}: {message}")

    def _count(self, node: Any) -> None:
        self.nodes += 1  # anchors can make a small file endless
        if self.nodes > _MAX_NODES:
            raise self.fail(node, "the recipe has too many parts")

    def pairs(self, node: Any, where: str, known: Iterable[str] | None) -> dict[str, Any]:
        """Key -> node of a map; unknown keys are refused."""
        self._count(node)
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"{where} must be a map of keys to values")
        out: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.fail(key, f"a key of {where} is not a word")
            if key.value in out:
                raise self.fail(key, f"key {printable(key.value, 80)!r} occurs twice")
            if known is not None and key.value not in known:
                raise self.fail(key, self._unknown(key.value, where, known))
            out[key.value] = value
        return out

    def _unknown(self, key: str, where: str, known: Iterable[str]) -> str:
        if key in _REFUSED:
            return f"key {key!r} of {where} is not supported: {_REFUSED[key]}"
        near = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown key {printable(key, 80)!r} of {where}{hint}. Keys: {', '.join(known)}"

    def items(self, node: Any, where: str) -> list[Any]:
        """The nodes of a list that is not empty."""
        self._count(node)
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.fail(node, f"{where} must be a list that is not empty")
        return list(node.value)

    def word(self, node: Any, where: str) -> str | None:
        """A text, or None for null."""
        self._count(node)
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, f"{where} must be a single word")
        return None if node.tag == "tag:yaml.org,2002:null" else str(node.value)

    def scalar(self, node: Any, where: str) -> Scalar:
        """A number or a truth value."""
        text = self.word(node, where)
        if node.tag == "tag:yaml.org,2002:bool":
            return str(text).lower() in ("true", "yes", "on")
        for kind in (int, float):
            try:
                return kind(str(text))
            except ValueError:
                continue
        raise self.fail(node, f"{where} must be a number, not {printable(text, 60)!r}")


def read_recipe(source: str | Path | Mapping[str, Any]) -> Recipe:
    """The recipe in a YAML file, or in a mapping of the same keys.

    Raises:
        MetanetError: it cannot be read, or has a key or value that is not understood; the message
            names the key and the line.
    """
    if isinstance(source, Mapping):
        try:
            return parse(yaml.safe_dump(dict(source), sort_keys=False), "recipe")
        except yaml.YAMLError as error:
            told = printable(" ".join(str(error).split()), 200)
            raise MetanetError(f"the recipe is not plain data: {told}") from error
    path = Path(source)
    try:
        with path.open(encoding="utf-8") as handle:
            text = handle.read(_MAX_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise MetanetError(f"{printable(path)}: the recipe cannot be read ({error})") from error
    return parse(text, str(source))


def parse(text: str, name: str = "recipe") -> Recipe:
    """A recipe from YAML text; see ``read_recipe``."""
    return _Reader(Document(text, name)).recipe()


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.method: Method

    def recipe(self) -> Recipe:
        doc = self.document
        top = doc.pairs(doc.root, "the recipe", _TOP)
        if "merge_method" not in top:
            raise MetanetError(f"{doc.name}: key 'merge_method' is missing")
        self.method = self._of(top["merge_method"], find_method, "merge_method")
        base = self._model(top["base_model"]) if "base_model" in top else None
        seed = doc.scalar(top["random_seed"], "random_seed") if "random_seed" in top else 0
        return Recipe(
            self.method.name, self._modules(top), base, self._parameters(top, "parameters"),
            self._dtype(top, "dtype"), self._dtype(top, "out_dtype"), self._tokenizer(top),
            self._align(top["align"]) if "align" in top else None, int(seed))

    def _of(self, node: Any, make: Any, where: str) -> Any:
        """What ``make`` says of a word, its refusal with the line."""
        try:
            return make(self.document.word(node, where))
        except MetanetError as error:
            raise self.document.fail(node, str(error)) from None

    def _dtype(self, top: Mapping[str, Any], key: str) -> str | None:
        return self._of(top[key], checked_dtype, key) if key in top else None

    def _model(self, node: Any) -> str:
        name = self.document.word(node, "a model")
        if not name:
            raise self.document.fail(node, "a model needs a name or a path")
        if "+" in name and not Path(name).exists():
            raise self.document.fail(node, f"{printable(name, 80)!r} asks for an adapter on a "
                                     "model: merge the adapter into the model first")
        return name

    def _tokenizer(self, top: Mapping[str, Any]) -> str | None:
        if "tokenizer" in top:
            if "tokenizer_source" in top:
                raise self.document.fail(top["tokenizer"], "give 'tokenizer' or "
                                         "'tokenizer_source', not both")
            inner = self.document.pairs(top["tokenizer"], "tokenizer", ("source",))
            return self.document.word(inner["source"], "source") if "source" in inner else None
        key = "tokenizer_source"
        return self.document.word(top[key], key) if key in top else None

    # ------------------------------------------------------------ models

    def _modules(self, top: Mapping[str, Any]) -> dict[str, tuple[Slice, ...]]:
        forms = [key for key in ("models", "slices", "modules") if key in top]
        if len(forms) != 1:
            raise MetanetError(f"{self.document.name}: exactly one of the keys models, slices and "
                               f"modules is needed; there are {len(forms)}")
        if forms != ["modules"]:
            return {"": self._slices(top)}
        out: dict[str, tuple[Slice, ...]] = {}
        for name, node in self.document.pairs(top["modules"], "modules", None).items():
            inner = self.document.pairs(node, f"module {printable(name, 60)!r}",
                                        ("models", "slices"))
            if len(inner) != 1:
                raise self.document.fail(node, "a module needs models or slices, one of them")
            out["" if name == "default" else name] = self._slices(inner)
        return out

    def _slices(self, given: Mapping[str, Any]) -> tuple[Slice, ...]:
        doc = self.document
        if "models" in given:
            parts = [self._part(node, ("model", "parameters"))
                     for node in doc.items(given["models"], "models")]
            return (Slice(tuple(parts)),)
        return tuple(map(self._slice, doc.items(given["slices"], "slices")))

    def _slice(self, node: Any) -> Slice:
        keys = self.document.pairs(node, "a slice", ("sources", "parameters"))
        if "sources" not in keys:
            raise self.document.fail(node, "a slice needs sources")
        parts = tuple(self._part(item, ("model", "layer_range", "parameters"))
                      for item in self.document.items(keys["sources"], "sources"))
        lengths = {p.layers[1] - p.layers[0] if p.layers else None for p in parts}
        if len(lengths) > 1:
            raise self.document.fail(node, "the sources of a slice have different numbers of "
                                     f"layers: {sorted(map(str, lengths))}")
        return Slice(parts, self._parameters(keys, "parameters"))

    def _part(self, node: Any, known: tuple[str, ...]) -> Part:
        keys = self.document.pairs(node, "a model", known)
        if "model" not in keys:
            raise self.document.fail(node, "key 'model' is missing")
        layers = self._range(keys["layer_range"]) if "layer_range" in keys else None
        return Part(self._model(keys["model"]), layers, self._parameters(keys, "parameters"))

    def _range(self, node: Any) -> tuple[int, int]:
        ends = [self.document.scalar(n, "layer_range")
                for n in self.document.items(node, "layer_range")]
        if len(ends) != 2 or any(type(end) is not int for end in ends) or not (
                0 <= ends[0] < ends[1]):
            raise self.document.fail(node, "layer_range must be [first, last), such as [0, 16]")
        return int(ends[0]), int(ends[1])

    # ------------------------------------------------------------ parameters

    def _parameters(self, keys: Mapping[str, Any], key: str) -> dict[str, Setting]:
        if key not in keys:
            return {}
        known = [p.name for p in self.method.parameters]
        found = self.document.pairs(keys[key], f"the parameters of {self.method.name}",
                                    [*known, *sorted(_IGNORED)])
        return {name: self._setting(node, name) for name, node in found.items()
                if name not in _IGNORED}

    def _setting(self, node: Any, name: str, inside: bool = False) -> Setting:
        if not isinstance(node, yaml.SequenceNode):
            value = self.document.scalar(node, name)
            self._check(node, name, value)
            return value
        parts = self.document.items(node, name)
        if all(isinstance(part, yaml.MappingNode) for part in parts) and not inside:
            return tuple(self._rule(part, name) for part in parts)
        values = [self.document.scalar(part, name) for part in parts]
        for part, value in zip(parts, values, strict=True):
            self._check(part, name, value)
        return tuple(values)

    def _rule(self, node: Any, name: str) -> Rule:
        keys = self.document.pairs(node, f"a rule of {name}", ("filter", "value"))
        if "value" not in keys:
            raise self.document.fail(node, f"a rule of {name} needs a value")
        pattern = self.document.word(keys["filter"], "filter") if "filter" in keys else None
        return Rule(pattern, self._setting(keys["value"], name, True))

    def _check(self, node: Any, name: str, value: Scalar) -> None:
        parameter = self.method.parameter(name)
        try:
            if parameter is not None:
                parameter.check(value)
        except MetanetError as error:
            raise self.document.fail(node, str(error)) from None

    # ------------------------------------------------------------ alignment

    def _align(self, node: Any) -> AlignOptions:
        doc, given = self.document, dict[str, Any]()
        for key, value in doc.pairs(node, "align", _ALIGN).items():
            if key == "load":
                files = doc.pairs(value, "load", None)
                given[key] = {model: str(doc.word(n, "load")) for model, n in files.items()}
            elif key in ("restarts", "seed"):
                given[key] = int(doc.scalar(value, key))
            else:
                given[key] = doc.word(value, key)
        if not any(given.get(key) for key in ("arch", "spec", "load")):
            raise doc.fail(node, "align needs the architecture (arch), the space (spec), or "
                           "alignments that were saved (load)")
        return AlignOptions(**given)
