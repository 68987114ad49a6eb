"""The only door for bytes: files, folders, Hub addresses and mappings become a Checkpoint.

Importing this room imports no torch; reading a header imports none either.
"""

from __future__ import annotations

from metanet.checkpoint.checkpoint import Checkpoint, Source
from metanet.checkpoint.convert import convert
from metanet.checkpoint.doctor import doctor
from metanet.checkpoint.door import open
from metanet.checkpoint.names import natural_key, natural_sorted, printable
from metanet.checkpoint.write import write_safetensors

__all__ = [
    "Checkpoint",
    "Source",
    "convert",
    "doctor",
    "natural_key",
    "natural_sorted",
    "open",
    "printable",
    "write_safetensors",
]
