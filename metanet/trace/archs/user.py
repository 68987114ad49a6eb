"""``file.py:factory``: a module from a file that the user names. The only door to user code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from metanet.errors import TraceError
from metanet.trace.archs.header import quoted
from metanet.trace.inputs import synthesise


def from_file(path: str, factory: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """Import ``path``, call ``factory()``; it gives a module, or a module and example inputs.

    Raises:
        TraceError: no such file or function, it fails, or it gives something else.
    """
    code = _import(path)
    call = getattr(code, factory, None) if factory else None
    if not callable(call):
        raise TraceError(f"{quoted(path)} has no function {quoted(factory)}; name one that takes "
                         "no arguments and returns an nn.Module")
    try:
        made = call()
    except Exception as error:
        raise TraceError(f"{path}:{factory}() failed: {type(error).__name__}: {error}") from error
    if isinstance(made, nn.Module):
        return made, synthesise(made.eval())
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        module, inputs = made
        return module, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    raise TraceError(f"{path}:{factory}() must return an nn.Module or (module, example_inputs), "
                     f"not {type(made).__name__}")


def _import(path: str) -> ModuleType:
    file = Path(path).expanduser()
    if not file.is_file():
        raise TraceError(f"no file {quoted(path)}: --arch file.py:factory names a Python file")
    name = f"_metanet_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise TraceError(f"{quoted(path)} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling inside the file look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise TraceError(f"importing {quoted(path)} failed: {type(error).__name__}: {error}"
                         ) from error
    return module
