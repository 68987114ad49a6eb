"""Methods of merging, behind one registry and one contract: see ``Method``."""

from __future__ import annotations

from metanet.checkpoint.names import no_such, printable
from metanet.errors import MetanetError
from metanet.tasks.merge.methods.base import Method, Parameter, Stack, Values, combine
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

__all__ = ["METHODS", "Method", "Parameter", "Stack", "Values", "combine", "method", "register"]


def register(made: Method) -> Method:
    """Add a method: recipes and ``merge`` then know it by its name, in this process.

    Raises:
        MetanetError: if the name is taken.
    """
    if made.name in METHODS:
        raise MetanetError(f"there is a method {printable(made.name, 60)!r} already; choose "
                           "another name")
    METHODS[made.name] = made
    return made


def method(name: str) -> Method:
    """The method of that name. Raises MetanetError with the names that there are."""
    if name not in METHODS:
        raise MetanetError(no_such("method", name, METHODS))
    return METHODS[name]
