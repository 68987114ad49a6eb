"""WeightBatch: N members of one space, in the factored view ``[N, *factors, c]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor

from metanet.errors import SpaceMismatch
from metanet.graph.pack import cast, compute_dtype, join, split
from metanet.symmetry import Block, GroupElement, WeightSpace
from metanet.symmetry.action import check, gather, passed_through, spread

StateDict: TypeAlias = Mapping[str, Tensor]


class HasStateDict(Protocol):
    """A Checkpoint, or a module."""

    def state_dict(self) -> Any:
        """Names and tensors."""


Source: TypeAlias = StateDict | HasStateDict
Member: TypeAlias = Source | Sequence[Source]


@dataclass(frozen=True)
class _Record:
    """What the factored view does not hold of one state dict: names, dtypes, other tensors."""

    names: tuple[str, ...]
    dtypes: Mapping[str, torch.dtype]
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class WeightBatch:
    """N members of one space, block by block.

    Args:
        space: the space of the members.
        blocks: block name → ``[N, *factors, c]``, one for every block, aliases once; N and c are
            the same everywhere.
        names: one name per member.

    Raises:
        SpaceMismatch: naming the first block that is missing, unknown or misshapen.
    """

    def __init__(self, space: WeightSpace, blocks: Mapping[str, Shaped[Tensor, "N *factors c"]],
                 names: Sequence[str] | None = None) -> None:
        self.space = space
        self.blocks = dict(blocks)
        self._records: tuple[tuple[_Record, ...], ...] | None = None
        _check_blocks(space, self.blocks)
        self.names = tuple(names) if names is not None else tuple(map(str, range(len(self))))
        if len(self.names) != len(self):
            raise SpaceMismatch(f"{len(self.names)} names for {len(self)} members")

    # ------------------------------------------------------------ there and back

    @classmethod
    def stack(cls, space: WeightSpace, members: Iterable[Member],
              names: Sequence[str] | None = None, *, dtype: torch.dtype | None = None
              ) -> WeightBatch:
        """Stack members.

        Args:
            space: a space that every member fits.
            members: state dicts, checkpoints or modules. A list or tuple of them is one member
                with several channels (weight, gradient, momentum); further channels may lack
                tensors (a running mean has no gradient), which then are zero.
            names: one per member; by default 0, 1, ….
            dtype: of the blocks. By default float64 where a tensor needs it, else float32; only
                a narrower one than that makes ``unstack`` inexact.

        Integer and boolean tensors that the space does not know are kept for ``unstack``.

        Raises:
            SpaceMismatch: for no member, an unknown float tensor, a missing or misshapen one.
        """
        rows = [_channels(space, member) for member in members]
        if not rows:
            raise SpaceMismatch("a batch needs at least one member")
        if len({len(row) for row in rows}) > 1:
            raise SpaceMismatch(f"members have {sorted({len(row) for row in rows})} channels; "
                                f"give every member equally many state dicts")
        dtype = dtype or _common_dtype(space, rows)
        blocks = {}
        for owner in space.tensors:
            value = _stack_tensor(space, owner, rows, dtype)
            blocks.update({k: v.contiguous() for k, v in split(space, owner, value, 1).items()})
        batch = cls(space, blocks, names)
        batch._records = tuple(tuple(_record(space, sd) for sd in row) for row in rows)
        return batch

    def unstack(self) -> list[Any]:
        """State dicts of the members, in their own key order and dtypes, bit for bit.

        Returns:
            One state dict per member; with several channels a tuple of state dicts per member.
        """
        tensors = {name: join(self.space, name, self.blocks, 1) for name in self.space.tensors}
        return [self._member(i, tensors) for i in range(len(self))]

    def _member(self, index: int, tensors: Mapping[str, Tensor]) -> Any:
        records = self._records[index] if self._records else (self._plain_record(),)
        # A layer may have changed the number of channels: the first record then serves them all.
        if len(records) != self.channels:
            records = (records[0],) * self.channels
        found = tuple(self._state_dict(record, tensors, index, channel)
                      for channel, record in enumerate(records))
        return found[0] if len(found) == 1 else found

    def _state_dict(self, record: _Record, tensors: Mapping[str, Tensor], index: int,
                    channel: int) -> dict[str, Tensor]:
        done: dict[str, Tensor] = {}
        out = {}
        for name in record.names:
            if name in record.extras:
                out[name] = record.extras[name]
                continue
            owner = self.space.owner(name)
            if owner not in done:
                value = tensors[owner][index, ..., channel].to(record.dtypes[owner])
                done[owner] = value.clone(memory_format=torch.contiguous_format)
            out[name] = done[owner]
        return out

    def _plain_record(self) -> _Record:
        names = (*self.space.tensors, *self.space.aliases)
        return _Record(names, dict.fromkeys(self.space.tensors, self.dtype))

    # ------------------------------------------------------------ shape

    def __len__(self) -> int:
        return next(iter(self.blocks.values())).shape[0]

    @property
    def channels(self) -> int:
        """Channels per number, c."""
        return next(iter(self.blocks.values())).shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the blocks."""
        return next(iter(self.blocks.values())).dtype

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return next(iter(self.blocks.values())).device

    def __repr__(self) -> str:
        return (f"WeightBatch({len(self)} members, {self.channels} channels, "
                f"{len(self.blocks)} blocks, {self.dtype}, {self.space!r})")

    # ------------------------------------------------------------ new batches

    def with_blocks(self, blocks: Mapping[str, Tensor]) -> WeightBatch:
        """The same members with other blocks of the right shapes (not checked: layers call it)."""
        batch = object.__new__(WeightBatch)
        batch.space, batch.names, batch._records = self.space, self.names, self._records
        batch.blocks = dict(blocks)
        return batch

    def map(self, function: Callable[..., Tensor], *others: WeightBatch) -> WeightBatch:
        """``function(block, *blocks of the others)``, block by block."""
        return self.with_blocks({
            name: function(block, *(other.blocks[name] for other in others))
            for name, block in self.blocks.items()
        })

    def to(self, *args: Any, **kwargs: Any) -> WeightBatch:
        """Another dtype or device, as ``Tensor.to``; ``unstack`` still gives the first dtypes."""
        return self.map(lambda block: block.to(*args, **kwargs))

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> WeightBatch:
        """Some of the members: a slice, a list or an integer tensor; always a batch."""
        places = torch.arange(len(self))[index if isinstance(index, slice) else
                                         torch.as_tensor(index, device="cpu").reshape(-1)]
        rows = places.tolist()
        here = places.to(self.device)
        batch = self.map(lambda block: block.index_select(0, here))
        batch.names = tuple(self.names[i] for i in rows)
        batch._records = tuple(self._records[i] for i in rows) if self._records else None
        return batch

    @staticmethod
    def cat(batches: Sequence[WeightBatch]) -> WeightBatch:
        """Members of several batches of one space, one behind the other."""
        first = batches[0]
        if any(batch.space != first.space for batch in batches):
            raise SpaceMismatch("batches of different spaces cannot be joined")
        batch = first.with_blocks({
            name: torch.cat([b.blocks[name] for b in batches]) for name in first.blocks})
        batch.names = tuple(name for b in batches for name in b.names)
        known = [b._records for b in batches]
        batch._records = None if None in known else tuple(r for rs in known for r in rs or ())
        return batch

    def apply(self, element: GroupElement) -> WeightBatch:
        """Every member acted on; equal to stacking the acted-on state dicts.

        All channels move as the weights do. Exact for permutations.

        Raises:
            SpaceMismatch: if the element belongs to another space.
        """
        if element.space is not self.space and element.space != self.space:
            raise SpaceMismatch("the element belongs to another space than the batch")
        # Equal spaces may label their groups differently: the element's own digits know its tables.
        layout = [block for name in self.space.tensors for block in element.space.blocks(name)]
        return self.with_blocks(
            {block.name: _act(element, block, self.blocks[block.name]) for block in layout})


