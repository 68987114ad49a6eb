"""Example inputs for a module when none are given.

Where the module says what it eats (transformers config, timm ``pretrained_cfg``), that is
believed; else the first parametrised layers are asked, and a short list of candidates is tried by
running the forward on fake tensors, which costs no memory and no arithmetic. Sizes are at least 2
and pairwise distinct where the module allows it, for a size of 1 or two equal sizes would tie axes
that have nothing to do with each other. Deterministic.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from metanet.errors import TraceError
from metanet.trace.copies import with_values
from metanet.trace.fields import ids, normal
from metanet.trace.modal import named_inputs

_BATCHES = (2, 3, 5, 7, 11)
_REAL = 60_000_000
"""Modules of up to so many parameters may be run with real values."""
_TINY, _SMALL = 5_000_000, 200_000
"""Modules of up to so many parameters, on inputs of up to so many numbers, take less time with
real values than with fakes, whose every operation is worked through in Python."""
_DATA = (
    fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)
_UNREAD = 0.2
"""Inputs that leave more of the parameters without a gradient are not taken at once."""
_MORE = 24
"""How many further candidates are tried then."""
_LAYERS = 6  # how many first layers are asked before giving up
_IMAGES = ((16, 24), (32, 40), (64, 48), (28, 28), (32, 32), (64, 64), (224, 224))
_SIDES = (*range(4, 64), 84, 96, 112, 128, 160, 192, 227, 240, 256, 299, 384)

Candidate = tuple[Tensor, ...]


def batch_of(*shape: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, " N *shape"]:
    """Fixed normal values for a small batch whose size differs from all of ``shape``."""
    size = next(n for n in (*_BATCHES, 13) if n not in shape)
    return normal(size, *shape, dtype=dtype)


def synthesise(module: nn.Module) -> tuple[Any, ...]:
    """Positional example inputs that the module's forward accepts.

    Raises:
        TraceError: no candidate is accepted; the user must pass ``example_inputs``.
    """
    errors: list[str] = []
    probe = _Probe(module)
    best: tuple[float, tuple[Any, ...]] | None = None
    choosy, more = _of_transformers(module), _MORE
    for candidate in _candidates(module):
        if more < 0:
            break
        more -= best is not None
        error = probe.error(candidate)
        if error is not None:
            errors.append(f"{_shapes(candidate)}: {error}")
            continue
        unread = probe.unread if choosy else 0.0
        if best is None or unread < best[0]:
            best = unread, candidate
        if unread <= _UNREAD:
            break
    if best is not None:
        return best[1]
    tried = "; ".join(errors[:1] + errors[-1:] if len(errors) > 1 else errors) or "nothing to try"
    raise TraceError(
        f"cannot guess inputs for {type(module).__name__} ({len(errors)} tried: {tried}); pass "
        "example_inputs, a tuple of the tensors that its forward takes, with sizes of at least 2 "
        "that differ from each other"
    )


def refusal(module: nn.Module, candidate: tuple[Any, ...]) -> str | None:
    """Why the forward does not accept these inputs, or None; run on fakes, at no cost."""
    return _Probe(module).error(candidate)


class _Probe:
    """Runs the forward on fake tensors, on a copy, so that caches in the module stay clean."""

    def __init__(self, module: nn.Module) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.original = module
        self.real: nn.Module | None = None
        self.unread = 0.0
        self.quick = (_of_transformers(module) and not any(b.is_meta for b in module.buffers())
                      and sum(p.numel() for p in module.parameters()) <= _TINY)
        tensors = [*module.parameters(), *module.buffers()]
        with self.mode:
            memo: dict[int, Any] = {id(t): _like(t) for t in tensors}
        # through the memo deepcopy takes fakes for the weights: no weight is copied
        self.module = copy.deepcopy(module, memo)

    def error(self, candidate: tuple[Any, ...]) -> str | None:
        """None if the forward accepts the candidate and gives a tensor, else why not."""
        if self.quick and sum(x.numel() for x in candidate if isinstance(x, Tensor)) <= _SMALL:
            return self._real_error(candidate, TraceError("too large to be run"))
        try:
            with _quiet(), self.mode, torch.enable_grad(), torch.random.fork_rng(devices=[]):
                fakes = [_like(x) if isinstance(x, Tensor) else x for x in candidate]
                out = self.module(*fakes)
                self.unread = _unread(self.module, out)
        except _DATA as error:
            return self._real_error(candidate, error)
        except Exception as error:
            if "data is not allocated" in str(error):  # values are read in a way of its own
                return self._real_error(candidate, error)
            return _first_line(error)
        return _no_tensor(out)

    def _real_error(self, candidate: tuple[Any, ...], fake: Exception) -> str | None:
        """Where the path depends on values, only values can tell; small modules are run."""
        if sum(p.numel() for p in self.original.parameters()) > _REAL:
            return _first_line(fake)
        if self.real is None:
            self.real = with_values(self.original)
        try:
            with _quiet(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
                out = self.real(*candidate)
                self.unread = _unread(self.real, out)
        except Exception as error:
            return _first_line(error)
        return _no_tensor(out)


def _unread(module: nn.Module, out: Any) -> float:
    """Share of the axes of parameters from which no gradient comes, 0 where none can be taken."""
    leaves = torch.utils._pytree.tree_leaves(out)
    found = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
    own = [p for p in module.parameters() if p.requires_grad]
    if not found or not own:
        return 0.0
    try:
        total = sum((t.abs().float().sum() for t in found[1:]), found[0].abs().float().sum())
        grads = torch.autograd.grad(total, own, allow_unused=True)
    except Exception:
        return 0.0
    sizes = [sum(p.shape) for p in own]
    lost = sum(n for n, g in zip(sizes, grads, strict=True) if g is None)
    return lost / max(sum(sizes), 1)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _no_tensor(out: Any) -> str | None:
    leaves = torch.utils._pytree.tree_leaves(out)
    return None if any(isinstance(x, Tensor) for x in leaves) else "the output has no tensor"


@contextmanager
def _quiet() -> Iterator[None]:
    """A refused candidate is expected here, not worth torch's error log."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _like(t: Tensor) -> Tensor:
    """Inside a fake mode: a fake CPU tensor with the metadata of ``t`` (which may be on meta)."""
    fake = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu")
    return nn.Parameter(fake, t.requires_grad) if isinstance(t, nn.Parameter) else fake


