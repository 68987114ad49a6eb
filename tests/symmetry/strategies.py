"""Hypothesis strategies for spaces, and the profile of the algebra's properties."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from metanet.testing import random_space

SEEDS = st.integers(0, 2**32 - 1)
ALGEBRA = settings(
    max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def spaces(*kinds: str) -> st.SearchStrategy:
    """Random small spaces with groups of these kinds."""
    return st.builds(lambda seed: random_space(seed, kinds=kinds or ("S",)), SEEDS)
