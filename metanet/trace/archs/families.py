"""The families of timm, one small model for each: used to measure coverage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import TraceError
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.vision import prepare_torchvision
from metanet.trace.inputs import batch_of, refusal

_SIDES = (64, 128, 192)


def timm_families() -> list[str]:
    """Names of timm's model files that register models."""
    prepare_torchvision()
    from timm.models import _registry

    return sorted(_registry._module_to_models)


def smallest(family: str) -> str:
    """The model of a family with the fewest parameters, found by building all on meta.

    Families of very many models are sampled: those with the shortest names, which are the plain
    variants.
    """
    import timm
    from timm.models import _registry

    counts: dict[str, int] = {}
    for name in sorted(_registry._module_to_models[family], key=lambda n: (len(n), n))[:16]:
        try:
            with torch.device("meta"):
                module = timm.create_model(name, pretrained=False)
        except Exception:  # noqa: S112 - a variant that cannot be built on meta is not the smallest
            continue
        counts[name] = sum(p.numel() for p in module.parameters())
    if not counts:
        raise TraceError(f"no model of timm's family {family!r} can be built")
    return min(counts, key=lambda name: (counts[name], name))


def timm_models(family: str) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """(variant and image size, module, inputs) of a family, smallest images first.

    Raises:
        TraceError: at the end, where no size is accepted.
    """
    prepare_torchvision()
    name, errors = smallest(family), []
    plain = _created(name)
    default = (getattr(plain, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    for side in (*_SIDES, default[-1]):
        for module in _sized(name, plain, side):
            image = (batch_of(default[0], side, side),)
            error = refusal(module, image)
            if error is None:
                yield f"{name} ({side})", module, image
            else:
                errors.append(f"{side}: {error}")
    if errors:
        raise TraceError(f"{name} accepts no image: {errors[-1]}")


def _sized(name: str, plain: nn.Module, side: int) -> Iterator[nn.Module]:
    """The model made for a size, where it is made for one, then the plain one."""
    try:
        yield _created(name, img_size=side)
    except Exception:
        yield plain


def _created(name: str, **changes: Any) -> nn.Module:
    import timm

    with meta_parameters():
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **changes)
    return module.eval()
