"""``hf://org/name[@revision][/file]``: files of the Hugging Face Hub, pinned to a commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from metanet.checkpoint.content import Content
from metanet.checkpoint.folder import choose, open_file, open_folder, shard_names
from metanet.checkpoint.names import printable
from metanet.checkpoint.problems import refusal
from metanet.errors import CheckpointError, HubError, MetanetError

SCHEME = "hf://"
_SPELLING = "Write hf://org/name, hf://org/name@revision or hf://org/name@revision/file"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_URI = re.compile(rf"(?P<repo>{_PART}/{_PART})(@(?P<rev>[^/@\s]+))?(/(?P<file>[^\x00-\x1f]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubAddress:
    """A parsed address. ``revision``: branch, tag or commit (``%2F`` for a slash), or None."""

    repo: str
    revision: str | None
    file: str | None


def parse_address(uri: str) -> HubAddress:
    """Parse an ``hf://`` address. Raises CheckpointError with the spelling."""
    match = _URI.fullmatch(uri.removeprefix(SCHEME).rstrip("/"))
    if match is None or ".." in uri.split("/"):
        raise refusal(uri, "it is no address on the Hub", _SPELLING)
    revision = match["rev"]
    return HubAddress(match["repo"], unquote(revision) if revision else None, match["file"])


@contextmanager
def _hub_errors(uri: str) -> Iterator[None]:
    """Whatever the network or the Hub does wrong is a HubError."""
    try:
        yield
    except MetanetError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        todo = ("Check the name, the network and your token; offline, only files that were "
                "downloaded before can be read")
        raise HubError(f"{printable(uri)}: the Hub did not deliver it ({type(error).__name__}: "
                       f"{printable(first, 200)}). {todo}.") from error


def _commit(address: HubAddress) -> str:
    """The commit that a revision means now; offline, the one that the cache remembers."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if address.revision and _COMMIT.fullmatch(address.revision):
        return address.revision
    if constants.HF_HUB_OFFLINE:
        cached = snapshot_download(address.repo, revision=address.revision, local_files_only=True)
        return Path(cached).name
    sha = HfApi().model_info(address.repo, revision=address.revision).sha
    if not sha:
        raise CheckpointError(f"hf://{address.repo}: the Hub names no commit. Try again later.")
    return str(sha)


def _fetch(repo: str, commit: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, name, revision=commit))


def _names(repo: str, commit: str) -> list[str]:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        root = Path(snapshot_download(repo, revision=commit, local_files_only=True))
        return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    return list(HfApi().list_repo_files(repo, revision=commit))


def open_hub(uri: str) -> tuple[Content, str]:
    """(content, commit) of an address; only what is needed is downloaded, at one commit.

    Raises HubError for the network and the Hub, CheckpointError for the file.
    """
    address = parse_address(uri)
    with _hub_errors(uri):
        commit = _commit(address)
        if address.file is not None:
            return _open_one(address.repo, commit, address.file), commit
        names = _names(address.repo, commit)
        chosen = choose(names, uri)
        path = _fetch_all(address.repo, commit, chosen)
        if "config.json" not in names:
            return open_file(path), commit
        _fetch(address.repo, commit, "config.json")
        return open_folder(path.parent), commit


def _fetch_all(repo: str, commit: str, name: str) -> Path:
    """A file, and if it is an index the shards beside it."""
    path = _fetch(repo, commit, name)
    if name.endswith(".index.json"):
        folder = name.rpartition("/")[0]
        for shard in sorted(set(shard_names(path).values())):
            _fetch(repo, commit, f"{folder}/{shard}" if folder else shard)
    return path


def _open_one(repo: str, commit: str, name: str) -> Content:
    return open_file(_fetch_all(repo, commit, name))
