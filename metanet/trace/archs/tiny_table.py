"""What a tiny config needs that the names of fields do not tell: a table by model type.

An entry is laid over the shrunk config, dictionaries into dictionaries. It says what a family's
default leaves out (experts, vocabularies, words for images) or relations between widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LETTERS = "ABCDEFGHIJ"
_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
_MIXED = ["sliding_attention", "full_attention"]

_ROPE_BY_TYPE = {
    "layer_types": ["full_attention"] * 2,
    "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0,
                                           "mrope_section": [2, 1, 1]}}}


def _letters(number: int) -> str:
    return "".join(_LETTERS[int(digit)] for digit in str(number))


TABLE: dict[str, dict[str, Any]] = {
    "chameleon": {
        "vocabulary_map": {"<image>": 98, **{f"IMGIMG{_letters(i)}Z": 40 + i for i in range(32)}},
        "vq_config": {"base_channels": 32, "resolution": 32, "channel_multiplier": [1, 2],
                      "num_res_blocks": 1, "embed_dim": 16, "latent_channels": 16}},
    "emu3": {
        "vocabulary_map": {"<image>": 98, "<|extra_200|>": 97,
                           **{f"<|visual token {i:06d}|>": 40 + i for i in range(32)}},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1,
                      "attn_resolutions": [1]}},
    "dots1": {**_EXPERTS, "first_k_dense_replace": 1},
    "deepseek_v2": _EXPERTS,
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2,
                                        "moe_intermediate_size": 16}},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "neomme": {"layer_types": _MIXED, "head_dim": 16},
    "cvt": {"depth": [1, 2, 3]},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, 0]}},
    "qwen3_omni_moe": {"talker_config": {
        "spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 16}}},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "voxtral": {"audio_config": {"intermediate_size": 128}},
    "cohere_compass": {"text_config": _ROPE_BY_TYPE},
    "cohere_compass_text": _ROPE_BY_TYPE,
    "dots3_note": {"text_config": {"head_dim": 16},
                   "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
                   "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32}},
}


def laid_over(shrunk: dict[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """``shrunk`` with the fields of an entry, those of parts in the parts."""
    found = dict(shrunk)
    for name, value in entry.items():
        below = found.get(name)
        if isinstance(value, Mapping) and isinstance(below, dict):
            found[name] = laid_over(below, value)
        else:
            found[name] = value
    return found
