"""Alignment: the element that brings one model into the order of another, with its evidence.

One safetensors file holds it all: tables and values of the element as tensors, the space and all
else as JSON in the metadata. It is read by the same door as any checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint import open as open_checkpoint
from metanet.checkpoint import write_safetensors
from metanet.checkpoint.names import printable
from metanet.errors import SymmetryError
from metanet.symmetry import GroupElement, WeightSpace
from metanet.symmetry.action import act

FORMAT = "metanet.alignment"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Certificate:
    """Proof by running: the moved model computes what it did before.

    ``max_error`` is the largest relative change of an output in float64 when the element is
    applied to ``b``'s own weights; ``inputs`` says on what it was run. ``ok`` is its verdict.
    """

    ok: bool
    max_error: float
    inputs: str
    dtype: str = "float64"


@dataclass(frozen=True, eq=False)
class Alignment:
    """How to bring model ``b`` into the order of model ``a``.

    ``apply(b)`` is aligned to ``a``. ``objective`` is the sum over tensors of ``<a, element b>``
    (weights), ``method`` how the element was found, ``seed`` of what was random, ``certificate``
    the proof that the function is kept, or None where there was no code to run. ``sources`` are
    the sha256 of both models where they are known; ``details`` what else the search has to say.
    """

    space: WeightSpace
    element: GroupElement
    objective: float
    method: str
    seed: int = 0
    certificate: Certificate | None = None
    sources: tuple[str | None, str | None] = (None, None)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.element.space != self.space:
            raise SymmetryError("the element of an alignment belongs to another space")

    def apply(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors moved into the order of ``a``; raises SpaceMismatch as the element does."""
        return self.element.apply(state_dict)

    def act(self, name: str, tensor: Tensor) -> Tensor:
        """One tensor moved; an alias moves as its owner does, an unknown integer tensor not."""
        if name not in self.space.tensors and name not in self.space.aliases:
            if tensor.is_floating_point() or tensor.is_complex():
                raise SymmetryError(f"the space of the alignment does not know {printable(name)}; "
                                    "align models of one architecture")
            return tensor
        return act(self.element, self.space.owner(name), tensor)

    def inverse(self) -> Alignment:
        """From ``a`` to the order of ``b``."""
        sources = self.sources[1], self.sources[0]
        return Alignment(self.space, self.element.inverse(), self.objective, self.method,
                         self.seed, None, sources, self.details)

    def to_json(self) -> dict[str, Any]:
        """Plain data without the tables."""
        return {
            "objective": self.objective,
            "method": self.method,
            "seed": self.seed,
            "certificate": None if self.certificate is None else asdict(self.certificate),
            "sources": list(self.sources),
            "details": dict(self.details),
            "moved": self.element.moved(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all."""
        tables = {f"table.{k}": torch.from_numpy(t) for k, t in self.element.tables.items()}
        values = {f"value.{k}": torch.from_numpy(v) for k, v in self.element.values.items()}
        document = {"format": FORMAT, "version": _VERSION, "space": self.space.to_json(),
                    **self.to_json()}
        write_safetensors(tables | values, path,
                          {FORMAT: json.dumps(document, allow_nan=False)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Alignment:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: the file cannot be read.
            SymmetryError: it is no alignment, or its parts do not fit each other.
        """
        stored = open_checkpoint(path)
        where = printable(str(path))
        try:
            found = json.loads(stored.metadata[FORMAT])
            if found["format"] != FORMAT or found["version"] != _VERSION:
                raise SymmetryError(f"{where}: an alignment of an unknown version")
            space = WeightSpace.from_json(found["space"])
            parts = {name: stored.read(name).numpy() for name in stored.names}
            element = GroupElement(space, _part(parts, "table."), _part(parts, "value."))
            proof = found["certificate"]
            return cls(space, element, float(found["objective"]), str(found["method"]),
                       int(found["seed"]), None if proof is None else Certificate(**proof),
                       (found["sources"][0], found["sources"][1]), dict(found["details"]))
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise SymmetryError(f"{where}: no alignment can be read from it ({error!r}). Write one "
                                "with `metanet align A B -o FILE`.") from error


def _part(parts: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): part for name, part in parts.items()
            if name.startswith(prefix)}
