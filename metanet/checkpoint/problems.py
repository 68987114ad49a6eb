"""How this room says no: what, where, what to do. Nothing but MetanetError leaves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from metanet.checkpoint.names import printable
from metanet.errors import CheckpointError, MetanetError


def refusal(where: object, what: str, todo: str) -> CheckpointError:
    """The one form of a refusal: ``WHERE: WHAT. TODO.``"""
    return CheckpointError(f"{printable(where)}: {what}. {todo}.")


@contextmanager
def guarded(where: object, doing: str, todo: str) -> Iterator[None]:
    """Turn whatever a parser of hostile bytes may raise into a CheckpointError.

    torch alone raises six types (UnpicklingError, RuntimeError, UnicodeDecodeError, IndexError,
    EOFError, ...), so this catches every Exception; the cause stays attached.
    """
    try:
        yield
    except MetanetError:
        raise
    except FileNotFoundError as error:
        raise refusal(where, "there is no such file or folder", "Check the path") from error
    except PermissionError as error:
        raise refusal(where, "it may not be read", "Check the permissions of the file") from error
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        told = f"{doing} failed ({type(error).__name__}: {printable(first, 160)})"
        raise refusal(where, told, todo) from error
