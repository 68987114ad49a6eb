"""What a file says about itself when nobody names its architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.names import printable
from metanet.symmetry.adapter import adapter_space, looks_like_one
from metanet.symmetry.cache import find
from metanet.symmetry.series import found_by
from metanet.symmetry.space import WeightSpace


@dataclass(frozen=True, slots=True)
class Recognised:
    """What is known from a file alone.

    Attributes:
        route: ``config``, ``timm``, ``adapter``, ``cache``, ``pattern``, ``chain``; None if nothing
            is known.
        note: one sentence: what it is and by what it was recognised, or why it was not.
        code: name of an architecture whose code is known, to be traced (``config``, ``timm``).
        arch: name of the architecture that it looks like.
        space: the space, where it is known without tracing.
    """

    route: str | None
    note: str
    code: str | None = None
    arch: str | None = None
    space: WeightSpace | None = None


def recognise(checkpoint: Checkpoint) -> Recognised:
    """The first route that leads somewhere; where none does, what each of them met."""
    refusals = []
    for route in _ROUTES:
        found = route(checkpoint)
        if isinstance(found, Recognised):
            return found
        if found:
            refusals.append(found)
    return Recognised(None, "; ".join(refusals) or "nothing known has such tensors")


def _config(checkpoint: Checkpoint) -> Recognised | str:
    """A config.json of transformers or of timm beside the file."""
    config: Any = checkpoint.metadata.get("config")
    if not isinstance(config, dict):
        return ""
    kind, name = config.get("model_type"), config.get("architecture")
    if isinstance(kind, str):
        return Recognised("config", f"config.json says model type {printable(kind, 80)!r}", "hf")
    if isinstance(name, str):
        return Recognised("timm", f"config.json says timm's {printable(name, 80)!r}",
                          f"timm:{name}")
    told = config.get("_class_name")
    if isinstance(told, str):
        return f"config.json names {printable(told, 80)!r} of diffusers, which is not read"
    return "config.json names neither a model_type nor an architecture of timm"


def _adapter(checkpoint: Checkpoint) -> Recognised | str:
    """A LoRA adapter of PEFT."""
    if not looks_like_one(checkpoint):
        return ""
    found = adapter_space(checkpoint)
    return found if isinstance(found, str) else Recognised("adapter", found[0], space=found[1])


def looked_up(checkpoint: Checkpoint) -> Recognised | str:
    """An architecture of the table of verified spaces (see ``metanet.symmetry.cache``)."""
    found = find(checkpoint)
    if isinstance(found, str):
        return found
    like = "names and shapes" if found.exact else "names and, but for sizes, shapes"
    return Recognised("cache", f"its tensors have the {like} of {found.entry.name}, whose space "
                      "was proved when the table was made; nobody ran this file",
                      arch=found.entry.arch, space=found.space)


def _row(checkpoint: Checkpoint) -> Recognised | str:
    """Layers one after the other."""
    if looks_like_one(checkpoint):
        return ""
    found = found_by(checkpoint)
    return found if isinstance(found, str) else Recognised(found[0], found[1], space=found[2])


_ROUTES: tuple[Callable[[Checkpoint], Recognised | str], ...] = (
    _adapter, _config, looked_up, _row)
