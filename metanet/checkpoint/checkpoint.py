"""Checkpoint: names, shapes, dtypes and lazily read tensors, with their provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from metanet.checkpoint.content import Content
from metanet.checkpoint.discover import find, strip_prefixes
from metanet.checkpoint.foreign import check
from metanet.checkpoint.info import TensorInfo, is_floating
from metanet.checkpoint.names import natural_sorted, printable
from metanet.checkpoint.problems import guarded, refusal

if TYPE_CHECKING:
    import os

    from torch import Tensor

_BLOCK = 1 << 20


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files_hash(files: tuple[Path, ...]) -> str:
    if len(files) == 1:
        return _file_hash(files[0])
    lines = (f"{_file_hash(path)}  {path.name}\n" for path in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from.

    ``uri``: the path, ``hf://...`` or ``memory:``; ``revision``: the commit on the Hub, or None;
    ``format``: what the bytes are; ``files``: the files that hold the tensors.
    """

    uri: str
    revision: str | None = None
    format: str = ""
    files: tuple[Path, ...] = ()
    _hash: Callable[[], str] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def sha256(self) -> str:
        """Hash of the file; of several files, the hash of the lines ``HASH  NAME``; in memory, of
        names, dtypes, shapes and values. Computed when first asked for."""
        if self._hash is not None:
            return self._hash()
        with guarded(self.uri, "hashing it", "Check that its files are still there"):
            return _files_hash(self.files)

    def __repr__(self) -> str:
        at = f", revision={self.revision!r}" if self.revision else ""
        return f"Source({printable(self.uri)!r}{at}, format={self.format!r})"


def _ties(infos: Mapping[str, TensorInfo], names: tuple[str, ...]) -> dict[str, str]:
    """alias -> owner, for tensors that are one memory; the owner is first in natural order."""
    owners: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name in names:
        info = infos[name]
        if info.place is None:
            continue
        owner = owners.setdefault((info.place, info.shape, info.dtype), name)
        if owner != name:
            aliases[name] = owner
    return aliases


class Checkpoint:
    """Named tensors that are read when asked for.

    Nothing depends on the order in which a file lists its tensors: ``names`` is in natural order.

    Attributes:
        names: every tensor name, aliases included, prefixes stripped.
        aliases: alias -> owner, for tied tensors; the owner is the first name in natural order.
        source: where it comes from (uri, revision, sha256).
        metadata: what the file holds beside the tensors, as plain data.
        wrapper: dotted keys under which the state dict was found; empty at the top level.
        renamed: stored name -> name, where a prefix was stripped; empty otherwise.
    """

    def __init__(self, content: Content, uri: str, revision: str | None = None,
                 key: str | None = None) -> None:
        found = find(content.tree, uri, key)
        mapping = strip_prefixes(list(found.infos))
        infos = {mapping[stored]: info for stored, info in found.infos.items()}
        check(uri, infos, content.metadata.get("config"))
        self.names: tuple[str, ...] = natural_sorted(infos)
        self._infos = {name: infos[name] for name in self.names}
        self._paths = {mapping[stored]: path for stored, path in found.paths.items()}
        self._read = content.read
        self.aliases: Mapping[str, str] = MappingProxyType(_ties(infos, self.names))
        self.renamed: Mapping[str, str] = MappingProxyType(
            {old: new for old, new in mapping.items() if old != new})
        self.wrapper = found.wrapper
        self.metadata: dict[str, Any] = {**content.metadata, **found.metadata}
        self._fetch = content.fetch
        self.source = Source(uri, revision, content.format, content.files, self._hasher(content))

    def _hasher(self, content: Content) -> Callable[[], str] | None:
        """How to hash what is no file here: downloaded first, or by its content."""
        fetch = content.fetch
        if fetch is not None:
            return lambda: _files_hash(fetch())
        return None if content.files else self._content_hash

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor. Raises CheckpointError for an unknown name."""
        if name not in self._infos:
            raise self._unknown(name)
        return self._infos[name]

    def _unknown(self, name: object) -> Exception:
        import difflib

        near = difflib.get_close_matches(str(name), self.names, 3)
        hint = f"Near it: {', '.join(map(printable, near))}" if near else "See .names"
        return refusal(self.source.uri, f"it has no tensor {printable(name, 80)!r}", hint)

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of the axes of a tensor; nothing is read."""
        return self.info(name).shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as a word such as ``float32``; nothing is read."""
        return self.info(name).dtype

    def view(self, name: str) -> Tensor:
        """The tensor without a copy where its format allows: perhaps a mapped file, or memory of
        somebody else, so never write to it.

        Raises CheckpointError if the file is damaged or has changed since it was opened.
        """
        info = self.info(name)
        with guarded(self.source.uri, f"reading tensor {printable(name, 80)!r}",
                     "Download or save the file again"):
            tensor = self._read(self._paths[name]).detach().resolve_conj().resolve_neg()
        if (tuple(tensor.shape), str(tensor.dtype)) != (info.shape, f"torch.{info.dtype}"):
            raise refusal(self.source.uri, f"tensor {printable(name, 80)!r} is not the {info} that "
                          "its header promised", "Download or save the file again")
        return tensor

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, contiguous, sharing memory with nothing.

        Raises CheckpointError if the file is damaged or has changed since it was opened.
        """
        tensor = self.view(name)
        with guarded(self.source.uri, f"reading tensor {printable(name, 80)!r}",
                     "Download or save the file again"):
            import torch

            out = torch.empty(tensor.shape, dtype=tensor.dtype)
            out.copy_(tensor)
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors, read now, in natural order; an alias is the same tensor as its owner."""
        if self._fetch is not None:
            self._fetch()  # whole files, not one request per tensor
        out: dict[str, Tensor] = {}
        for name in self.names:
            owner = self.aliases.get(name)
            out[name] = self.read(name) if owner is None else out[owner]
        return out

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors, buffers included, tied ones once."""
        return sum(info.numel for name, info in self._infos.items() if name not in self.aliases)

    def nonfinite(self, name: str) -> int:
        """How many elements of a tensor are NaN or infinite; reads the tensor."""
        import torch

        if not is_floating(self.dtype(name)):
            return 0
        tensor = self.read(name)
        if tensor.element_size() == 1:
            tensor = tensor.to(torch.float32)
        return int((~torch.isfinite(tensor)).sum())

    def require_floating(self) -> None:
        """Raise CheckpointError if no tensor is floating: integers alone are no weights."""
        if not any(is_floating(info.dtype) for info in self._infos.values()):
            kinds = sorted({info.dtype for info in self._infos.values()})
            raise refusal(self.source.uri, f"all its tensors are {', '.join(kinds)}: these are no "
                          "weights, or quantised ones", "Open the floating-point weights")

    def convert(self, path: str | os.PathLike[str], force: bool = False) -> Path:
        """Write this checkpoint as safetensors; see ``metanet.checkpoint.convert``."""
        from metanet.checkpoint.convert import convert

        return convert(self, path, force=force)

    def _content_hash(self) -> str:
        from metanet.checkpoint.write import payload

        digest = hashlib.sha256()
        for name in self.names:
            info = self._infos[name]
            digest.update(repr((name, info.dtype, info.shape)).encode("utf-8", "backslashreplace"))
            digest.update(payload(self.read(name)))
        return digest.hexdigest()

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return (f"Checkpoint({printable(self.source.uri)!r}, {self.source.format}, "
                f"{len(self)} tensors, {self.n_parameters} elements)")
