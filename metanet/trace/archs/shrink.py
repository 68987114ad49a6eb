"""Small configs from transformers' defaults, by the names of their fields and nothing else.

Fields that hold a width, a count of layers or heads, a vocabulary … get a small value; derived
fields are left to the config's own constructor. ``LEVELS`` lists how much is tried to be shrunk,
smallest first, for some families insist on relations that names do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

LEVELS = ("tiny", "scaled", "shallow")
_VOCAB = 99
_SCALE = 8

_EXACT: tuple[tuple[str, int], ...] = (
    (r"(?<!no_)vocab_?size\w*|\w+_vocab_size|vocab_size\w*|n_words|text_vocab_size", _VOCAB),
    (r"num_(key_value|kv)_heads|num_\w*key_value_heads|num_query_groups|n_head_kv", 2),
    (r"\w*(num_\w*heads|n_heads?|num_heads|attention_heads|_heads)", 4),
    (r"(\w+_)?(head_dim|d_kv|kv_channels|head_size|attention_head_size)|key_length", 8),
    (r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim|rotary_dim", 8),
    (r"\w*(intermediate|ffn|mlp_dim|d_ff|d_inner|inner_dim|feed_forward|n_inner)\w*", 48),
    (r"\w*(lora_rank|_rank)\w*", 12),
    (r"\w*(hidden_size|hidden_dim|d_model|n_embd|embed_dim|embedding_size|model_dim|"
     r"projection_dim|embd_dim|hidden_width|proj_dim|out_hidden_size|d_embed|adim|condition_dim)"
     r"|dim", 32),
    (r"\w*(num_experts|n_routed_experts|num_local_experts|moe_num_experts|n_experts)", 4),
    (r"n_shared_experts|num_shared_experts", 1),
    (r"\w*(num_experts_per_tok\w*|top_k_experts|moe_k|moe_topk|experts_top_k)", 2),
    (r"n_group|topk_group", 1),
    (r"index_topk", 3),  # fewer than there are tokens, for a choice of all is none
    (r"num_kv_shared_layers", 0),
    (r"(mamba_|ssm_)?(d_state|state_size|n_state)", 4),
    (r"mamba_d_head|mamba_head_dim", 16),
    (r"(mamba_|ssm_)?n_groups", 1),
    (r"max_position_embeddings|n_positions|max_seq_len\w*|seq_length|n_ctx|block_size|"
     r"max_source_positions|max_target_positions|\w*max_position\w*|max_sequence_length",
     64),
    (r"time_step_rank", 2),
    (r"num_mel_bins|n_mels", 16),
    (r"codebook_size|num_codebook_vectors|num_embeddings", 32),
    (r"num_queries|num_query_tokens|num_latents", 7),
    (r"\w*image_size|img_size", 32),
    (r"\w*patch_size", 8),
    (r"num_frames", 4),
    (r"mm_tokens_per_image", 4),
)
_LAYERS = re.compile(
    r"num_\w*layers|\w*(n_layers?|num_layers|_layers|depth|num_blocks|n_block|num_stages_x)$")
_WIDTH = re.compile(
    r"\w*(size|dim|dims|width|channels|d_model|n_embd|embed|hidden|ffn|inner|d_ff|intermediate"
    r"|filters)\w*")
_NOT_WIDTH = re.compile(
    r"\w*(patch|kernel|window|image|img|num_channels|in_channels|stride|batch|chunk|vocab|"
    r"input_size|head_dim|pool|group|act|dropout|type_vocab|context|block|conv_dim$|in_chans)\w*")
_KEPT = re.compile(r"num_feat_extract_layers|num_hidden_layers_per\w*")
_NESTED: dict[str, Any] = {
    "attention_types": [[["global", "local"], 1]], "prediction_length": 4,
    "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]],
    "projector_patch_to_query_dict": {16: 5},
}
"""Fields whose form, or whose lack of a default, names do not tell."""
_PLACES = ("image_token_id", "video_token_id", "audio_token_id", "image_token_index",
           "video_token_index")
_AT_LAYERS = re.compile(
    r"deepstack_visual_indexes|fullatt_block_indexes|global_attn_indexes|window_block_indices"
    r"|full_attn_idxs|local_layer_ids|attn_layer_indices")
"""Fields that list numbers of layers."""
_LAYER_FIELDS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_DERIVED = {"transformers_version", "out_features", "out_indices", "stage_names", "torch_dtype",
            "dtype"}
_TOKEN = re.compile(r"\w*(token_id|token_index|token_idx|_id)$")
_COUNTS = re.compile(
    r"depths?|\w*layers|num_blocks\w*|\w*_depths?|layer_depths|repeats|num_conv\w*")


def shrunk(config: Any, level: str) -> dict[str, Any]:
    """Constructor arguments that make ``type(config)`` small; parts with configs included."""
    change = {"tiny": _tiny, "scaled": _scaled, "shallow": _shallow}[level]
    found: dict[str, Any] = {k: v for k, v in _NESTED.items() if k in vars(config)}
    layers, kept = _layer_count(config), _kept_layers(config)
    tokens = iter(range(_VOCAB - 1, 40, -1))
    if said := _said_of_layers(config):
        found["per_layer_config"] = _per_layer(said, kept, change)
    for name, value in vars(config).items():
        if name.startswith("_") or name in ("model_type", "transformers_version", *_NESTED):
            continue
        if isinstance(value, list) and len(value) == layers and layers > 2:
            found[name] = [_one(change, name, value[at]) for at in kept]
            continue
        if name in _LAYER_FIELDS and value == layers and len(kept) > 2:
            found[name] = len(kept)
            continue
        if name == "head_dim" and value is None and level == "tiny":
            found[name] = 8
            continue
        if name == "mlp_layer_types" and value is None:
            found[name] = ["dense", "sparse"]
            continue
        if name == "layer_types" and value is None:
            found[name] = ["full_attention"] * 2
            continue
        if isinstance(value, dict) and "rope_type" in value and level == "tiny":
            found[name] = {**value, "mrope_section": [2, 1, 1]}  # read by those that turn in 3 axes
            continue
        if hasattr(value, "model_type"):
            told = {k: v for k, v in value.to_diff_dict().items() if k not in _DERIVED}
            found[name] = {**told, **shrunk(value, level), "model_type": value.model_type}
            continue
        if name in _PLACES and value is None and level == "tiny":
            found[name] = next(tokens)
            continue
        if name in _LAYER_FIELDS and value == len(getattr(config, "depths", None) or ()):
            continue  # these are stages
        if _AT_LAYERS.fullmatch(name) and _integers(value) and level != "shallow":
            found[name] = sorted({min(v, len(kept) - 1) for v in value})
            continue
        new = _token(name, value, tokens) if _TOKEN.fullmatch(name) else change(name, value)
        if new is not None and new != value:
            found[name] = new
    return _outputs(config, _agree(config, found))


def _layer_count(config: Any) -> int | None:
    """How many layers lists of one entry per layer have; stages are not layers."""
    if hasattr(config, "depths"):
        return None
    return next((n for f in _LAYER_FIELDS if _integer(n := getattr(config, f, None))), None)


def _kept_layers(config: Any) -> list[int]:
    """Which layers stay: the first of each type, two at least."""
    types, layers = getattr(config, "layer_types", None), _layer_count(config)
    if not isinstance(types, list) or len(types) != layers:
        return [0, 1]
    first = sorted({kind: at for at, kind in reversed(list(enumerate(types)))}.values())
    return first if len(first) > 1 else [0, 1]


def _outputs(config: Any, found: dict[str, Any]) -> dict[str, Any]:
    """A backbone without stages has as many layers as it gives outputs, and gives the last."""
    wanted = getattr(config, "out_indices", None)
    field = next((f for f in _LAYER_FIELDS if f in found), None)
    if not isinstance(wanted, (list, tuple)):
        return found
    if field is None or hasattr(config, "depths"):
        return {**found, "out_indices": list(wanted), "out_features": None}
    found[field] = max(found[field], len(wanted))
    last = range(found[field] - len(wanted) + 1, found[field] + 1)
    return {**found, "out_indices": list(last), "out_features": None}


def _one(change: Callable[[str, Any], Any], name: str, value: Any) -> Any:
    new = change(name, value) if _integer(value) else None
    return value if new is None else new


def _agree(config: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Key-value heads default to the heads: keep them equal where they were."""
    values = vars(config)
    for kv, heads in (("num_key_value_heads", "num_attention_heads"),):
        if kv in found and values.get(kv) == values.get(heads) and heads in found:
            found[kv] = found[heads]
    if values.get("num_key_value_heads") == 1:
        found.pop("num_key_value_heads", None)
    for many, few in (("num_experts", "num_experts_per_tok"),):
        if isinstance(values.get(few), int) and isinstance(values.get(many), int):
            found.setdefault(few, min(values[few], 2))
    return found


