"""The structure of a torch pickle without unpickling it.

A pickle is a program. This interpreter knows the opcodes that plain data and tensors need, builds
dicts, lists, scalars and ``TensorInfo``-like records, calls nothing and imports nothing. Every
other global is noted by name, so that a refusal can say which code the file wanted to run.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from metanet.checkpoint.info import Opaque

# Less than two seconds at worst; a tensor takes about 30 opcodes.
MAX_OPS = 600_000
HIGHEST_PROTOCOL = 5

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}
_TENSOR_TYPES = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter",
                           "torch.nn.parameter.Buffer"})
# Names that may stand in a file without anything being done with them.
_INERT = _TENSOR_TYPES | {"torch.serialization._get_layout", "torch.strided"}
_SPECIAL = {
    "_rebuild_qtensor": "a quantised tensor", "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor", "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without data (meta device)",
    "_rebuild_wrapper_subclass": "a tensor subclass",
    "_rebuild_device_tensor_from_numpy": "a tensor of a foreign device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of a foreign device",
}


class Stream(Protocol):
    """What pickletools reads from."""

    def read(self, size: int = ..., /) -> bytes:
        """At most ``size`` bytes."""
        ...

    def readline(self) -> bytes:
        """Bytes up to and including the next newline."""
        ...

    def tell(self) -> int:
        """The current position."""
        ...


@dataclass(frozen=True)
class Storage:
    """A storage as a pickle names it. ``key`` within its file; ``numel`` as claimed.

    ``start`` elements into the storage ``key`` for the views of old files.
    """

    dtype: str
    key: str
    numel: int
    start: int = 0
    length: int = -1


@dataclass(frozen=True)
class View:
    """A tensor as a pickle describes it; nothing about it has been checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


class Refused(ValueError):
    """The pickle needs something that plain data and tensors do not."""


class _Mark:
    """Stack marker."""


def _ints(value: Any, what: str) -> tuple[int, ...]:
    items = tuple(value) if isinstance(value, tuple | list) else ()
    if not isinstance(value, tuple | list) or not all(type(i) is int and i >= 0 for i in items):
        raise Refused(f"a tensor has a malformed {what}")
    return items


def _view(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None = None) -> View:
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise Refused("a tensor without a proper storage or offset")
    sizes, steps = _ints(shape, "shape"), _ints(stride, "stride")
    if len(sizes) != len(steps):
        raise Refused("a tensor whose shape and stride differ in length")
    return View(storage, offset, sizes, steps, dtype or storage.dtype)


def _dtype(value: Any) -> str:
    name = value.name if isinstance(value, Opaque) else ""
    if not name.startswith("torch."):
        raise Refused("a tensor with a malformed dtype")
    return name.removeprefix("torch.")


