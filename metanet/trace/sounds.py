"""Sounds as the many processors of transformers make them: waves or spectra, with their masks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch

from metanet.trace.fields import Named, audio, field, normal, number, ones

_WIDTHS = (
    "num_mel_bins", "n_mels", "feature_size", "input_feat_per_channel", "input_dim",
    "feature_projection_input_dim", "mel_bins", "input_feat_size", "feat_in", "in_channels",
    "input_size", "feature_dim", "num_mels", "audio_in_size",
)
_MASKS = ("input_features_mask", "feature_attention_mask", "padding_mask", "audio_mel_mask")


def spectra(config: Any, name: str, dtype: torch.dtype, batch: int = 2) -> Iterator[Named]:
    """Spectra of a batch of sounds, frequencies first and frames first, by what the config says."""
    own = audio(config)
    known = [getattr(c, n, None) for c in (own, config) for n in _WIDTHS]
    sources = field(own, "max_source_positions")
    lengths = [2 * sources] if isinstance(sources, int) else []
    for wide in dict.fromkeys([n for n in known if isinstance(n, int) and n > 3] + [80, 128, 160]):
        for frames in (*lengths, 100, 64):
            yield {name: normal(batch, wide, frames, dtype=dtype)}
            yield {name: normal(batch, frames, wide, dtype=dtype)}


def waves(config: Any, name: str, dtype: torch.dtype, batch: int = 2) -> Iterator[Named]:
    """Sounds as samples, then what some models call by the same name and is a spectrum."""
    for shape in ((batch, 4000), (batch, 1, 4000), (batch, 2, 4000)):
        yield {name: normal(*shape, dtype=dtype)}
    own = audio(config)
    wide = number(own, "num_mel_bins", "input_size")
    if wide is not None:
        yield {name: normal(batch, number(own, "max_length") or 64, wide, dtype=dtype)}


def sounds(config: Any, name: str, dtype: torch.dtype, batch: int = 2) -> Iterator[Named]:
    """What an argument of this name may hold."""
    yield from (waves if name.startswith("input_values") else spectra)(config, name, dtype, batch)


def sound_packs(config: Any, order: Collection[str], dtype: torch.dtype) -> Iterator[Named]:
    """Arguments for one sound, with its mask where the signature has one."""
    masks = [n for n in _MASKS if n in order]
    for name in ("input_features", "input_values"):
        for sound in sounds(config, name, dtype, batch=1) if name in order else ():
            one = sound[name]
            for frames in dict.fromkeys((one.shape[-1], one.shape[1])) if masks else ():
                yield {name: one, **dict.fromkeys(masks, ones(1, frames))}
                yield {name: one, **dict.fromkeys(masks, ones(1, frames).bool())}
            if not masks:
                yield {name: one}
