"""Inputs of models that mix text with images or sounds in a form of their own, by model type.

Each function gives one row of text in which tokens hold the places of what is seen or heard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metanet.trace.fields import (
    Named,
    audio,
    channels,
    field,
    ids,
    normal,
    ones,
    patch,
    plain_ids,
    vision,
)


def _row(config: Any, *places: tuple[int, int]) -> Tensor:
    """Words, the places of each (token, count) in one piece, and words between."""
    pieces = [plain_ids(config, 1, 3)]
    for token, count in places:
        pieces += [torch.full((1, count), token), plain_ids(config, 1, 4)]
    return torch.cat(pieces, 1)


def _merged_patches(config: Any, dtype: torch.dtype) -> Named:
    """Squares of patches, one for each token, rows and columns before channels."""
    seen = vision(config)
    side = seen.patch_size * seen.spatial_merge_size
    return {"input_ids": _row(config, (config.image_token_id, 6)),
            "pixel_values": normal(6, side, side, channels(config), dtype=dtype),
            "image_grid_thw": torch.tensor([[1, 2, 3]])}


def _merged_alone(config: Any, dtype: torch.dtype) -> Named:
    side = config.patch_size * config.spatial_merge_size
    return {"pixel_values": normal(6, side, side, channels(config), dtype=dtype),
            "image_grid_thw": torch.tensor([[1, 2, 3]])}


def _whole_frames(config: Any, dtype: torch.dtype) -> Named:
    """A wave of which so many samples become one token."""
    return {"input_values": normal(2, 3 * config.samples_per_token, dtype=dtype)}


def _films_and_codes(config: Any, dtype: torch.dtype) -> Named:
    """Patches of two frames, and sounds as codes of several books."""
    seen, heard = vision(config), audio(config)
    films = normal(3, seen.temporal_patch_size, seen.patch_size, seen.patch_size,
                   channels(config), dtype=dtype)
    return {"input_ids": _row(config, (config.image_token_id, 3), (config.audio_token_id, 5)),
            "pixel_values": films,
            "audio_input_ids": ids(heard.codebook_size, 1, 5, heard.num_codebooks)}


def _pooled_patches(config: Any, dtype: torch.dtype) -> Named:
    """One crop of an image whose patches are pooled by fours."""
    seen = vision(config)
    side = field(seen, "image_size", "image_default_input_size")
    rows = (side[0] if isinstance(side, (tuple, list)) else side) // patch(config)
    at = torch.arange(rows * rows).reshape(rows // 2, 2, rows // 2, 2).transpose(1, 2)
    pooling = at.reshape(-1, 4)
    count = len(pooling)
    wide = channels(config) * patch(config) ** 2
    return {"input_ids": _row(config, (config.image_token_id, count)),
            "pixel_values": normal(1, rows * rows, wide, dtype=dtype),
            "image_token_pooling": pooling,
            "image_grids": torch.tensor([[rows // 2, rows // 2, 0, 0]]),
            "image_num_crops": torch.tensor([1])}


def _listened(config: Any, dtype: torch.dtype) -> Named:
    """A spectrum of which every fourth frame becomes a token."""
    heard = audio(config)
    frames = 2 * heard.max_source_positions
    row = _row(config, (config.audio_token_id, frames // 4))
    return {"input_ids": row, "attention_mask": torch.ones_like(row),
            "input_features": normal(1, heard.num_mel_bins, frames, dtype=dtype),
            "input_features_mask": ones(1, frames), "feature_attention_mask": ones(1, frames)}


def _patches_in_order(config: Any, dtype: torch.dtype) -> Named:
    return {"input_ids": _row(config, (config.image_token_id, 6)),
            "pixel_values": normal(6, config.patch_dim, dtype=dtype)}


def _merging(config: Any, dtype: torch.dtype) -> Named:
    """A strip of patches; neighbours are merged halfway through the encoder."""
    side, (high, broad) = patch(config), (4, 6)
    return {"pixel_values": normal(1, channels(config), side, high * broad * side, dtype=dtype),
            "target_sizes": torch.tensor([[high, broad]]), "use_vit_merger": True}


def _one_film(config: Any, dtype: torch.dtype) -> Named:
    side = config.max_img_size
    row = plain_ids(config, 1, 6)
    return {"input_ids": row, "attention_mask": torch.ones_like(row),
            "pixel_values": normal(1, config.num_frames, 3, side, side, dtype=dtype)}


def _quantised(config: Any, dtype: torch.dtype) -> Named:
    """An image that becomes one token per patch, and the grid of the image to be made."""
    side, (high, broad) = patch(config), (4, 6)
    wide = channels(config) * side * side
    return {"input_ids": _row(config, (config.image_token_id, high * broad)),
            "pixel_values": normal(high * broad, wide, dtype=dtype),
            "image_grid_thw": torch.tensor([[1, high, broad], [1, high, broad]])}


def _melody(config: Any, dtype: torch.dtype) -> Named:
    """Words, the notes of a tune, and codes of several books."""
    words = plain_ids(config, 2, 6)
    return {"input_ids": words, "attention_mask": torch.ones_like(words),
            "input_features": normal(2, 7, config.num_chroma, dtype=dtype),
            "decoder_input_ids": ids(30, 2 * config.decoder.num_codebooks, 5)}


def _entities(config: Any, dtype: torch.dtype) -> Named:
    """Words, and things that some of them name; -1 fills up the places of a name."""
    words = plain_ids(config, 2, 7)
    places = torch.tensor([[[1, 2, -1], [4, -1, -1]], [[0, 1, 2], [5, 6, -1]]])
    return {"input_ids": words, "attention_mask": torch.ones_like(words),
            "entity_ids": ids(min(config.entity_vocab_size, 40), 2, 2),
            "entity_attention_mask": ones(2, 2), "entity_position_ids": places}


def _boxed_features(config: Any, dtype: torch.dtype) -> Named:
    """Words, and features of boxes of an image with their corners."""
    words = plain_ids(config, 2, 6)
    return {"input_ids": words, "attention_mask": torch.ones_like(words),
            "visual_feats": normal(2, 4, config.visual_feat_dim, dtype=dtype),
            "visual_pos": normal(2, 4, config.visual_pos_dim, dtype=dtype)}


def _letters(config: Any, dtype: torch.dtype) -> Named:
    """Letters, of which several make one place of the deep encoder."""
    letters = plain_ids(config, 2, 6 * config.downsampling_rate)
    return {"input_ids": letters, "attention_mask": torch.ones_like(letters)}


def _shaped_patches(config: Any, dtype: torch.dtype) -> Named:
    """Words beside one row of patches with the shape of their grid."""
    side, (high, broad) = patch(config), (4, 6)
    wide = channels(config) * side * side
    return {"input_ids": plain_ids(config, 1, 6), "pixel_attention_mask": ones(1, high * broad),
            "pixel_values": normal(1, high * broad, wide, dtype=dtype),
            "spatial_shapes": torch.tensor([[high, broad]])}


def _codes(config: Any, dtype: torch.dtype) -> Named:
    """Words, and codes of several books."""
    words = plain_ids(config, 2, 6)
    return {"input_ids": words, "attention_mask": torch.ones_like(words),
            "decoder_input_ids": ids(30, 2 * config.decoder.num_codebooks, 5)}


def _frames(config: Any, dtype: torch.dtype) -> Named:
    """Frames of sound, features last."""
    return {"input_features": normal(2, 20, config.input_size, dtype=dtype),
            "input_features_mask": ones(2, 20)}


def _wave_and_spectrum(config: Any, dtype: torch.dtype) -> Named:
    """A wave, and features of its frames."""
    frames = 10
    return {"input_values": normal(1, 1, frames * math.prod(config.downsampling_ratios),
                                   dtype=dtype),
            "input_features": normal(
                1, frames, config.semantic_model_config.feature_projection_input_dim, dtype=dtype),
            "input_features_mask": ones(1, frames)}


MEDIA: dict[str, Callable[[Any, torch.dtype], Named]] = {
    "inkling2": _merged_patches, "inkling_mm_model": _films_and_codes, "molmo2": _pooled_patches,
    "musicflamingo": _listened, "qwen2_audio": _listened, "neomme": _patches_in_order,
    "minicpmv4_7_vision": _merging, "tvp": _one_film, "glm_image": _quantised,
    "canine": _letters, "inkling2_vision": _merged_alone, "muse_spark_audio": _whole_frames,
    "xcodec2": _wave_and_spectrum, "neucodec": _wave_and_spectrum,
    "siglip2": _shaped_patches, "musicgen": _codes, "fun_asr_nano_encoder": _frames,
    "musicgen_melody": _melody, "luke": _entities, "mluke": _entities, "lxmert": _boxed_features,
}
"""Model type → what its forward takes."""
