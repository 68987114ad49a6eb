"""Writing safetensors: one tensor at a time, atomically, the same bytes for the same content."""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from metanet.checkpoint.info import TensorInfo
from metanet.checkpoint.names import natural_sorted, printable
from metanet.checkpoint.problems import guarded, refusal
from metanet.checkpoint.safetensors_file import ALIASES, DTYPES, MAX_HEADER, PLAIN

if TYPE_CHECKING:
    from torch import Tensor

_CODES = {name: code for code, name in DTYPES.items()}
_ELSEWHERE = "Write to another path, or free the disk"


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path`` that takes its name only when all went well."""
    umask = os.umask(0)
    os.umask(umask)
    with guarded(path, "creating a file there", "Check that its folder exists and is writable"):
        number, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", suffix=".tmp",
                                        dir=path.parent)
    try:
        with os.fdopen(number, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _strings(metadata: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, str]:
    """Metadata as safetensors wants it: strings stay, the rest becomes one JSON string."""
    out = {"format": "pt"} | {k: v for k, v in metadata.items() if isinstance(v, str)}
    rest = {k: v for k, v in metadata.items() if not isinstance(v, str)}
    if rest:
        out[PLAIN] = json.dumps(rest, sort_keys=True)
    if aliases:
        out[ALIASES] = json.dumps(dict(aliases), sort_keys=True)
    return dict(sorted(out.items()))


def _header(path: Path, infos: Mapping[str, TensorInfo], strings: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": strings}
    at = 0
    for name, info in infos.items():
        if info.dtype not in _CODES:
            raise refusal(path, f"tensor {printable(name, 80)!r} has dtype {info.dtype}, which "
                          "safetensors cannot hold", "Convert it to another dtype first")
        header[name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape),
                        "data_offsets": [at, at + info.nbytes]}
        at += info.nbytes
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise refusal(path, f"its header would have {len(raw)} bytes", "Write fewer tensors")
    return struct.pack("<Q", len(raw)) + raw


def payload(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row-major, in the byte order of the machine."""
    import torch

    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


def write_safetensors_stream(path: Path, infos: Mapping[str, TensorInfo],
                             read: Callable[[str], Tensor], metadata: Mapping[str, Any],
                             aliases: Mapping[str, str]) -> None:
    """Write tensors that are read one after the other: memory for one of them is enough.

    Widest dtype first, then natural order, so that every tensor is aligned. On any failure nothing
    is left behind and an existing file stays as it was.
    """
    if sys.byteorder != "little":
        raise refusal(path, "this machine is big-endian", "Write on a little-endian machine")
    clash = [name for name in infos if name == "__metadata__"]
    if clash or not all(isinstance(name, str) for name in infos):
        raise refusal(path, "a tensor name is not a string, or is '__metadata__'", "Rename it")
    order = sorted(natural_sorted(infos), key=lambda n: -_width(infos[n]))
    chosen = {name: infos[name] for name in order}
    with guarded(path, "writing safetensors", _ELSEWHERE), atomic(path) as handle:
        handle.write(_header(path, chosen, _strings(metadata, aliases)))
        for name, info in chosen.items():
            data = payload(read(name))
            if len(data) != info.nbytes:
                raise refusal(path, f"tensor {printable(name, 80)!r} changed while being written",
                              "Write again")
            handle.write(data)


def _width(info: TensorInfo) -> int:
    return info.nbytes // info.numel if info.numel else 0


def write_safetensors(state_dict: Mapping[str, Tensor], path: str | os.PathLike[str],
                      metadata: Mapping[str, Any] | None = None,
                      aliases: Mapping[str, str] | None = None) -> Path:
    """Write a state dict to ``path`` as safetensors, atomically; returns the path.

    ``aliases`` (alias -> owner) names tied tensors: an alias is written once, under its owner, and
    comes back when metanet opens the file. ``metadata``: strings are kept as they are, other plain
    data as JSON. An existing file is replaced. Raises CheckpointError.
    """
    from metanet.checkpoint.memory import tensor_info

    target, tied = Path(path), dict(aliases or {})
    for alias, owner in tied.items():
        if owner not in state_dict or owner in tied:
            raise refusal(target, f"alias {printable(alias, 80)!r} has no owner "
                          f"{printable(owner, 80)!r} among the tensors", "Correct the aliases")
    infos = {name: tensor_info(tensor, target, name) for name, tensor in state_dict.items()
             if name not in tied}
    write_safetensors_stream(target, infos, state_dict.__getitem__, metadata or {}, tied)
    return target
