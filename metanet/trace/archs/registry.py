"""The registry of architectures, and the door ``build``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from metanet.checkpoint.names import printable
from metanet.errors import TraceError
from metanet.trace.archs.header import Header, quoted
from metanet.trace.archs.real import drop_absent_counters
from metanet.trace.archs.stored import Storage, bind


@dataclass(frozen=True)
class Built:
    """A module in eval mode whose state is the checkpoint's, stored as ``storage`` says.

    Parameters are on the meta device (those of a user's factory stay as they are), buffers are
    real. ``load`` gives the module real weights.
    """

    module: nn.Module
    example_inputs: tuple[Any, ...]
    arch: str
    storage: Storage = field(default_factory=Storage)


@dataclass(frozen=True)
class Request:
    """What a builder gets: the registered name, the text after its colon, and the header."""

    name: str
    argument: str
    header: Header | None

    @property
    def file(self) -> Header:
        """The header; architectures that are solved from shapes cannot do without."""
        if self.header is None:
            raise TraceError(
                f"the widths of architecture {self.name!r} are solved from a file's shapes: give "
                "a checkpoint beside --arch"
            )
        return self.header


Builder = Callable[[Request], tuple[nn.Module, tuple[Any, ...]]]


@dataclass(frozen=True)
class _Entry:
    builder: Builder
    argument: str


_REGISTRY: dict[str, _Entry] = {}
_USER = "file.py:factory"


def architecture(*labels: str, argument: str = "") -> Callable[[Builder], Builder]:
    """Register a builder under one or more names.

    Args:
        labels: names, as typed after ``--arch``.
        argument: what may follow a colon, for ``names()`` and messages, such as ``NAME``
            (mandatory) or ``[ACTIVATION]`` (optional); empty where nothing may.
    """

    def register(builder: Builder) -> Builder:
        for label in labels:
            if label in _REGISTRY or ":" in label:
                raise TraceError(f"architecture name {label!r} is taken or contains a colon")
            _REGISTRY[label] = _Entry(builder, argument)
        return builder

    return register


def names() -> tuple[str, ...]:
    """Everything that ``build`` understands, such as ``mlp:[ACTIVATION]`` and ``timm:NAME``."""
    shown = [f"{k}:{e.argument}" if e.argument else k for k, e in _REGISTRY.items()]
    return (*sorted(shown), _USER)


def build(arch: str, checkpoint: Any = None) -> Built:
    """The module that ``arch`` names, with depth and widths solved from the checkpoint's header.

    Args:
        arch: a name of ``names()``, with its argument, or ``path/to/file.py:factory``.
        checkpoint: a Checkpoint, or a mapping name -> tensor or shape; None only for architectures
            that need no file.

    Raises:
        TraceError: unknown name, bad argument, or tensors that cannot be arranged.
        SpaceMismatch: a tensor is missing, unexpected, or has another shape.
    """
    header = None if checkpoint is None else Header.of(checkpoint)
    entry, request = _resolve(arch, header)
    try:
        module, example_inputs = entry.builder(request)
    except (RuntimeError, MemoryError, OverflowError) as error:  # a size beyond all bounds
        raise TraceError(f"architecture {quoted(arch)} cannot be built with the sizes of this "
                         f"file: {printable(error, 300)}") from error
    module.eval()
    if header is not None:
        drop_absent_counters(module, header)
        return Built(module, example_inputs, arch, bind(module, header, arch))
    return Built(module, example_inputs, arch)


def _resolve(arch: str, header: Header | None) -> tuple[_Entry, Request]:
    path, _, factory = arch.rpartition(":")
    if path.endswith(".py"):
        from metanet.trace.archs.user import from_file

        return _Entry(lambda _: from_file(path, factory), ""), Request(arch, "", header)
    name, _, argument = arch.partition(":")
    if name not in _REGISTRY:
        raise TraceError(_unknown(arch, name))
    entry = _REGISTRY[name]
    if argument and not entry.argument:
        raise TraceError(f"architecture {name!r} takes no argument, got {quoted(argument)}")
    if not argument and entry.argument and not entry.argument.startswith("["):
        raise TraceError(f"architecture {name!r} needs an argument: {name}:{entry.argument}")
    return entry, Request(name, argument, header)


def _unknown(arch: str, name: str) -> str:
    close = difflib.get_close_matches(name, _REGISTRY, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown architecture {quoted(arch)}{hint} Choices: {', '.join(names())}"