def _shapes(candidate: tuple[Any, ...]) -> str:
    return ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else "-" for x in candidate)


def _candidates(module: nn.Module) -> Iterator[tuple[Any, ...]]:
    if _of_transformers(module):
        yield from _transformers(module, module.config)
    image = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if isinstance(image, dict) and len(image.get("input_size") or ()) == 3:
        yield (batch_of(*image["input_size"], dtype=_dtype(module)),)
    arity = _arity(module)
    asked = set()
    for layer in _parametrised(module):
        for candidate in _for_layer(layer, _dtype(layer)):
            key = (candidate[0].dtype, candidate[0].shape)
            if key not in asked:
                asked.add(key)
                yield candidate * arity if len(candidate) == 1 else candidate


def _of_transformers(module: nn.Module) -> bool:
    return hasattr(module, "main_input_name") and getattr(module, "config", None) is not None


def _dtype(module: nn.Module) -> torch.dtype:
    floats = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(floats, torch.float32)


def _arity(module: nn.Module) -> int:
    """How many positional arguments the forward cannot do without; at least one."""
    parameters = inspect.signature(module.forward).parameters.values()
    needed = [p for p in parameters if p.default is p.empty
              and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return max(1, len(needed))


def _parametrised(module: nn.Module) -> list[nn.Module]:
    """The first few modules that own parameters, in order of registration."""
    own = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
    return own[:_LAYERS]


def _for_layer(layer: nn.Module, dtype: torch.dtype) -> Iterator[Candidate]:
    """Inputs, most likely first, that this layer would accept at the front of a module."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        yield from ((ids(layer.num_embeddings, *s),) for s in ((2, 5), (2, 3), (5,), (2,)))
    elif isinstance(layer, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)):
        yield from _spatial(layer, dtype)
    elif isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
        yield from _sequences(layer, dtype)
    elif isinstance(layer, nn.Bilinear):
        yield normal(5, layer.in1_features, dtype=dtype), normal(5, layer.in2_features, dtype=dtype)
    else:
        for width in _widths(layer):
            yield from _vectors(width, dtype)


def _widths(layer: nn.Module) -> list[int]:
    """Candidates for the size of the last input axis."""
    for attribute in ("in_features", "input_size", "num_channels", "num_features"):
        if isinstance(getattr(layer, attribute, None), int):
            return [getattr(layer, attribute)]
    sizes = [n for p in layer.parameters(recurse=False) for n in reversed(p.shape)]
    return list(dict.fromkeys(n for n in sizes if n > 1))[:4]


def _vectors(width: int, dtype: torch.dtype) -> Iterator[Candidate]:
    yield (batch_of(width, dtype=dtype),)
    yield (batch_of(_length(width), width, dtype=dtype),)
    yield (batch_of(width, _length(width), dtype=dtype),)
    for height, wide in ((6, 8), (28, 28), (32, 32)):
        yield (batch_of(width, height, wide, dtype=dtype),)
    side = round(width ** 0.5)
    if side * side == width:  # a module that flattens images
        yield (batch_of(1, side, side, dtype=dtype),)


def _length(*others: int) -> int:
    return next(n for n in (5, 7, 9, 11) if n not in others)


def _sequences(layer: Any, dtype: torch.dtype) -> Iterator[Candidate]:
    width = layer.embed_dim if isinstance(layer, nn.MultiheadAttention) else layer.input_size
    batched, length = batch_of(width, dtype=dtype).shape[0], _length(width)
    shape = (batched, length) if layer.batch_first else (length, batched)
    yield (normal(*shape, width, dtype=dtype),)


def _spatial(layer: Any, dtype: torch.dtype) -> Iterator[Candidate]:
    conv = isinstance(layer, nn.modules.conv._ConvNd)
    channels = layer.in_channels if conv else layer.num_features
    dims = len(layer.kernel_size) if conv else _dims(layer)
    if dims == 0:
        yield from _vectors(channels, dtype)
    for length in (16, 64, 28, 32, 100, 128, 256, 1000, 16000) if dims <= 1 else ():
        yield (batch_of(channels, length, dtype=dtype),)
    if dims == 2:
        for size in (*_IMAGES, *((side, side) for side in _SIDES)):
            yield (batch_of(channels, *size, dtype=dtype),)
    for side in (8, 16, 28, 32, 64) if dims == 3 else ():
        yield (batch_of(channels, side, side + 4, side + 2, dtype=dtype),)
        yield (batch_of(channels, side, side, side, dtype=dtype),)


def _dims(norm: nn.Module) -> int:
    digits = [c for c in type(norm).__name__ if c in "123"]
    return {"1": 0, "2": 2, "3": 3}[digits[0]] if digits else 2


def _transformers(module: nn.Module, config: Any) -> Iterator[tuple[Any, ...]]:
    """Inputs of a transformers model, by the names in its signature."""
    for named in named_inputs(module, config, _dtype(module)):
        yield _arranged(module, named)


def _arranged(module: nn.Module, named: dict[str, Tensor]) -> tuple[Any, ...]:
    """Named inputs as positional ones, None where the signature has something between them."""
    order = list(inspect.signature(module.forward).parameters)
    known = {name: value for name, value in named.items() if name in order}
    last = max((order.index(name) for name in known), default=-1)
    return tuple(known.get(name) for name in order[:last + 1])
