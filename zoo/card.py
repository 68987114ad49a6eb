"""``zoo.json``: what a zoo is, where it comes from, and whether it is complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from metanet.checkpoint.names import printable
from metanet.checkpoint.write import atomic
from metanet.errors import ZooError

FORMAT, VERSION = "metanet.zoo", 1
FILE = "zoo.json"
# Columns whose equal values belong on one side of every split, where a zoo has them.
GROUPS = {"run": "config.run", "image": "config.image", "near_duplicates": "config.image_group"}
_MAX = 64 << 20


def recipe_hash(recipe: Any) -> str | None:
    """Hex sha256 of a recipe (plain data), whatever the order of its keys; None for no recipe."""
    if recipe is None:
        return None
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Card:
    """The content of ``zoo.json``.

    Attributes:
        license: licence of the weights.
        provenance: plain data: who made it, from what, with which versions.
        recipe: the recipe as plain data, or None.
        recipe_hash: see :func:`recipe_hash`.
        labels: columns that hold a class which must not leak (the digit that an INR shows).
        groups: name → column whose equal values belong on one side of every split.
        intrinsic: column → reason why it may tell the class: the gate reports it, and passes.
        complete: whether the build has finished.
    """

    license: str = "unknown"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    recipe: Any = None
    recipe_hash: str | None = None
    labels: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=lambda: dict(GROUPS))
    intrinsic: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data, as written."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "labels": list(self.labels)}

    def finished(self, complete: bool = True) -> Card:
        """The same card with another ``complete``."""
        return replace(self, complete=complete)

    def write(self, folder: Path) -> None:
        """Write ``zoo.json`` atomically; the same bytes for the same card.

        Raises:
            ZooError: if a text in it is no Unicode.
        """
        text = json.dumps(self.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ZooError(f"the card of the zoo holds {printable(error.object[error.start])!r}, "
                           "which is no text; give licence and sources as plain text") from None
        with atomic(folder / FILE) as handle:
            handle.write(data)

    @classmethod
    def read(cls, folder: Path) -> Card:
        """Read ``zoo.json``.

        Raises:
            ZooError: if the folder is no zoo, or one of another format or version.
        """
        path = folder / FILE
        if not path.is_file():
            raise ZooError(f"{folder}: no zoo here ({FILE} is missing). Name the folder of a zoo, "
                           "or make one with `metanet zoo build` or `metanet zoo ingest`")
        if path.stat().st_size > _MAX:
            raise ZooError(f"{path}: larger than {_MAX} bytes; this is no card of a zoo")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ZooError(f"{path}: is not JSON ({error}); pull or build the zoo again") from None
        return cls._of(found, path)

    @classmethod
    def _of(cls, found: Any, path: Path) -> Card:
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ZooError(f"{path}: is not the card of a zoo (no format {FORMAT!r})")
        if found.get("version") != VERSION:
            raise ZooError(f"{path}: version {found.get('version')!r}; this metanet reads version "
                           f"{VERSION}. Install a newer metanet")
        kinds = {"license": str, "provenance": dict, "labels": list, "groups": dict,
                 "intrinsic": dict, "complete": bool}
        for key, kind in kinds.items():
            if not isinstance(found.get(key), kind):
                raise ZooError(f"{path}: {key} is not a {kind.__name__}; the card is damaged")
        if found.get("recipe_hash") != recipe_hash(found.get("recipe")):
            raise ZooError(f"{path}: the recipe does not have the hash that the card states; "
                           "it was edited. Restore it, or build into another folder")
        return cls(found["license"], found["provenance"], found.get("recipe"),
                   found.get("recipe_hash"), tuple(map(str, found["labels"])), found["groups"],
                   found["intrinsic"], found["complete"])