def _act(element: GroupElement, block: Block, value: Tensor) -> Tensor:
    value = gather(value, block, element.tables, 1)
    for position, digit in enumerate(block.digits):
        if digit.label in element.values and digit.exponent:
            scale = torch.from_numpy(element.values[digit.label] ** digit.exponent)
            places = [1 + i for i in (*digit.bases, position)]
            value = value * spread(scale, places, value).to(value)
    return value


def _check_blocks(space: WeightSpace, blocks: Mapping[str, Tensor]) -> None:
    if not space.tensors:
        raise SpaceMismatch("the space has no tensor, so there is nothing to batch")
    layout = {b.name: b.shape for name in space.tensors for b in space.blocks(name)}
    for name in (*layout, *blocks):
        if name not in blocks:
            raise SpaceMismatch(f"block {name!r} of the space is missing from the batch")
        if name not in layout:
            raise SpaceMismatch(f"the space has no block {name!r}")
    first = blocks[next(iter(layout))]
    n, c = first.shape[0], first.shape[-1]
    for name, shape in layout.items():
        if tuple(blocks[name].shape) != (n, *shape, c):
            raise SpaceMismatch(f"block {name!r}: shape {tuple(blocks[name].shape)}, expected "
                                f"{(n, *shape, c)} ([N, *factors, c])")


def _channels(space: WeightSpace, member: Member) -> list[dict[str, Tensor]]:
    sources: Sequence[Any] = member if isinstance(member, (list, tuple)) else [member]
    if not sources:
        raise SpaceMismatch("a member needs at least one state dict")
    found = [dict(s if isinstance(s, Mapping) else s.state_dict()) for s in sources]
    check(space, found[0])
    for further in found[1:]:
        known = {space.owner(k) for k in further if k in space.tensors or k in space.aliases}
        absent = [k for k in found[0]
                  if (k in space.tensors or k in space.aliases) and space.owner(k) not in known]
        check(space, {**{k: torch.zeros_like(found[0][k]) for k in absent}, **further})
    return found


def _values(space: WeightSpace, state_dict: StateDict) -> dict[str, Tensor]:
    """Owner → its tensor, under whichever of its names it stands."""
    return {space.owner(k): v for k, v in state_dict.items()
            if k in space.tensors or k in space.aliases}


def _common_dtype(space: WeightSpace, rows: Sequence[Sequence[StateDict]]) -> torch.dtype:
    dtypes = {compute_dtype(_values(space, sd)) for row in rows for sd in row}
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _stack_tensor(space: WeightSpace, owner: str, rows: Sequence[Sequence[StateDict]],
                  dtype: torch.dtype) -> Shaped[Tensor, "N *shape c"]:
    names = (owner, *(a for a, o in space.aliases.items() if o == owner))
    columns = []
    for channel in range(len(rows[0])):
        column = []
        for row in rows:
            found = next((row[channel][n] for n in names if n in row[channel]), None)
            like = next(row[0][n] for n in names if n in row[0])
            column.append(torch.zeros_like(like, dtype=dtype) if found is None
                          else cast(owner, found, dtype))
        columns.append(torch.stack(column))
    return columns[0].unsqueeze(-1) if len(columns) == 1 else torch.stack(columns, -1)


def _record(space: WeightSpace, state_dict: StateDict) -> _Record:
    dtypes = {owner: value.dtype for owner, value in _values(space, state_dict).items()}
    extras = {name: state_dict[name] for name in passed_through(space, state_dict)}
    return _Record(tuple(state_dict), dtypes, extras)
