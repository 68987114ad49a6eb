"""What the config of a transformers model says about its inputs: widths, sizes, vocabularies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Named = dict[str, Any]
"""Keyword arguments of a forward."""

_VISION = ("vision_config", "image_config", "vision_tower_config", "vision_encoder_config",
           "vit_config", "backbone_config", "encoder")
_AUDIO = ("audio_config", "audio_encoder_config", "encoder_config", "speech_config",
          "audio_encoder", "audio_tower_config")
_SMALL = 128 * 128
_TEXT_SIZES = ("hidden_size", "d_model", "n_embd")


def ids(vocab: int, *shape: int) -> Tensor:
    """Token ids below ``vocab``, the same at every call."""
    return torch.randint(0, max(vocab, 1), shape, generator=torch.Generator().manual_seed(0))


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values that depend on nothing but the shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def ones(*shape: int) -> Tensor:
    """A mask that hides nothing."""
    return torch.ones(*shape, dtype=torch.long)


def field(config: Any, *names: str) -> Any:
    """The first of the fields that the config has and that is not None."""
    return next((v for n in names if (v := getattr(config, n, None)) is not None), None)


def number(config: Any, *names: str) -> int | None:
    """The first of the fields that is an integer."""
    found = (getattr(config, n, None) for n in names)
    return next((v for v in found if isinstance(v, int) and not isinstance(v, bool)), None)


def text(config: Any) -> Any:
    """The config of the language model."""
    try:
        return config.get_text_config() if hasattr(config, "get_text_config") else config
    except (ValueError, AttributeError):
        return config


def width(config: Any) -> int | None:
    """Width of the language model's stream."""
    return number(text(config), *_TEXT_SIZES)


def _part(config: Any, names: tuple[str, ...]) -> Any:
    found = field(config, *names)
    return found if hasattr(found, "model_type") else config


def vision(config: Any) -> Any:
    """The config of what sees images, ``config`` itself where there is no other."""
    return _part(config, _VISION)


def audio(config: Any) -> Any:
    """The config of what hears, ``config`` itself where there is no other."""
    return _part(config, _AUDIO)


def vocab(config: Any) -> int:
    """Size of the vocabulary, 40 where none is told."""
    found = number(text(config), "vocab_size")
    return found or number(config, "vocab_size") or 40


def plain_ids(config: Any, *shape: int) -> Tensor:
    """Ids below all special tokens of the shrunk vocabularies."""
    return ids(min(vocab(config), 40), *shape).clamp_min(3)


def sizes(config: Any) -> list[tuple[int, int]]:
    """Heights and widths of images to try."""
    seen = vision(config)
    found_in = (field(c, "image_size", "img_size") for c in (*nested(seen), config))
    side: Any = next((s for s in found_in if s), None)
    if isinstance(side, dict):
        side = (side.get("height"), side.get("width"))
    if isinstance(side, (tuple, list)) and len(side) >= 2:
        return [(int(side[0]), int(side[1]))]
    if isinstance(side, (tuple, list)) and side:
        side = side[0]
    square = [(int(side), int(side))] if side else []
    return [*square, (64, 96), (64, 64), (128, 128), (224, 224), (256, 256)]


def sizes_to_try(config: Any) -> list[tuple[int, int]]:
    """The same sizes, small ones first: whoever takes images of any size is quick on these."""
    found = sizes(config)
    small = [(high, wide) for high, wide in found if high * wide <= _SMALL]
    return [*small, *(size for size in found if size not in small)]


def channels(config: Any) -> int:
    """Channels of an image."""
    names = ("num_channels", "in_channels", "in_chans", "input_channels")
    return number(vision(config), *names) or number(config, *names) or 3


def patch(config: Any) -> int:
    """Side of a square patch of an image."""
    found = field(vision(config), "patch_size", "spatial_patch_size")
    found = found or field(config, "patch_size", "spatial_patch_size")
    if isinstance(found, (tuple, list)):
        found = found[-1]
    return found if isinstance(found, int) else 14


def pixels(config: Any, size: tuple[int, int], dtype: torch.dtype, batch: int = 2) -> Tensor:
    """Images, ``(batch, channels, height, width)``."""
    return normal(batch, channels(config), *size, dtype=dtype)


def nested(config: Any) -> Iterator[Any]:
    """A config and all configs inside it."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "model_type"):
            yield from nested(value)
