"""The one door: whatever holds weights -> Checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from metanet.checkpoint.checkpoint import Checkpoint
from metanet.checkpoint.folder import open_file, open_folder, with_configs
from metanet.checkpoint.hub import SCHEME, open_hub
from metanet.checkpoint.names import printable
from metanet.checkpoint.problems import guarded, refusal


def open(src: Any, key: str | None = None) -> Checkpoint:
    """Open a checkpoint; tensors are read only when asked for.

    Args:
        src: a path to a safetensors or torch file (told apart by content, not by suffix), a shard
            index, a Hugging Face folder, ``hf://org/name[@revision][/file]``, a state dict or an
            ``nn.Module``. A Checkpoint comes back as it is.
        key: dotted name of the part to read, where a file holds several state dicts.

    Raises:
        CheckpointError: it cannot be read as plain weights; the message says what it is instead,
            where, and what to do. No code in a file is ever run.
        HubError: the Hub, or the network on the way to it, failed.
    """
    if isinstance(src, Checkpoint):
        if key is not None:
            raise refusal(src.source.uri, "it is open already; key comes too late",
                          "Pass key when opening the file")
        return src
    named = isinstance(src, str | os.PathLike)
    where = printable(os.fspath(src), 300) if named else "memory"
    with guarded(where, "opening it", "Check the path and the file"):
        if not named:
            return _open_object(src, key)
        if isinstance(src, str) and src.startswith(SCHEME):
            content, commit = open_hub(src)
            return Checkpoint(content, src, commit, key)
        return _open_path(src, key)


def _open_path(src: str | os.PathLike[Any], key: str | None) -> Checkpoint:
    name = os.fspath(src)
    if not isinstance(name, str) or "\x00" in name or not name:
        raise refusal(repr(name), "it is no path", "Give a path as text")
    path = Path(name)
    content = open_folder(path) if path.is_dir() else with_configs(open_file(path), path)
    return Checkpoint(content, name, None, key)


def _open_object(src: Any, key: str | None) -> Checkpoint:
    from metanet.checkpoint.memory import open_memory

    return Checkpoint(open_memory(src), "memory:", None, key)
