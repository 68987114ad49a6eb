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

_SAM_ENDS: dict[str, Any] = {
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 8,
                              "mask_input_channels": 12, "image_embedding_size": 8},
    "mask_decoder_config": {"hidden_size": 32, "iou_head_hidden_dim": 24, "mlp_dim": 48,
                            "vit_dim": 32}}
_SAM_VISION = {"image_size": 64, "patch_size": 8, "output_channels": 32, "num_pos_feats": 16,
               "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 48}
_SAM2_ENDS: dict[str, Any] = {
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 128, "patch_size": 16,
                              "mask_input_channels": 12},
    "mask_decoder_config": {"hidden_size": 32, "iou_head_hidden_dim": 24, "mlp_dim": 48}}
_SAM3_ENDS: dict[str, Any] = {
    **_SAM2_ENDS, "prompt_encoder_config": {
        **_SAM2_ENDS["prompt_encoder_config"], "image_size": 64, "patch_size": 8}}
_HIERA = {"image_size": [128, 128], "hidden_size": 16, "embed_dim_per_stage": [16, 32, 64, 128],
          "blocks_per_stage": [1, 1, 2, 1], "num_attention_heads_per_stage": [1, 2, 4, 8],
          "window_size_per_stage": [4, 2, 4, 2], "global_attention_blocks": [3],
          "window_positional_embedding_background_size": [4, 4]}
_SAM2_NECK: dict[str, Any] = {
    "backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 32,
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
_SAM3_VISION: dict[str, Any] = {
    "fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    "backbone_config": {"image_size": 64, "pretrain_image_size": 32, "patch_size": 8,
                        "window_size": 4, "global_attn_indexes": [1]}}
_CODEC = {"num_filters": 4, "depths": [1, 1, 1], "downsampling_ratios": [2, 4]}
_CLVP = {"hidden_size": 128, "num_attention_heads": 4, "projection_dim": 32}
_SERIES = {"prediction_length": 6, "context_length": 8, "label_length": 4,
           "lags_sequence": [1, 2, 3], "num_time_features": 2}
_QWEN4 = {"ngram_vocab_size_base": 50, "split_ngram_parts": 1, "indexer_n_heads": 2,
          "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
          "indexer_compress_ratio": 2, "ple_embed_dim": 32, "hc_lowrank": 12,
          "make_ngram_vocab_size_divisible_by": 8}
_WARP = {"resnet_head": [[3, 8], [8, 8]],
         "resnet_configs": [[[8, 8, 1, False]], [[8, 16, 1, True]], [[16, 32, 1, True]]],
         "stage_configs": [[[32, 1]], [[32, 2]], [[32, 3]], [[32, 3], [32, 2]],
                           [[32, 4], [32, 2]], [[32, 5], [32, 3]]]}
