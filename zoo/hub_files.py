"""Files of a repository on the Hub: listed, their names distrusted, downloaded, their bytes hashed.

Files go into a folder beside the target and stay there until all are right, so that a pull that
was cut off goes on with the next one, and nothing half-written ever stands at the target.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from metanet.zoo import shard as shards
from metanet.zoo.card import Card
from metanet.zoo.index import FILE as INDEX
from metanet.zoo.index import Index

from metanet.checkpoint.hub import HubAddress, hub_errors
from metanet.checkpoint.names import printable, some
from metanet.errors import CheckpointError, HubError, ZooError

_THREADS = 4
_BLOCK = 1 << 20
_OURS = ".cache"  # where the Hub's client keeps notes beside the files
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\..*)?", re.IGNORECASE)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub lists it.

    Attributes:
        name: its path in the repository, safe to use as a path here.
        size: bytes, where the Hub says so.
        sha256: of its bytes, for big files.
        blob: git's name of it, for small ones.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    blob: str | None = None


def check_name(name: str, where: str) -> str:
    """The name, if it is a plain relative path on every system.

    Raises:
        CheckpointError: if it leads elsewhere or could not be shown.
    """
    windows = PureWindowsPath(name)
    parts = name.split("/")
    bad = (not name.isprintable() or "\\" in name or ":" in name or windows.drive
           or any(part in ("", ".", "..") or part != part.strip() or part.endswith(".")
                  for part in parts)
           or any(_DEVICE.fullmatch(part) for part in parts)
           or parts[0] == _OURS or len(name) > 500)
    if bad:
        raise CheckpointError(f"{where}: it lists a file {printable(name, 120)!r}, whose name "
                              "leads outside the folder or is no plain path. The repository is "
                              "made to deceive; nothing was written.")
    return name


def listing(place: HubAddress) -> list[HubFile]:
    """All files of a repository at a pinned commit, every name checked.

    Raises:
        HubError: if the Hub or the network fails.
        CheckpointError: for a hostile name.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    with hub_errors(place.uri):
        if constants.HF_HUB_OFFLINE:
            root = Path(snapshot_download(place.repo, repo_type=place.kind,
                                          revision=place.revision, local_files_only=True))
            return [HubFile(path.relative_to(root).as_posix(), path.stat().st_size)
                    for path in sorted(root.rglob("*")) if path.is_file()]
        found = HfApi().list_repo_tree(place.repo, recursive=True, revision=place.revision,
                                       repo_type=place.kind)
        return [_listed(entry, place.uri) for entry in found if hasattr(entry, "blob_id")]


def one(place: HubAddress) -> HubFile:
    """The one file that an address names. Raises HubError if it is not there."""
    from huggingface_hub import HfApi, constants

    name = check_name(str(place.file), place.uri)
    with hub_errors(place.uri):
        if constants.HF_HUB_OFFLINE:
            return HubFile(name)
        found = HfApi().get_paths_info(place.repo, [name], revision=place.revision,
                                       repo_type=place.kind)
        for entry in found:
            if entry.path == name and hasattr(entry, "blob_id"):
                return _listed(entry, place.uri)
    raise HubError(f"{place.uri}: there is no such file in the repository. Look at its page")


def _listed(entry: Any, where: str) -> HubFile:
    lfs = entry.lfs
    return HubFile(check_name(entry.path, where), entry.size, lfs.sha256 if lfs else None,
                   None if lfs else entry.blob_id)


def matching(files: Sequence[HubFile], patterns: Iterable[str], where: str) -> list[HubFile]:
    """The files whose names fit one of the patterns (as of a shell; ``*`` passes slashes)."""
    wanted = list(patterns)
    if not wanted:
        return list(files)
    found = [f for f in files if any(fnmatch.fnmatchcase(f.name, p) for p in wanted)]
    if not found:
        raise HubError(f"{where}: no file fits {some(wanted)}; there are "
                       f"{some([f.name for f in files])}")
    return found


