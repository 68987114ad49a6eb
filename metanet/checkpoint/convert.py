"""Any readable checkpoint -> one safetensors file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from metanet.checkpoint.checkpoint import Checkpoint
from metanet.checkpoint.door import open as open_checkpoint
from metanet.checkpoint.problems import refusal
from metanet.checkpoint.write import write_safetensors_stream


def convert(src: Any, out: str | os.PathLike[str], force: bool = False) -> Path:
    """Write ``src`` (anything that ``open`` takes) to ``out`` as safetensors; returns the path.

    Tensors go through memory one at a time, bit for bit. Names are those of the Checkpoint; ties
    and metadata come back when the result is opened. The file appears whole or not at all. Raises
    CheckpointError: unreadable source, ``out`` exists (without ``force``), a dtype that
    safetensors lacks.
    """
    ckpt = src if isinstance(src, Checkpoint) else open_checkpoint(src)
    target = Path(out)
    if target.is_dir():
        raise refusal(target, "it is a folder", "Name a file, such as model.safetensors")
    if os.path.lexists(target) and not force:
        raise refusal(target, "it exists already", "Choose another name, or pass force=True")
    infos = {name: ckpt.info(name) for name in ckpt.names if name not in ckpt.aliases}
    write_safetensors_stream(target, infos, ckpt.read, ckpt.metadata, ckpt.aliases)
    return target
