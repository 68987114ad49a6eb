"""Parameters on meta, buffers real; comparing a module with a header; giving it real weights."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metanet.checkpoint import open as open_checkpoint
from metanet.errors import SpaceMismatch
from metanet.trace.archs.header import Header, quoted

if TYPE_CHECKING:
    from metanet.trace.archs.registry import Built

_LOCK = threading.RLock()


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Modules built inside keep their buffers real and get their parameters on meta.

    ``torch.device("meta")`` would move buffers too, and a buffer's value may matter: an all-zero
    bias buffer is uniform, and has a symmetry that an unknown one lacks. Parameters move as they
    are registered, before they are initialised, so nothing of their size is ever written.
    """
    with _LOCK:
        original = nn.Module.register_parameter

        def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
            if param is not None and not param.is_meta:
                param = nn.Parameter(param.to("meta"), param.requires_grad)
            original(self, name, param)

        nn.Module.register_parameter = register  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = original  # type: ignore[method-assign]


def drop_absent_counters(module: nn.Module, header: Header) -> None:
    """Unregister BatchNorm step counters that the file lacks (torch before 0.4.1 had none)."""
    for path, child in module.named_modules():
        key = f"{path}.num_batches_tracked" if path else "num_batches_tracked"
        if isinstance(child, nn.modules.batchnorm._NormBase) and key not in header:
            child.num_batches_tracked = None


def tied_names(module: nn.Module) -> list[list[str]]:
    """Names of the state by tensor identity: one list per tensor, aliases together."""
    classes: dict[int, list[str]] = defaultdict(list)
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            classes[id(value)].append(name)
    return list(classes.values())


def compare(module: nn.Module, header: Header, arch: str) -> None:
    """Check that the module's state and the header have the same names and shapes.

    Of tied names one is enough in the file.

    Raises:
        SpaceMismatch: with the first tensor that differs, what was expected and what found.
    """
    state = module.state_dict(keep_vars=True)
    where = f"does not fit architecture {arch!r}"
    for aliases in tied_names(module):
        present = [name for name in aliases if name in header]
        if not present:
            raise SpaceMismatch(
                f"{header.source} {where}: tensor {quoted(aliases[0])} of shape "
                f"{tuple(state[aliases[0]].shape)} is expected and absent; the file has "
                f"{header.preview()}"
            )
        for name in present:
            expected, found = tuple(state[name].shape), header.shapes[name]
            if expected != found:
                raise SpaceMismatch(
                    f"{header.source} {where}: tensor {quoted(name)}: expected shape {expected}, "
                    f"found {found}"
                )
    extra = [name for name in header.shapes if name not in state]
    if extra:
        raise SpaceMismatch(
            f"{header.source} {where}: tensor {quoted(extra[0])} of shape "
            f"{header.shapes[extra[0]]} is not part of it ({len(extra)} such); choose another "
            "--arch, or write a factory: --arch file.py:factory"
        )


def load(built: Built, checkpoint: Any) -> nn.Module:
    """A copy of the module with the checkpoint's weights, ties kept, in the module's dtypes.

    Raises:
        SpaceMismatch: names or shapes differ, or two stored copies of a tied tensor differ.
    """
    storage = built.storage
    if storage.parts:
        checkpoint = storage.view(open_checkpoint(checkpoint))
    header = Header.of(checkpoint)
    if not storage.renamed and not storage.parts and not storage.unread:
        compare(built.module, header, built.arch)
    fresh: dict[int, Tensor] = {}
    state = built.module.state_dict(keep_vars=True)
    for aliases in tied_names(built.module):
        old = state[aliases[0]]
        present = [seen for seen in map(storage.seen, aliases) if seen in header]
        if present:
            values = [_read(checkpoint, name) for name in present]
            fresh[id(old)] = _materialise(old, values, present)
    # deepcopy through a memo puts each new tensor everywhere the old one stood, ties included
    module = copy.deepcopy(built.module, dict(fresh))
    return module.eval()


def _read(checkpoint: Any, name: str) -> Tensor:
    value = checkpoint[name] if isinstance(checkpoint, Mapping) else checkpoint.read(name)
    return torch.as_tensor(value)


def _materialise(old: Tensor, copies: list[Tensor], names: list[str]) -> Tensor:
    for name, value in zip(names[1:], copies[1:], strict=True):
        if not torch.equal(value, copies[0]):
            raise SpaceMismatch(
                f"tensors {quoted(names[0])} and {quoted(name)} are one tensor in the "
                "architecture, but the file stores two different copies"
            )
    value = copies[0].detach().to("cpu", old.dtype, copy=True)
    return nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
