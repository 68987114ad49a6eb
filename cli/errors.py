"""From exceptions to exit codes: 0 ok, 1 negative finding, 2 usage, 3 bad input, 4 network."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from typing import Any

import typer

from metanet.errors import HubError, MetanetError

from .output import Sink

NEGATIVE, USAGE, BAD_INPUT, NETWORK, BUG = 1, 2, 3, 4, 70


def exit_code(error: Exception) -> int:
    """Exit code of an error; 70, as in sysexits.h, for one that is metanet's own fault."""
    if isinstance(error, HubError):
        return NETWORK
    return BAD_INPUT if isinstance(error, (MetanetError, OSError)) else BUG


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn an exception into a message and an exit code; never a traceback.

    Under ``--json`` stdout still holds exactly one document, ``{"error": {type, message}}``.
    ``METANET_TRACEBACK=1`` shows where an error comes from.
    """

    @functools.wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except Exception as error:
            _report(error, Sink(as_json=options.get("as_json", False)))
            raise typer.Exit(exit_code(error)) from None

    return run


def _report(error: Exception, sink: Sink) -> None:
    if sink.as_json:
        sink.result({"error": {"type": type(error).__name__, "message": str(error)}}, "")
    if os.environ.get("METANET_TRACEBACK"):
        sink.say("".join(traceback.format_exception(error)).rstrip())
    if exit_code(error) == BUG:
        sink.say(f"error: {type(error).__name__}: {error}\nThis is a bug in metanet: please report "
                 "it with the output of METANET_TRACEBACK=1")
    else:
        sink.say(f"error: {error}")
