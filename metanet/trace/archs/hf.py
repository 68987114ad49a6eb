"""``hf:FOLDER`` and ``hf``: a transformers model from a config.json.

The folder is not trusted. Class names are looked up in the mappings of transformers itself, and
only among the classes of the file's model type; ``auto_map``, quantisation and the names of
attention implementations (which can point to code on the Hub) are dropped or refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from metanet.checkpoint.names import printable
from metanet.errors import SpaceMismatch, TraceError
from metanet.trace.archs.header import Header, quoted
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.registry import Request, architecture
from metanet.trace.archs.stored import bind
from metanet.trace.archs.vision import prepare_torchvision
from metanet.trace.experts import batch_experts
from metanet.trace.inputs import synthesise

_MAX_BYTES = 1 << 20
_MAX_CLASSES = 16
_MAX_LAYERS = 4096
_MAX_POSITIONS = 1 << 26  # tables of positions are real buffers
_REFUSED = {
    "quantization_config": "quantised weights are packed, they have no axes to permute; use the "
                           "unquantised model",
    "backbone": "it would be looked up on the Hub; write a factory: --arch file.py:factory",
}
_DROPPED = frozenset({
    "auto_map", "custom_pipelines", "torch_dtype", "dtype", "_attn_implementation",
    "attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
    "use_kernels", "use_pretrained_backbone", "_name_or_path", "name_or_path",
})


@architecture("hf", argument="[FOLDER]")
def hf_model(request: Request) -> tuple[nn.Module, tuple[Any, ...]]:
    """The transformers model of ``FOLDER/config.json``, without cache, with SDPA if it can.

    Without a folder, the config that stands beside the checkpoint. Where the class that the config
    names leaves tensors of the file over, another class of the model type may fit them all.
    """
    where, raw = _config(request)
    auto = _transformers()
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in auto.CONFIG_MAPPING_NAMES:
        raise TraceError(f"{where}: model_type {quoted(kind)} is not one that transformers "
                         "knows; write a factory: --arch file.py:factory")
    names = _class_names(auto, kind, raw.get("architectures"), where)
    module = _create(kind, names[0], raw, where)
    if request.header is not None:
        module = _fitting(module, names[1:], request.header, lambda n: _create(kind, n, raw, where))
    return module, synthesise(module)


def _fitting(
    module: nn.Module, others: list[str], header: Header, make: Callable[[str], nn.Module]
) -> nn.Module:
    """The module, or that of another class if the file holds more, and that class reads it all."""
    if _fits(module, header):
        return module
    known = {*module.state_dict()}
    for name in others[:_MAX_CLASSES] if len(header.shapes) > len(known) // 2 else ():
        try:
            other = make(name)
        except TraceError:
            continue
        if _fits(other, header):
            return other
    return module


def _fits(module: nn.Module, header: Header) -> bool:
    try:
        bind(module, header, "hf")
    except SpaceMismatch:
        return False
    return True


def _config(request: Request) -> tuple[str, dict[str, Any]]:
    """Where the config is, for messages, and the config without what could choose code."""
    if not request.argument:
        header = request.header
        raw = header.metadata.get("config") if header is not None else None
        source = header.source if header is not None else "no checkpoint"
        if not isinstance(raw, dict):
            raise TraceError(f"there is no config.json beside {source}: name the folder that has "
                             "one, as in hf:FOLDER")
        where = f"the config of {source}"
        return where, _object(raw, where)
    path = Path(request.argument).expanduser()
    path = path / "config.json" if path.is_dir() else path
    return quoted(path), _read(path)


def _transformers() -> Any:
    prepare_torchvision()
    try:
        from transformers.models.auto import modeling_auto
    except Exception as error:
        raise TraceError(
            f"transformers cannot be imported ({type(error).__name__}: {error}); install the "
            'extra "metanet-toolkit[hf]"'
        ) from error
    return modeling_auto


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TraceError(f"{quoted(path)} is larger than {_MAX_BYTES} bytes: not a config")
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"cannot read {quoted(path)} ({error}); hf:FOLDER needs a folder with a "
                         "config.json") from error
    return _object(raw, quoted(path))


def _object(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TraceError(f"{where} holds a {type(raw).__name__}, not a JSON object")
    clean = _clean(raw, where)
    if not isinstance(clean, dict):
        raise TraceError(f"{where} is empty")
    return clean


def _clean(value: Any, where: str) -> Any:
    """Without what could choose code, at any depth; refuses quantised and giant models."""
    if isinstance(value, list):
        return [_clean(item, where) for item in value]
    if not isinstance(value, dict):
        return value
    for key, item in value.items():
        if key in _REFUSED and item is not None:
            raise TraceError(f"{where} has {key}: {_REFUSED[key]}")
        limit = _MAX_LAYERS if "layer" in key else _MAX_POSITIONS if "position" in key else None
        if limit and isinstance(item, (int, float)) and item > limit:
            raise TraceError(f"{where}: {quoted(key)} = {item} is above {limit}")
    return {key: _clean(item, where) for key, item in value.items() if key not in _DROPPED}


def _class_names(auto: Any, kind: str, wanted: Any, where: str) -> list[str]:
    """The class to build, the file's if transformers lists it for this type; then the others."""
    choices: dict[str, None] = {}
    for label, mapping in vars(auto).items():
        if label.startswith("MODEL_") and label.endswith("MAPPING_NAMES"):
            listed = mapping.get(kind, ())
            choices.update(dict.fromkeys((listed,) if isinstance(listed, str) else listed))
    names = list(wanted) if isinstance(wanted, (list, tuple)) else []
    chosen = names[0] if names else auto.MODEL_MAPPING_NAMES.get(kind)
    if isinstance(chosen, (list, tuple)):
        chosen = chosen[0]
    if not isinstance(chosen, str) or chosen not in choices:
        raise TraceError(
            f"{where}: architecture {quoted(chosen)} is not among the classes of "
            f"transformers for model type {quoted(kind)}: {', '.join(choices) or 'none'}"
        )
    return [chosen, *(name for name in choices if name != chosen)]


def _create(kind: str, class_name: str, raw: dict[str, Any], where: str) -> nn.Module:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[kind].from_dict({**raw, "model_type": kind})
        _settle(config)
        module = _instance(getattr(transformers, class_name), config)
    except Exception as error:
        raise TraceError(f"transformers cannot build {class_name} from {where}: "
                         f"{type(error).__name__}: {printable(error, 400)}") from error
    return module.eval()


def _instance(cls: Any, config: Any) -> nn.Module:
    """On meta; where a part of the model does not know fused attention, all of it is plain."""
    with meta_parameters():
        try:
            attention = "sdpa" if getattr(cls, "_supports_sdpa", False) else "eager"
            module: nn.Module = cls._from_config(
                copy.deepcopy(config), attn_implementation=attention)
        except ValueError as error:
            if "attention implementation" not in str(error):
                raise
            module = cls._from_config(config, attn_implementation="eager")
    return module


def _settle(config: Any) -> None:
    """In a config and those that it contains: no cache, and experts as one product that exports."""
    for part in (config, *(v for v in vars(config).values() if hasattr(v, "model_type"))):
        if hasattr(part, "use_cache"):
            part.use_cache = False
        batch_experts(part)
