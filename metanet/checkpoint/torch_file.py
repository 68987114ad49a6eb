"""Torch files, new (zip) and old (a run of pickles): structure and limits first, torch last.

The structure is read by ``pickle_structure`` and held against the bytes that are really there.
Only then, and only for values, ``torch.load(weights_only=True)`` sees the file, and what it
returns must agree with the structure.
"""

from __future__ import annotations

import io
import mmap
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.checkpoint.content import Content, Path_, Stamp
from metanet.checkpoint.info import ITEMSIZE, MAX_DIMS, Opaque, TensorInfo
from metanet.checkpoint.names import some
from metanet.checkpoint.pickle_structure import Interpreter, Refused, Storage, Stream, View
from metanet.checkpoint.problems import guarded, refusal
from metanet.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICKLE = 100_000_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# A tensor may be larger than its storage (``expand``) up to this many elements.
_MAX_EXPANDED = 1 << 20
# All tensors together, written densely, may not exceed this many times the file.
_MAX_RATIO, _FREE_BYTES = 20, 64 << 20
_AGAIN = "The file is damaged or made to deceive; download or save it again"
_RESAVE = ("Where you trust it, load it with the code that wrote it and save only its tensors: "
           "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')")
_DEEP = 200
_SAFE_PROTOCOL = 3


def _code_refusal(path: Path, unknown: list[str]) -> CheckpointError:
    module = any(re.match(r"torch\.nn\.modules|__main__\.|torchvision\.models|timm\.", name)
                 for name in unknown)
    kind = "a whole module was pickled; " if module else ""
    return refusal(path, f"{kind}reading it would run code that the file names: {some(unknown)}. "
                   "metanet runs no code from files", _RESAVE)


def _interpret(path: Path, machine: Interpreter) -> Any:
    """One pickle of the machine's stream; every way to fail is a CheckpointError."""
    try:
        value = machine.run()
    except Refused as error:
        if machine.unknown:
            raise _code_refusal(path, machine.unknown) from error
        raise refusal(path, f"its pickle holds {error}", _RESAVE) from error
    except Exception as error:
        if machine.unknown:
            raise _code_refusal(path, machine.unknown) from error
        raise refusal(path, f"its pickle is damaged or cut off ({type(error).__name__})",
                      "Download or save it again") from error
    if machine.unknown:
        raise _code_refusal(path, machine.unknown)
    if machine.protocol > _SAFE_PROTOCOL:
        raise refusal(path, f"it was saved with pickle protocol {machine.protocol}, which torch "
                      "cannot read without running code", "Save it again with the default "
                      "pickle_protocol, or as safetensors")
    return value


