"""State dicts and modules that are already in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metanet.checkpoint.content import Content, Path_
from metanet.checkpoint.info import ITEMSIZE, MAX_DIMS, Opaque, TensorInfo
from metanet.checkpoint.names import printable
from metanet.checkpoint.problems import refusal

if TYPE_CHECKING:
    from torch import Tensor

_MAX_DEPTH = 64


def tensor_info(tensor: Tensor, where: object, name: str) -> TensorInfo:
    """TensorInfo of a live tensor; its place is the memory that it views."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise refusal(where, f"{printable(name, 80)!r} is a {type(tensor).__name__}, not a tensor",
                      "Give tensors only")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or dtype not in ITEMSIZE or tensor.dim() > MAX_DIMS:
        raise refusal(where, f"tensor {printable(name, 80)!r} is {tensor.layout} {tensor.dtype}, "
                      "not a dense array of plain numbers", "Give dense, unquantised tensors")
    memory = tensor.untyped_storage()._cdata
    place = (memory, tensor.storage_offset(), tensor.stride(), dtype)
    return TensorInfo(tuple(tensor.shape), dtype, place if tensor.numel() else None)


def _outline(value: Any, trail: tuple[str, ...]) -> Any:
    """The same nesting, with TensorInfo where the tensors are."""
    import torch

    if len(trail) > _MAX_DEPTH:
        raise refusal("memory", f"the mapping is nested more than {_MAX_DEPTH} deep",
                      "Give the state dict itself")
    if isinstance(value, torch.Tensor):
        return tensor_info(value, "memory", ".".join(trail))
    if isinstance(value, Mapping):
        return {key: _outline(item, (*trail, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_outline(item, (*trail, str(i))) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return Opaque(f"{type(value).__module__}.{type(value).__qualname__}")


def open_memory(value: Any) -> Content:
    """A mapping, list or ``nn.Module`` as Content; tensors are copied when they are read."""
    import torch

    module = isinstance(value, torch.nn.Module)
    if not module and not isinstance(value, Mapping | list | tuple):
        raise refusal("memory", f"a {type(value).__name__} is no checkpoint",
                      "Give a path, a state dict or a module")
    root = value.state_dict() if module else value

    def read(where: Path_) -> Tensor:
        found = root
        for key in where:
            found = found[key]
        if found.device.type == "meta":
            raise refusal("memory", "the tensor is on the meta device and has no values",
                          "Load the weights first")
        tensor: Tensor = found
        return tensor

    label = "module" if module else "mapping"
    return Content(_outline(root, ()), read, (), f"{label} in memory")
