"""The demo: see, scramble, meet and read networks, computed live, ending in one page."""

from __future__ import annotations

from metanet.tasks.demo.run import run

__all__ = ["run"]
