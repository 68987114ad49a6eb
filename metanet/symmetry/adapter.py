"""LoRA adapters as PEFT stores them: the product of two thin matrices and what leaves it alone.

A module's update is ``B A`` with ``A`` [r, in] and ``B`` [out, r] (Hu et al. 2021, section 4.1), so
permuting the rows of A and the columns of B alike changes nothing, whatever the base model is.
"""

from __future__ import annotations

import re
from typing import Any

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.info import is_floating
from metanet.checkpoint.names import printable
from metanet.symmetry.sketch import Sketch
from metanet.symmetry.space import WeightSpace

_PAIR = re.compile(
    r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$|bias$)[^.]+)?(?:\.(weight|bias))?")
_PLAIN = {"use_dora": "its DoRA norms", "layer_replication": "replicated layers",
          "target_parameters": "stacked parameters", "use_qalora": "a quantised form",
          "use_bdlora": "block-diagonal factors", "alora_invocation_tokens": "activation by tokens"}
"""Options of PEFT's LoraConfig that make more of it than a product."""


def looks_like_one(checkpoint: Checkpoint) -> bool:
    """Whether a config or the names speak of an adapter."""
    return "adapter_config" in checkpoint.metadata or any(
        ".lora_A" in name or ".lora_embedding_A" in name for name in checkpoint.names)


def adapter_space(checkpoint: Checkpoint) -> tuple[str, WeightSpace] | str:
    """(note, space) of a plain LoRA adapter, or why it is none."""
    config: Any = checkpoint.metadata.get("adapter_config") or {}
    if not isinstance(config, dict):
        return "adapter_config.json is no JSON object"
    refusal = _refusal(config)
    if refusal:
        return refusal
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    others = []
    for name in checkpoint.names:
        found = _PAIR.fullmatch(name)
        if found is None or not is_floating(checkpoint.dtype(name)) or (
                found[4] is None and not found[2]):
            others.append(name)
        elif found[4] != "bias":
            pairs.setdefault((found[1], found[2] or ""), {})[found[3]] = name
    odd = [name for name in others if not _saved(name, config)]
    if odd:
        return (f"it is an adapter, but {printable(odd[0], 80)!r} is no factor of a plain LoRA "
                f"({len(odd)} such)")
    return _tied(checkpoint, pairs, config)


def _refusal(config: dict[str, Any]) -> str:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        return (f"adapter_config.json says {printable(kind, 40)!r}; of PEFT's adapters only LoRA "
                "is known")
    for option, what in _PLAIN.items():
        if config.get(option):
            return f"adapter_config.json has {option}: {what} make it no plain LoRA"
    return ""


def _saved(name: str, config: dict[str, Any]) -> bool:
    """Whether a tensor is a trained copy of one of the base model."""
    wanted = config.get("modules_to_save")
    return isinstance(wanted, list) and any(
        isinstance(module, str) and f".{module}." in f".{name}." for module in wanted)


def _tied(
    checkpoint: Checkpoint, pairs: dict[tuple[str, str], dict[str, str]], config: dict[str, Any]
) -> tuple[str, WeightSpace] | str:
    sketch = Sketch(checkpoint, "it belongs to the base model")
    ranks = _ranks(config)
    for (stem, _), pair in pairs.items():
        shown = printable(stem, 80)
        if len(pair) < 2:
            return f"it is an adapter, but {shown!r} has {'A' if 'A' in pair else 'B'} alone"
        a, b = (checkpoint.shape(pair[key]) for key in "AB")
        if len(a) != len(b) or len(a) < 2 or a[0] != b[1] or any(k != 1 for k in b[2:]):
            return f"the factors of {shown!r} do not multiply: {list(b)} by {list(a)}"
        if ranks and a[0] not in ranks:
            return (f"{shown!r} has rank {a[0]}, adapter_config.json says "
                    f"{' or '.join(map(str, sorted(ranks)))}")
        sketch.tie(f"{stem}_r", a[0], [(pair["A"], 0), (pair["B"], 1)])
    if not sketch.groups:
        return "it is an adapter without a pair of factors of rank 2 or more"
    sizes = sorted({group.size for group in sketch.groups.values()})
    return (f"a LoRA adapter of {len(pairs)} modules, rank {', '.join(map(str, sizes))}: rows of A "
            "and columns of B move together, whatever the base model is", sketch.space())


def _ranks(config: dict[str, Any]) -> set[int]:
    """Ranks that the config allows; none where it says nothing."""
    rank, other = config.get("r"), config.get("rank_pattern")
    told = {*other.values()} if isinstance(other, dict) else set()
    return {r for r in {rank, *told} if isinstance(r, int)}
