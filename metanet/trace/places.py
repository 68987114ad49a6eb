"""Text with places for images, films and sounds, all of them at once where the model takes all.

How many places an image takes is found by running the model's own encoder of images.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metanet.trace.copies import with_values
from metanet.trace.fields import Named, nested, ones, plain_ids, width
from metanet.trace.images import film_packs, image_packs
from metanet.trace.sounds import sound_packs

_LARGEST = 60_000_000
_HEAD = 3  # tokens before the first place
_TAIL = 4
_PACKS = 3
"""How many forms of an image are tried in the text."""
_KINDS: tuple[tuple[str, int, Callable[..., Iterator[Named]], tuple[str, ...]], ...] = (
    ("image", 1, image_packs, ("image_token_id", "image_token_index", "media_placeholder_token_id",
                               "image_patch_id", "im_patch_id", "img_context_token_id")),
    ("video", 2, film_packs, ("video_token_id", "video_token_index")),
    ("audio", 3, sound_packs, ("audio_token_id", "audio_token_index", "speech_token_id",
                               "audio_placeholder_token_id")),
)
_METHODS = ("get_{}_features", "get_{}_feature")


@dataclass(frozen=True)
class Part:
    """One image, film or sound: its arguments, and the tokens that hold its places."""

    kind: int
    token: int
    places: int
    given: Named


def placed(module: nn.Module, config: Any, order: Collection[str], dtype: torch.dtype
           ) -> Iterator[Named]:
    """Text in which tokens hold the places of what is seen and heard, most kinds first."""
    small = sum(p.numel() for p in module.parameters()) <= _LARGEST
    if not small or "input_ids" not in order:
        return
    found = [list(_parts(module, config, order, dtype, *kind)) for kind in _KINDS]
    have = [parts for parts in found if parts]
    for count in range(len(have), 0, -1):
        for chosen in combinations(have, count):
            for i in range(max(map(len, chosen))):
                parts = [options[min(i, len(options) - 1)] for options in chosen]
                yield from _texts(config, order, parts)


def _parts(module: nn.Module, config: Any, order: Collection[str], dtype: torch.dtype, label: str,
           kind: int, packs: Callable[..., Iterator[Named]], tokens: tuple[str, ...]
           ) -> Iterator[Part]:
    owner, method = _encoder(module, label)
    token = next((t for c in nested(config) for name in tokens
                  if isinstance(t := getattr(c, name, None), int)), None)
    if owner is None or token is None:
        return
    real = with_values(owner)
    encode = getattr(real, method)
    own, given_to = _own_config(owner, config), set(inspect.signature(encode).parameters)
    used = 0
    for given in packs(own, order, dtype):
        accepted = {k: v for k, v in given.items() if k in given_to or "kwargs" in given_to}
        places = _count(encode, accepted, own)
        if places is not None:
            yield Part(kind, token, places, given)
            used += 1
        if used == _PACKS:
            return


def _encoder(module: nn.Module, label: str) -> tuple[nn.Module | None, str]:
    """The outermost part that encodes this kind, and how it is called."""
    for part in module.modules():
        for form in _METHODS:
            if callable(getattr(part, form.format(label), None)):
                return part, form.format(label)
    return None, ""


def _own_config(owner: nn.Module, config: Any) -> Any:
    own = getattr(owner, "config", None)
    return config if own is None else own


def _texts(config: Any, order: Collection[str], parts: list[Part]) -> Iterator[Named]:
    """One row of tokens, the places of each part in one piece with words between."""
    pieces, types = [plain_ids(config, 1, _HEAD)], [torch.zeros(1, _HEAD, dtype=torch.long)]
    given: Named = {}
    for part in parts:
        words = plain_ids(config, 1, _TAIL)
        pieces += [torch.full((1, part.places), part.token), words]
        types += [torch.full((1, part.places), part.kind), torch.zeros_like(words)]
        given |= part.given
    row, kinds = torch.cat(pieces, 1), torch.cat(types, 1)
    named = {"attention_mask": torch.ones_like(row), "mm_token_type_ids": kinds,
             "token_type_ids": (kinds == 1).long(), "moe_mm_token_type_ids": kinds}
    beside = {"decoder_input_ids": plain_ids(config, 1, 5), "cross_attention_mask": None}
    extra = {k: v for k, v in named.items() if k in order}
    kept = {k: v for k, v in beside.items() if k in order and v is not None}
    if "cross_attention_mask" in order and "aspect_ratio_mask" in given:
        tiles = given["aspect_ratio_mask"].shape[-1]
        kept["cross_attention_mask"] = ones(1, row.shape[1], 1, tiles)
    yield {"input_ids": row, **kept, **extra, **given}
    yield {"input_ids": row, **kept, **given}
    heard = [part for part in parts if part.kind == 3 and "input_features_mask" in part.given]
    for part in heard:  # a mask of what the encoder gives, not of what it gets
        given["input_features_mask"] = torch.ones(1, part.places, dtype=torch.bool)
        yield {"input_ids": row, **kept, **extra, **given}


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
    wide = width(config)
    if not tensors or wide is None:
        return None
    numbers = sum(t.numel() for t in tensors if t.shape[-1] == wide)
    return numbers // wide or None
