"""One self-contained HTML page: no script, nothing loaded from anywhere, every text escaped."""

from __future__ import annotations

import base64
import os
import re
import tempfile
from functools import cache
from pathlib import Path

import jinja2

from metanet.errors import MetanetError
from metanet.report.blocks import Page

_CODE = re.compile(r"`([^`]+)`")


def render(page: Page) -> str:
    """The page as HTML. It holds its figures and styles itself and forbids the browser to load
    anything else.
    """
    return _template().render(page=page)


def write(page: Page, path: Path) -> Path:
    """Write the page, replacing an older one at once or not at all.

    Raises:
        MetanetError: if the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(render(page))
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise MetanetError(
            f"cannot write the page {str(path)!r}: {error.strerror}; choose another place"
        ) from error
    return path


def _pieces(text: str) -> list[str]:
    """Prose and code by turns: what stands between backticks is code."""
    return _CODE.split(text)


def _svg_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("metanet.report"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(pieces=_pieces, svg_uri=_svg_uri)
    return environment.get_template("page.html")
