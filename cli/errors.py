"""From exceptions to exit codes: 0 ok, 1 negative finding, 2 usage, 3 bad input, 4 network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import typer

from metanet.errors import HubError, MetanetError

from .output import Sink

NEGATIVE, USAGE, BAD_INPUT, NETWORK = 1, 2, 3, 4


def exit_code(error: Exception) -> int:
    """Exit code for an error that a person can do something about."""
    return NETWORK if isinstance(error, HubError) else BAD_INPUT


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a MetanetError into a message and an exit code; never a traceback.

    Under ``--json`` stdout still holds exactly one document, ``{"error": {type, message}}``.
    Errors that metanet did not raise on purpose are bugs and keep their traceback, except those of
    the file system.
    """

    @functools.wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except BrokenPipeError:
            raise
        except (MetanetError, OSError) as error:
            sink = Sink(as_json=options.get("as_json", False))
            if sink.as_json:
                problem = {"type": type(error).__name__, "message": str(error)}
                sink.result({"error": problem}, "")
            sink.say(f"error: {error}")
            raise typer.Exit(exit_code(error)) from None

    return run
