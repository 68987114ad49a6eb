"""Ingest: a folder of anyone's checkpoints, with a table of metrics, becomes a zoo."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.zoo.card import GROUPS
from metanet.zoo.layout import Layout
from metanet.zoo.members import MAX_ID, Member
from metanet.zoo.shard import file_hash
from metanet.zoo.store import Zoo
from metanet.zoo.tables import Table, find_table, inside, read_table

from metanet.checkpoint import open as open_checkpoint
from metanet.checkpoint.names import natural_sorted, printable
from metanet.errors import MetanetError, ZooError

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint
    from metanet.symmetry import WeightSpace

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".th", ".pkl")
_CHUNK_BYTES = 256 << 20
_CHUNK = 4096
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ingested:
    """What became of a folder: the zoo, how many members are new, and what was refused, why."""

    zoo: Zoo
    added: int
    refused: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _State:
    """What one ingest keeps in mind while it walks through the files."""

    arch: str | None
    checks: Mapping[str, str | None]
    spaces: dict[Any, WeightSpace | None] = field(default_factory=dict)
    primary: set[Any] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)


def ingest(folder: str | os.PathLike[str], out: str | os.PathLike[str], *,
           table: str | os.PathLike[str] | None = None, arch: str | None = None,
           metrics: Sequence[str] | None = None, license: str | None = None, force: bool = False,
           progress: Progress | None = None) -> Ingested:
    """Read a folder of checkpoints into a zoo.

    Files that cannot be read are reported and left out. A column ``repo`` marks the first net of
    every repository and architecture in ``config.primary``, and members of one repository stay on
    one side of a split. A column ``sha256`` is compared with the file.

    Args:
        folder: the checkpoints, at any depth.
        out: the zoo; a killed ingest of the same folder goes on where it stopped.
        table: CSV or JSON of metrics; by default manifest.json or metrics.csv in the folder. With
            a table only the files that it lists are read.
        arch: architecture of all of them, as for ``metanet.infer``; the zoo then knows their space.
        metrics: columns of the table that are metrics, instead of guessing by name.
        license: licence of the weights; by default what the table says.
        force: replace another zoo at ``out``.
        progress: called with (files done, files).

    Raises:
        ZooError: if the folder or table cannot be read, or nothing in it could be.
    """
    source = Path(folder)
    if not source.is_dir():
        raise ZooError(f"{source}: is no folder of checkpoints")
    found = Path(table) if table is not None else find_table(source)
    known = read_table(found, metrics) if found is not None else None
    files = _listed(source, known)
    zoo = Zoo.create(out, resume=True, force=force, **_card(source, known, files, arch, license))
    state = _State(arch, {} if known is None else
                   {file: told for (file, _), told in zip(files, known.checks, strict=True)})
    added = 0
    for chunk in _chunks(_members(zoo, source, files, state, progress)):
        added += zoo.add(chunk)
    if not len(zoo):
        first = next(iter(state.refused.items()), ("it", "holds no checkpoint"))
        raise ZooError(f"{source}: nothing could be ingested; {printable(first[0], 80)}: "
                       f"{first[1]}")
    zoo.set_card(complete=True, provenance={**zoo.card.provenance, "refused": state.refused})
    return Ingested(zoo, added, state.refused, {} if known is None else known.renamed)


def _listed(folder: Path, table: Table | None) -> list[tuple[str, Mapping[str, Any]]]:
    """(file, columns) of all that is to be read, in natural order without a table."""
    if table is not None:
        return list(table.rows)
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*")
             if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [(name, {}) for name in natural_sorted(paths)]


def _card(folder: Path, table: Table | None, files: Sequence[tuple[str, Mapping[str, Any]]],
          arch: str | None, license: str | None) -> dict[str, Any]:
    told = sorted({str(row["config.license"]) for _, row in files if row.get("config.license")})
    repos = {row.get("config.repo") for _, row in files} - {None}
    groups = {**GROUPS, "repo": "config.repo"} if len(repos) > 1 else dict(GROUPS)
    recipe = {"ingest": folder.resolve().name, "arch": arch, "files": [name for name, _ in files],
              "table": None if table is None else table.sha256}
    return {
        "license": license or (told[0] if len(told) == 1 else
                               "mixed: see config.license" if told else "unknown"),
        "provenance": {"ingested": folder.resolve().name,
                       "table": None if table is None else table.name,
                       "renamed": {} if table is None else dict(table.renamed)},
        "recipe": recipe,
        "groups": groups,
    }


def _members(zoo: Zoo, folder: Path, files: Sequence[tuple[str, Mapping[str, Any]]], state: _State,
             progress: Progress | None) -> Iterator[Member]:
    prefix = folder.resolve().name
    names = _ids(prefix, files)
    absent = set(zoo.missing(names))
    for done, ((file, row), name) in enumerate(zip(files, names, strict=True), 1):
        try:
            member = _member(folder, file, row, name, state, name in absent)
            if member is not None:
                yield member
        except (MetanetError, OSError) as error:
            shown = printable(file, 200)  # what is kept in the card names no local folder
            state.refused[shown] = str(error).removeprefix(f"{folder / file}: ")
        if progress is not None:
            progress(done, len(files))


def _ids(prefix: str, files: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The table's own ids, else folder/file without its suffix, where that is unique."""
    stems = [str(row.get("id") or f"{prefix}/{file.rpartition('.')[0] or file}")
             for file, row in files]
    whole = [f"{prefix}/{file}" for file, _ in files]
    names = [stem if stems.count(stem) == 1 else full for stem, full in zip(stems, whole,
                                                                            strict=True)] \
        if len(set(stems)) < len(stems) else stems
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ZooError(f"{printable(twice, 80)!r} is listed twice in the table; list every file "
                       "once")
    return [printable(name)[:MAX_ID] for name in names]


