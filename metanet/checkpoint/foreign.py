"""Recognising tensors that are not plain weights: packed quantised formats, optimizer moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metanet.checkpoint.discover import MOMENTS
from metanet.checkpoint.info import TensorInfo, is_floating
from metanet.checkpoint.names import printable
from metanet.checkpoint.problems import refusal
from metanet.errors import CheckpointError

_ORIGINAL = "Open the weights before quantisation"
# last part of a name -> the format that uses it
_LAST = {
    "qzeros": "GPTQ or AWQ", "qweight": "GPTQ or AWQ", "g_idx": "GPTQ",
    "SCB": "bitsandbytes (8 bit)", "weight_format": "bitsandbytes (8 bit)",
    "absmax": "bitsandbytes (4 bit)", "quant_map": "bitsandbytes (4 bit)",
    "nested_absmax": "bitsandbytes (4 bit)", "_packed_params": "torch.ao.quantization",
    "weight_packed": "compressed-tensors", "W_q": "HQQ", "qscales": "Marlin",
}
_INSIDE = {"quant_state.": "bitsandbytes (4 bit)", "_packed_params": "torch.ao.quantization"}


def _by_name(name: str, info: TensorInfo, names: Mapping[str, TensorInfo]) -> str | None:
    stem, _, last = name.rpartition(".")
    if last in _LAST and not (last == "g_idx" and is_floating(info.dtype)):
        return _LAST[last]
    for part, label in _INSIDE.items():
        if part in name:
            return label
    if last.endswith("_blocks") and info.dtype == "uint8" and name[:-7] + "_scales" in names:
        return "MXFP4"
    if info.dtype.startswith("float8") and any(
            name + suffix in names for suffix in ("_scale", "_scale_inv", ".scale")):
        return "scaled float8"
    if name + "._data" in names or (last == "_data" and stem + "._scale" in names):
        return "quanto"
    return None


def packed(infos: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """(tensor name, format) of the first packed or quantised tensor, if there is one."""
    for name, info in infos.items():
        label = _by_name(name, info, infos)
        if label is not None:
            return name, label
        if _is_integer_weight(name, info):
            return name, f"weights stored as {info.dtype}"
    return None


def _is_integer_weight(name: str, info: TensorInfo) -> bool:
    """A matrix called weight or kernel that holds integers is quantised, or no weight at all."""
    last = name.rpartition(".")[2]
    integral = not is_floating(info.dtype) and info.dtype != "bool"
    return integral and last in ("weight", "kernel") and len(info.shape) > 1


def moments(infos: Mapping[str, TensorInfo]) -> list[str]:
    """Names that carry an optimizer's moments."""
    return [name for name in infos if MOMENTS & set(name.split("."))]


def check(where: object, infos: Mapping[str, TensorInfo], config: Any = None) -> None:
    """Raise CheckpointError if these tensors are no plain weights, naming what they are."""
    method = _config_method(config)
    found = packed(infos)
    if found is not None:
        raise _quantised(where, f"tensor {printable(found[0], 80)!r} is {found[1]}")
    if method is not None:
        raise _quantised(where, f"its config.json says quantisation by {printable(method, 40)}")
    if infos and len(moments(infos)) == len(infos):
        raise refusal(where, "it is the state of an optimizer, not weights",
                      "Open the file of the model")


def _quantised(where: object, what: str) -> CheckpointError:
    return refusal(where, f"it is quantised and never read as plain weights: {what}", _ORIGINAL)


def _config_method(config: Any) -> str | None:
    told = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(told, dict):
        return None
    return str(told.get("quant_method", "an unnamed method"))
