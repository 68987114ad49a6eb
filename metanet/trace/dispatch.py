"""Second front end: record operations as they are dispatched, one real forward pass.

For what ``torch.export`` refuses: control flow that depends on values, wrappers that cannot be
traced. Operations are seen before autograd takes them apart, so that linear layers, attention and
norms stay whole and the same rules read them. Parameters get random values of their own (the
module is copied and not touched), so the recorded path is the one that these values take.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from metanet.errors import TraceError
from metanet.trace.copies import with_values
from metanet.trace.export import alias_owners, dtypes_of, module_state, split_inputs
from metanet.trace.program import VALUE_READ, Op, Program, Ref, Shape, Source

_LARGEST = 400_000_000
_READS = frozenset({"item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__",
                    "__index__", "__contains__", "is_nonzero", "equal", "allclose"})


def dispatch_program(module: nn.Module, example_inputs: Any) -> Program:
    """Record one forward pass of ``module`` in eval mode, as ``export_program`` does.

    Raises:
        TraceError: the forward fails, or the module is too large to be run with real weights.
    """
    from torch._dispatch.python import enable_python_dispatcher

    size = sum(p.numel() for p in module.parameters())
    if size > _LARGEST:
        raise TraceError(f"{type(module).__name__} has {size:,} parameters, too many to run it "
                         "for real")
    args, kwargs = split_inputs(example_inputs)
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
    real = with_values(module)
    recorder = _Recorder(real, (args, kwargs))
    try:
        with (warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng(devices=[]),
              recorder.inside_modules(), enable_python_dispatcher(), recorder, _Reads(recorder)):
            warnings.simplefilter("ignore")
            output = real(*args, **kwargs)
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")[:300]
        raise TraceError(f"{type(module).__name__} cannot be run: {type(error).__name__}: {line}. "
                         "Check that the example inputs fit the forward pass.") from error
    return recorder.program(output)


class _Recorder(ProxyTorchDispatchMode):
    """Notes every operation; tensors are known by identity, and kept alive so that it stays.

    torch lets three classes see operations before autograd does; this derives from one of them
    to be let in and replaces all that it does.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Any, Any]) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        self._mode_key = torch._C._TorchDispatchModeKey.PROXY
        self.module = module
        self.refs: dict[int, Ref] = {}
        self.kept: list[Any] = []
        self.sources: list[Source] = []
        self.ops: list[Op] = []
        self.stack: list[tuple[str, str]] = []
        self.count = 0
        self.state: dict[str, Tensor] = module_state(module)
        buffers = {id(b): n for n, b in module.named_buffers(remove_duplicate=False)}
        for name, parameter in module.named_parameters():
            self._source("parameter", name, parameter, None)
        self.named = {key: name for key, name in buffers.items() if key not in self.refs}
        self.buffers = {id(b): b for b in module.buffers()}
        for i, tensor in enumerate(t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)):
            if id(tensor) not in self.refs:
                self._source("input", f"input_{i}", tensor, tensor.clone())

    def __enter__(self) -> Any:
        return TorchDispatchMode.__enter__(self)

    def __exit__(self, *error: Any) -> Any:
        return TorchDispatchMode.__exit__(self, *error)

    def inside_modules(self) -> Any:
        """Hooks that note which module is running."""
        return _Hooks(self)

    # ------------------------------------------------------------ recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known_args, known_kwargs = pytree.tree_map_only(Tensor, self._ref, (tuple(args), kwargs))
        out = func(*args, **kwargs)
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(out)):
            if func._schema.name.split("::")[1] in _READS | {"_local_scalar_dense"}:
                self.read(func, args)
            return out
        many = isinstance(out, (tuple, list))
        ref = self._new()
        parts = list(out) if many else [out]
        shapes = tuple(_shape(part) for part in parts)
        self.ops.append(Op(_name(func), func, known_args, known_kwargs, ref, shapes, many,
                           func._schema.is_mutable, _where(),
                           self.stack[-1][0] if self.stack else "", tuple(self.stack),
                           dtypes_of(parts)))
        if many:
            self._parts(ref, parts, shapes)
        else:
            self._know(out, ref)
        return out

    def read(self, func: Any, args: Any) -> None:
        """Python looks at values: what follows may depend on them."""
        known = pytree.tree_map_only(Tensor, self._ref, tuple(args))
        if refs := tuple(leaf for leaf in pytree.tree_leaves(known) if isinstance(leaf, Ref)):
            self.ops.append(Op(VALUE_READ, func, refs, {}, self._new(), (None,), where=_where(),
                               module=self.stack[-1][0] if self.stack else ""))

    def _parts(self, whole: Ref, parts: list[Any], shapes: tuple[Shape | None, ...]) -> None:
        import operator

        for i, part in enumerate(parts):
            if isinstance(part, Tensor):
                ref = self._new()
                self.ops.append(Op("getitem", operator.getitem, (whole, i), {}, ref, (shapes[i],),
                                   dtypes=(part.dtype,)))
                self._know(part, ref)

    def _new(self) -> Ref:
        self.count += 1
        return Ref(self.count - 1)

    def _know(self, tensor: Tensor, ref: Ref) -> None:
        self.refs[id(tensor)] = ref
        self.kept.append(tensor)

    def _ref(self, tensor: Tensor) -> Ref:
        """The value that this tensor is; one that nobody made is a buffer or a constant."""
        if id(tensor) not in self.refs:
            name = self.named.get(id(tensor))
            kind = "constant" if name is None else "buffer"
            self._source(kind, name or f"constant_{self.count}", tensor, tensor.detach().clone())
        return self.refs[id(tensor)]

    def _source(self, kind: str, name: str, tensor: Tensor, value: Tensor | None) -> None:
        ref = self._new()
        self._know(tensor, ref)
        persistent = kind == "parameter" or name in self.state
        self.sources.append(Source(ref, kind, name, tuple(tensor.shape), tensor.dtype, value,
                                   persistent))

    # ------------------------------------------------------------ result

    def program(self, output: Any) -> Program:
        """What was recorded, with the tensors of the output."""
        leaves = [leaf for leaf in _leaves(output) if isinstance(leaf, Tensor)]
        refs = [self._ref(leaf) for leaf in leaves]
        tensors = {name: (tuple(t.shape), t.dtype) for name, t in self.state.items()
                   if t.is_floating_point()}
        aliases = {a: o for a, o in alias_owners(self.module).items() if a in tensors}
        outputs = tuple((f"output {i}", ref) for i, ref in enumerate(refs))
        return Program(tuple(self.sources), tuple(self.ops), outputs, tensors, aliases,
                       "dispatch", {name: self.state[name].detach() for name in tensors})


class _Reads(TorchFunctionMode):
    """Sees the ways in which Python gets at values without an operation."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _READS:
            self.recorder.read(func, args)
        return func(*args, **(kwargs or {}))


class _Hooks:
    """While open, each module of the recorder notes that it is entered and left."""

    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for name, part in self.recorder.module.named_modules():
            cls = type(part)
            entry = (name, f"{cls.__module__}.{cls.__qualname__}")
            self.handles.append(part.register_forward_pre_hook(
                lambda *_, entry=entry: self.recorder.stack.append(entry)))
            self.handles.append(part.register_forward_hook(
                lambda *_: self.recorder.stack.pop() and None, always_call=True))

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def _leaves(tree: Any) -> list[Any]:
    """Leaves of an output; objects with attributes instead of items are looked into."""
    found = []
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor) or not hasattr(leaf, "__dict__"):
            found.append(leaf)
        else:
            found += pytree.tree_leaves(dict(vars(leaf)))
    return found


def _shape(value: Any) -> Shape | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _name(func: Any) -> str:
    return f"{func.namespace}.{func._schema.name.split('::')[1]}.{func._overloadname}"


def _where() -> str:
    """The innermost frame outside torch and this file."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if "/torch/" not in path and path != __file__:
            return f"{path.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
