"""Zoos, and any other files, from the Hugging Face Hub.

A pull is pinned to a commit, which is written down beside the files; every byte is compared with
what the Hub lists and, of a zoo, with its index.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.zoo import hub_files
from metanet.zoo import shard as shards
from metanet.zoo.batch import untied
from metanet.zoo.card import FILE as CARD
from metanet.zoo.hub_files import HubFile, Progress
from metanet.zoo.hub_record import (
    README,
    RECORD,
    Pulled,
    check_free,
    license_of,
    put,
    read_record,
    record_of,
    there_already,
    write_record,
)
from metanet.zoo.index import FILE as INDEX
from metanet.zoo.merge import entry_of
from metanet.zoo.store import Zoo

from metanet.checkpoint.hub import HubAddress, hub_errors, parse_address, resolve_commit
from metanet.checkpoint.names import printable, some
from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.selection import Selection

_CHUNK = 4096


def pull(source: str, out: str | os.PathLike[str], *, patterns: Sequence[str] = (),
         where: str | None = None, tensors: Sequence[str] = (), zoo: bool = False,
         force: bool = False, progress: Progress | None = None) -> Pulled:
    """Download a zoo, a repository, one file, or some tensors of a checkpoint.

    Nothing stands at ``out`` before all of it is there and right. A pull that was cut off goes on
    where it stopped when it is run again. The commit, the licence and the sha256 of every file are
    written to ``source.json`` (beside a single file: ``OUT.source.json``).

    Args:
        source: ``hf://org/name``, ``hf://datasets/org/name``, with ``@revision`` and ``/file``.
        out: the folder to make; for one file or for tensors, the file.
        patterns: only files whose names fit one of them; by default all of a repository, and of a
            zoo its card, index and shards.
        where: of a zoo, only members that fulfil this condition; only their shards are downloaded.
        tensors: patterns of tensor names: only these, by range requests, as one safetensors file.
        zoo: refuse what is no zoo.
        force: replace what an earlier pull, or another zoo, left at ``out``.
        progress: called with the bytes that are here and the bytes in all.

    Raises:
        HubError: if the network or the Hub fails, or bytes are not those that were promised.
        ZooError: if ``out`` is taken, or the zoo is damaged.
        CheckpointError: for a wrong address, a hostile file name, or a damaged checkpoint.
    """
    address, target = parse_address(source), Path(out)
    asked = {"patterns": list(patterns), "where": where, "tensors": list(tensors)}
    if sum(map(bool, (patterns, where, tensors))) > 1:
        raise ZooError("patterns, a condition and tensors exclude each other; name one of them")
    record = record_of(target, address, tensors)
    with hub_errors(source):
        commit = _commit(address, record)
    place = replace(address, revision=commit)
    done = there_already(record, target, place, asked)
    if done is not None:
        return done
    check_free(target, record, force)
    folder = hub_files.staging(target, commit)
    try:
        if tensors:
            return _pull_tensors(place, target, folder, asked, record)
        if address.file is not None:
            return _pull_file(place, target, folder, asked, record, progress)
        return _pull_folder(place, target, folder, asked, zoo, progress)
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _commit(address: HubAddress, record: Path) -> str:
    """The commit that is meant; offline, the one that is here already."""
    from huggingface_hub import constants

    found = read_record(record)
    if constants.HF_HUB_OFFLINE and address.revision is None and found.get("repo") == address.repo:
        return str(found.get("commit"))
    return resolve_commit(address)


def _pull_folder(place: HubAddress, target: Path, folder: Path, asked: dict[str, Any],
                 only_zoo: bool, progress: Progress | None) -> Pulled:
    listed = hub_files.listing(place)
    names = {f.name for f in listed}
    is_zoo = {CARD, INDEX} <= names
    if (asked["where"] is not None or only_zoo) and not is_zoo:
        raise ZooError(f"{place.uri}: is no zoo (it has no {CARD} and {INDEX}); `metanet pull` "
                       "brings other files")
    chosen = hub_files.matching(listed, asked["patterns"], place.uri)
    hashes: dict[str, str] = {}
    if is_zoo:
        small = [f for f in listed if f.name in (CARD, INDEX)]
        hashes = hub_files.download(place, small, folder)
        promised = hub_files.shards_of(folder)
        chosen = _chosen(place, folder, listed, chosen, promised, asked)
    rest = [f for f in chosen if f.name not in hashes]
    hashes.update(hub_files.download(place, rest, folder, progress))
    hashes = {f.name: hashes[f.name] for f in chosen}
    members: int | None = None
    if is_zoo:
        _compare(place, folder, hashes, promised)
        whole = {CARD, INDEX, *promised} <= set(hashes)
        members = len(Zoo.open(folder)) if whole else None
    hub_files.tidy(folder)
    hub_files.keep_only(folder, hashes)
    if asked["where"] is not None:
        members = _narrow(folder, place, asked["where"])
        hashes = {p.relative_to(folder).as_posix(): shards.file_hash(p)
                  for p in sorted(folder.rglob("*")) if p.is_file()}
    license_ = license_of(folder)
    size = write_record(folder / RECORD, place, asked, hashes, license_, members,
                        {name: folder / name for name in hashes})
    put(folder, target)
    return Pulled(target, place.uri, str(place.revision), license_, len(hashes), size, members)


def _chosen(place: HubAddress, folder: Path, listed: list[HubFile], chosen: list[HubFile],
            promised: dict[str, tuple[int, str]], asked: dict[str, Any]) -> list[HubFile]:
    """The files of a zoo that are wanted: no stranger's files beside its own."""
    names = {f.name for f in listed}
    missing = [name for name in promised if name not in names]
    if missing:
        raise ZooError(f"{place.uri}: the index names {printable(missing[0], 80)!r}, which is not "
                       "in the repository; the zoo is incomplete. Tell its owner")
    if asked["patterns"]:
        return chosen
    wanted = set(promised)
    if asked["where"] is not None:
        zoo = Zoo.open(folder)
        found = zoo.query(asked["where"])
        zoo.close()
        if not len(found):
            raise ZooError(f"{place.uri}: no member fulfils {printable(asked['where'], 120)!r}")
        wanted = {f"{shards.FOLDER}/{shards.name_of(int(n))}"
                  for n in set(shards.numbers(found.places).tolist())}
    return [f for f in listed if f.name in wanted | {CARD, INDEX, README}
            or f.name.upper().startswith("LICEN")]


