"""A zoo to the Hugging Face Hub, with a card, as one commit: the whole zoo or nothing."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from metanet.zoo import shard as shards
from metanet.zoo.card import FILE as CARD
from metanet.zoo.hub_card import readme
from metanet.zoo.hub_files import shards_of
from metanet.zoo.hub_record import README
from metanet.zoo.index import FILE as INDEX
from metanet.zoo.store import Zoo

from metanet.checkpoint.hub import HubAddress, hub_errors, parse_address
from metanet.checkpoint.names import printable
from metanet.errors import HubError, ZooError


def push(zoo: Zoo | str | os.PathLike[str], name: str, *, revision: str | None = None,
         private: bool = False, kind: str = "model", message: str = "Upload zoo") -> str:
    """Upload a zoo as one commit, with a card; files that the Hub has already are not sent again.

    Args:
        zoo: a zoo or its folder.
        name: ``org/name``; created where it does not exist.
        revision: the branch; created where it does not exist. ``main`` by default.
        private: whether a repository that is created is private.
        kind: ``model`` or ``dataset``.
        message: of the commit.

    Returns:
        The address with the commit in it: ``hf://org/name@commit``.

    Raises:
        ZooError: if the zoo is damaged; nothing is uploaded then.
        HubError: if the Hub or the network fails; the repository stays as it was.
    """
    if kind not in ("model", "dataset"):
        raise ZooError(f"kind {printable(kind, 40)!r} is neither model nor dataset")
    address = parse_address(f"{'datasets/' if kind == 'dataset' else ''}{name}")
    if address.revision or address.file:
        raise ZooError(f"{printable(name, 120)!r} is no org/name; give the branch as revision")
    opened = zoo if isinstance(zoo, Zoo) else Zoo.open(zoo)
    found = opened.verify(leaks=False)
    if found.missing or found.corrupt:
        raise ZooError(f"{opened.path}: damaged ({(*found.missing, *found.corrupt)[0]}); nothing "
                       "was uploaded. Run `metanet zoo verify`")
    with tempfile.TemporaryDirectory() as folder, hub_errors(address.uri):
        commit = _upload(opened, address, Path(folder), revision or "main", private, message)
    return replace(address, revision=commit).uri


def _upload(zoo: Zoo, address: HubAddress, folder: Path, branch: str, private: bool,
            message: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    files = _frozen(zoo, folder)
    repo, kind = address.repo, address.kind
    api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
    if branch != "main":
        api.create_branch(repo, branch=branch, repo_type=kind, exist_ok=True)
    there = set(api.list_repo_files(repo, revision=branch, repo_type=kind))
    operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
    operations += [CommitOperationDelete(name) for name in sorted(there - set(files))
                   if name.startswith(f"{shards.FOLDER}/")]
    done = api.create_commit(repo, operations, commit_message=message, revision=branch,
                             repo_type=kind)
    if not re.fullmatch(r"[0-9a-f]{40}", str(done.oid)):
        raise HubError(f"{address.uri}: the Hub names no commit. Look at its page")
    return str(done.oid)


def _frozen(zoo: Zoo, folder: Path) -> dict[str, Path]:
    """Name in the repository → file: card and index as of one moment, and the shards they name."""
    with zoo.index.transaction():  # no writer is half way
        for name in (CARD, INDEX):
            shutil.copyfile(zoo.path / name, folder / name)
    text = readme(Zoo.open(folder))
    (folder / README).write_text(text, encoding="utf-8")
    files = {name: folder / name for name in (README, CARD, INDEX)}
    return {**files, **{name: zoo.path / name for name in sorted(shards_of(folder))}}


