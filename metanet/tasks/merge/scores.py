"""Losses of outputs: against labels, or, without labels, against what the parents say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metanet.errors import MetanetError


@dataclass(frozen=True)
class Score:
    """Mean loss and, for classes, accuracy."""

    loss: float
    accuracy: float | None = None


def kind_of(y: Tensor | None, outputs: Tensor) -> str:
    """``classes`` (cross-entropy) or ``real`` (mean square), by labels, else by outputs."""
    if y is not None:
        return "real" if y.is_floating_point() else "classes"
    return "classes" if outputs.ndim >= 2 and outputs.shape[-1] > 1 else "real"


def scored(outputs: Tensor, y: Tensor) -> Score:
    """Score of outputs against labels.

    Args:
        outputs: ``[N, *, classes]``, or real values.
        y: class numbers ``[N, *]``, or real targets in the shape of the outputs.

    Raises:
        MetanetError: shapes do not fit.
    """
    if y.is_floating_point():
        if y.numel() != outputs.numel():
            raise MetanetError(f"real targets of shape {tuple(y.shape)} do not fit outputs of "
                               f"shape {tuple(outputs.shape)}")
        return Score(float((outputs.double() - y.reshape(outputs.shape)).square().mean()))
    flat = outputs.reshape(-1, outputs.shape[-1]).double()
    labels = y.reshape(-1)
    if len(labels) != len(flat):
        raise MetanetError(f"labels of shape {tuple(y.shape)} do not fit outputs of shape "
                           f"{tuple(outputs.shape)}: one class number per row is needed")
    if int(labels.min()) < 0 or int(labels.max()) >= flat.shape[1]:
        raise MetanetError(f"labels run from {int(labels.min())} to {int(labels.max())}, and the "
                           f"network has {flat.shape[1]} classes")
    accuracy = float((flat.argmax(1) == labels).double().mean())
    return Score(float(F.cross_entropy(flat, labels)), accuracy)


def ensemble(a: Tensor, b: Tensor, t: float, kind: str) -> Float[Tensor, " N *rest"]:
    """What both parents say together: mean probabilities (as logarithms), or mean values."""
    if kind == "real":
        return torch.lerp(a, b, t)
    both = torch.lerp(a.double().softmax(-1), b.double().softmax(-1), t)
    return both.clamp_min(1e-300).log()


def against(outputs: Tensor, target: Tensor, kind: str) -> float:
    """Loss against an ensemble: cross-entropy to its probabilities, or mean square."""
    if kind == "real":
        return float((outputs.double() - target.double()).square().mean())
    probabilities = target.double().softmax(-1)
    return float(-(probabilities * outputs.double().log_softmax(-1)).sum(-1).mean())
