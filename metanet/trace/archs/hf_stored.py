"""The names and cuts of tensors in files of transformers, by its own table of conversions.

transformers 5 renames and merges tensors while it loads: experts that a file holds one by one are
one stacked tensor of the model. Its table says how, and how to undo it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metanet.trace.archs.stored import FAILURES, Binding, Part


def convert(binding: Binding) -> None:
    """Assign what the table of transformers knows; older versions have no table."""
    try:
        from transformers import core_model_loading as loading
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        return
    module: Any = binding.module
    table = get_model_conversion_mapping(module)
    renamings = [t for t in table if isinstance(t, loading.WeightRenaming)]
    converters = [t for t in table if isinstance(t, loading.WeightConverter)]
    known = dict.fromkeys(binding.shapes, True)
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    merged: dict[str, dict[str, list[str]]] = {}
    for stored in sorted(binding.left(), key=loading.dot_natural_key):
        name, pattern = loading.rename_source_key(
            stored, renamings, converters, module.base_model_prefix, known)
        if name not in known and stored in known:  # transformers' own second try
            name, pattern = loading.rename_source_key(
                stored, [], [], module.base_model_prefix, known)
        if name not in known:
            if _ignored(module, stored, name):
                binding.unread.append(stored)
        elif pattern is None:
            binding.assign(stored, name)
        else:
            merged.setdefault(name, {}).setdefault(pattern, []).append(stored)
    for first, sources in merged.items():
        converter = by_pattern[next(iter(sources))]
        plain = {_renamed(s, renamings): s for ss in sources.values() for s in ss}
        part = _part(binding, converter, first, sources, plain)
        if part is not None:
            binding.join(part)


def _renamed(name: str, renamings: Sequence[Any]) -> str:
    """All renamings in turn."""
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name


def _ignored(module: Any, stored: str, name: str) -> bool:
    """Whether transformers itself leaves a tensor of a file out without a word."""
    patterns = list(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or [])
    if any(buffer.endswith("rotary_emb.inv_freq") for buffer, _ in module.named_buffers()):
        patterns.append(r"rotary_emb\.inv_freq")
    return any(re.search(pattern, key) for pattern in patterns for key in (stored, name))


def _part(
    binding: Binding, converter: Any, first: str, sources: Mapping[str, list[str]],
    plain: Mapping[str, str],
) -> Part | None:
    """One conversion of the table, forth and back; None where it cannot be done on this file.

    Args:
        binding: of module and file.
        converter: an entry of the table.
        first: the first tensor of the model that it makes.
        sources: pattern of the entry → names of the file that match it, in order.
        plain: name after all renamings → name of the file.
    """
    module: Any = binding.module
    prefix = f"{module.base_model_prefix}."

    def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fresh = copy.deepcopy(converter)
        for pattern, stored in sources.items():
            for key in stored:
                fresh.add_tensor(first, key, pattern, tensors[key])
        return _single(fresh.convert(first, model=module, config=module.config))

    def scatter(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        back, at = converter.reverse_transform(), ""
        for name, tensor in tensors.items():
            key, pattern = back.rename_source_key(name)
            at = at or key
            back.add_tensor(at, name, pattern, tensor)
        made = _single(back.convert(at, model=module, config=module.config))
        return {_stored(key, plain, prefix): tensor for key, tensor in made.items()}

    stored = tuple(key for keys in sources.values() for key in keys)
    shapes = binding.header.shapes
    try:
        made = gather({key: torch.empty(shapes[key], device="meta") for key in stored})
    except FAILURES:
        return None
    return Part(tuple(made), stored, gather, scatter)


def _single(made: Mapping[str, Any]) -> dict[str, Tensor]:
    """The table hands single tensors on in lists."""
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _stored(key: str, plain: Mapping[str, str], prefix: str) -> str:
    """The file's name of a tensor; files of a bare model lack the prefix, or have it too much."""
    for name in (key, prefix + key, key.removeprefix(prefix)):
        if name in plain:
            return plain[name]
    raise KeyError(key)
