"""Inputs of model types whose arguments no general rule makes: a table by the model type.

Each entry maps names of arguments to what they hold, computed from the config.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from metanet.trace.fields import (
    Named,
    channels,
    field,
    ids,
    normal,
    number,
    ones,
    patch,
    pixels,
    plain_ids,
    sizes,
    vision,
)
from metanet.trace.recipes_media import MEDIA

Recipe = Callable[[Any, torch.dtype], Named]


def recipe(config: Any, order: Collection[str], dtype: torch.dtype) -> Iterator[Named]:
    """What the table says about this type, then about these names of arguments."""
    makers = [_BY_TYPE.get(getattr(config, "model_type", ""))]
    makers += [make for names, make in _BY_NAMES if all(name in order for name in names)]
    for make in filter(None, makers):
        try:
            found = make(config, dtype)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            continue  # a config of this type that says less than transformers' default
        yield {k: v for k, v in found.items() if k in order}


def _series(config: Any, dtype: torch.dtype) -> Named:
    """A past longer than the context by the largest lag, and a future, with features of time."""
    context = field(config, "context_length", "prediction_length")
    past = context + max(field(config, "lags_sequence") or [0])
    future, features = config.prediction_length, max(config.num_time_features, 0)
    each = () if config.input_size == 1 else (config.input_size,)
    real = config.num_dynamic_real_features
    return {
        "past_values": normal(2, past, *each, dtype=dtype),
        "past_time_features": normal(2, past, features + real, dtype=dtype),
        "past_observed_mask": torch.ones(2, past, *each, dtype=dtype),
        "future_values": normal(2, future, *each, dtype=dtype),
        "future_time_features": normal(2, future, features + real, dtype=dtype),
    }


def _patched_series(config: Any, dtype: torch.dtype) -> Named:
    wide = config.num_input_channels
    return {"past_values": normal(2, config.context_length, wide, dtype=dtype)}


def _padded_series(config: Any, dtype: torch.dtype) -> Named:
    length = 4 * config.patch_length
    return {"past_values": normal(2, length, dtype=dtype),
            "past_values_padding": torch.zeros(2, length, dtype=dtype),
            "freq": torch.zeros(2, 1, dtype=torch.long)}


def _steps(config: Any, dtype: torch.dtype) -> Named:
    """States, actions and rewards of a decision transformer."""
    return {"states": normal(2, 5, config.state_dim, dtype=dtype),
            "actions": normal(2, 5, config.act_dim, dtype=dtype),
            "rewards": normal(2, 5, 1, dtype=dtype), "returns_to_go": normal(2, 5, 1, dtype=dtype),
            "timesteps": torch.arange(5)[None].expand(2, -1).contiguous(),
            "attention_mask": ones(2, 5)}


def _patch_width(config: Any) -> int:
    told = number(vision(config), "patch_embed_hidden_size")
    return told or channels(config) * patch(config) ** 2


def _flat_patches(config: Any, dtype: torch.dtype) -> Named:
    """Row and column of each patch before its pixels, and what is asked of them."""
    wide = _patch_width(config)
    place = torch.tensor([[r, c] for r in range(1, 3) for c in range(1, 4)], dtype=dtype)
    rows = torch.cat([place[None].expand(2, -1, -1), normal(2, 6, wide, dtype=dtype)], -1)
    return {"flattened_patches": rows, "attention_mask": torch.ones(2, 6, dtype=dtype),
            "decoder_input_ids": plain_ids(config, 2, 5)}


def _queries(config: Any, dtype: torch.dtype) -> Named:
    return {"query_embeds": normal(2, 5, config.hidden_size, dtype=dtype),
            "encoder_hidden_states": normal(2, 6, config.encoder_hidden_size, dtype=dtype)}


def _spectrum_and_mask(config: Any, dtype: torch.dtype) -> Named:
    return {"audio_mel": normal(2, 64, config.input_feat_size, dtype=dtype),
            "audio_mel_mask": torch.zeros(2, 64, dtype=torch.bool)}


def _tasks(config: Any, dtype: torch.dtype) -> Named:
    length = config.task_seq_len
    return {"pixel_values": normal(2, 3, 64, 96, dtype=dtype),
            "task_inputs": ids(40, 2, length)}


def _conditioned(config: Any, dtype: torch.dtype) -> Named:
    wide = config.hidden_size
    return {"input_ids": plain_ids(config, 2 * config.num_codebooks, 5),
            "encoder_hidden_states": normal(2, 6, wide, dtype=dtype)}


def _in_the_text(config: Any, dtype: torch.dtype) -> Named:
    """Text whose first tokens are replaced by what is made of the image."""
    places = config.latent_query_num
    row = plain_ids(config, 1, places + 4)
    marks = (torch.arange(places + 4) < places)[None].long()
    wide, side = _patch_width(config), torch.arange(1, 3)
    at = torch.cartesian_prod(side, side).to(dtype)[None]
    flat = torch.cat([at, normal(1, 4, wide, dtype=dtype)], -1)
    return {"pixel_values": pixels(config, sizes(config)[0], dtype, batch=1), "input_ids": row,
            "flattened_patches": flat, "image_embeds_position_mask": marks,
            "attention_mask": torch.ones_like(row)}


def _beside_text(config: Any, dtype: torch.dtype) -> Named:
    image = pixels(config, sizes(config)[0], dtype)[:, None]
    return {"input_ids": plain_ids(config, 2, 6), "attention_mask": ones(2, 6),
            "pixel_values": image, "image_attention_mask": ones(2, 6, 1)}


def _crossed(config: Any, dtype: torch.dtype) -> Named:
    """An image in as many tiles as fit, looked at by the layers of the text."""
    seen = vision(config)
    tiles = seen.max_num_tiles
    image = normal(1, 1, tiles, seen.num_channels, *sizes(config)[0], dtype=dtype)
    row = plain_ids(config, 1, 6)
    return {"input_ids": row, "pixel_values": image, "attention_mask": torch.ones_like(row),
            "aspect_ratio_ids": torch.tensor([[len(seen.supported_aspect_ratios)]]),
            "aspect_ratio_mask": ones(1, 1, tiles), "cross_attention_mask": ones(1, 6, 1, tiles)}


def _painted(config: Any, dtype: torch.dtype) -> Named:
    high, broad = config.image_size
    half = (high // 2, broad)
    return {"pixel_values": normal(2, 3, *half, dtype=dtype),
            "prompt_pixel_values": normal(2, 3, *half, dtype=dtype) * 0.5,
            "prompt_masks": normal(2, 3, *half, dtype=dtype) * 2}


def _robot(config: Any, dtype: torch.dtype) -> Named:
    inner = config.vlm_config
    image = pixels(inner, sizes(inner)[0], dtype, batch=1)
    places = (image.shape[-1] // patch(inner)) ** 2
    token = field(inner, "image_token_id", "image_token_index")
    row = torch.cat([torch.full((1, places), token), plain_ids(inner, 1, 4)], 1)
    return {"state": normal(1, config.max_state_dim, dtype=dtype),
            "noise": normal(1, config.chunk_size, config.max_action_dim, dtype=dtype),
            "timestep": torch.full((1,), 0.5, dtype=dtype), "input_ids": row,
            "pixel_values": image[:, None], "pixel_attention_mask": ones(1, 1).bool(),
            "attention_mask": torch.ones_like(row)}


def _draft(config: Any, dtype: torch.dtype) -> Named:
    wide = config.hidden_size
    return {"noise_embeds": normal(2, config.block_size, wide, dtype=dtype),
            "context_hidden_states": normal(2, 5, wide * len(config.target_layer_ids),
                                            dtype=dtype)}


def _classes(config: Any, dtype: torch.dtype) -> Named:
    """Three classes to be found in two images, each named by tokens."""
    names, task = plain_ids(config, 6, 5), plain_ids(config, 2, 5)
    size = sizes(config)[0]
    return {"pixel_values": pixels(config, size, dtype), "classes_input_ids": names,
            "classes_attention_mask": torch.ones_like(names), "tasks_input_ids": task,
            "tasks_attention_mask": torch.ones_like(task),
            "classes_structure": torch.tensor([3, 3])}


def _film_and_question(config: Any, dtype: torch.dtype) -> Named:
    """A film of which each frame becomes as many tokens as there are queries."""
    frames, places = 4, config.num_query_tokens
    token = field(config, "video_token_index", "video_token_id", "image_token_index")
    row = torch.cat([plain_ids(config, 1, 3), torch.full((1, frames * places), token),
                     plain_ids(config, 1, 3)], 1)
    film = normal(1, frames, 3, *sizes(config)[0], dtype=dtype)
    asked = plain_ids(config, 1, 5)
    return {"pixel_values": film, "input_ids": row, "attention_mask": torch.ones_like(row),
            "qformer_input_ids": asked, "qformer_attention_mask": torch.ones_like(asked),
            "decoder_input_ids": plain_ids(config, 1, 5)}


def _prompts(config: Any, dtype: torch.dtype) -> Named:
    """An image and one object in it, told by two points."""
    size = sizes(config)[0]
    points = torch.tensor([[[[9.0, 14.0], [21.0, 30.0]]]], dtype=dtype)
    return {"pixel_values": pixels(config, size, dtype, batch=1), "input_points": points,
            "input_labels": ones(1, 1, 2)}


def _delayed(config: Any, dtype: torch.dtype) -> Named:
    """Text, and what is to be said in several channels."""
    return {"input_ids": plain_ids(config, 2, 6),
            "decoder_input_ids": ids(30, 2, 5, config.decoder_config.num_channels)}


def _spoken(config: Any, dtype: torch.dtype) -> Named:
    """Words, a voice, the place where speech begins, and speech."""
    wide = config.latent_dim
    marks = ((config.audio_prompt_token_id, 2), (config.audio_bos_token_id, 1),
             (config.audio_latent_token_id, 3))
    row = [plain_ids(config, 1, 4) + 5]
    row += [torch.full((1, count), token) for token, count in marks]
    return {"input_ids": torch.cat(row, 1),
            "audio_prompt_latents": normal(1, 2, wide, dtype=dtype),
            "audio_latents": normal(1, 3, wide, dtype=dtype)}


def _beside_protein(config: Any, dtype: torch.dtype) -> Named:
    words, residues = plain_ids(config, 2, 6), plain_ids(config, 2, 7)
    return {"input_ids": words, "attention_mask": torch.ones_like(words),
            "protein_input_ids": residues, "protein_attention_mask": torch.ones_like(residues)}


def _phrases(config: Any, dtype: torch.dtype) -> Named:
    """An image and two phrases: tokens attend to those between the same full stops alone."""
    row = torch.tensor([[101, 7, 12, 9, 1012, 21, 30, 1012, 102]]).expand(2, -1).contiguous()
    return {"pixel_values": pixels(config, sizes(config)[0], dtype), "input_ids": row,
            "attention_mask": torch.ones_like(row), "token_type_ids": torch.zeros_like(row)}


def _long_text(config: Any, dtype: torch.dtype) -> Named:
    """More tokens than one window of compressed keys has, so that there is a choice of windows."""
    return {"input_ids": plain_ids(config, 2, 17)}


_BY_NAMES: tuple[tuple[tuple[str, ...], Recipe], ...] = (
    (("past_values", "past_time_features"), _series),
    (("past_values", "past_values_padding"), _padded_series),
    (("states", "returns_to_go"), _steps),
    (("query_embeds", "encoder_hidden_states"), _queries),
    (("audio_mel", "audio_mel_mask"), _spectrum_and_mask),
    (("pixel_values", "task_inputs"), _tasks),
    (("pixel_values", "input_points", "input_labels"), _prompts),
    (("audio_prompt_latents", "audio_latents"), _spoken),
    (("input_ids", "protein_input_ids"), _beside_protein),
)
_BY_TYPE: dict[str, Recipe] = {
    **MEDIA,
    "patchtsmixer": _patched_series, "patchtst": _patched_series,
    "kosmos-2": _in_the_text, "kosmos-2.5": _in_the_text, "idefics": _beside_text,
    "mllama": _crossed, "seggpt": _painted, "pi0": _robot, "muse_glimmer_assistant": _draft,
    "grounding-dino": _phrases, "mm-grounding-dino": _phrases, "dia": _delayed,
    "glm5_next_text": _long_text, "deepseek_v4": _long_text,
    "omdet-turbo": _classes, "instructblipvideo": _film_and_question,
    "pix2struct": _flat_patches, "musicgen_melody_decoder": _conditioned,
}
