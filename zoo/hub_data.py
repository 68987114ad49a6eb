"""Data sets from the Hub: downloaded into the cache of its client, pinned, every byte checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metanet.zoo.hub_files import HubFile, listing, one, verified

from metanet.checkpoint.hub import hub_errors, parse_address, resolve_commit
from metanet.checkpoint.names import some
from metanet.errors import ZooError

# The repositories of the makers, for the source "hub".
KNOWN = {"mnist": "hf://datasets/ylecun/mnist",
         "fashion-mnist": "hf://datasets/zalando-datasets/fashion_mnist",
         "cifar10": "hf://datasets/uoft-cs/cifar10"}
_IDX = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_BATCH = re.compile(r"(data_batch_[1-5]|test_batch)\.bin")
_TEXTS = ("tinyshakespeare.txt", "tiny-shakespeare.txt", "input.txt")


def fetched(name: str, source: str, spellings: Sequence[str], part: str) -> tuple[Path, str]:
    """A data set of the Hub as files here.

    Args:
        name: the data set.
        source: ``hf://datasets/org/name``, with ``@revision`` and ``/file``, or ``hub``.
        spellings: how folders and files may be named after it.
        part: train or test.

    Returns:
        The file, or the folder with the files, and the address with the commit in it.

    Raises:
        HubError: if the network or the Hub fails, or bytes are not those that the Hub lists.
        ZooError: if the repository holds no form of it that is known.
    """
    place = parse_address(pinned(name, source))
    if place.file is not None:
        return verified(place, one(place)), place.uri
    files = _wanted(listing(place), spellings, part)
    if not files:
        raise ZooError(f"{place.uri}: holds no {name} that can be read (an npz, the files of its "
                       f"makers, or {part}-*.parquet); name a file in it: {place.uri}/FILE")
    paths = [verified(place, file) for file in files]
    if len({path.parent for path in paths}) > 1:
        raise ZooError(f"{place.uri}: the files {some([f.name for f in files])} lie in several "
                       "folders; name one file")
    return (paths[0] if paths[0].suffix in (".npz", ".txt") else paths[0].parent), place.uri


def pinned(name: str, source: str) -> str:
    """The address of a data set with the commit in it.

    Raises:
        HubError: if the network or the Hub fails.
        ZooError: if the source is ``hub`` and nobody is known to keep this data set there.
    """
    if source == "hub" and name not in KNOWN:
        raise ZooError(f"{name}: no repository on the Hub is known for it; name one: "
                       "hf://datasets/org/name")
    address = parse_address(KNOWN[name] if source == "hub" else source)
    with hub_errors(source):
        return replace(address, revision=resolve_commit(address)).uri


def _wanted(files: Sequence[HubFile], spellings: Sequence[str], part: str) -> list[HubFile]:
    """The files of the first form that is there."""
    def base(file: HubFile) -> str:
        return file.name.rpartition("/")[2]

    forms = ([f for f in files if base(f) in [f"{s}.npz" for s in spellings]][:1],
             [f for f in files if base(f) in _TEXTS][:1],
             [f for f in files if _IDX.fullmatch(base(f))],
             [f for f in files if _BATCH.fullmatch(base(f))],
             [f for f in files if re.fullmatch(rf"{part}-.*\.parquet", base(f))])
    return next((form for form in forms if form), [])