def _storage(pid: Any) -> Any:
    """Persistent id -> Storage. Zip: 4 items after the word; legacy: view metadata as well."""
    if not isinstance(pid, tuple) or not pid:
        raise Refused("a persistent id that is no tuple")
    if pid[0] == "module":
        name = pid[1].name if len(pid) > 1 and isinstance(pid[1], Opaque) else "a class"
        raise Refused(f"a whole module was pickled ({name})")
    if pid[0] != "storage" or len(pid) not in (5, 6):
        raise Refused("a persistent id that is no storage")
    kind, key, numel = pid[1], pid[2], pid[4]
    name = kind.name.rpartition(".")[2] if isinstance(kind, Opaque) else ""
    if name not in _STORAGES:
        raise Refused(f"a storage of the type {name or '?'} (quantised or unknown)")
    if type(numel) is not int or numel < 0 or not isinstance(key, str | int):
        raise Refused("a malformed storage")
    view = pid[5] if len(pid) == 6 else None
    if view is None:
        return Storage(_STORAGES[name], str(key), numel)
    if not (isinstance(view, tuple) and len(view) == 3):
        raise Refused("a malformed storage view")
    start, length = _ints(view[1:], "storage view")
    return Storage(_STORAGES[name], str(key), numel, start, length)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 spells bytes."""
    if not isinstance(text, str) or str(encoding).replace("-", "") not in ("latin1", "iso88591"):
        raise Refused("bytes in an unusual encoding")
    return text.encode("latin-1")


def _typed(func: Any, kind: Any, args: Any, _state: Any) -> Any:
    """``_rebuild_from_type_v2``: a tensor with attributes, of an ordinary type."""
    name = func.name if isinstance(func, Opaque) else ""
    if not isinstance(kind, Opaque) or kind.name not in _TENSOR_TYPES or name not in CALLS:
        raise Refused(f"a tensor subclass ({kind})")
    return CALLS[name](*args)


def _is_view(value: Any) -> View:
    if not isinstance(value, View):
        raise Refused("a parameter that is no tensor")
    return value


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): dict(pairs),
    "collections.Counter": lambda pairs=(): dict(pairs),
    "torch._utils._rebuild_tensor": lambda s, o, shape, stride: _view(s, o, shape, stride),
    "torch._utils._rebuild_tensor_v2":
        lambda s, o, shape, stride, _grad, _hooks, _meta=None: _view(s, o, shape, stride),
    "torch._utils._rebuild_tensor_v3":
        lambda s, o, shape, stride, _grad, _hooks, dtype, _meta=None:
            _view(s, o, shape, stride, _dtype(dtype)),
    "torch._utils._rebuild_parameter": lambda data, _grad, _hooks: _is_view(data),
    "torch._utils._rebuild_parameter_with_state":
        lambda data, _grad, _hooks, _state: _is_view(data),
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": lambda *args: Opaque("device " + ":".join(map(str, args))),
    "torch.serialization._get_layout": lambda name: Opaque(str(name)),
    "_codecs.encode": _encode,
    "builtins.set": lambda items=(): list(items),
    "builtins.frozenset": lambda items=(): list(items),
    "builtins.complex": lambda real=0.0, imag=0.0: complex(real, imag),
}
_PY2 = {"__builtin__": "builtins"}


_PLAIN_TORCH = re.compile(
    r"torch\.((storage\.)?\w+Storage|b?float\d+(_e\w+)?|u?int\d+|bool|complex\d+"
    r"|half|float|double|long|int|short)")


class Interpreter:
    """Runs one pickle symbolically. ``unknown`` collects the globals that need code."""

    def __init__(self, stream: Stream, max_ops: int = MAX_OPS) -> None:
        self.stream, self.left = stream, max_ops
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.unknown: list[str] = []
        self.protocol = 0

    def run(self) -> Any:
        """The value of the next pickle of the stream. Raises Refused or any parser's error."""
        self.stack, self.memo = [], {}
        for opcode, arg, _ in self._ops():
            name = opcode.name
            if name in _LITERAL:
                self.stack.append(arg)
            elif name == "STOP":
                return self.stack.pop()
            else:
                _HANDLERS.get(name, Interpreter._refuse)(self, arg)
        raise Refused("a pickle without an end")

    def _ops(self) -> Iterator[tuple[Any, Any, Any]]:
        for item in pickletools.genops(self.stream):  # type: ignore[arg-type]
            self.left -= 1
            if self.left < 0:
                raise Refused(f"more than {MAX_OPS} steps")
            yield item

    def _check_protocol(self, protocol: int) -> None:
        if not 0 <= protocol <= HIGHEST_PROTOCOL:
            raise Refused(f"an unknown protocol ({protocol})")
        self.protocol = max(self.protocol, protocol)

    def _refuse(self, _arg: Any) -> None:
        raise Refused("an opcode that torch never writes")

    def _popmark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _Mark:
                items = self.stack[index + 1:]
                del self.stack[index:]
                return items
        raise Refused("a mark is missing")

    def _find(self, module: str, name: str) -> None:
        full = f"{_PY2.get(module, module)}.{name}"
        special = _SPECIAL.get(name) if module == "torch._utils" else None
        if special is not None:
            raise Refused(special)
        known = full in CALLS or full in _INERT or _PLAIN_TORCH.fullmatch(full)
        if not known and full not in self.unknown:
            self.unknown.append(full)
        self.stack.append(Opaque(full))

    def _on_global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self._find(module, name)

    def _on_stack_global(self, _arg: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("a global without a name")
        self._find(module, name)

    def _call(self, func: Any, args: Any) -> Any:
        if not isinstance(func, Opaque) or not isinstance(args, tuple):
            raise Refused("a call of something that is no function")
        if func.name in CALLS:
            return CALLS[func.name](*args)
        if func.name in self.unknown:
            return Opaque(func.name)
        raise Refused(f"a call of {func.name}")

    def _on_reduce(self, _arg: Any) -> None:
        args = self.stack.pop()
        self.stack.append(self._call(self.stack.pop(), args))

    def _on_newobj_ex(self, _arg: Any) -> None:
        self.stack.pop()
        self._on_reduce(None)

    def _on_build(self, _arg: Any) -> None:
        """State of an OrderedDict or of an unknown object is dropped; of a tensor, refused."""
        self.stack.pop()
        if isinstance(self.stack[-1], View | Storage):
            raise Refused("a tensor whose state is set anew")

    def _on_inst(self, arg: str) -> None:
        items = self._popmark()
        self._on_global(arg)
        self.stack.append(self._call(self.stack.pop(), tuple(items)))

    def _on_obj(self, _arg: Any) -> None:
        items = self._popmark()
        self.stack.append(self._call(items[0], tuple(items[1:])))

    def _on_setitems(self, _arg: Any) -> None:
        items = self._popmark()
        self._fill(items)

    def _on_setitem(self, _arg: Any) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._fill(items)

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict) and len(items) % 2 == 0:
            target.update(zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Opaque):
            raise Refused("items set on something that is no dict")

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise Refused("items appended to something that is no list")

    def _on_put(self, arg: int) -> None:
        self.memo[arg] = self.stack[-1]

    def _on_tuple(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) != size or _Mark in items:
            raise Refused("a tuple without its items")
        del self.stack[-size:]
        self.stack.append(items)


