"""The models of a recipe: opened by their headers, identified, with the small files beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metanet.checkpoint import Checkpoint, printable
from metanet.checkpoint import open as open_checkpoint
from metanet.checkpoint.hub import SCHEME, hub_errors, parse_address
from metanet.errors import MetanetError

# What belongs to a tokenizer, and what generation reads.
SMALL_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "chat_template.jinja", "generation_config.json", "preprocessor_config.json",
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[^/@\s]+)?")


def address(name: str) -> str:
    """Where a model of a recipe is: a path where there is one, else ``org/name`` of the Hub."""
    if name.startswith(SCHEME) or Path(name).exists() or not _HUB_NAME.fullmatch(name):
        return name
    return SCHEME + name


def open_models(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Checkpoint]:
    """Every model by its name, headers only. Raises CheckpointError and HubError."""
    out: dict[str, Checkpoint] = {}
    for name in names:
        out[name] = open_checkpoint(given[name] if name in given else address(name))
        out[name].require_floating()
    return out


def identity(checkpoint: Checkpoint) -> Any:
    """What tells one model from another without reading it: the commit; names, sizes and times of
    files; the content of what is in memory."""
    source = checkpoint.source
    if source.revision is not None:
        return [source.uri, source.revision]
    if not source.files:
        return source.sha256
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(source.files)]


def beside(checkpoint: Checkpoint, name: str) -> Path | None:
    """A small file beside the weights, downloaded from the Hub where it is there; or None."""
    source = checkpoint.source
    if source.revision is None:
        if source.uri == "memory:":
            return None
        where = Path(source.uri)
        path = (where if where.is_dir() else where.parent) / name
        return path if where.is_dir() and path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    place = parse_address(source.uri)
    with hub_errors(source.uri):
        try:
            return Path(hf_hub_download(place.repo, name, repo_type=place.kind,
                                        revision=source.revision))
        except EntryNotFoundError:
            return None


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The model's config.json, or nothing."""
    config = checkpoint.metadata.get("config")
    return dict(config) if isinstance(config, Mapping) else {}


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether its config says that output and input embedding are one tensor."""
    config = config_of(checkpoint)
    text = config.get("text_config")
    told = config.get("tie_word_embeddings",
                      text.get("tie_word_embeddings") if isinstance(text, Mapping) else None)
    return told is True


def choose(names: Iterable[str], models: Mapping[str, Checkpoint], wanted: str) -> str:
    """The model of a recipe that is meant. Raises MetanetError."""
    if wanted in models:
        return wanted
    raise MetanetError(f"{printable(wanted, 80)!r} is none of the models: "
                       f"{', '.join(printable(name, 80) for name in names)}")