def _token(name: str, value: Any, tokens: Any) -> Any:
    """Token numbers below the small vocabulary, different ones for different names."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 40:
        return next(tokens)
    if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
        return [v if v < 40 else next(tokens) for v in value]
    return None


def _said_of_layers(config: Any) -> Mapping[Any, Any]:
    """What a config with unlike layers says of some of them, by their numbers."""
    if not hasattr(config, "per_layer_config"):
        return {}
    said = config.to_dict().get("per_layer_config")
    return said if isinstance(said, Mapping) else {}


def _per_layer(value: Mapping[Any, Any], kept: list[int], change: Callable[[str, Any], Any]
               ) -> dict[int, Any]:
    """What is said of the layers that stay, made small, under their new numbers."""
    told = {int(k): v for k, v in value.items() if str(k).isdigit()}
    found = {at: {name: _one(change, name, field) for name, field in told[old].items()}
             for at, old in enumerate(kept) if old in told}
    for at, entry in found.items():
        heads, groups = "num_attention_heads", "num_key_value_heads"
        if heads in entry and told[kept[at]].get(heads) == told[kept[at]].get(groups):
            entry[groups] = entry[heads]
    return found


def _integers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(_integer(v) for v in value)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tiny(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return _listed(name, value)
    if not _integer(value) or value <= 0:
        return None
    for pattern, small in _EXACT:
        if re.fullmatch(pattern, name):
            return min(value, small)
    return _layers(name, value)


def _scaled(name: str, value: Any) -> Any:
    """Every width divided by one number, so that ratios stay; counts of heads stay."""
    if isinstance(value, (list, tuple)):
        return _listed(name, value)
    if not _integer(value) or value <= 0:
        return None
    if "vocab" in name:
        return min(value, _VOCAB)
    layers = _layers(name, value)
    if layers is not None:
        return layers
    if _WIDTH.fullmatch(name) and not _NOT_WIDTH.fullmatch(name) and value >= 64:
        return value // _SCALE if value % _SCALE == 0 else None
    return None


def _shallow(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        counts = _COUNTS.fullmatch(name) and all(_integer(v) for v in value)
        return [min(v, 1) for v in value] if counts else None
    if _integer(value) and "vocab" in name:
        return min(value, _VOCAB)
    return _layers(name, value) if _integer(value) else None


def _layers(name: str, value: int) -> Any:
    counted = _LAYERS.fullmatch(name) and not _KEPT.fullmatch(name)
    return min(value, 2) if counted and "type" not in name and "index" not in name else None


def _listed(name: str, value: Any) -> Any:
    """Lists of counts become ones; lists of widths are divided."""
    if not value or not all(_integer(v) for v in value):
        return None
    if re.fullmatch(r"\w*feature_layers?", name):
        return list(range(-1, -1 - len(value), -1))
    if _COUNTS.fullmatch(name):
        return [min(v, 1) for v in value]
    if re.fullmatch(r"\w*num\w*_heads|num_heads", name):
        same = len(set(value)) == 1
        return [4] * len(value) if same else [2 << i for i in range(len(value))]
    if name == "decoder_in_channels":  # what the encoder gives
        return [_tiny("hidden_dim", v) for v in value]
    wide = name == "stage_in_channels" or (
        _WIDTH.fullmatch(name) and not _NOT_WIDTH.fullmatch(name))
    if wide and max(value) >= 32 and all((v % 4 == 0 and v >= 32) or v in (1, 3) for v in value):
        return [v // 4 if v >= 32 else v for v in value]
    return None


def walk(config: Any, visit: Callable[[Any], None]) -> None:
    """Call ``visit`` on a config and on every config inside it."""
    visit(config)
    for value in list(vars(config).values()):
        if hasattr(value, "model_type"):
            walk(value, visit)
        elif isinstance(value, Mapping):
            for part in value.values():
                if hasattr(part, "model_type"):
                    walk(part, visit)