def _push(make: Callable[[Interpreter], Any]) -> Callable[[Interpreter, Any], None]:
    return lambda machine, _arg: machine.stack.append(make(machine))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


_LITERAL = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})
_HANDLERS: dict[str, Callable[[Interpreter, Any], None]] = {
    "PROTO": lambda m, a: m._check_protocol(a),
    "FRAME": lambda m, a: None,
    "MARK": _push(lambda m: _Mark),
    "NONE": _push(lambda m: None),
    "NEWTRUE": _push(lambda m: True),
    "NEWFALSE": _push(lambda m: False),
    "EMPTY_DICT": _push(lambda m: {}),
    "EMPTY_LIST": _push(lambda m: []),
    "EMPTY_TUPLE": _push(lambda m: ()),
    "EMPTY_SET": _push(lambda m: []),
    "DUP": _push(lambda m: m.stack[-1]),
    "TUPLE": _push(lambda m: tuple(m._popmark())),
    "LIST": _push(lambda m: m._popmark()),
    "FROZENSET": _push(lambda m: m._popmark()),
    "DICT": _push(lambda m: _pairs(m._popmark())),
    "TUPLE1": lambda m, a: m._on_tuple(1),
    "TUPLE2": lambda m, a: m._on_tuple(2),
    "TUPLE3": lambda m, a: m._on_tuple(3),
    "POP": lambda m, a: m.stack.__delitem__(-1),
    "POP_MARK": lambda m, a: m._popmark().clear(),
    "APPEND": lambda m, a: m._extend([m.stack.pop()]),
    "APPENDS": lambda m, a: m._extend(m._popmark()),
    "ADDITEMS": lambda m, a: m._extend(m._popmark()),
    "SETITEM": Interpreter._on_setitem,
    "SETITEMS": Interpreter._on_setitems,
    "PUT": Interpreter._on_put,
    "BINPUT": Interpreter._on_put,
    "LONG_BINPUT": Interpreter._on_put,
    "MEMOIZE": lambda m, a: m._on_put(len(m.memo)),
    "GET": lambda m, a: m.stack.append(m.memo[a]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "BINPERSID": lambda m, a: m.stack.append(_storage(m.stack.pop())),
    "GLOBAL": Interpreter._on_global,
    "STACK_GLOBAL": Interpreter._on_stack_global,
    "REDUCE": Interpreter._on_reduce,
    "NEWOBJ": Interpreter._on_reduce,
    "NEWOBJ_EX": Interpreter._on_newobj_ex,
    "BUILD": Interpreter._on_build,
    "INST": Interpreter._on_inst,
    "OBJ": Interpreter._on_obj,
}
