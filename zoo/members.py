"""What is known of one member: its id, where it comes from, its configuration and its metrics."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from metanet.checkpoint.names import printable
from metanet.errors import ZooError

if TYPE_CHECKING:
    from torch import Tensor

    from metanet.symmetry import WeightSpace

Value: TypeAlias = "int | float | str | bool | None"
MAX_ID = 200
_PLAIN = (str, bool, type(None))
_WORD = re.compile(r"[^A-Za-z0-9_]")


@dataclass(frozen=True)
class Entry:
    """One row of the index, without its weights.

    Attributes:
        id: unique in the zoo; printable, at most 200 characters.
        config: what was chosen: hyper-parameters, seed, image, data set. Nested maps become dotted
            names, lists JSON text.
        metrics: what was measured.
        parent: id of the member this one was trained on from; it may stand in another zoo.
        step: training steps at this point of its run; 0 is the initialisation.
        split: part that it belongs to, or None.
    """

    id: str
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    step: int | None = None
    split: str | None = None


@dataclass(frozen=True)
class Member(Entry):
    """An entry with its weights.

    Attributes:
        weights: a state dict.
        space: the space of the weights, where it is known.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    space: WeightSpace | None = None


def check_entry(entry: Entry) -> None:
    """Raise ZooError for an id, parent, step or part that an index cannot hold."""
    for what, text in (("id", entry.id), ("parent", entry.parent), ("split", entry.split)):
        if text is None and what != "id":
            continue
        if not isinstance(text, str) or not 0 < len(text) <= MAX_ID or not text.isprintable():
            raise ZooError(f"{what} {printable(text, 80)!r} of a member is not a printable text of "
                           f"1 to {MAX_ID} characters; choose another")
    if entry.step is not None and (type(entry.step) is not int or entry.step < 0):
        raise ZooError(f"member {entry.id!r}: step {entry.step!r} is not a whole number ≥ 0")


def values(entry: Entry) -> dict[str, Value]:
    """Dotted column name → value, of config and metrics."""
    out: dict[str, Value] = {}
    for root, mapping in (("config", entry.config), ("metrics", entry.metrics)):
        _flatten(root, mapping, out, entry.id)
    return out


def _flatten(prefix: str, mapping: Mapping[str, Any], out: dict[str, Value], who: str) -> None:
    for key, value in mapping.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            _flatten(name, value, out, who)
        else:
            out[name] = value if type(value) in _PLAIN else scalar(value, who, name)


def scalar(value: Any, who: str, name: str) -> Value:
    """``value`` as the index holds it: NaN becomes None, lists JSON text, scalars plain Python."""
    where = f"member {printable(who, 80)!r}, {printable(name, 80)}"
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, (list, tuple)):
        return json.dumps(value, default=str)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, int):
        if abs(value) < 2**63:
            return value
        raise ZooError(f"{where}: {value} does not fit into 64 bits; store it as text")
    raise ZooError(f"{where}: a {type(value).__name__} is no value of an index; give a number, a "
                   "text, a truth value, None, a list or a nested map of them")


def kind_of(value: Value) -> str | None:
    """``bool``, ``int``, ``float``, ``str``, or None for None."""
    return None if value is None else type(value).__name__


def sql_name(name: str) -> str:
    """Column of the index for a dotted name: ``config.lr`` → ``config_lr``."""
    return _WORD.sub("_", name)
