"""Copies of a module with values of their own, so that it can be run for real."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from metanet.errors import TraceError


def with_values(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters are random, normal with variance 1/fan-in.

    Raises:
        TraceError: a buffer has no values, or the module cannot be copied.
    """
    rng = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        value = torch.randn(parameter.shape, generator=rng)
        scale = max(value[0].numel() if value.ndim and len(value) else 1, 1) ** -0.5
        value = (value * scale).to(parameter.dtype)
        memo[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    for name, buffer in module.named_buffers():
        if buffer.device.type == "meta":
            raise TraceError(f"buffer '{name}' is on the meta device and has no values")
        memo[id(buffer)] = buffer.detach().cpu().clone()
    try:
        real = copy.deepcopy(module, memo)
    except Exception as error:
        raise TraceError(f"{type(module).__name__} cannot be copied: {error}") from error
    for part in real.modules():
        part.training = False
    return real
