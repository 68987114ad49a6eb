"""One safetensors file on the Hub: its header by range requests, its tensors when they are read.

Tensors come one by one, by range, until that would move half of the file; then the whole file is
downloaded into the cache once, so no use of a file costs more than one and a half times its bytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.checkpoint.content import Content, Path_
from metanet.checkpoint.hub import HubAddress, hub_errors
from metanet.checkpoint.info import TensorInfo
from metanet.checkpoint.names import printable
from metanet.checkpoint.problems import refusal
from metanet.checkpoint.safetensors_file import (
    header_length,
    open_safetensors,
    parse_header,
    tree_of,
    user_metadata,
)
from metanet.errors import HubError

if TYPE_CHECKING:
    from torch import Tensor

FIRST = 1 << 16  # bytes asked for at first: most headers fit
_TRIES = 3
_NETWORK = frozenset({"httpx", "httpx2", "httpcore", "httpcore2"})
_TOTAL = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def open_remote(place: HubAddress) -> Content:
    """A safetensors file at a pinned commit as Content; a file in the cache is read from there.

    Raises:
        HubError: if the Hub or the network fails.
        CheckpointError: if its header is damaged.
    """
    from huggingface_hub import try_to_load_from_cache

    with hub_errors(place.uri):
        cached = try_to_load_from_cache(place.repo, str(place.file), revision=place.revision,
                                        repo_type=place.kind)
        if isinstance(cached, str):
            return open_safetensors(Path(cached))
        remote = _Remote(place)
    return Content(remote.tree, remote.read, (), "safetensors", remote.metadata,
                   lambda: remote.fetch().files)


def read_range(place: HubAddress, begin: int, end: int) -> tuple[bytes, int]:
    """(bytes ``begin`` to ``end``, size of the file); fewer where the file ends before.

    Raises:
        HubError: if the Hub sends something else than was asked for.
    """
    for left in reversed(range(_TRIES)):
        try:
            return _ask(place, begin, end)
        except Exception as error:
            if not left or type(error).__module__.split(".")[0] not in _NETWORK:
                raise
    raise HubError(f"{place.uri}: not read")


def _ask(place: HubAddress, begin: int, end: int) -> tuple[bytes, int]:
    from huggingface_hub import constants, hf_hub_url, utils

    client: Any = utils  # it documents these names and does not list them for type checkers

    url = hf_hub_url(place.repo, str(place.file), repo_type=place.kind, revision=place.revision)
    headers = {**client.build_hf_headers(), "Range": f"bytes={begin}-{end - 1}",
               "Accept-Encoding": "identity"}
    with client.get_session().stream("GET", url, headers=headers,
                                     timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        client.hf_raise_for_status(response)
        told = _TOTAL.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or told is None or int(told[1]) != begin:
            raise HubError(f"{place.uri}: the server does not send parts of files (status "
                           f"{response.status_code}). Download the file: metanet pull")
        body, total = bytearray(), int(told[3])
        for block in response.iter_bytes():
            body += block
            if len(body) > end - begin:
                break
    if len(body) != min(end, total) - begin:
        raise HubError(f"{place.uri}: {len(body)} bytes came, {min(end, total) - begin} were asked "
                       "for. Try again")
    return bytes(body), total


class _Remote:
    """Header and state of one file: how much of it came by range, and where it is if whole."""

    def __init__(self, place: HubAddress) -> None:
        self.place = place
        first, self.size = read_range(place, 0, FIRST)
        length = header_length(place.uri, first, self.size)
        if 8 + length > len(first):
            first += read_range(place, len(first), 8 + length)[0]
        self.start = 8 + length
        self.tensors, stored, self.begins = parse_header(
            place.uri, first[8:self.start], self.size - self.start)
        self.tree = tree_of(place.uri, self.tensors, stored)
        self.metadata = user_metadata(place.uri, stored)
        self.taken = 0
        self.whole: Content | None = None

    def fetch(self) -> Content:
        """The whole file, from the cache of the Hub's client."""
        if self.whole is None:
            from huggingface_hub import hf_hub_download

            place = self.place
            with hub_errors(place.uri):
                path = hf_hub_download(place.repo, str(place.file), repo_type=place.kind,
                                       revision=place.revision)
            whole = open_safetensors(Path(path))
            if whole.tree != self.tree:
                raise refusal(place.uri, "its header is not the one that was read before",
                              "Open it again")
            self.whole = whole
        return self.whole

    def read(self, where: Path_) -> Tensor:
        """One tensor, by range where little of the file has been read."""
        info = self.tree[str(where[0])]
        if self.whole is None and 2 * (self.taken + info.nbytes) <= self.size:
            begin = self.start + self.begins[str(info.place)]
            self.taken += info.nbytes
            return self._tensor(info, begin)
        return self.fetch().read(where)

    def _tensor(self, info: TensorInfo, begin: int) -> Tensor:
        import torch

        dtype = getattr(torch, info.dtype)
        if not info.nbytes:
            return torch.empty(info.shape, dtype=dtype)
        with hub_errors(self.place.uri):
            raw, size = read_range(self.place, begin, begin + info.nbytes)
        if size != self.size or len(raw) != info.nbytes:
            raise refusal(self.place.uri, f"tensor {printable(info.place, 80)!r} is cut off",
                          "Open it again")
        return torch.frombuffer(bytearray(raw), dtype=dtype).view(info.shape)
