"""Architectures by name, with depth and widths solved from a file's shapes.

>>> from metanet.trace.archs import build
>>> shapes = {"net.0.weight": (4, 3), "net.0.bias": (4,), "net.2.weight": (2, 4)}
>>> build("mlp", shapes).module.get_submodule("net.2")
Linear(in_features=4, out_features=2, bias=False)
"""

from __future__ import annotations

# importing a family registers its names
from metanet.trace.archs import dense, hf, lenet, resnet, timm_models  # noqa: F401
from metanet.trace.archs.header import Header
from metanet.trace.archs.real import load, meta_parameters
from metanet.trace.archs.registry import Built, Request, architecture, build, names

__all__ = [
    "Built", "Header", "Request", "architecture", "build", "load", "meta_parameters", "names",
]
