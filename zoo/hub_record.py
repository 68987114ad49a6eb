"""What a pull writes down beside the files, and how a finished folder takes its place."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from metanet.zoo.card import FILE as CARD
from metanet.zoo.card import Card

from metanet.checkpoint.hub import HubAddress
from metanet.checkpoint.nesting import nested_too_deep
from metanet.checkpoint.write import atomic
from metanet.errors import ZooError

RECORD = "source.json"
FORMAT = "metanet.source"
README = "README.md"
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_MAX_CARD = 4 << 20


@dataclass(frozen=True)
class Pulled:
    """What a pull brought.

    Attributes:
        out: where it is.
        source: the address with the commit in it.
        commit: the commit.
        license: as the card states it, or ``unknown``.
        files: how many.
        bytes: of all of them.
        members: of a zoo, how many; None for other files, and for a part of a zoo's files.
        already: whether it was there before.
    """

    out: Path
    source: str
    commit: str
    license: str = "unknown"
    files: int = 0
    bytes: int = 0
    members: int | None = None
    already: bool = False


def record_of(target: Path, address: HubAddress, tensors: Sequence[str]) -> Path:
    """Where a pull to ``target`` writes down what it did."""
    if address.file is not None or tensors:
        return target.with_name(f"{target.name}.{RECORD}")
    return target / RECORD


def read_record(record: Path) -> dict[str, Any]:
    """What an earlier pull wrote down; empty where there is nothing of that kind."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("format") == FORMAT else {}


def there_already(record: Path, target: Path, place: HubAddress, asked: dict[str, Any]
                  ) -> Pulled | None:
    """What an earlier pull of the same brought, if it is still there."""
    found = read_record(record)
    same = (found.get("source") == place.uri and found.get("asked") == asked
            and target.exists() and isinstance(found.get("files"), dict))
    if not same:
        return None
    return Pulled(target, place.uri, str(place.revision), str(found.get("license")),
                  len(found["files"]), int(found.get("bytes") or 0), found.get("members"), True)


def check_free(target: Path, record: Path, force: bool) -> None:
    """Raise ZooError if something stands at ``target`` that may not be replaced."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    ours = bool(read_record(record)) or (target / CARD).is_file()
    if force and ours:
        return
    todo = "use force (--force) to replace it" if ours else "name another place"
    raise ZooError(f"{target}: something else is there already; {todo}")


def license_of(folder: Path) -> str:
    """The licence of a zoo's card, or of the front matter of a README."""
    if (folder / CARD).is_file():
        return str(Card.read(folder).license)
    path = folder / README
    if not path.is_file() or path.stat().st_size > _MAX_CARD:
        return "unknown"
    front = _FRONT.match(path.read_text(encoding="utf-8", errors="replace"))
    try:
        deep = front is None or nested_too_deep(front[1])
        found = None if front is None or deep else yaml.safe_load(front[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        found = None
    told = found.get("license") if isinstance(found, dict) else None
    return str(told) if isinstance(told, str) else "unknown"


def write_record(record: Path, place: HubAddress, asked: dict[str, Any], hashes: dict[str, str],
                 license_: str, members: int | None, paths: Mapping[str, Path]) -> int:
    """Write down what was pulled; returns the bytes of all files.

    Args:
        record: the file to write.
        place: the source, at its commit.
        asked: what was asked for, beside the source.
        hashes: name → hex sha256 of every file.
        license_, members: see :class:`Pulled`.
        paths: name → where the file is now.
    """
    files = {name: {"bytes": paths[name].stat().st_size, "sha256": sha256}
             for name, sha256 in sorted(hashes.items())}
    size = sum(int(str(f["bytes"])) for f in files.values())
    told = {"format": FORMAT, "repo": place.repo, "source": place.uri, "commit": place.revision,
            "asked": asked, "license": license_, "members": members, "bytes": size,
            "files": files}
    with atomic(record) as handle:
        handle.write((json.dumps(told, indent=2) + "\n").encode())
    return size


def put(folder: Path, target: Path) -> None:
    """Move a finished folder to its place; what stood there goes away after that."""
    if not target.exists():
        os.replace(folder, target)
        return
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".metanet-") as old:
        os.replace(target, Path(old) / "old")
        os.replace(folder, target)
