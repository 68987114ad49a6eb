"""``timm:NAME``: a model of timm's own registry, never downloaded, never imported by name."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from metanet.errors import TraceError
from metanet.trace.archs.header import quoted
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.registry import Request, architecture
from metanet.trace.archs.vision import prepare_torchvision
from metanet.trace.inputs import synthesise

_OWN = frozenset({"pretrained", "features_only", "scriptable", "exportable", "no_jit"})
"""Switches of timm.create_model itself, which are not the network's."""
_MOST = 1 << 16


def _timm() -> Any:
    prepare_torchvision()
    try:
        import timm
    except Exception as error:  # a torchvision of another torch raises RuntimeError
        raise TraceError(
            f"timm cannot be imported ({type(error).__name__}: {error}); install the extra "
            '"metanet-toolkit[hf]", with a torchvision that belongs to your torch'
        ) from error
    return timm


@architecture("timm", argument="NAME")
def timm_model(request: Request) -> tuple[nn.Module, tuple[Any, ...]]:
    """A timm model, with the file's number of classes and of input channels where it has one."""
    timm, name = _timm(), request.argument
    if not timm.is_model(name):
        known = timm.list_models()
        close = difflib.get_close_matches(name, known, n=3)
        raise TraceError(
            f"timm has no model {quoted(name)}; "
            + (f"did you mean {', '.join(close)}?" if close else f"it has {len(known)} models")
        )
    told = _arguments(request)
    module = _create(timm, name, told)
    changes = _changes(module, request)
    if changes:
        module = _create(timm, name, told | changes)
    return module, synthesise(module)


def _arguments(request: Request) -> dict[str, Any]:
    """``model_args`` of the config beside the file, if it is about this model: sizes and switches.

    Raises:
        TraceError: there are others, which could name files, or code.
    """
    config = request.header.metadata.get("config") if request.header is not None else None
    if not isinstance(config, dict) or config.get("architecture") != request.argument:
        return {}
    told = config.get("model_args")
    if not isinstance(told, dict):
        return {}
    for key, value in told.items():
        if not _harmless(key, value):
            raise TraceError(f"model_args of config.json has {quoted(key)} = {quoted(value)}, "
                             "which is neither a size nor a switch of the network: write a "
                             "factory: --arch file.py:factory")
    return dict(told)


def _harmless(key: Any, value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return (isinstance(key, str) and key.isidentifier() and key not in _OWN and len(parts) <= 64
            and all(isinstance(v, (bool, int, float)) and abs(v) <= _MOST for v in parts))


def _create(timm: Any, name: str, changes: dict[str, Any]) -> nn.Module:
    try:
        with meta_parameters():
            module: nn.Module = timm.create_model(name, pretrained=False, **changes)
        if any(buffer.is_meta for buffer in module.buffers()):  # made where a parameter was
            module = timm.create_model(name, pretrained=False, **changes)
    except Exception as error:
        raise TraceError(f"timm cannot build {quoted(name)} with {changes or 'its defaults'}: "
                         f"{type(error).__name__}: {error}") from error
    return module.eval()


def _changes(module: nn.Module, request: Request) -> dict[str, int]:
    """num_classes and in_chans of the file, where they differ from the model's defaults."""
    if request.header is None:
        return {}
    cfg = getattr(module, "pretrained_cfg", None) or {}
    state = module.state_dict()
    changes = {}
    for option, layer, axis in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        name = f"{cfg.get(layer)}.weight"
        if name in state and name in request.header:
            found = request.header.shapes[name]
            if len(found) == state[name].ndim and found[axis] != state[name].shape[axis]:
                changes[option] = found[axis]
    return changes
