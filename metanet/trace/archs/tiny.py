"""Small models with random configs for every model type that transformers knows.

Used to measure coverage: nothing is downloaded, and no family has code of its own here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from metanet.errors import TraceError
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.shrink import LEVELS, shrunk, walk
from metanet.trace.archs.tiny_table import TABLE, laid_over
from metanet.trace.archs.vision import prepare_torchvision
from metanet.trace.experts import batch_experts

_PREFERRED = (
    "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "MASKED_LM",
    "ZERO_SHOT_IMAGE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION",
    "AUDIO_CLASSIFICATION", "CTC", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION",
    "DEPTH_ESTIMATION", "UNIVERSAL_SEGMENTATION",
)
_OFF = ("use_cache", "use_pretrained_backbone", "use_timm_backbone", "output_attentions",
        "output_hidden_states", "use_mems_eval", "use_kernels", "use_mambapy", "use_router_jitter")


_CLASSES = 2
"""How many classes of a model type are tried."""


def model_types() -> list[str]:
    """Keys of transformers' CONFIG_MAPPING."""
    prepare_torchvision()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(CONFIG_MAPPING_NAMES)


def class_names(kind: str) -> list[str]:
    """Classes that transformers' auto mappings list for a model type, those with a head first."""
    prepare_torchvision()
    from transformers.models.auto import modeling_auto as auto

    def task(label: str) -> str:
        return label.removeprefix("MODEL_").removeprefix("FOR_").removesuffix("_MAPPING_NAMES")

    tables = {task(label): table for label, table in vars(auto).items()
              if label.startswith("MODEL_") and label.endswith("MAPPING_NAMES")}
    base = tables.pop("MAPPING_NAMES", None) or auto.MODEL_MAPPING_NAMES
    order = [*(tables[name] for name in _PREFERRED if name in tables), base, *tables.values()]
    found: dict[str, None] = {}
    for table in order:
        listed = table.get(kind, ())
        found.update(dict.fromkeys((listed,) if isinstance(listed, str) else listed))
    preferred = list(found)
    listed = base.get(kind, ())
    bases = [listed] if isinstance(listed, str) else list(listed)
    return [*preferred[:1], *(b for b in bases if b not in preferred[:1]),
            *(p for p in preferred[1:] if p not in bases)]


def tiny_models(kind: str) -> Iterator[tuple[str, nn.Module]]:
    """(class and level, module) for a model type, smallest first, as many as can be built.

    Raises:
        TraceError: at the end, where none could be built.
    """
    prepare_torchvision()
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    errors: list[str] = []
    built = False
    for level in LEVELS:
        made = 0
        for name in class_names(kind):
            if made == _CLASSES:
                break
            try:
                config = _config(CONFIG_MAPPING[kind], level, kind)
                module = _module(getattr(transformers, name), config)
            except Exception as error:
                errors.append(f"{name}, {level}: {type(error).__name__}: {str(error)[:300]}")
                continue
            built, made = True, made + 1
            yield f"{name} ({level})", module.eval()
    if not built:
        raise TraceError(errors[0] if errors else f"no class of transformers builds {kind!r}")


def _module(cls: Any, config: Any) -> Any:
    """A model on meta, with real parameters where its buffers are made from them."""
    with meta_parameters():
        module = _plainly(cls, copy.deepcopy(config))
    if any(buffer.is_meta for buffer in module.buffers()):
        return _plainly(cls, config)
    return module


def _plainly(cls: Any, config: Any) -> Any:
    """A model; where a part of it does not know fused attention, all of it is plain."""
    try:
        attention = "sdpa" if getattr(cls, "_supports_sdpa", False) else "eager"
        return cls._from_config(copy.deepcopy(config), attn_implementation=attention)
    except ValueError as error:
        if "attention implementation" not in str(error):
            raise
        return cls._from_config(config, attn_implementation="eager")


def _config(cls: Any, level: str, kind: str) -> Any:
    config = cls(**laid_over(shrunk(cls(), level), TABLE.get(kind, {})))
    walk(config, _settle)
    return config


def _settle(config: Any) -> None:
    """Caches off, nothing looked up, experts as one batched product that can be recorded."""
    for name in _OFF:
        if getattr(config, name, False) is True:
            setattr(config, name, False)
    batch_experts(config)
