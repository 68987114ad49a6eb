"""Inputs of transformers' models, by the names in their forward's signature and their configs.

Text, images, sound, series, encoder-decoder, and text with places for images: how many places an
image takes is found by running the model's own image encoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metanet.trace.fields import (
    Named,
    field,
    ids,
    normal,
    number,
    ones,
    pixels,
    plain_ids,
    sizes_to_try,
    vision,
    vocab,
)
from metanet.trace.images import film_packs, image_packs
from metanet.trace.places import placed
from metanet.trace.recipes import recipe
from metanet.trace.sounds import sounds


def named_inputs(module: nn.Module, config: Any, dtype: torch.dtype) -> Iterator[Named]:
    """Mappings of keyword arguments, those that use most of the model first."""
    order = list(inspect.signature(module.forward).parameters)
    makers: list[Callable[[], Iterator[Named]]] = [
        lambda: recipe(config, order, dtype),
        lambda: placed(module, config, order, dtype),
        lambda: _pairs(config, order, dtype),
        lambda: _grids(config, order, dtype),
        lambda: _sound(config, order, dtype),
        lambda: _images(config, order, dtype),
        lambda: _words(config, order),
        lambda: _states(config, order, dtype),
        lambda: _attending(config, order, dtype),
    ]
    for make in makers:
        yield from make()


# ---------------------------------------------------------------- two towers, one modality


def _pairs(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    """Text beside an image (or a sound), each in its own argument."""
    if "input_ids" not in order:
        return
    words: Named = {"input_ids": plain_ids(config, 2, 6)}
    if "attention_mask" in order:
        words["attention_mask"] = ones(2, 6)
    for name in ("pixel_values", "pixel_values_videos"):
        if name in order:
            yield from _with_images(config, order, dtype, words, name)
    for name in ("input_features", "input_values"):
        if name in order:
            for sound in sounds(config, name, dtype):
                yield {**words, **sound}
                if name == "input_features" and "is_longer" in order:
                    yield {**words, name: sound[name][:, None]}
    if "bbox" in order:
        yield {**words, "bbox": _boxes(), **_decoder(config, order)}


def _with_images(config: Any, order: list[str], dtype: torch.dtype, words: Named, name: str
                 ) -> Iterator[Named]:
    decoder = _decoder(config, order)
    for size in sizes_to_try(config)[:4]:
        image = pixels(config, size, dtype)
        if "bbox" in order:
            yield {**words, "bbox": _boxes(), name: image, **decoder}
        if decoder:
            yield {**words, name: image, **decoder}
        yield {**words, name: image}
        told = field(vision(config), "num_frames") or field(config, "num_frames")
        for frames in dict.fromkeys([told or 2, 2]):
            yield {**words, name: normal(2, frames, *image.shape[1:], dtype=dtype)}


def _decoder(config: Any, order: list[str]) -> Named:
    known = "decoder_input_ids" in order
    return {"decoder_input_ids": plain_ids(config, 2, 5)} if known else {}


def _boxes() -> Tensor:
    corner = ids(20, 2, 6, 2)
    return torch.cat([corner, corner + 9], -1)


def _grids(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    """Images in the form in which an encoder of images wants them, where it wants a form."""
    special = ("grid_thw", "image_grid_thw", "image_grid_hw", "spatial_shapes", "target_sizes",
               "pixel_position_ids", "image_position_ids", "aspect_ratio_ids")
    if "input_ids" not in order and any(name in order for name in special):
        yield from image_packs(config, order, dtype)
    if "input_ids" not in order and "pixel_values" not in order:
        yield from film_packs(config, order, dtype)


def _sound(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    decoder = _decoder(config, order)
    masks = [n for n in ("attention_mask", "input_features_mask", "padding_mask") if n in order]
    for name in ("input_features", "input_values"):
        if name not in order:
            continue
        for sound in sounds(config, name, dtype):
            yield {**sound, **decoder}
            if name == "input_features":
                frames = max(sound[name].shape[-2:])
                for mask in masks:
                    yield {**sound, **decoder, mask: ones(2, frames)}


def _images(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    decoder = _decoder(config, order)
    names = [n for n in ("pixel_values", "pixel_values_videos") if n in order]
    for name in names:
        for size in sizes_to_try(config):
            image = pixels(config, size, dtype)
            yield {name: image, **decoder}
            for frames in dict.fromkeys(
                    [field(vision(config), "num_frames", "frames_per_clip") or 4, 2]):
                if isinstance(frames, int) and frames <= 64:
                    yield {name: normal(2, frames, *image.shape[1:], dtype=dtype), **decoder}
            if "pixel_mask" in order:
                yield {name: image, "pixel_mask": ones(2, *size)}


def _words(config: Any, order: list[str]) -> Iterator[Named]:
    if "input_ids" not in order:
        return
    tokens = ids(vocab(config), 2, 5)
    decoder = {"decoder_input_ids": ids(vocab(config), 2, 7)}
    if "decoder_input_ids" in order:
        yield {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **decoder}
        yield {"input_ids": tokens, **decoder}
    yield {"input_ids": tokens}
    books = number(config, "num_codebooks", "num_codebook", "codebooks")
    if books is not None:
        yield {"input_ids": plain_ids(config, 2, 5, books)}
        yield {"input_ids": plain_ids(config, 2, books, 5)}
        yield {"input_ids": plain_ids(config, 2 * books, 5)}


def _states(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    """Hidden states or embeddings given directly."""
    wide = number(config, "hidden_size", "d_model", "n_embd", "input_size")
    if wide is None:
        return
    for name in ("inputs_embeds", "hidden_states", "past_values", "inputs"):
        if name in order:
            yield {name: normal(2, 5, wide, dtype=dtype)}


def _attending(config: Any, order: list[str], dtype: torch.dtype) -> Iterator[Named]:
    """Words of a decoder, and the states of the encoder that it looks at."""
    wide = number(config, "cross_attention_hidden_size", "hidden_size", "d_model")
    if "input_ids" in order and "encoder_hidden_states" in order and wide is not None:
        yield {"input_ids": ids(vocab(config), 2, 5),
               "encoder_hidden_states": normal(2, 6, wide, dtype=dtype)}