_TIMM = {"model_type": "timm_wrapper", "architecture": "test_resnet",
         "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}}
_ALONG = ((7, "long"), (5, "mid"), (3, "short"))


def _lines() -> dict[str, Any]:
    """Convolutions along the lines of a text, each with kernel, stride and padding."""
    found: dict[str, Any] = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
    for n, ratio in _ALONG:
        pad = n // 2
        found |= {f"vertical_long_to_small_conv_{ratio}ratio": [[n, 1], [1, 1], [pad, 0]],
                  f"horizontal_small_to_long_conv_{ratio}ratio": [[1, n], [1, 1], [0, pad]],
                  f"symmetric_conv_long_{ratio}ratio": [[n, n], [1, 1], [pad, pad]]}
    return found


_TEXT_FINDER = {"intraclass_block_config": _lines(), "scale_factor_list": [1, 2, 4, 8],
                "kernel_list": [3, 2, 2], "neck_out_channels": 32}
_EDGE_VISION: dict[str, Any] = {
    "fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    "backbone_channel_list": [192, 48, 32, 32], "backbone_config": _TIMM}
_PE: dict[str, Any] = {
    "architecture": "vit_pe_core_tiny_patch16_384", "model_args": {
        "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": [64, 64],
        "ref_feat_shape": [4, 4]}}
_SAM2_VISION = {**_SAM2_NECK, "backbone_config": _HIERA}


def _letters(number: int) -> str:
    return "".join(_LETTERS[int(digit)] for digit in str(number))


_TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                               "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1]}}
TABLE: dict[str, dict[str, Any]] = {
    "chameleon": {
        "image_token_id": 98,
        "vocabulary_map": {"<image>": 98, **{f"IMGIMG{_letters(i)}Z": 40 + i for i in range(32)}},
        "vq_config": {"base_channels": 32, "resolution": 32, "channel_multiplier": [1, 2],
                      "num_res_blocks": 1, "embed_dim": 16, "latent_channels": 16}},
    "emu3": {
        "image_token_id": 98,
        "vocabulary_map": {"<image>": 98, "<|extra_200|>": 97,
                           **{f"<|visual token {i:06d}|>": 40 + i for i in range(32)}},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1,
                      "attn_resolutions": [1]}},
    "dots1": {**_EXPERTS, "first_k_dense_replace": 1},
    "deepseek_v2": _EXPERTS,
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2,
                                        "moe_intermediate_size": 16}},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "neomme": {"layer_types": _MIXED, "head_dim": 16},
    "cvt": {"depth": [1, 2, 3]},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, 0]},
               "vision_config": {"image_size": [32, 32], "image_num_pos": 16}},
    "qwen3_omni_moe": {"talker_config": {
        "spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 16}}},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "voxtral": {"audio_config": {"intermediate_size": 128}},
    "sam": {**_SAM_ENDS, "vision_config": _SAM_VISION},
    "sam_hq": {**_SAM_ENDS, "vision_config": _SAM_VISION},
    "sam_vision_model": _SAM_VISION, "sam_hq_vision_model": _SAM_VISION,
    "sam2": {**_SAM2_ENDS, "vision_config": _SAM2_VISION},
    "sam2_video": {**_SAM2_ENDS, "vision_config": _SAM2_VISION},
    "sam2_vision_model": _SAM2_VISION, "sam2_hiera_det_model": _HIERA,
    "sam3_tracker": {**_SAM3_ENDS, "vision_config": _SAM3_VISION},
    "sam3_tracker_video": {**_SAM3_ENDS, "vision_config": _SAM3_VISION},
    "sam3_vision_model": _SAM3_VISION,
    "edgetam": {**_SAM_ENDS, "vision_config": _EDGE_VISION},
    "edgetam_vision_model": _EDGE_VISION,
    "longcat_flash": {"head_dim": 8, "qk_head_dim": 16},
    "perception_lm": {"vision_config": {
        "architecture": "vit_pe_core_tiny_patch16_384", "model_args": {
            **_PE["model_args"], "global_pool": "", "use_post_transformer_norm": False,
            "init_values": 0.1}}},
    "vibevoice": {"audio_config": _CODEC, "semantic_model_config": _CODEC,
                  "diffusion_head_config": {"frequency_embedding_size": 16, "latent_size": 32}},
    "vibevoice_asr": {"acoustic_tokenizer_encoder_config": _CODEC,
                      "semantic_tokenizer_encoder_config": _CODEC,
                      "acoustic_tokenizer_chunk_size": 4000},
    "vibevoice_acoustic_tokenizer": _CODEC, "vibevoice_acoustic_tokenizer_encoder": _CODEC,
    "vibevoice_acoustic_tokenizer_decoder": _CODEC,
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3, 4]},
    "seggpt": {"image_size": [64, 32], "pretrain_image_size": 32, "mlp_dim": 48,
               "intermediate_hidden_state_indices": [0, 1], "merge_index": 0},
    "mllama": {"text_config": {"cross_attention_layers": [1]}, "vision_config": {
        "intermediate_layers_indices": [0, 1], "num_global_layers": 1, "vision_output_dim": 96,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2]]}},
    "muse_glimmer_assistant": {"target_layer_ids": [0, 1], "block_size": 4},
    "qwen4_exp": {"text_config": _QWEN4}, "qwen4_exp_text": _QWEN4,
    "rf_detr": {"group_detr": 1}, "siglip2": {"text_config": {"projection_size": 32}},
    "vitmatte": {"backbone_config": {"patch_size": 16, "image_size": 64,
                                     "pretrain_image_size": 64, "num_channels": 4}},
    "xcodec2": {"quantization_dim": 64}, "neucodec": {"quantization_dim": 64},
    "gemma3n_text": {"hidden_size_per_layer_input": 16},
    "gemma3n": {
        "text_config": {"hidden_size_per_layer_input": 16},
        "vision_config": {"architecture": "test_resnet", "hidden_size": 96, "vocab_offset": 80,
                          "vocab_size": 8},
        "audio_config": {"vocab_offset": 90, "vocab_size": 9}, "image_token_id": 84,
        "audio_token_id": 93, "vision_soft_tokens_per_image": 4,
        "audio_soft_tokens_per_image": 12},
    "autoformer": _SERIES, "informer": _SERIES, "time_series_transformer": _SERIES,
    "omdet-turbo": {"text_config": {"hidden_size": 48, "projection_dim": 48},
                    "text_projection_in_dim": 48, "text_projection_out_dim": 48,
                    "class_embed_dim": 48, "vision_features_channels": [32, 32, 32]},
    "clvp": {"text_config": _CLVP, "speech_config": _CLVP},
    "clap": {"audio_config": {"spec_size": 64, "num_mel_bins": 16, "window_size": 2,
                              "patch_size": 4, "patch_stride": [4, 4]}},
    "gemma3n_vision": {"architecture": "test_resnet", "hidden_size": 96},
    "pp_ocrv5_server_det": _TEXT_FINDER, "pp_ocrv6_medium_det": _TEXT_FINDER,
    "grounding-dino": {"text_config": {"vocab_size": 1040}},  # full stops are token 1012
    "mm-grounding-dino": {"text_config": {"vocab_size": 1040}},
    "glm5_next": {"text_config": {"index_topk": 4, "index_kpool": 2}},
    "glm5_next_text": {"index_topk": 4, "index_kpool": 2},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 32},
    "glm_image": {"vq_config": {"latent_channels": 32}},
    "pp_formulanet": {"vision_config": {"image_size": 64}},
    "pvt": {"image_size": 64}, "mobilevit": {"image_size": 128},
    "qwen3_omni_moe_thinker": {"audio_config": {"output_dim": 32}},
    "minicpm_ocr_vision": {"insert_layer_id": 0},
    "levit": {"image_size": 128}, "swinv2": {"image_size": 64},
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8},
    "zoedepth": {"bottleneck_features": 32},
    "fast_vlm": {"vision_config": {"architecture": "fastvit_t8", "hidden_size": 256,
                                   "model_args": {"layers": [1, 1, 1, 1],
                                                  "embed_dims": [16, 32, 64, 128]}}},
    "minicpmv4_7_vision": {"insert_layer_id": 0},
    "minicpmv4_7": {"vision_config": {"insert_layer_id": 0}},
    "minicpm_ocr": {"vision_config": {"insert_layer_id": 0}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "glm4v_moe_text": _TURNED, "glm4v_moe": {"text_config": _TURNED},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {"d_latents": 32, "d_model": 32, "num_self_attends_per_block": 2,
                  "qk_channels": 16, "v_channels": 32, "num_self_attention_heads": 4,
                  "num_cross_attention_heads": 4},
    "muse_glimmer": {"out_hidden_size": 128},
    "granite_docling_vision": {"image_size": 64},
    "granite_docling": {"vision_config": {"image_size": 64}},
    "maskformer": {"backbone_config": {"image_size": 64}},
    "mask2former": {"backbone_config": {"image_size": 64}},
    "oneformer": {"backbone_config": {"image_size": 64}},
    "xmod": {"default_language": "en_XX"},
    "kosmos-2.5": {"latent_query_num": 8},
    "pe_video": {"video_config": {"vision_config": _PE}},
    "pe_video_encoder": {"vision_config": _PE},
    "step3p7": {"text_config": {"sliding_window": 4}},
    "videoprism": {"vision_config": {"image_size": 54}},
    "videoprism_vision_model": {"image_size": 54},
    "glmasr": {"audio_config": {"intermediate_size": 128}},
    "qwen2_5_omni_thinker": {"audio_config": {"output_dim": 32}},
    "qwen3_asr": {"audio_config": {"output_dim": 32}},
    "video_llava": {"vision_config": {"num_hidden_layers": 3}},
    "uvdoc": {"backbone_config": {**_WARP, "out_indices": [1, 2, 3, 4, 5, 6]},
              "bridge_connector": [32, 32], "out_point_positions2D": [[32, 16], [16, 2]]},
    "uvdoc_backbone": _WARP,
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