class _Checker:
    """Turns the views of a structure into TensorInfo, holding each against its storage.

    ``sizes``: storage key -> bytes that the file really has for it.
    """

    def __init__(self, path: Path, sizes: dict[str, int]) -> None:
        self.path, self.sizes = path, sizes
        self.seen: dict[int, Any] = {}
        self.dense: dict[TensorInfo, int] = {}

    def bad(self, what: str) -> CheckpointError:
        return refusal(self.path, f"one of its tensors {what}", _AGAIN)

    def tree(self, value: Any, depth: int = 0) -> Any:
        """A copy with TensorInfo leaves. Shared containers stay shared, cycles are refused."""
        if isinstance(value, View):
            return self.info(value)
        if not isinstance(value, dict | list | tuple):
            return value
        if depth > _DEEP:
            raise refusal(self.path, f"its data is nested more than {_DEEP} deep", _AGAIN)
        done = self.seen.get(id(value), self)
        if done is None:
            raise refusal(self.path, "its data contains itself", _AGAIN)
        if done is self:
            self.seen[id(value)] = None
            done = self.seen[id(value)] = self._copy(value, depth + 1)
        return done

    def _copy(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {key: self.tree(item, depth) for key, item in value.items()}
        return [self.tree(item, depth) for item in value]

    def info(self, view: View) -> TensorInfo:
        shape, stride, width = view.shape, view.stride, ITEMSIZE.get(view.dtype)
        if width is None:
            raise self.bad(f"has the unusual dtype {view.dtype}")
        if len(shape) > MAX_DIMS or any(n >= 2**62 for n in (*shape, *stride, view.offset)):
            raise self.bad("has an impossible shape")
        held = self._held(view.storage)
        extent = sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1
        info = TensorInfo(shape, view.dtype, self._place(view) if 0 not in shape else None)
        if 0 not in shape and (view.offset + extent) * width > held:
            raise self.bad(f"({info}) reaches beyond its storage of {held} bytes")
        if info.nbytes > max(held, _MAX_EXPANDED * width):
            raise self.bad(f"claims {info.numel} elements over a storage of {held} bytes "
                           "(a stride bomb)")
        self.dense[info] = info.nbytes
        return info

    def _held(self, storage: Storage) -> int:
        """Bytes of the storage, checked against the bytes that the file has."""
        width = ITEMSIZE[storage.dtype]
        real = self.sizes.get(storage.key)
        if real is None:
            raise self.bad("has a storage that is not in the file (it is cut off)")
        if storage.numel * width > real:
            raise self.bad(f"has a storage of {storage.numel * width} bytes, the file has {real}")
        if storage.length < 0:
            return storage.numel * width
        if storage.start + storage.length > storage.numel:
            raise self.bad("views more than its storage")
        return storage.length * width

    def _place(self, view: View) -> tuple[Any, ...]:
        first = view.storage.start * ITEMSIZE[view.storage.dtype]
        return (view.storage.key, first + view.offset * ITEMSIZE[view.dtype], view.stride)

    def check_total(self, size: int) -> None:
        """Refuse a small file whose overlapping tensors would make a huge one."""
        total = sum(self.dense.values())
        if total > _MAX_RATIO * size + _FREE_BYTES:
            raise refusal(self.path, f"its tensors overlap and would need {total} bytes, the file "
                          f"has {size}", _AGAIN)


def _load(path: Path, lazily: bool) -> Any:
    """The only call of torch.load in the project. Never without ``weights_only``."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual but readable protocols
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)


def _reader(path: Path, tree: Any, lazily: bool) -> Callable[[Path_], Tensor]:
    stamp = Stamp.of(path)
    loaded: list[Any] = []

    def read(where: Path_) -> Tensor:
        stamp.check()
        expected = tree
        with guarded(path, "reading a tensor", _AGAIN):
            if not loaded:
                loaded.append(_load(path, lazily))
            found = loaded[0]
            for key in where:
                found, expected = found[key], expected[key]
            if (tuple(found.shape), str(found.dtype)) != (
                    expected.shape, f"torch.{expected.dtype}"):
                raise ValueError(f"torch reads {found.dtype}{list(found.shape)}, the structure "
                                 f"says {expected}")
            tensor: Tensor = found
        return tensor

    return read


def _what_zip(path: Path, names: set[str]) -> CheckpointError:
    tails = {name.rpartition("/")[2] for name in names}
    if names and all(name.endswith(".npy") for name in names):
        return refusal(path, "it is a NumPy archive (npz)",
                       "Load it with numpy.load and save a state dict of torch.from_numpy tensors")
    if "policy.pth" in tails:
        return refusal(path, "it is a stable-baselines3 archive",
                       "Unzip it and open the policy.pth inside")
    if "model.weights.h5" in tails:
        return refusal(path, "it is a Keras archive", "Save its arrays as safetensors")
    if "AndroidManifest.xml" in tails or "[Content_Types].xml" in tails:
        return refusal(path, "it is a document or an app", "Open the file that holds the weights")
    return refusal(path, f"it is a zip archive but no torch file; it holds {some(sorted(names))}",
                   "Unpack it and open the weights inside")


def _zip_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    with guarded(path, "reading the zip directory (the file may be cut off)",
                 "Download or save it again"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    by_name = {member.filename: member for member in members}
    if len(by_name) != len(members):
        raise refusal(path, "two members of its zip have one name", _AGAIN)
    return by_name


def _check_members(path: Path, members: dict[str, zipfile.ZipInfo]) -> None:
    """torch stores and never deflates: a compressed member is a zip bomb or another format."""
    for member in members.values():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise refusal(path, f"its member {member.filename!r:.80} is compressed from "
                          f"{member.file_size} to {member.compress_size} bytes; torch never does "
                          "that (a zip bomb?)", "Save it again with torch.save")
        if member.flag_bits & 1:
            raise refusal(path, "it is encrypted", "Decrypt it first")
    total = sum(member.file_size for member in members.values())
    if total > path.stat().st_size:
        raise refusal(path, f"its members claim {total} bytes, more than the file has", _AGAIN)


def _zip_root(path: Path, members: dict[str, zipfile.ZipInfo]) -> str:
    """The folder inside the archive that holds data.pkl."""
    roots = [name.removesuffix("data.pkl") for name in members
             if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise _what_zip(path, set(members))
    root = roots[0]
    if f"{root}constants.pkl" in members or any(n.startswith(f"{root}code/") for n in members):
        raise refusal(path, "it is a TorchScript program, which is code",
                      "Where you trust it: torch.jit.load(path).state_dict(), then save that")
    if members[f"{root}data.pkl"].file_size > MAX_PICKLE:
        raise refusal(path, f"its pickle is larger than {MAX_PICKLE} bytes", _RESAVE)
    return root


def open_torch_zip(path: Path) -> Content:
    """A file of torch.save (zip) as Content; no tensor and no torch has been touched."""
    members = _zip_members(path)
    root_names = [n for n in members if n.endswith("data.pkl")]
    if not root_names:
        raise _what_zip(path, set(members))
    _check_members(path, members)
    root = _zip_root(path, members)
    with guarded(path, "reading its pickle", _AGAIN), zipfile.ZipFile(path) as archive:
        program = archive.read(f"{root}data.pkl")
    value = _interpret(path, Interpreter(io.BytesIO(program)))
    prefix = f"{root}data/"
    sizes = {name.removeprefix(prefix): member.file_size for name, member in members.items()
             if name.startswith(prefix)}
    checker = _Checker(path, sizes)
    tree = checker.tree(value)
    checker.check_total(path.stat().st_size)
    return Content(tree, _reader(path, tree, lazily=True), (path,), "torch (zip)")


def _storages(value: Any) -> Iterator[Storage]:
    """Every storage that a structure names, each container visited once."""
    seen: set[int] = set()
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, View):
            yield item.storage
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            todo.extend(item.values() if isinstance(item, dict) else item)


def _legacy_sizes(path: Path, data: mmap.mmap, keys: Any, value: Any) -> dict[str, int]:
    """Storage key -> bytes, from the run of ``int64 count, data`` that ends a legacy file."""
    told: dict[str, Storage] = {}
    for storage in _storages(value):
        first = told.setdefault(storage.key, storage)
        if (first.dtype, first.numel) != (storage.dtype, storage.numel):
            raise refusal(path, "one storage is described in two ways", _AGAIN)
    if not isinstance(keys, list) or len(set(map(str, keys))) != len(keys):
        raise refusal(path, "its list of storages is malformed", _AGAIN)
    sizes: dict[str, int] = {}
    at = data.tell()
    for key in map(str, keys):
        count = int.from_bytes(data[at:at + 8], sys.byteorder)
        if key not in told or count != told[key].numel or at + 8 > len(data):
            raise refusal(path, "its storages do not fit its structure (it may be cut off)",
                          _AGAIN)
        sizes[key] = count * ITEMSIZE[told[key].dtype]
        at += 8 + sizes[key]
        if at > len(data):
            raise refusal(path, f"it is cut off: {at} bytes are needed, {len(data)} are there",
                          "Download or save it again")
    return sizes


def _plain_pickle(path: Path, first: Any) -> CheckpointError:
    held = f"a {type(first).__name__}" if not isinstance(first, Opaque) else str(first)
    return refusal(path, f"it is a plain Python pickle (of {held}), not a file of torch.save",
                   _RESAVE)


def _legacy_structure(path: Path, data: mmap.mmap) -> tuple[Any, dict[str, int]]:
    stream: Stream = data
    machine = Interpreter(stream)
    magic = _interpret(path, machine)
    if magic != _LEGACY_MAGIC or type(magic) is not int:
        raise _plain_pickle(path, magic)
    _interpret(path, machine)  # protocol version
    system = _interpret(path, machine)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise refusal(path, "it was written on a big-endian machine", _RESAVE)
    value = _interpret(path, machine)
    return value, _legacy_sizes(path, data, _interpret(path, machine), value)


def open_pickle(path: Path) -> Content:
    """A torch file from before 1.6 as Content; a plain pickle is named and refused."""
    with (guarded(path, "reading it", _AGAIN), path.open("rb") as handle,
          mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data):
        value, sizes = _legacy_structure(path, data)
        checker = _Checker(path, sizes)
        tree = checker.tree(value)
        checker.check_total(len(data))
    return Content(tree, _reader(path, tree, lazily=False), (path,), "torch (legacy)")
