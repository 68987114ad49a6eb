"""Front end: ``torch.export`` in its training form (operations kept whole, functional enough).

The module is copied without its data: parameters become fake CPU tensors, buffers stay real, and
the user's module is never touched.
"""

from __future__ import annotations

import copy
import operator
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import _pytree as pytree

from metanet.checkpoint.names import natural_key
from metanet.errors import TraceError
from metanet.trace.program import Op, Program, Ref, Shape, Source

_INLINED = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
_KINDS = {"PARAMETER": "parameter", "BUFFER": "buffer", "CONSTANT_TENSOR": "constant"}


def export_program(module: nn.Module, example_inputs: Any) -> Program:
    """Record one forward pass of ``module`` in eval mode.

    ``example_inputs``: a tensor, a tuple of arguments, a mapping of keyword arguments, or a pair
    (tuple, mapping). Raises ``TraceError`` where torch.export refuses.
    """
    args, kwargs = split_inputs(example_inputs)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shadow = _shadow(module, mode)
    move = _to_cpu if any(p.device.type != "cpu" for p in module.parameters()) else _same
    args, kwargs = pytree.tree_map_only(Tensor, move, (args, kwargs))
    fake = pytree.tree_map_only(Tensor, mode.from_tensor, (args, kwargs))
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(shadow, fake[0], fake[1], strict=False)
        except Exception as error:
            raise TraceError(
                f"torch.export cannot record {type(module).__name__}: "
                f"{_first_line(error)}. Check that the example inputs fit the forward pass and "
                "that it has no control flow that depends on values."
            ) from error
    try:
        return _Recorder(module, exported, (args, kwargs)).program()
    except (torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode,
            DataDependentOutputException) as error:
        raise TraceError(
            f"{type(module).__name__} makes tensors whose sizes depend on values "
            f"({_first_line(error)}); such an operation has no fixed axes to reason about"
        ) from error


def split_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from any accepted form of example inputs."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if not isinstance(example_inputs, (tuple, list)):
        return (example_inputs,), {}
    pair = tuple(example_inputs)
    if len(pair) == 2 and isinstance(pair[0], tuple) and isinstance(pair[1], dict):
        return pair[0], dict(pair[1])
    return pair, {}


def alias_owners(module: nn.Module) -> dict[str, str]:
    """Tied name → owner, by identity; the owner is the first name in natural order."""
    names: dict[int, list[str]] = {}
    for name, tensor in module_state(module).items():
        names.setdefault(id(tensor), []).append(name)
    classes = (sorted(group, key=natural_key) for group in names.values() if len(group) > 1)
    return {alias: group[0] for group in classes for alias in group[1:]}


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and persistent buffers by name, tied names included."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    persistent = module.state_dict(keep_vars=True)
    named |= {
        name: tensor
        for name, tensor in module.named_buffers(remove_duplicate=False)
        if name in persistent
    }
    return named


