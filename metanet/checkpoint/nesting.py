"""How deep brackets go, found before a parser that takes long over it is called."""

from __future__ import annotations

import re

_BRACKET = re.compile(r"[\[{\]}]")
MAX_NESTING = 100


def nested_too_deep(text: str, limit: int = MAX_NESTING) -> bool:
    """Whether brackets are nested more than ``limit`` deep; those inside quotes count too.

    PyYAML takes time quadratic in the depth: 40 kB of brackets keep it busy for minutes.
    """
    depth = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in "[{" else -1
        if depth > limit:
            return True
    return False
