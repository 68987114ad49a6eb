"""Which format are these bytes? Decided by content; the suffix is never asked."""

from __future__ import annotations

import re
from pathlib import Path

from metanet.checkpoint.problems import guarded, refusal
from metanet.errors import CheckpointError

SAFETENSORS = "safetensors"
TORCH_ZIP = "torch-zip"
PICKLE = "pickle"
INDEX = "index"
_HEAD = 1024

_SAVE = ("Load it with its own library and write the tensors down: "
         "safetensors.torch.save_file(state_dict, 'model.safetensors')")
_UNPACK = "Unpack it and open the file inside"
_WEIGHTS = "Open the file that holds the weights"

# (offset, magic) -> (what it is, what to do)
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "it is a Git LFS pointer, not the weights",
     "Fetch the real file: git lfs pull, or download it again"),
    (0, b"GGUF", "it is a GGUF file (llama.cpp, usually quantised)",
     "Open the original safetensors weights of the model"),
    (0, b"ggjt", "it is a GGML file (llama.cpp, quantised)", "Open the original weights"),
    (0, b"tjgg", "it is a GGML file (llama.cpp, quantised)", "Open the original weights"),
    (0, b"lmgg", "it is a GGML file (llama.cpp, quantised)", "Open the original weights"),
    (0, b"\x89HDF\r\n\x1a\n", "it is an HDF5 file (Keras)", _SAVE),
    (0, b"\x93NUMPY", "it is a single NumPy array", _SAVE),
    (0, b"PK\x05\x06", "it is an empty zip archive", "Download or save it again"),
    (0, b"\x1f\x8b", "it is compressed with gzip", _UNPACK),
    (0, b"BZh", "it is compressed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "it is compressed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "it is compressed with zstd", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "it is a 7z archive", _UNPACK),
    (0, b"Rar!", "it is a rar archive", _UNPACK),
    (4, b"TFL3", "it is a TensorFlow Lite model", _SAVE),
    (0, b"\x7fELF", "it is a program", _WEIGHTS),
    (0, b"MZ", "it is a program", _WEIGHTS),
    (0, b"%PDF", "it is a PDF document", _WEIGHTS),
    (0, b"\x89PNG", "it is an image", _WEIGHTS),
    (0, b"\xff\xd8\xff", "it is an image", _WEIGHTS),
    (257, b"ustar", "it is a tar archive, perhaps of torch before 0.1.10, which cannot be read "
     "without running code", "Where you trust it, load it with torch and save its tensors again"),
)
_HTML = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
_TEXT_PICKLE = re.compile(rb"c[\w.]+\n[\w.]+\n|\(c?[\w.]*\n?")
_PATHLIKE = re.compile(r"[^\n\r\x00]{1,512}")


def read_head(path: Path) -> bytes:
    """The first kilobyte of a file."""
    with path.open("rb") as handle:
        return handle.read(_HEAD)


def _text(head: bytes) -> str | None:
    """The first kilobyte as text, if it is readable text; a character cut at the end is fine."""
    for cut in range(4):
        try:
            text = head[:len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return text if all(c.isprintable() or c in "\r\n\t\f" for c in text) else None
    return None


def _from_text(text: str) -> tuple[str, str]:
    line = text.strip()
    if _PATHLIKE.fullmatch(line) and "/" in line and " " not in line:
        return "it holds only a path: the text of a symbolic link", "Open the file it points to"
    return "it is a text file", _WEIGHTS


def _looks_msgpack(head: bytes) -> bool:
    """A msgpack map whose first key is a string, as flax writes it."""
    if len(head) < 4:
        return False
    body = head[1:] if 0x81 <= head[0] <= 0x8F else head[3:] if head[0] == 0xDE else b""
    return bool(body) and (0xA1 <= body[0] <= 0xBF or body[0] in (0xD9, 0xDA))


def _looks_onnx(head: bytes) -> bool:
    """ModelProto: field 1 (ir_version, a small varint), then a string or a message field."""
    return len(head) > 4 and head[0] == 0x08 and 1 <= head[1] <= 20 and head[2] in (
        0x12, 0x1A, 0x22, 0x3A, 0x42)


def _structured(head: bytes) -> tuple[str, str] | None:
    if head[:8].strip(b"\x00") == b"sys_info" or head.startswith(b"sys_info\x00"):
        return ("it is a tar archive of torch before 0.1.10, which cannot be read without running "
                "code", "Where you trust it, load it with torch and save its tensors again")
    if _HTML.match(head):
        return ("it is an HTML or XML page, not weights",
                "Download the file itself: the 'raw' or 'resolve' link")
    if _looks_msgpack(head):
        return "it is a msgpack file (flax or JAX)", _SAVE
    if _looks_onnx(head):
        return "it is an ONNX model", _SAVE
    if _TEXT_PICKLE.match(head):
        return "it is a Python pickle in text form, which may run code", _SAVE
    return None


def unusable(path: Path, head: bytes, size: int) -> CheckpointError:
    """The refusal for bytes that are no checkpoint this room reads."""
    if not head:
        return refusal(path, "the file is empty", "Download or save it again")
    for offset, magic, what, todo in _FOREIGN:
        if head[offset:offset + len(magic)] == magic:
            return refusal(path, what, todo)
    known = _structured(head)
    text = _text(head) if known is None else None
    if known is None and text is not None:
        known = _from_text(text)
    what, todo = known or (f"its {size} bytes begin with {head[:8].hex(' ')}, which is no "
                           "checkpoint format that metanet knows", "Check how it was saved; "
                           "safetensors and torch.save(state_dict) files are read")
    return refusal(path, what, todo)


def sniff(path: Path) -> str:
    """The format of a file: SAFETENSORS, TORCH_ZIP, PICKLE or INDEX.

    Raises CheckpointError, naming the format, for everything else.
    """
    with guarded(path, "reading the first bytes", "Check that the file can be read"):
        head, size = read_head(path), path.stat().st_size
    if head[:1] == b"{" and all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head[:8]):
        return INDEX
    if head[8:9] == b"{":  # before the pickle test: a header of 640 bytes begins with 80 02
        return SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        return TORCH_ZIP
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return PICKLE
    raise unusable(path, head, size)
