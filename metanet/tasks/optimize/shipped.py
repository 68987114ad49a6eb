"""The nets that come with metanet, by name."""

from __future__ import annotations

from pathlib import Path

from metanet.checkpoint.names import printable
from metanet.errors import MetanetError
from metanet.tasks.optimize.spec import Net

FOLDER = Path(__file__).resolve().parents[2] / "weights" / "optim"
NAMES = {"default": "element", "context": "context"}


def named(net: str | Path) -> Net:
    """A shipped net (``default``, ``context``), or one from a file.

    Raises:
        MetanetError: if there is no such net, saying which there are.
    """
    text = str(net)
    path = FOLDER / f"{NAMES[text]}.safetensors" if text in NAMES else Path(net)
    if not path.is_file():
        here = [name for name, file in NAMES.items()
                if (FOLDER / f"{file}.safetensors").is_file()]
        raise MetanetError(f"no learned net {printable(text, 80)!r}; shipped are "
                           f"{', '.join(here) or 'none'}. Give a file, or train one with "
                           "metanet optim train")
    return Net.load(path)
