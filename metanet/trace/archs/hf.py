"""``hf:FOLDER``: a transformers model from a folder's config.json.

The folder is not trusted. Class names are looked up in the mappings of transformers itself, and
only among the classes of the file's model type; ``auto_map``, quantisation and the names of
attention implementations (which can point to code on the Hub) are dropped or refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from metanet.checkpoint.names import printable
from metanet.errors import TraceError
from metanet.trace.archs.header import quoted
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.registry import Request, architecture
from metanet.trace.archs.vision import prepare_torchvision
from metanet.trace.inputs import synthesise

_MAX_BYTES = 1 << 20
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


@architecture("hf", argument="FOLDER")
def hf_model(request: Request) -> tuple[nn.Module, tuple[Any, ...]]:
    """The transformers model of ``FOLDER/config.json``, without cache, with SDPA if it can."""
    path = Path(request.argument).expanduser()
    path = path / "config.json" if path.is_dir() else path
    raw = _read(path)
    auto = _transformers()
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in auto.CONFIG_MAPPING_NAMES:
        raise TraceError(f"{quoted(path)}: model_type {quoted(kind)} is not one that transformers "
                         "knows; write a factory: --arch file.py:factory")
    class_name = _class_name(auto, kind, raw.get("architectures"), path)
    module = _create(kind, class_name, raw, path)
    return module, synthesise(module)


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
    if not isinstance(raw, dict):
        raise TraceError(f"{quoted(path)} holds a {type(raw).__name__}, not a JSON object")
    clean = _clean(raw, path)
    if not isinstance(clean, dict):
        raise TraceError(f"{quoted(path)} is empty")
    return clean


def _clean(value: Any, path: Path) -> Any:
    """Without what could choose code, at any depth; refuses quantised and giant models."""
    if isinstance(value, list):
        return [_clean(item, path) for item in value]
    if not isinstance(value, dict):
        return value
    for key, item in value.items():
        if key in _REFUSED and item is not None:
            raise TraceError(f"{quoted(path)} has {key}: {_REFUSED[key]}")
        limit = _MAX_LAYERS if "layer" in key else _MAX_POSITIONS if "position" in key else None
        if limit and isinstance(item, (int, float)) and item > limit:
            raise TraceError(f"{quoted(path)}: {quoted(key)} = {item} is above {limit}")
    return {key: _clean(item, path) for key, item in value.items() if key not in _DROPPED}


def _class_name(auto: Any, kind: str, wanted: Any, path: Path) -> str:
    """The class to build: the file's if transformers lists it for this model type."""
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
            f"{quoted(path)}: architecture {quoted(chosen)} is not among the classes of "
            f"transformers for model type {quoted(kind)}: {', '.join(choices) or 'none'}"
        )
    return chosen


def _create(kind: str, class_name: str, raw: dict[str, Any], path: Path) -> nn.Module:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[kind].from_dict({**raw, "model_type": kind})
        _no_cache(config)
        with meta_parameters():
            cls = getattr(transformers, class_name)
            attention = "sdpa" if getattr(cls, "_supports_sdpa", False) else "eager"
            module: nn.Module = cls._from_config(config, attn_implementation=attention)
    except Exception as error:
        raise TraceError(f"transformers cannot build {class_name} from {quoted(path)}: "
                         f"{type(error).__name__}: {printable(error, 400)}") from error
    return module.eval()


def _no_cache(config: Any) -> None:
    """Switch the key-value cache off in a config and in the configs that it contains."""
    for part in (config, *(v for v in vars(config).values() if hasattr(v, "model_type"))):
        if hasattr(part, "use_cache"):
            part.use_cache = False