def _compare(place: HubAddress, folder: Path, hashes: dict[str, str],
             promised: dict[str, tuple[int, str]]) -> None:
    """Every shard that is here has the bytes that the index promises."""
    for name, (size, sha256) in promised.items():
        if name in hashes and (hashes[name] != sha256 or (folder / name).stat().st_size != size):
            (folder / name).unlink()
            raise ZooError(f"{place.uri}: {name} is not the shard that the index of the zoo names "
                           f"(sha256 {hashes[name][:12]}…, not {printable(sha256, 12)}…); it was "
                           "removed. The zoo at this commit is damaged: tell its owner")


def _narrow(folder: Path, place: HubAddress, where: str) -> int:
    """Turn a zoo some of whose shards are here into a zoo of the members that were asked for."""
    fresh = folder / "chosen"
    zoo = Zoo.open(folder)
    card = zoo.card
    told = {**card.provenance, "pulled": {"source": place.uri, "where": where}}
    new = Zoo.create(fresh, force=True, license=card.license, provenance=told,
                     recipe=card.recipe, labels=card.labels, groups=card.groups,
                     intrinsic=card.intrinsic)
    _copy(zoo.query(where), new)
    members = len(new)
    zoo.close()
    new.close()
    for name in (CARD, INDEX):
        os.replace(fresh / name, folder / name)
    shutil.rmtree(folder / shards.FOLDER)
    os.replace(fresh / shards.FOLDER, folder / shards.FOLDER)
    shutil.rmtree(fresh)
    return members


def _copy(found: Selection, new: Zoo) -> None:
    for batch in found.batches(_CHUNK):
        rows = list(batch.selection.rows())
        entries = [replace(entry_of(row), split=row["split"]) for row in rows]
        new.add_stacked(untied(batch.layout, batch.tensors), entries, batch.space)


def _pull_file(place: HubAddress, target: Path, folder: Path, asked: dict[str, Any], record: Path,
               progress: Progress | None) -> Pulled:
    if target.is_dir():
        raise ZooError(f"{target}: is a folder, and the source is one file; name a file")
    file = hub_files.one(place)
    hashes = hub_files.download(place, [file], folder, progress)
    os.replace(folder / file.name, target)
    size = write_record(record, place, asked, hashes, "unknown", None, {file.name: target})
    shutil.rmtree(folder)
    return Pulled(target, place.uri, str(place.revision), "unknown", 1, size)


def _pull_tensors(place: HubAddress, target: Path, folder: Path, asked: dict[str, Any],
                  record: Path) -> Pulled:
    from metanet.checkpoint import open as open_checkpoint
    from metanet.checkpoint import write_safetensors

    if target.is_dir():
        raise ZooError(f"{target}: is a folder; tensors are written as one file, name it")
    checkpoint = open_checkpoint(place.uri)
    names = [n for n in checkpoint.names if any(fnmatch.fnmatchcase(n, p)
                                                for p in asked["tensors"])]
    if not names:
        raise ZooError(f"{place.uri}: no tensor fits {some(asked['tensors'])}; there are "
                       f"{some(checkpoint.names)}")
    fresh = folder / "tensors.safetensors"
    write_safetensors({n: checkpoint.read(n) for n in names}, fresh, {"source": place.uri})
    hashes = {fresh.name: shards.file_hash(fresh)}
    os.replace(fresh, target)
    size = write_record(record, place, asked, hashes, "unknown", None, {fresh.name: target})
    shutil.rmtree(folder)
    return Pulled(target, place.uri, str(place.revision), "unknown", 1, size)


