"""Families that the coverage sweep leaves out, each with the reason why.

Reviewed by hand: an entry belongs here only if there is no network of its own to measure, never
because measuring it fails.
"""

from __future__ import annotations

_PARTS = (
    "no auto class of transformers builds it: it configures a part of another model, which has a "
    "row of its own"
)
_IN_TURN = "its class has no forward pass: generation runs its parts in turn"
_NAMED: dict[str, str] = {
    "transformers/encoder-decoder": "any encoder with any decoder: no default config",
    "transformers/speech-encoder-decoder": "any encoder with any decoder: no default config",
    "transformers/vision-encoder-decoder": "any encoder with any decoder: no default config",
    "transformers/vision-text-dual-encoder": "any two encoders: no default config",
    "transformers/rag": "any two models and an index: no default config",
    "transformers/bark": _IN_TURN,
    "transformers/qwen2_5_omni": f"{_IN_TURN}; the thinker has a row of its own",
    "transformers/qwen3_omni_moe": f"{_IN_TURN}; the thinker has a row of its own",
    "transformers/glm_image_vqmodel": "its class has no forward pass: a part of glm_image",
    "transformers/timm_backbone": "a timm model, measured there",
    "transformers/timm_wrapper": "a timm model, measured there",
}


def excluded(name: str) -> str | None:
    """Why a row is left out, or None."""
    if name in _NAMED:
        return _NAMED[name]
    library, _, kind = name.partition("/")
    if library == "transformers":
        from metanet.trace.archs.tiny import class_names

        return None if class_names(kind) else _PARTS
    return None
