"""Inputs of transformers' models, by the names in their forward's signature and their configs.

Text, images, sound, encoder-decoder, and text with places for images: how many places an image
takes is found by running the model's own image encoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metanet.trace.copies import with_values

Named = dict[str, Any]
_LARGEST = 60_000_000
_HEAD = 3  # tokens before the places of an image


def ids(vocab: int, *shape: int) -> Tensor:
    """Token ids below ``vocab``, the same at every call."""
    return torch.randint(0, max(vocab, 1), shape, generator=torch.Generator().manual_seed(0))


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values that depend on nothing but the shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def named_inputs(module: nn.Module, config: Any, dtype: torch.dtype) -> Iterator[Named]:
    """Mappings of keyword arguments, those that use most of the model first."""
    order = list(inspect.signature(module.forward).parameters)
    makers: list[Callable[[], Iterator[Named]]] = [
        lambda: _places(module, config, order, dtype),
        lambda: _pairs(config, order, dtype),
        lambda: _sound(config, order, dtype),
        lambda: _images(config, order, dtype),
        lambda: _words(config, order),
        lambda: _states(config, order, dtype),
    ]
    for make in makers:
        yield from make()


def _field(config: Any, *names: str) -> Any:
    return next((v for n in names if (v := getattr(config, n, None)) is not None), None)


def _text(config: Any) -> Any:
    try:
        return config.get_text_config() if hasattr(config, "get_text_config") else config
    except (ValueError, AttributeError):
        return config


def _vocab(config: Any) -> int:
    found = _field(_text(config), "vocab_size") or _field(config, "vocab_size")
    return found if isinstance(found, int) else 40


def _vision(config: Any) -> Any:
    found = _field(config, "vision_config", "image_config", "vision_tower_config",
                   "vision_encoder_config", "backbone_config", "encoder")
    return found if hasattr(found, "model_type") else config


def _plain_ids(config: Any, *shape: int) -> Tensor:
    """Ids below all special tokens of the shrunk vocabularies."""
    return ids(min(_vocab(config), 40), *shape).clamp_min(3)


def _sizes(config: Any) -> list[tuple[int, int]]:
    vision = _vision(config)
    side = _field(vision, "image_size", "img_size") or _field(config, "image_size", "img_size")
    if isinstance(side, dict):
        side = (side.get("height"), side.get("width"))
    if isinstance(side, (tuple, list)) and len(side) >= 2:
        return [(int(side[0]), int(side[1]))]
    if isinstance(side, (tuple, list)) and side:
        side = side[0]
    found = [(int(side), int(side))] if side else []
    return [*found, (64, 96), (64, 64), (128, 128), (224, 224), (256, 256)]


def _channels(config: Any) -> int:
    vision = _vision(config)
    value = _field(vision, "num_channels", "in_channels", "in_chans", "input_channels")
    return value if isinstance(value, int) else 3


def _pixels(config: Any, size: tuple[int, int], dtype: torch.dtype, batch: int = 2) -> Tensor:
    return normal(batch, _channels(config), *size, dtype=dtype)


# ---------------------------------------------------------------- text with places for images


def _places(module: nn.Module, config: Any, order: list[str], dtype: torch.dtype
            ) -> Iterator[Named]:
    """Text in which tokens hold the places of an image or of a sound."""
    small = sum(p.numel() for p in module.parameters()) <= _LARGEST
    if not small or "input_ids" not in order:
        return
    real = None
    for label, arguments in (("image", _image_arguments), ("audio", _audio_arguments)):
        token = _field(config, f"{label}_token_id", f"{label}_token_index")
        encode = getattr(module, f"get_{label}_features", None)
        if not isinstance(token, int) or encode is None:
            continue
        real = real if real is not None else with_values(module)
        known = set(inspect.signature(encode).parameters)
        for given in arguments(config, order, dtype):
            accepted = {k: v for k, v in given.items() if k in known or "kwargs" in known}
            places = _count(getattr(real, f"get_{label}_features"), accepted, config)
            if places is not None:
                yield from _placed(config, order, token, places, given)


def _placed(config: Any, order: list[str], token: int, places: int, given: Named
            ) -> Iterator[Named]:
    row = torch.cat([_plain_ids(config, 1, _HEAD), torch.full((1, places), token),
                     _plain_ids(config, 1, 4)], 1)
    yield {"input_ids": row, **given}
    mask = torch.ones_like(row)
    extra = {k: v for k, v in (("attention_mask", mask),
                               ("mm_token_type_ids", (row == token).long()),
                               ("token_type_ids", (row == token).long())) if k in order}
    yield {"input_ids": row, **extra, **given}


def _audio_arguments(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    """One sound, with its mask where the signature has one."""
    masks = [n for n in ("input_features_mask", "feature_attention_mask", "padding_mask")
             if n in order]
    for name in ("input_features", "input_values"):
        for sound in _sounds(config, name, dtype) if name in order else ():
            one = sound[name][:1]
            for frames in dict.fromkeys((one.shape[-1], one.shape[1])):
                ones = torch.ones(1, frames, dtype=torch.long)
                yield {name: one, **dict.fromkeys(masks, ones)}
            if not masks:
                yield {name: one}


def _image_arguments(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    vision = _vision(config)
    if "image_grid_thw" in order:
        patch = _field(vision, "patch_size", "spatial_patch_size") or 14
        time = _field(vision, "temporal_patch_size") or 1
        for steps in dict.fromkeys((time, 1)):
            width = _channels(config) * steps * patch * patch
            grid = {"image_grid_thw": torch.tensor([[1, 4, 6]])}
            yield {"pixel_values": normal(4 * 6, width, dtype=dtype), **grid}
        patches = normal(1, 4 * 6, _channels(config), patch, patch, dtype=dtype)
        yield {"pixel_values": patches, **grid}
        yield {"pixel_values": patches[0], **grid}
    for size in _sizes(config)[:3]:
        pixels = _pixels(config, size, dtype, batch=1)
        if "high_res_pixel_values" in order:
            for finer in _sizes(config)[:3]:
                yield {"pixel_values": pixels,
                       "high_res_pixel_values": _pixels(config, finer, dtype, batch=1)}
        yield {"pixel_values": pixels}
        sizes = torch.tensor([size])
        if "image_sizes" in order:
            yield {"pixel_values": pixels, "image_sizes": sizes}
            for tiles in (2, 3, 5):
                tiled = normal(1, tiles, *pixels.shape[1:], dtype=dtype)
                yield {"pixel_values": tiled, "image_sizes": sizes}
        if "pixel_attention_mask" in order:
            yield {"pixel_values": pixels[:, None],
                   "pixel_attention_mask": torch.ones(1, 1, *size, dtype=torch.long)}
        yield {"pixel_values": pixels[:, None]}


def _count(encode: Callable[..., Any], given: Named, config: Any) -> int | None:
    """How many rows the encoder gives for these images or sounds; None where it refuses them."""
    try:
        with torch.no_grad():
            out = encode(**given)
    except Exception:
        return None
    found = getattr(out, "pooler_output", None)
    found = out if found is None else found
    tensors = [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]
    width = _field(_text(config), "hidden_size", "d_model", "n_embd")
    if not tensors or not isinstance(width, int):
        return None
    numbers = sum(t.numel() for t in tensors if t.shape[-1] == width)
    return numbers // width or None


# ---------------------------------------------------------------- two towers, one modality


def _pairs(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    """Text beside an image (or a sound), each in its own argument."""
    if "input_ids" not in order:
        return
    words: Named = {"input_ids": _plain_ids(config, 2, 6)}
    if "attention_mask" in order:
        words["attention_mask"] = torch.ones(2, 6, dtype=torch.long)
    if "pixel_values" in order:
        for size in _sizes(config)[:4]:
            pixels = _pixels(config, size, dtype)
            yield {**words, "pixel_values": pixels}
            yield {**words, "pixel_values": pixels, "decoder_input_ids": _plain_ids(config, 2, 5)}
            if "bbox" in order:
                yield {**words, "bbox": _boxes(), "pixel_values": pixels}
            for frames in dict.fromkeys([_field(_vision(config), "num_frames") or 2, 2]):
                film = normal(2, frames, *pixels.shape[1:], dtype=dtype)
                yield {**words, "pixel_values": film}
    for name in ("input_features", "input_values"):
        if name in order:
            for sound in _sounds(config, name, dtype):
                yield {**words, **sound}
    if "bbox" in order:
        yield {**words, "bbox": _boxes()}


def _decoder(config: Any, order: list[str]) -> Named:
    known = "decoder_input_ids" in order
    return {"decoder_input_ids": _plain_ids(config, 2, 5)} if known else {}


def _boxes() -> Tensor:
    corner = ids(20, 2, 6, 2)
    return torch.cat([corner, corner + 9], -1)


def _sound(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    decoder = _decoder(config, order)
    masks = [n for n in ("attention_mask", "input_features_mask", "padding_mask") if n in order]
    for name in ("input_features", "input_values"):
        if name not in order:
            continue
        for sound in _sounds(config, name, dtype):
            yield {**sound, **decoder}
            if name == "input_features":
                frames = max(sound[name].shape[-2:])
                for mask in masks:
                    yield {**sound, **decoder, mask: torch.ones(2, frames, dtype=torch.long)}


def _sounds(config: Any, name: str, dtype: torch.dtype) -> Iterator[Named]:
    audio = _field(config, "audio_config", "audio_encoder_config", "encoder_config",
                   "speech_config")
    audio = audio if hasattr(audio, "model_type") else config
    if name == "input_values":
        for shape in ((2, 4000), (2, 1, 4000), (2, 2, 4000)):
            yield {name: normal(*shape, dtype=dtype)}
        width = _field(audio, "num_mel_bins", "input_size")
        if isinstance(width, int):
            yield {name: normal(2, _field(audio, "max_length") or 64, width, dtype=dtype)}
        return
    known = [getattr(audio, n, None) for n in (
        "num_mel_bins", "n_mels", "feature_size", "input_feat_per_channel", "input_dim",
        "feature_projection_input_dim", "mel_bins", "input_feat_size", "feat_in", "in_channels")]
    sources = _field(audio, "max_source_positions")
    lengths = [2 * sources] if isinstance(sources, int) else []
    for width in dict.fromkeys([n for n in known if isinstance(n, int) and n > 3] + [80, 128, 160]):
        for frames in (*lengths, 100, 64):
            yield {name: normal(2, width, frames, dtype=dtype)}
            yield {name: normal(2, frames, width, dtype=dtype)}


def _images(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    decoder = _decoder(config, order)
    names = [n for n in ("pixel_values", "pixel_values_videos") if n in order]
    for name in names:
        for size in _sizes(config):
            pixels = _pixels(config, size, dtype)
            yield {name: pixels, **decoder}
            for frames in dict.fromkeys(
                    [_field(_vision(config), "num_frames", "frames_per_clip") or 4, 2]):
                if isinstance(frames, int) and frames <= 64:
                    film = normal(2, frames, *pixels.shape[1:], dtype=dtype)
                    yield {name: film, **decoder}
            if "pixel_mask" in order:
                yield {name: pixels, "pixel_mask": torch.ones(2, *size, dtype=torch.long)}


def _words(config: Any, order: list[str]) -> Iterator[Named]:
    if "input_ids" not in order:
        return
    tokens = ids(_vocab(config), 2, 5)
    decoder = {"decoder_input_ids": ids(_vocab(config), 2, 7)}
    if "decoder_input_ids" in order:
        yield {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **decoder}
        yield {"input_ids": tokens, **decoder}
    yield {"input_ids": tokens}
    books = _field(config, "num_codebooks", "num_codebook", "codebooks")
    if isinstance(books, int):
        yield {"input_ids": _plain_ids(config, 2, 5, books)}
        yield {"input_ids": _plain_ids(config, 2, books, 5)}
        yield {"input_ids": _plain_ids(config, 2 * books, 5)}


def _states(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    """Hidden states or embeddings given directly."""
    width = _field(config, "hidden_size", "d_model", "n_embd", "input_size")
    if not isinstance(width, int):
        return
    for name in ("inputs_embeds", "hidden_states", "past_values", "inputs"):
        if name in order:
            yield {name: normal(2, 5, width, dtype=dtype)}
