"""``hf://org/name[@revision][/file]``: files of the Hugging Face Hub, pinned to a commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from metanet.checkpoint.content import Content
from metanet.checkpoint.folder import CONFIGS, choose, open_file, open_index, read_json
from metanet.checkpoint.names import printable
from metanet.checkpoint.problems import refusal
from metanet.errors import CheckpointError, HubError, MetanetError

SCHEME = "hf://"
_DATASETS = "datasets/"
_SPELLING = "Write hf://org/name, hf://org/name@revision or hf://org/name@revision/file"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_URI = re.compile(rf"(?P<repo>{_PART}/{_PART})(@(?P<rev>[^/@\s]+))?(/(?P<file>[^\x00-\x1f]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class HubAddress:
    """A parsed address. ``revision``: branch, tag or commit (``%2F`` for a slash), or None."""

    repo: str
    revision: str | None
    file: str | None
    kind: str = "model"

    @property
    def uri(self) -> str:
        """The address in one spelling."""
        from urllib.parse import quote

        at = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return (f"{SCHEME}{_DATASETS if self.kind == 'dataset' else ''}{self.repo}{at}"
                f"{'/' + self.file if self.file else ''}")


def parse_address(uri: str) -> HubAddress:
    """Parse ``hf://[datasets/]org/name…``. Raises CheckpointError with the spelling."""
    rest = uri.removeprefix(SCHEME).rstrip("/")
    kind = "dataset" if rest.startswith(_DATASETS) else "model"
    match = _URI.fullmatch(rest.removeprefix(_DATASETS))
    if match is None or ".." in uri.split("/"):
        raise refusal(uri, "it is no address on the Hub", _SPELLING)
    revision = match["rev"]
    return HubAddress(match["repo"], unquote(revision) if revision else None, match["file"], kind)


@contextmanager
def hub_errors(uri: str) -> Iterator[None]:
    """Whatever the network or the Hub does wrong is a HubError."""
    try:
        yield
    except MetanetError:
        raise
    except Exception as error:
        causes = [error, *([error.__cause__] if error.__cause__ else [])]
        told = "; ".join(f"{type(e).__name__}: {printable(_first(e), 200)}" for e in causes)
        raise HubError(f"{printable(uri)}: the Hub refused or failed ({told}). "
                       f"{_todo(error)}.") from error


def _first(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _todo(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return ("The Hub is switched off (HF_HUB_OFFLINE): offline, only files that were "
                "downloaded before can be read")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return ("Check the name; if the repository is private or gated, log in with `hf auth "
                "login` or set HF_TOKEN, and ask for access on its page")
    return "Check the network, then run the same again: files that are here are kept"


def resolve_commit(address: HubAddress) -> str:
    """The commit that a revision means now; offline, the one that the cache remembers."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if address.revision and _COMMIT.fullmatch(address.revision):
        return address.revision
    if constants.HF_HUB_OFFLINE:
        cached = snapshot_download(address.repo, repo_type=address.kind,
                                   revision=address.revision, local_files_only=True)
        return Path(cached).name
    info = HfApi().repo_info(address.repo, repo_type=address.kind, revision=address.revision)
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise CheckpointError(f"{address.uri}: the Hub names no commit. Try again later.")
    return str(info.sha)


def _fetch(place: HubAddress, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(place.repo, name, repo_type=place.kind, revision=place.revision))


def _names(place: HubAddress) -> list[str]:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        root = Path(snapshot_download(place.repo, repo_type=place.kind, revision=place.revision,
                                      local_files_only=True))
        return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    return list(HfApi().list_repo_files(place.repo, repo_type=place.kind,
                                        revision=place.revision))


def open_hub(uri: str) -> tuple[Content, str]:
    """(content, commit) of an address, at one commit.

    Of safetensors only the headers are downloaded; a tensor comes when it is read. Other formats
    are downloaded whole.

    Raises HubError for the network and the Hub, CheckpointError for the file.
    """
    address = parse_address(uri)
    with hub_errors(uri):
        commit = resolve_commit(address)
        place = replace(address, revision=commit)
        if address.file is not None:
            return _open_name(place, address.file), commit
        names = _names(place)
        content = _open_name(place, choose(names, uri))
        told = {key: read_json(_fetch(place, name)) for key, name in CONFIGS.items()
                if name in names}
        return replace(content, metadata={**content.metadata, **told}), commit


def _open_name(place: HubAddress, name: str) -> Content:
    from metanet.checkpoint.remote import open_remote

    folder = name.rpartition("/")[0]
    if name.endswith(".safetensors"):
        return open_remote(replace(place, file=name))
    if not name.endswith(".index.json"):
        return open_file(_fetch(place, name))

    def shard(beside: str) -> Content:
        return _open_name(place, f"{folder}/{beside}" if folder else beside)

    index = _fetch(place, name)
    if name.endswith(_INDEX):
        return open_index(index, shard)
    from metanet.checkpoint.folder import shard_names

    for beside in sorted(set(shard_names(index).values())):
        _fetch(place, f"{folder}/{beside}" if folder else beside)
    return open_file(index)
