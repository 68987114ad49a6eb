"""Methods of merging, behind one registry and one contract: see ``Method``."""

from __future__ import annotations

import difflib

from metanet.checkpoint.names import printable
from metanet.errors import MetanetError
from metanet.tasks.merge.methods.base import Method, Parameter, Stack, Values
from metanet.tasks.merge.methods.dare import DARE_LINEAR, DARE_TIES
from metanet.tasks.merge.methods.karcher import KARCHER
from metanet.tasks.merge.methods.linear import LINEAR
from metanet.tasks.merge.methods.multislerp import MULTISLERP
from metanet.tasks.merge.methods.passthrough import PASSTHROUGH
from metanet.tasks.merge.methods.slerp import SLERP
from metanet.tasks.merge.methods.task_arithmetic import TASK_ARITHMETIC
from metanet.tasks.merge.methods.ties import TIES

METHODS: dict[str, Method] = {m.name: m for m in (
    LINEAR, SLERP, MULTISLERP, KARCHER, TASK_ARITHMETIC, TIES, DARE_LINEAR, DARE_TIES,
    PASSTHROUGH)}

__all__ = ["METHODS", "Method", "Parameter", "Stack", "Values", "method"]


def method(name: str) -> Method:
    """The method of that name. Raises MetanetError with the names that there are."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise MetanetError(f"there is no method {printable(name, 60)!r}.{hint} "
                           f"Methods: {', '.join(METHODS)}")
    return METHODS[name]
