"""How a file stores the tensors of a module: under other names, split, or fused.

The space of a network is a space over the module's tensors. Where a file holds the same tensor
under another name, the file's name is used. Where it holds the same numbers in another cut (one
tensor per expert, q, k and v apart), the file is seen through a view that puts the module's tensors
together, and what is changed there is taken apart again before it is written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.assembled import Assembled
from metanet.checkpoint.info import TensorInfo
from metanet.errors import SpaceMismatch
from metanet.trace.archs.header import Header, Shape, quoted

Convert = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
_LONGEST_NAME = 1000
FAILURES = (RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError)
"""What a conversion raises on tensors that it was not made for."""
_LEAVES = (
    (re.compile(r"(^|\.)gamma$"), r"\1weight"), (re.compile(r"(^|\.)beta$"), r"\1bias"),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
    (re.compile(r"\.parametrizations\.weight\.original0$"), ".weight_g"),
    (re.compile(r"\.parametrizations\.weight\.original1$"), ".weight_v"),
)
"""Last parts of names that say the same: TensorFlow's norms, the two weight norms of torch."""
_APART = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("to_q", "to_k", "to_v"),
          ("q", "k", "v"))


@dataclass(frozen=True)
class Part:
    """Tensors of a module and the tensors of a file with the same numbers in another cut.

    ``gather`` makes ``names`` of ``stored``, ``scatter`` undoes it; both only move numbers.
    """

    names: tuple[str, ...]
    stored: tuple[str, ...]
    gather: Convert
    scatter: Convert

    def undone(self, whole: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of the file, which give ``whole`` again bit for bit.

        Raises:
            SpaceMismatch: there are none.
        """
        apart = self.scatter(whole)
        again = self.gather(apart) if apart.keys() == set(self.stored) else {}
        if not all(name in again and _same(whole[name], again[name]) for name in self.names):
            raise SpaceMismatch(
                f"{quoted(self.names[0])} cannot be written back as the {len(self.stored)} "
                f"tensors of the file ({quoted(self.stored[0])} …); write it as it is, with "
                "save_pretrained of transformers")
        return apart


@dataclass(frozen=True)
class Storage:
    """Where a module's tensors are in a file; the empty one says that all names are the same.

    Attributes:
        renamed: the module's name → the file's, for tensors that differ in their name only.
        parts: tensors that have to be put together.
        unread: tensors of the file that the module does not read.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    unread: tuple[str, ...] = ()

    def seen(self, name: str) -> str:
        """The name of a module's tensor in the view, and so in the space."""
        return self.renamed.get(name, name)

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with the tensors of the module; itself where nothing is put together."""
        if not self.parts:
            return checkpoint
        taken = {name for part in self.parts for name in part.stored}
        kept = [name for name in checkpoint.names if name not in taken]
        owner = {name: part for part in self.parts for name in part.names}

        def read(name: str) -> Tensor:
            part = owner[name]
            return part.gather({key: checkpoint.view(key) for key in part.stored})[name]

        return Assembled(checkpoint, kept, self._made(checkpoint), read)

    def moved(self, checkpoint: Checkpoint, act: Callable[[str, Tensor], Tensor]) -> Checkpoint:
        """The file with every tensor of the view moved by ``act``, read when asked for.

        Args:
            checkpoint: as it is stored.
            act: name in the view and tensor → tensor of the same shape and dtype.
        """
        owner = {name: part for part in self.parts for name in part.stored}
        last: list[tuple[Part, Mapping[str, Tensor]]] = []

        def read(name: str) -> Tensor:
            part = owner.get(name)
            if part is None:
                return act(name, checkpoint.view(name)).contiguous()
            if not last or last[0][0] is not part:  # its tensors are asked for one by one
                stored = {key: checkpoint.view(key) for key in part.stored}
                whole = part.gather(stored)
                last[:] = [(part, part.undone({n: act(n, whole[n]) for n in part.names}))]
            return last[0][1][name].contiguous()

        return Assembled(checkpoint, (), {n: checkpoint.info(n) for n in checkpoint.names}, read)

    def _made(self, checkpoint: Checkpoint) -> dict[str, TensorInfo]:
        made = {}
        for part in self.parts:
            dtypes = {checkpoint.dtype(name) for name in part.stored}
            if len(dtypes) > 1:
                raise SpaceMismatch(
                    f"{quoted(part.stored[0])} and the {len(part.stored) - 1} tensors that belong "
                    f"to it have different dtypes ({', '.join(sorted(dtypes))}): they cannot be "
                    "seen as one tensor; convert the file to one dtype")
            whole = part.gather({name: _meta(checkpoint.shape(name)) for name in part.stored})
            dtype = dtypes.pop()
            made.update({name: TensorInfo(tuple(whole[name].shape), dtype) for name in part.names})
        return made

    def restore(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the view's names → tensors by the file's names, bit for bit.

        Raises:
            SpaceMismatch: a part cannot be taken apart again.
        """
        out = dict(state)
        for part in self.parts:
            out |= part.undone({name: out.pop(name) for name in part.names})
        return out


def _meta(shape: Shape) -> Tensor:
    return torch.empty(shape, device="meta")


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(torch.uint8) if a.ndim else a,
                       b.contiguous().view(torch.uint8) if b.ndim else b)


