"""The root of the commands: its usage errors show the user's words without obeying them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from metanet.checkpoint.names import printable

_FIELDS = ("message", "param_hint", "option_name", "possibilities", "filename")


class Root(TyperGroup):
    """A group in which every message about the command line is printable.

    A word of the command line can hold escape codes, characters that turn the direction of a line,
    or bytes that are no text: often it is the name of a file that a stranger chose.
    """

    def make_context(self, *words: Any, **options: Any) -> Any:
        """Parse the words of the command line."""
        with _printable():
            return super().make_context(*words, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that they name."""
        with _printable():
            return super().invoke(ctx)


@contextmanager
def _printable() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # an error about usage, of typer's own click
            for field in _FIELDS:
                if (value := getattr(error, field, None)) is not None:
                    setattr(error, field, _shown(value))
        raise


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return "\n".join(printable(line) for line in value.split("\n"))
    return [_shown(one) for one in value] if isinstance(value, (list, tuple)) else value
