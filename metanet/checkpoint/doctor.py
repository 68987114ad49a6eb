"""What is this checkpoint, and is anything odd about it? Findings as plain data."""

from __future__ import annotations

from collections import Counter
from typing import Any

from metanet.checkpoint.checkpoint import Checkpoint
from metanet.checkpoint.door import open as open_checkpoint
from metanet.checkpoint.foreign import moments
from metanet.checkpoint.info import is_floating
from metanet.checkpoint.names import printable, some
from metanet.errors import CheckpointError

Finding = dict[str, Any]
_MAX_LISTED = 100


def _finding(level: str, what: str, told: str, value: Any = None) -> Finding:
    return {"level": level, "what": what, "message": told, "value": value}


def doctor(src: Any, key: str | None = None) -> list[Finding]:
    """Look at a checkpoint, values included.

    Returns a list of ``{level, what, message, value}`` with level ``info``, ``warning`` or
    ``error``. What cannot be opened is one finding of level ``error``; nothing is raised for it.
    A HubError passes through. Names inside messages are safe to print; ``value`` is raw.
    """
    try:
        ckpt = open_checkpoint(src, key)
        return [*_facts(ckpt), *_oddities(ckpt), *_values(ckpt)]
    except CheckpointError as error:
        return [_finding("error", "refused", str(error))]


def _facts(ckpt: Checkpoint) -> list[Finding]:
    size = sum(path.stat().st_size for path in ckpt.source.files)
    dtypes = dict(Counter(ckpt.dtype(name) for name in ckpt.names))
    out = [
        _finding("info", "format", f"format: {ckpt.source.format}", ckpt.source.format),
        _finding("info", "sha256", f"sha256: {ckpt.source.sha256}", ckpt.source.sha256),
        _finding("info", "size", f"{size} bytes in {len(ckpt.source.files)} file(s)", size),
        _finding("info", "tensors", f"{len(ckpt)} tensors, {ckpt.n_parameters} elements",
                 {"tensors": len(ckpt), "elements": ckpt.n_parameters}),
        _finding("info", "dtypes", ", ".join(f"{k}: {v}" for k, v in dtypes.items()), dtypes),
    ]
    if ckpt.wrapper:
        out.append(_finding("info", "wrapper", f"the state dict lies under "
                            f"{printable(ckpt.wrapper, 120)!r}", ckpt.wrapper))
    if ckpt.renamed:
        out.append(_finding("info", "prefix", f"a prefix was stripped from {len(ckpt.renamed)} "
                            f"names, as {some(list(ckpt.renamed)[:1])}", dict(ckpt.renamed)))
    if ckpt.aliases:
        pairs = [f"{alias} = {owner}" for alias, owner in ckpt.aliases.items()]
        out.append(_finding("info", "aliases", f"tied: {some(pairs)}", dict(ckpt.aliases)))
    if ckpt.metadata:
        out.append(_finding("info", "metadata", f"metadata: {some(ckpt.metadata, 12)}",
                            ckpt.metadata))
    return out


def _strange(name: str) -> bool:
    return printable(name) != name or ".." in name or "/" in name or "\\" in name


def _oddities(ckpt: Checkpoint) -> list[Finding]:
    out = []
    strange = [name for name in ckpt.names if _strange(name)]
    if strange:
        out.append(_finding("warning", "names", "names with control or path characters: "
                            f"{some(strange)}", strange[:_MAX_LISTED]))
    if not any(is_floating(ckpt.dtype(name)) for name in ckpt.names):
        out.append(_finding("warning", "integers", "no tensor is floating: these are no weights, "
                            "or quantised ones"))
    empty = [name for name in ckpt.names if ckpt.info(name).numel == 0]
    if empty:
        out.append(_finding("warning", "empty", f"tensors without elements: {some(empty)}",
                            empty[:_MAX_LISTED]))
    odd = moments({name: ckpt.info(name) for name in ckpt.names})
    if odd:
        out.append(_finding("warning", "optimizer", "these look like an optimizer's moments: "
                            f"{some(odd)}", odd[:_MAX_LISTED]))
    outside = [k for k, v in ckpt.metadata.items() if isinstance(v, str) and v.startswith("<tens")]
    if outside:
        out.append(_finding("warning", "outside", "tensors beside the state dict were left out: "
                            f"{some(outside)}", outside[:_MAX_LISTED]))
    return out


def _values(ckpt: Checkpoint) -> list[Finding]:
    """Non-finite and all-zero tensors; reads everything, one tensor at a time."""
    bad: dict[str, int] = {}
    zero: list[str] = []
    for name in ckpt.names:
        if name in ckpt.aliases or not is_floating(ckpt.dtype(name)):
            continue
        count = ckpt.nonfinite(name)
        if count:
            bad[name] = count
        elif len(ckpt.shape(name)) > 1 and ckpt.info(name).numel and not ckpt.read(name).any():
            zero.append(name)
    out = []
    if bad:
        out.append(_finding("warning", "nonfinite", f"{sum(bad.values())} values are NaN or "
                            f"infinite, in {some(bad)}", bad))
    if zero:
        out.append(_finding("warning", "zeros", f"all values are zero in {some(zero)}",
                            zero[:_MAX_LISTED]))
    return out