class Binding:
    """Assigns the tensors of a file to those of a module, each once; nothing is guessed by shape.

    Args:
        module: with its state on any device.
        header: of the file.
    """

    def __init__(self, module: nn.Module, header: Header) -> None:
        self.module, self.header = module, header
        state = module.state_dict(keep_vars=True)
        self.shapes = {n: tuple(t.shape) for n, t in state.items() if isinstance(t, Tensor)}
        self.floating = {n for n, t in state.items()
                         if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())}
        self.given: dict[str, str] = {}
        self.parts: list[Part] = []
        self.unread: list[str] = []

    # ------------------------------------------------------------ assigning

    def assign(self, stored: str, name: str) -> None:
        """Say that ``stored`` holds ``name``; a second tensor for the same name is left over."""
        if name not in self.taken():
            self.given[stored] = name

    def join(self, part: Part) -> None:
        """Say that the tensors of a part belong together, if that can be undone."""
        if check(part, self.header, self.shapes):
            self.parts.append(part)

    def taken(self) -> set[str]:
        """Names of the module that are found."""
        return {*self.given.values(), *(name for part in self.parts for name in part.names)}

    def left(self) -> list[str]:
        """Names of the file that nothing was said about, and that are short enough to match."""
        return [name for name in self._unused() if len(name) <= _LONGEST_NAME]

    def _unused(self) -> list[str]:
        used = {*self.given, *self.unread, *(name for part in self.parts for name in part.stored)}
        return [name for name in self.header.shapes if name not in used]

    def by_names(self) -> None:
        """Equal names; then names that are equal but for a prefix or a customary last part."""
        for stored in self.left():
            if stored in self.shapes:
                self.assign(stored, stored)
        for change in _changes(self.left(), set(self.shapes) - self.taken()):
            for stored in self.left():
                for name in spellings(stored):
                    if change(name) in self.shapes:
                        self.assign(stored, change(name))

    def by_halves(self) -> None:
        """The packed rows of nn.MultiheadAttention, which are q, k and v by its documentation."""
        absent, here = set(self.shapes) - self.taken(), set(self.left())
        for leaf, packed in (("weight", "in_proj_weight"), ("bias", "in_proj_bias")):
            for name in [n for n in absent if n.endswith(packed)]:
                path = name.removesuffix(packed)
                owner = self.module.get_submodule(path.removesuffix("."))
                for apart in _APART if isinstance(owner, nn.MultiheadAttention) else ():
                    stored = tuple(f"{path}{one}.{leaf}" for one in apart)
                    if here.issuperset(stored):
                        self.join(packing((name,), stored))
            for name in [n for n in here if n.endswith(packed)]:
                path = name.removesuffix(packed)
                for apart in _APART:
                    names = tuple(f"{path}{one}.{leaf}" for one in apart)
                    if absent.issuperset(names):
                        self.join(packing(names, (name,)))

    # ------------------------------------------------------------ the result

    def storage(self, tied: Iterable[list[str]]) -> Storage | None:
        """All of it, or None where a tensor of either side is without a partner."""
        taken = self.taken()
        for names in tied:
            if not taken.intersection(names) and self.floating.intersection(names):
                return None
        wrong = [s for s, n in self.given.items() if self.header.shapes[s] != self.shapes[n]]
        if self._unused() or wrong:
            return None
        renamed = {name: stored for stored, name in self.given.items() if name != stored}
        if set(renamed.values()) & (set(self.shapes) - set(renamed)):
            return None
        return Storage(renamed, tuple(self.parts), tuple(self.unread))