def _shadow(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy in eval mode that shares no tensor data: fake parameters, cloned buffers."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        with mode:
            fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
        memo[id(parameter)] = nn.Parameter(fake, requires_grad=fake.is_floating_point())
    for name, buffer in module.named_buffers():
        if buffer.device.type == "meta":
            raise TraceError(
                f"buffer '{name}' is on the meta device and has no values. Buffers decide which "
                "axes are free: build the module with parameters on meta and buffers on the CPU."
            )
        memo[id(buffer)] = buffer.detach().cpu().clone()
    try:
        shadow = copy.deepcopy(module, memo)
    except Exception as error:
        raise TraceError(
            f"{type(module).__name__} cannot be copied: {_first_line(error)}. Remove attributes "
            "that deepcopy refuses (locks, open files, non-leaf tensors)."
        ) from error
    for part in shadow.modules():
        part.training = False
    return shadow


class _Recorder:
    """Turns an exported program into our own stream (graphs of wrappers are inlined)."""

    def __init__(self, module: nn.Module, exported: Any, inputs: tuple[Any, Any]) -> None:
        self.module = module
        self.exported = exported
        self.examples = list(pytree.tree_leaves(inputs))
        self.refs: dict[Any, Any] = {}
        self.ops: list[Op] = []
        self.count = 0

    def program(self) -> Program:
        graph = self.exported.graph
        sources = self._sources(graph)
        self._record(self.exported.graph_module)
        output = next(node for node in graph.nodes if node.op == "output")
        found = [self.refs[n] for n in pytree.tree_leaves(output.args) if n in self.refs]
        refs = [ref for ref in found if isinstance(ref, Ref)]
        tensors = {
            name: (tuple(tensor.shape), tensor.dtype)
            for name, tensor in module_state(self.module).items()
            if tensor.is_floating_point()
        }
        aliases = {a: o for a, o in alias_owners(self.module).items() if a in tensors}
        outputs = tuple((f"output {i}", ref) for i, ref in enumerate(refs))
        return Program(tuple(sources), tuple(self.ops), outputs, tensors, aliases)

    def _new(self) -> Ref:
        self.count += 1
        return Ref(self.count - 1)

    def _sources(self, graph: Any) -> list[Source]:
        signature = self.exported.graph_signature
        specs = {spec.arg.name: spec for spec in signature.input_specs}
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        examples = iter(self.examples)
        sources = []
        for node in (n for n in graph.nodes if n.op == "placeholder"):
            spec, val = specs[node.name], node.meta.get("val")
            kind = _KINDS.get(spec.kind.name, "input")
            value = next(examples, None) if kind == "input" else None
            if not isinstance(val, Tensor):
                self.refs[node] = value
                continue
            if kind == "buffer":
                value = buffers[spec.target].detach().cpu()
            elif kind == "constant":
                value = self.exported.constants[spec.target]
            name = spec.target if kind != "input" else node.name
            persistent = kind == "parameter" or bool(spec.persistent)
            ref = self.refs[node] = self._new()
            shape = tuple(int(n) for n in val.shape)
            sources.append(Source(ref, kind, name, shape, val.dtype, value, persistent))
        return sources

    def _record(self, graph_module: Any) -> None:
        for node in graph_module.graph.nodes:
            if node.op == "get_attr":
                self.refs[node] = _attribute(graph_module, node.target)
            elif node.op == "call_function":
                self._call(node)

    def _argument(self, tree: Any) -> Any:
        return torch.fx.node.map_arg(tree, lambda node: self.refs[node])

    def _call(self, node: Any) -> None:
        target = node.target
        position = _INLINED.get(getattr(target, "__name__", ""))
        if position is not None:
            self._inline(node, position)
            return
        args, kwargs = self._argument(node.args), self._argument(dict(node.kwargs))
        args = _plain(args)
        if target is operator.getitem and not isinstance(args[0], Ref):
            self.refs[node] = args[0][args[1]]
            return
        val = node.meta.get("val")
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(val)) and isinstance(
            val, (int, float, bool)
        ):
            self.refs[node] = val
            return
        ref = self.refs[node] = self._new()
        many = isinstance(val, (tuple, list))
        parts = val if many else (val,)
        shapes = tuple(_shape(v) for v in parts)
        inside = tuple(node.meta.get("nn_module_stack", {}).values())
        stack = node.meta.get("stack_trace") or ""
        self.ops.append(
            Op(
                _name(target),
                target,
                args,
                _plain(kwargs),
                ref,
                shapes,
                many,
                _mutates(target),
                _line(stack),
                inside[-1][0] if inside else "",
                tuple((path, str(kind)) for path, kind in inside),
                dtypes_of(parts),
            )
        )

    def _inline(self, node: Any, position: int) -> None:
        args = _plain(self._argument(node.args))
        inner, values = args[position], args[position + 1 :]
        holes = (n for n in inner.graph.nodes if n.op == "placeholder")
        self.refs.update(zip(holes, values, strict=True))
        self._record(inner)
        output = next(n for n in inner.graph.nodes if n.op == "output")
        self.refs[node] = self._argument(output.args[0])


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _plain(tree: Any) -> Any:
    """fx's immutable lists and dicts as plain ones; symbolic numbers as numbers."""
    if isinstance(tree, dict):
        return {key: _plain(part) for key, part in tree.items()}
    if isinstance(tree, slice):
        return tree
    if isinstance(tree, tuple):
        return tuple(_plain(part) for part in tree)
    if isinstance(tree, list):
        return [_plain(part) for part in tree]
    if isinstance(tree, torch.SymInt):
        return int(tree)
    return tree


def _shape(value: Any) -> Shape | None:
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else None


def dtypes_of(parts: Iterable[Any]) -> tuple[torch.dtype | None, ...]:
    """Types of the outputs of an operation; None where one is no tensor."""
    return tuple(part.dtype if isinstance(part, Tensor) else None for part in parts)


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
    return str(getattr(target, "__name__", target))


def _mutates(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _line(stack: str) -> str:
    """The innermost frame outside torch, ``file.py:12``."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack)
    own = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    return f"{own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _to_cpu(tensor: Tensor) -> Tensor:
    if tensor.device.type != "meta":
        return tensor.detach().cpu()
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _same(tensor: Tensor) -> Tensor:
    return tensor