def _member(folder: Path, file: str, row: Mapping[str, Any], name: str, state: _State, new: bool
            ) -> Member | None:
    """A member of one file; None where the zoo holds it already."""
    path = inside(folder, file)
    if not path.exists():
        raise ZooError("is not there")
    told = state.checks.get(file)
    if new and told and path.is_file() and file_hash(path) != told:
        raise ZooError("its bytes are not those of the table (sha256 differs)")
    checkpoint = open_checkpoint(path)
    shape = tuple((n, checkpoint.shape(n), checkpoint.dtype(n)) for n in checkpoint.names)
    space = _space(checkpoint, shape, state)
    weights = checkpoint.state_dict() if new else {}
    config = _under(row, "config.")
    if config.get("repo") is not None:
        config["primary"] = (config["repo"], shape) not in state.primary
        state.primary.add((config["repo"], shape))
    if not new:
        return None
    Layout.of(weights)  # refuses what a zoo cannot hold
    step = row.get("step")
    return Member(name, config, _under(row, "metrics."), row.get("parent"),
                  int(step) if step is not None else None, row.get("split"), weights, space)


def _under(row: Mapping[str, Any], root: str) -> dict[str, Any]:
    return {key.removeprefix(root): value for key, value in row.items()
            if key.startswith(root) and value is not None}


def _space(checkpoint: Checkpoint, shape: Any, state: _State) -> WeightSpace | None:
    """The space of all files of one shape, inferred once."""
    if state.arch is None:
        return None
    if shape not in state.spaces:
        from metanet.symmetry import infer

        state.spaces[shape] = infer(checkpoint, arch=state.arch)
    return state.spaces[shape]


def _chunks(members: Iterator[Member]) -> Iterator[list[Member]]:
    """Lists of members that fit into memory."""
    chunk: list[Member] = []
    size = 0
    for member in members:
        chunk.append(member)
        size += sum(t.numel() * t.element_size() for t in member.weights.values())
        if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
