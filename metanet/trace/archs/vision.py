"""torchvision beside a build of torch that its compiled operations do not fit.

timm and the vision classes of transformers import torchvision for its Python code. Where its
compiled library does not load, the import itself fails, because it registers a fake for two
operations that were then never declared. Declaring their schemas is enough for the import; they
get no implementation, so whoever calls one is told by torch that there is none.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                 for name in ("nms", "qnms"))
_DECLARED: list[Any] = []  # a torch.library.Library takes its schemas back when it is collected


def prepare_torchvision() -> bool:
    """Make ``import torchvision`` work if it is installed; whether it does."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return False
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _DECLARED:
            return False
        return _declared()
    return True


def _declared() -> bool:
    library = torch.library.Library("torchvision", "DEF")
    _DECLARED.append(library)
    for schema in _SCHEMAS:
        library.define(schema)
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # left behind half imported
    return prepare_torchvision()