def download(place: HubAddress, files: Sequence[HubFile], folder: Path,
             progress: Progress | None = None) -> dict[str, str]:
    """Download files into ``folder`` and hash them; those that are there already stay.

    Returns:
        Name → hex sha256 of the bytes that are there now.

    Raises:
        HubError: if the network fails, or the bytes are not those that the Hub lists.
    """
    total = sum(f.size or 0 for f in files)
    done = 0
    found: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        begun = [(file, pool.submit(_one, place, file, folder)) for file in files]
        try:
            for file, future in begun:
                found[file.name] = future.result()
                done += file.size or 0
                if progress is not None:
                    progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _one(place: HubAddress, file: HubFile, folder: Path) -> str:
    target = folder / file.name
    with hub_errors(f"{place.uri}/{file.name}"):
        _bring(place, file, folder)
    if target.is_symlink() or not target.is_file():
        raise HubError(f"{place.uri}: {printable(file.name, 120)!r} did not arrive. Try again")
    sha256, blob = _hashes(target)
    if _is_wrong(target, file, sha256, blob):
        target.unlink()
        raise HubError(f"{place.uri}: {printable(file.name, 120)!r} is not what the Hub lists "
                       f"(sha256 {sha256[:12]}…, {(file.sha256 or file.blob or '')[:12]}… was "
                       "promised); it was removed. Run the same again")
    return sha256


def verified(place: HubAddress, file: HubFile) -> Path:
    """A file in the cache of the Hub's client, compared with what the Hub lists.

    Raises:
        HubError: if the network fails, or the bytes are not those that the Hub lists.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(f"{place.uri}/{file.name}"):
        path = Path(hf_hub_download(place.repo, file.name, revision=place.revision,
                                    repo_type=place.kind))
    if _is_wrong(path, file, *_hashes(path)):
        path.resolve().unlink()
        raise HubError(f"{place.uri}: {printable(file.name, 120)!r} is not what the Hub lists; it "
                       "was removed. Run the same again")
    return path


def _is_wrong(path: Path, file: HubFile, sha256: str, blob: str) -> bool:
    return ((file.size is not None and path.stat().st_size != file.size)
            or (file.sha256 is not None and sha256 != file.sha256)
            or (file.blob is not None and blob != file.blob))


def _bring(place: HubAddress, file: HubFile, folder: Path) -> None:
    from huggingface_hub import constants, hf_hub_download

    target = folder / file.name
    if not constants.HF_HUB_OFFLINE:
        hf_hub_download(place.repo, file.name, revision=place.revision, repo_type=place.kind,
                        local_dir=folder)
    elif not target.is_file():
        cached = hf_hub_download(place.repo, file.name, revision=place.revision,
                                 repo_type=place.kind)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, target)


def _hashes(path: Path) -> tuple[str, str]:
    """Hex sha256 of a file, and what git calls it."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            sha256.update(block)
            blob.update(block)
    return sha256.hexdigest(), blob.hexdigest()


def staging(out: Path, commit: str) -> Path:
    """Where the files of one commit wait beside their target."""
    folder = out.absolute().parent / f".{out.name}.{commit[:12]}.part"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tidy(folder: Path) -> None:
    """Remove the notes of the Hub's client."""
    shutil.rmtree(folder / _OURS, ignore_errors=True)


def keep_only(folder: Path, names: Iterable[str]) -> None:
    """Remove what an earlier pull with other patterns left among the files."""
    wanted = {PurePosixPath(name) for name in names}
    for path in sorted(folder.rglob("*"), reverse=True):
        inside = PurePosixPath(path.relative_to(folder).as_posix())
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif inside not in wanted:
            path.unlink()


def shards_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Shard file → (bytes, sha256), as the index of a zoo states them."""
    Card.read(folder)
    index = Index(folder / INDEX)
    try:
        rows = index.rows("SELECT shard, bytes, sha256 FROM shards")
        return {f"{shards.FOLDER}/{shards.name_of(int(str(n)))}": (int(str(b)), str(h))
                for n, b, h in rows}
    except ValueError as error:
        raise ZooError(f"{folder}: the index of the zoo is damaged ({error})") from None
    finally:
        index.close()
