"""Reading safetensors: the header by hand, with limits and without torch; tensors lazily.

The format promises a header of at most 100 MB, unique names, and data that is contiguous, without
holes or overlaps; each promise is checked here before any library sees the file.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.checkpoint.content import Content, Path_, Stamp
from metanet.checkpoint.info import MAX_DIMS, TensorInfo
from metanet.checkpoint.names import printable
from metanet.checkpoint.problems import guarded, refusal
from metanet.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 100_000_000
_MAX_COMMAS = 4_000_000  # bounds the objects that JSON can make of a header
ALIASES = "metanet.aliases"
PLAIN = "metanet.metadata"
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_PACKED = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
_AGAIN = "The file is damaged or made to deceive; download or save it again"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {printable(twice, 80)!r} occurs twice")
    return out


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def header_length(where: object, first: bytes, size: int) -> int:
    """Bytes of the JSON header, from the first 8 bytes of a file of ``size`` bytes."""
    if len(first) < 8:
        raise refusal(where, f"it is cut off after {len(first)} bytes", _AGAIN)
    length = int(struct.unpack("<Q", first[:8])[0])
    if length > MAX_HEADER:
        raise refusal(where, f"its header claims {length} bytes; the limit is {MAX_HEADER}",
                      _AGAIN)
    if length > size - 8:
        raise refusal(where, f"its header claims {length} bytes, the file has {size - 8} after "
                      "the first 8", _AGAIN)
    return length


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """The raw JSON header and the size of the data behind it."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = header_length(path, handle.read(8), size)
        return handle.read(length), size - 8 - length


def _parse(path: object, raw: bytes) -> dict[str, Any]:
    if raw.count(b",") > _MAX_COMMAS:
        raise refusal(path, "its header has millions of entries", _AGAIN)
    with guarded(path, "reading the safetensors header", _AGAIN):
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique,
                            parse_constant=_no_constant)
    if not isinstance(header, dict):
        raise refusal(path, "its header is not a JSON object", _AGAIN)
    return header


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _entry(path: object, name: str, entry: Any) -> tuple[int, int, TensorInfo]:
    """(begin, end, info) of one tensor, with all that one entry promises checked."""
    def bad(what: str) -> CheckpointError:
        return refusal(path, f"tensor {printable(name, 80)!r} {what}", _AGAIN)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad("does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(shape, list) and len(shape) <= MAX_DIMS and all(map(_is_size, shape))):
        raise bad("has a shape that is not a short list of sizes")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))):
        raise bad("has offsets that are not two sizes")
    if not isinstance(dtype, str):
        raise bad(f"has the unknown dtype {printable(dtype, 40)!r}")
    if dtype in _PACKED:
        raise refusal(path, f"tensor {printable(name, 80)!r} is quantised and packed ({dtype})",
                      "Open the weights before quantisation")
    if dtype not in DTYPES:
        raise bad(f"has the unknown dtype {printable(dtype, 40)!r}")
    if any(0xD800 <= ord(char) <= 0xDFFF for char in name):
        raise bad("has a name that is not valid Unicode")
    info = TensorInfo(tuple(shape), DTYPES[dtype])
    begin, end = offsets
    if info.nbytes != end - begin:
        raise bad(f"is {info} = {info.nbytes} bytes, its offsets {begin}..{end} hold {end - begin}")
    return begin, end, info


def _check_layout(path: object, spans: list[tuple[int, int, str]], data: int) -> None:
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            what = "overlaps the one before it" if begin < at else "leaves a hole before it"
            raise refusal(path, f"the data of tensor {printable(name, 80)!r} {what} "
                          f"(offset {begin}, expected {at})", _AGAIN)
        at = end
    if at != data:
        told = "the file is cut off" if at > data else "there are bytes that belong to no tensor"
        raise refusal(path, f"its header describes {at} bytes of data, the file has {data}: "
                      f"{told}", _AGAIN)


def parse_header(where: object, raw: bytes, data: int
                 ) -> tuple[dict[str, TensorInfo], dict[str, str], dict[str, int]]:
    """(tensors, metadata, where in the data each tensor begins) of a header, validated.

    Args:
        where: the file, for messages.
        raw: the JSON header.
        data: bytes behind it.
    """
    header = _parse(where, raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refusal(where, "its __metadata__ is not a map of strings to strings", _AGAIN)
    tensors: dict[str, TensorInfo] = {}
    spans = []
    for name, entry in header.items():
        begin, end, tensors[name] = _entry(where, name, entry)
        spans.append((begin, end, name))
    _check_layout(where, spans, data)
    return tensors, metadata, {name: begin for begin, _, name in spans}


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """(tensors, metadata) of a safetensors file, validated; imports no torch."""
    with guarded(path, "reading the safetensors header", _AGAIN):
        raw, data = _header_bytes(path)
        tensors, metadata, _ = parse_header(path, raw, data)
    return tensors, metadata


def _aliases(path: object, text: str, tensors: dict[str, TensorInfo]) -> dict[str, str]:
    with guarded(path, f"reading its metadata {ALIASES!r}", _AGAIN):
        told = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(told, dict):
        raise refusal(path, f"its metadata {ALIASES!r} is no map", _AGAIN)
    for alias, owner in told.items():
        if alias in tensors or not isinstance(owner, str) or owner not in tensors:
            raise refusal(path, f"its metadata ties {printable(alias, 80)!r} to "
                          f"{printable(owner, 80)!r}, which does not fit its tensors", _AGAIN)
    return told


def user_metadata(path: object, stored: dict[str, str]) -> dict[str, Any]:
    """User metadata: strings as they are, plus what ``convert`` had kept as JSON."""
    out: dict[str, Any] = {k: v for k, v in stored.items() if k not in (ALIASES, PLAIN)}
    if PLAIN in stored:
        with guarded(path, f"reading its metadata {PLAIN!r}", _AGAIN):
            kept = json.loads(stored[PLAIN])
            out.update(kept if isinstance(kept, dict) else {PLAIN: kept})
    return out


def tree_of(where: object, tensors: dict[str, TensorInfo], stored: dict[str, str]
            ) -> dict[str, TensorInfo]:
    """Name → tensor, aliases included; equal ``place`` marks a tie, here as in torch files."""
    tree = {name: TensorInfo(info.shape, info.dtype, name) for name, info in tensors.items()}
    if ALIASES in stored:
        for alias, owner in _aliases(where, stored[ALIASES], tensors).items():
            tree[alias] = tree[owner]
    return tree


def open_safetensors(path: Path) -> Content:
    """A safetensors file as Content; only the header has been read."""
    stamp = Stamp.of(path)
    tensors, stored = read_header(path)
    tree = tree_of(path, tensors, stored)

    def read(where: Path_) -> Tensor:
        stamp.check()
        name = str(tree[str(where[0])].place)
        with guarded(path, f"reading tensor {printable(name, 80)!r}", _AGAIN):
            from safetensors import safe_open

            with safe_open(path, framework="pt") as handle:
                tensor: Tensor = handle.get_tensor(name)
                return tensor

    return Content(tree, read, (path,), "safetensors", user_metadata(path, stored))
