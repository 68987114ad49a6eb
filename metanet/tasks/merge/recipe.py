"""A recipe: which models, which of their layers, by which method, with which parameters.

The fields are those of mergekit's YAML (read by ``recipe_file``), plus ``align``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from metanet.checkpoint.names import printable
from metanet.errors import MetanetError

Scalar: TypeAlias = float | int | bool
DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Rule:
    """A value for the tensors whose name contains ``filter``; None stands for all."""

    filter: str | None
    value: Setting


# A number; numbers along the depth of the network; or the first rule that fits.
Setting: TypeAlias = Scalar | tuple[Scalar, ...] | tuple[Rule, ...]


def evaluate(setting: Setting | None, name: str, t: float) -> Scalar | None:
    """What a setting says about one tensor; None where no rule of it fits.

    Args:
        setting: of a recipe.
        name: of the tensor in the result.
        t: depth from 0 (first layer, and what comes before) to 1 (last, and what comes after).
    """
    if not isinstance(setting, tuple):
        return setting
    rules = [part for part in setting if isinstance(part, Rule)]
    if rules:
        for rule in rules:
            if rule.filter in (None, "*") or str(rule.filter) in name:
                return evaluate(rule.value, name, t)
        return None
    return _along([part for part in setting if not isinstance(part, Rule)], t)


def _along(values: Sequence[Scalar], t: float) -> Scalar:
    """Linear between equally spaced values."""
    place = min(max(t, 0.0), 1.0) * (len(values) - 1)
    low = min(int(place), len(values) - 1)
    share = place - low
    if share == 0:
        return values[low]
    return (1 - share) * values[low] + share * values[low + 1]


@dataclass(frozen=True)
class Part:
    """One model of a slice; ``layers`` [first, last) or all of them."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Layers of the result that come from the same layers of its parts, merged."""

    parts: tuple[Part, ...]
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class AlignOptions:
    """How models are brought into the order of the first (of the base, where there is one).

    ``load``: files written by ``metanet align``, by model; what is not there is searched for.
    """

    method: str = "auto"
    arch: str | None = None
    spec: str | None = None
    calib: str | None = None
    normalize: str | None = None
    restarts: int = 3
    seed: int = 0
    load: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """All that decides the result, but for the bytes of the models.

    ``modules`` maps the start of tensor names to slices; the empty start stands for all the rest.
    """

    method: str
    modules: Mapping[str, tuple[Slice, ...]]
    base: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    align: AlignOptions | None = None
    seed: int = 0

    @property
    def slices(self) -> list[Slice]:
        """Slices of all modules."""
        return [part for slices in self.modules.values() for part in slices]

    @property
    def models(self) -> tuple[str, ...]:
        """Every model once: the base first, then in the order of the recipe."""
        named = [part.model for cut in self.slices for part in cut.parts]
        return tuple(dict.fromkeys([self.base, *named] if self.base is not None else named))

    @property
    def reference(self) -> str:
        """The model that gives names, config and order of neurons: the base, or the first."""
        return self.models[0]

    def to_json(self) -> dict[str, Any]:
        """Plain data in the words of the YAML form."""
        out: dict[str, Any] = {"merge_method": self.method}
        if set(self.modules) == {""}:
            out |= _slices(self.modules[""])
        else:
            out["modules"] = {name or "default": _slices(s) for name, s in self.modules.items()}
        more = {"base_model": self.base, "dtype": self.dtype, "out_dtype": self.out_dtype,
                "tokenizer_source": self.tokenizer_source, "random_seed": self.seed or None}
        out |= {key: value for key, value in more.items() if value is not None}
        if self.parameters:
            out["parameters"] = settings(self.parameters)
        if self.align is not None:
            out["align"] = {k: dict(v) if k == "load" else v
                            for k, v in vars(self.align).items() if v not in (None, {})}
        return out

    def to_yaml(self) -> str:
        """The text form, which ``read_recipe`` reads back."""
        import yaml

        return str(yaml.safe_dump(self.to_json(), sort_keys=False, allow_unicode=False))

    def digest(self, identities: Mapping[str, Any]) -> str:
        """sha256 of the recipe and of what identifies its models."""
        text = json.dumps([self.to_json(), identities], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def settings(parameters: Mapping[str, Setting]) -> dict[str, Any]:
    """Parameters as plain data."""
    return {name: _plain(value) for name, value in parameters.items()}


def _plain(setting: Setting) -> Any:
    if not isinstance(setting, tuple):
        return setting
    return [part if not isinstance(part, Rule) else
            {**({} if part.filter is None else {"filter": part.filter}),
             "value": _plain(part.value)} for part in setting]


def _slices(slices: tuple[Slice, ...]) -> dict[str, Any]:
    if len(slices) == 1 and all(part.layers is None for part in slices[0].parts):
        return {"models": [_part(part) for part in slices[0].parts]}
    return {"slices": [{"sources": [_part(part) for part in cut.parts],
                        **({"parameters": settings(cut.parameters)} if cut.parameters else {})}
                       for cut in slices]}


def _part(part: Part) -> dict[str, Any]:
    return {"model": part.model,
            **({"layer_range": list(part.layers)} if part.layers is not None else {}),
            **({"parameters": settings(part.parameters)} if part.parameters else {})}


def of_models(
    models: Iterable[str], method: str, weights: Sequence[float] | None = None, *,
    base: str | None = None, parameters: Mapping[str, Setting] | None = None, **fields: Any,
) -> Recipe:
    """A recipe that merges whole models; weights are equal by default.

    Raises:
        MetanetError: another number of weights than of models, no model, a parameter that the
            method does not have.
    """
    from metanet.tasks.merge.methods import method as find

    chosen = find(method)
    named, weighted = list(models), chosen.parameter("weight") is not None
    for name in parameters or ():
        if chosen.parameter(name) is None:
            known = ", ".join(p.name for p in chosen.parameters)
            raise MetanetError(f"method {method!r} has no parameter {printable(name, 60)!r}; it "
                               f"takes {known}")
    if not named:
        raise MetanetError("no models to merge: name at least one")
    if weights is not None and not weighted:
        raise MetanetError(f"method {method!r} takes no weights")
    if weights is not None and len(weights) != len(named):
        raise MetanetError(f"{len(weights)} weights for {len(named)} models: give one of each, in "
                           "the order of the models")
    shares = [float(w) for w in weights] if weights is not None else [1.0] * len(named)
    own = [{"weight": w} if weighted else {} for w in shares]
    parts = tuple(Part(model, None, p) for model, p in zip(named, own, strict=True))
    return Recipe(method, {"": (Slice(parts),)}, base, dict(parameters or {}), **fields)


def checked_dtype(name: str | None) -> str | None:
    """A dtype that results may have. Raises MetanetError."""
    if name is not None and name not in DTYPES:
        raise MetanetError(f"dtype {printable(name, 40)!r} cannot be written by merge; choose "
                           f"{', '.join(DTYPES)}")
    return name
