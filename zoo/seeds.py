"""Random numbers that depend on names alone: not on order, chunk, worker or time."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch


def seed_of(*parts: str | int) -> int:
    """A 62-bit seed made of names: ``seed_of(recipe key, image id, view)``."""
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def torch_rng(*parts: str | int) -> torch.Generator:
    """A generator of torch for these names."""
    return torch.Generator().manual_seed(seed_of(*parts))


def numpy_rng(*parts: str | int) -> np.random.Generator:
    """A generator of numpy for these names."""
    return np.random.default_rng(seed_of(*parts))