def packing(names: tuple[str, ...], stored: tuple[str, ...]) -> Part:
    """Rows of several tensors one after the other in one; one side of the two is one tensor."""

    def move(one: tuple[str, ...], other: tuple[str, ...]) -> Convert:
        def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if len(other) == 1:
                return {other[0]: torch.cat([tensors[name] for name in one])}
            rows = tensors[one[0]].tensor_split(len(other))
            return {name: part.contiguous() for name, part in zip(other, rows, strict=True)}

        return convert

    return Part(names, stored, move(stored, names), move(names, stored))


def check(part: Part, header: Header, shapes: Mapping[str, Shape]) -> bool:
    """Whether a part gives the shapes that the module wants, and those of the file when undone."""
    try:
        whole = part.gather({name: _meta(header.shapes[name]) for name in part.stored})
        if {n: tuple(whole[n].shape) for n in whole} != {n: shapes.get(n) for n in part.names}:
            return False
        apart = part.scatter({name: _meta(shapes[name]) for name in part.names})
    except FAILURES:
        return False
    return ({n: tuple(apart[n].shape) for n in apart}
            == {n: header.shapes[n] for n in part.stored})


def spellings(name: str) -> Iterator[str]:
    """A name, and the names that customarily say the same."""
    yield name
    for pattern, other in _LEAVES:
        if pattern.search(name):
            yield pattern.sub(other, name)


def _changes(left: list[str], absent: set[str]) -> list[Callable[[str], str]]:
    """No change; the prefix that most names have too much; the one that most lack."""
    more = Counter(name[:i + 1] for stored in left for name in spellings(stored)
                   for i in _dots(name) if name[i + 1:] in absent)
    bare = {name for stored in left for name in spellings(stored)}
    less = Counter(name[:i + 1] for name in absent for i in _dots(name) if name[i + 1:] in bare)
    changes: list[Callable[[str], str]] = [lambda name: name]
    changes += [partial(_without, prefix) for prefix, _ in more.most_common(1)]
    changes += [partial(str.__add__, prefix) for prefix, _ in less.most_common(1)]
    return changes


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _dots(name: str) -> list[int]:
    return [i for i, letter in enumerate(name) if letter == "."]


def bind(module: nn.Module, header: Header, arch: str) -> Storage:
    """How a file stores a module's tensors.

    Raises:
        SpaceMismatch: a tensor has no partner, or another shape; the first such one is named.
    """
    from metanet.trace.archs.real import compare, tied_names

    try:
        compare(module, header, arch)
    except SpaceMismatch:
        binding = Binding(module, header)
        if hasattr(module, "base_model_prefix"):
            from metanet.trace.archs.hf_stored import convert

            convert(binding)
        binding.by_names()
        binding.by_halves()
        found = binding.storage(tied_names(module))
        if found is None:
            raise
        return found
    return Storage()
