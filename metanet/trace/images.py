"""Images and films as the many processors of transformers make them, from the config.

A pack is all that belongs to one image (or film): pixels in rows of patches with their grid, in
tiles with their sizes, or plain; which one a model takes is told by the names of its arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from metanet.trace.fields import (
    Named,
    channels,
    field,
    normal,
    number,
    ones,
    patch,
    pixels,
    plain_ids,
    sizes_to_try,
    vision,
)

_GRID = (4, 6)  # rows and columns of patches; both even, for patches are merged by twos
_MERGES = ("image_merge_sizes", "merge_sizes")


def image_packs(config: Any, order: Collection[str], dtype: torch.dtype) -> Iterator[Named]:
    """Arguments for one image, the most special ones first."""
    extra = _beside(config, order)
    for pack in _image_packs(config, order, dtype):
        yield {**pack, **extra}


def _beside(config: Any, order: Collection[str]) -> Named:
    """What goes with an image whatever its form: the question a Q-Former is asked."""
    asked = plain_ids(config, 1, 5)
    named = {"qformer_input_ids": asked, "qformer_attention_mask": torch.ones_like(asked)}
    return {k: v for k, v in named.items() if k in order}


def _image_packs(config: Any, order: Collection[str], dtype: torch.dtype) -> Iterator[Named]:
    pixel_name = next((n for n in ("pixel_values", "hidden_states", "image_pixel_values",
                                   "pixel_values_images") if n in order), None)
    if pixel_name is None:
        return
    for grid in ("image_grid_thw", "grid_thw", "image_grid_hw"):
        if grid in order:
            yield from _in_rows(config, order, dtype, pixel_name, grid)
    yield from _placed_patches(config, order, dtype, pixel_name)
    for size in sizes_to_try(config)[:4]:
        yield from _tiled(config, order, dtype, pixel_name, size)
        yield from _plain(config, order, dtype, pixel_name, size)


def _in_rows(config: Any, order: Collection[str], dtype: torch.dtype, name: str, grid: str,
             frames: int = 1) -> Iterator[Named]:
    """Patches of all images below each other, with how many there are in each direction."""
    side, rows = patch(config), frames * _GRID[0] * _GRID[1]
    sizes_of = torch.tensor([[frames, *_GRID] if grid.endswith("thw") else list(_GRID)])
    named: Named = {grid: sizes_of}
    for merge in _MERGES:
        if merge in order:
            named[merge] = torch.tensor([2])
    time = number(vision(config), "temporal_patch_size") or 1
    for steps in dict.fromkeys((time, 1, 2)):
        wide = channels(config) * steps * side * side
        yield {name: normal(rows, wide, dtype=dtype), **named}
        yield {name: normal(1, rows, wide, dtype=dtype), **named}
    patches = normal(1, rows, channels(config), side, side, dtype=dtype)
    yield {name: patches, **named}
    yield {name: patches[0], **named}
    stream = number(vision(config), "hidden_size", "embed_dim")
    if name == "hidden_states" and stream:
        yield {name: normal(rows, stream, dtype=dtype), **named}


def _placed_patches(config: Any, order: Collection[str], dtype: torch.dtype, name: str
                    ) -> Iterator[Named]:
    """A row of patches per image, with its shape or the position of each patch."""
    side, (high, broad) = patch(config), _GRID
    rows = normal(1, high * broad, channels(config) * side * side, dtype=dtype)
    if "spatial_shapes" in order:
        shapes = {"spatial_shapes": torch.tensor([_GRID])}
        mask = ones(1, high * broad)
        yield {name: rows, "pixel_attention_mask": mask, **shapes}
    for position in ("image_position_ids", "pixel_position_ids"):
        if position in order:
            for shape in (_GRID, (6, 6)):
                count = shape[0] * shape[1]
                flat = normal(1, count, channels(config) * side * side, dtype=dtype)
                yield {name: flat, position: _positions(*shape)}


def _positions(high: int, broad: int) -> Tensor:
    """Column and row of each patch, ``(1, high * broad, 2)``."""
    row, column = torch.meshgrid(torch.arange(high), torch.arange(broad), indexing="ij")
    return torch.stack([column.flatten(), row.flatten()], -1)[None]


def _tiled(config: Any, order: Collection[str], dtype: torch.dtype, name: str,
           size: tuple[int, int]) -> Iterator[Named]:
    """An image cut in tiles, beside it as a whole."""
    one = pixels(config, size, dtype, batch=1)
    if "image_sizes" in order:
        told = {"image_sizes": torch.tensor([size])}
        for count in (5, 3, 2):
            yield {name: normal(1, count, *one.shape[1:], dtype=dtype), **told}
        yield {name: one, **told}
    if "aspect_ratio_ids" in order:
        most = number(vision(config), "max_num_tiles") or 4
        tiles = {name: normal(1, 1, most, *one.shape[1:], dtype=dtype),
                 "aspect_ratio_ids": ones(1, 1), "aspect_ratio_mask": ones(1, 1, most)}
        yield tiles
    if "target_sizes" in order:
        side, (high, broad) = patch(config), _GRID
        strip = normal(1, channels(config), side, high * broad * side, dtype=dtype)
        yield {name: strip, "target_sizes": torch.tensor([_GRID])}
    if "pixel_attention_mask" in order:
        yield {name: one[:, None], "pixel_attention_mask": ones(1, 1, *size)}
        yield {name: one[:, None], "pixel_attention_mask": ones(1, 1).bool()}


def _plain(config: Any, order: Collection[str], dtype: torch.dtype, name: str,
           size: tuple[int, int]) -> Iterator[Named]:
    one = pixels(config, size, dtype, batch=1)
    if "high_res_pixel_values" in order:
        for finer in sizes_to_try(config)[:3]:
            yield {name: one, "high_res_pixel_values": pixels(config, finer, dtype, batch=1)}
    yield {name: one}
    yield {name: one[:, None]}
    frames = number(vision(config), "num_frames") or number(config, "num_frames")
    if frames:
        yield {name: normal(1, frames, *one.shape[1:], dtype=dtype)}


def film_packs(config: Any, order: Collection[str], dtype: torch.dtype) -> Iterator[Named]:
    """Arguments for one film."""
    name = "pixel_values_videos"
    if name not in order:
        return
    if "video_grid_thw" in order:
        merge = "video_merge_sizes"
        merges = {merge: torch.tensor([2])} if merge in order else {}
        for pack in _in_rows(config, order, dtype, name, "video_grid_thw", frames=2):
            yield {k: v for k, v in pack.items() if k not in _MERGES} | merges
    if "video_position_ids" in order:
        side, at = patch(config), _positions(6, 6)
        rows = normal(1, 2, 36, channels(config) * side * side, dtype=dtype)
        yield {name: rows, "video_position_ids": at.expand(2, -1, -1)[None].contiguous()}
    frames = field(vision(config), "num_frames", "frames_per_clip")
    for size in sizes_to_try(config)[:4]:
        for count in dict.fromkeys([frames, 2]):
            if isinstance(count, int) and count <= 64:
                yield {name: normal(1, count, channels(config), *size, dtype=dtype)}
