"""Reading a zoo from many processes at once: shards shared out over ranks and workers, resumable.

Every epoch is a list of steps, a step one batch per rank, all of them made from the seed, the epoch
and the number of ranks alone. So no member comes twice or is missed, every rank has equally many
batches (what distributed training needs), and a cursor is one number.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int64
from metanet.zoo import shard as shards
from metanet.zoo.batch import ZooBatch, read_places
from metanet.zoo.selection import Selection
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.layout import Layout
    from metanet.zoo.store import Zoo

    from metanet.symmetry import WeightSpace

Places = Int64[np.ndarray, " k"]
_STATE = 1  # version of the cursor


class ZooStream(IterableDataset[ZooBatch]):
    """Batches of a zoo for one rank of many; make one with :meth:`Zoo.stream`.

    Iterating goes on where it stopped: after the last batch of an epoch the next one begins.
    In one process iterate over it; with workers over :meth:`loader`, which keeps count.

    Args:
        zoo: the zoo.
        where: a condition or a Selection; all members by default.
        size: members per batch, at most (one more where the ranks come out even only so).
        columns: columns to hand out with each batch.
        seed: of the order; None keeps the order of the zoo.
        pool: shards whose members are mixed with one another.
        rank, world: this process and how many there are; by default as torch.distributed or
            torchrun say, else 0 of 1.

    Raises:
        ZooError: for sizes that make no sense, or fewer members than ranks.
    """

    def __init__(self, zoo: Zoo, where: str | Selection | None = None, size: int = 256, *,
                 columns: Sequence[str] = (), seed: int | None = 0, pool: int = 8,
                 rank: int | None = None, world: int | None = None) -> None:
        self.rank, self.world = _place(rank, world)
        if size < 1 or pool < 1:
            raise ZooError(f"size {size}, pool {pool}: both are at least 1")
        if not 0 <= self.rank < self.world:
            raise ZooError(f"rank {self.rank} of {self.world}: ranks count from 0 to world - 1")
        found = where if isinstance(where, Selection) else zoo.query(where)
        if len(found) < self.world:
            raise ZooError(f"{len(found)} members for {self.world} ranks: each needs one; use "
                           "fewer processes or choose more members")
        self.zoo, self.size, self.columns = zoo, size, tuple(columns)
        self.seed, self.pool = seed, pool
        self._found = found
        used = set(np.unique(shards.numbers(found.places)).tolist())
        rows = zoo.index.rows("SELECT shard, layout, members FROM shards ORDER BY shard")
        self._layout_of = {int(str(s)): str(key) for s, key, _ in rows if s in used}
        self._sizes = {int(str(s)): int(str(n)) for s, _, n in rows if s in used}
        self.fingerprint = self._fingerprint()
        self.epoch, self.position = 0, 0
        self._planned: tuple[int, list[list[Places]]] | None = None

    def _fingerprint(self) -> str:
        """Of everything that the order of the batches hangs on."""
        told = (self.size, self.pool, self.seed, self.world, list(self._layout_of.items()))
        digest = hashlib.sha256(repr(told).encode())
        digest.update(np.ascontiguousarray(self._found.places).data)
        return digest.hexdigest()[:16]

    # ------------------------------------------------------------ the plan

    def plan(self, epoch: int) -> list[list[Places]]:
        """Steps of an epoch: of each the places of one batch per rank."""
        if self._planned is None or self._planned[0] != epoch:
            rng = None if self.seed is None else np.random.default_rng([self.seed, epoch])
            self._planned = (epoch, self._plan(rng))
        return self._planned[1]

    def _plan(self, rng: np.random.Generator | None) -> list[list[Places]]:
        steps: list[list[Places]] = []
        loose: list[Places] = []
        for places in self._by_layout():
            ordered = self._mixed(places, rng)
            if len(ordered) < self.world:  # too few for a step of their own
                loose += _parts(ordered, -(-len(ordered) // self.size))
                continue
            rounds = -(-len(ordered) // (self.size * self.world))
            rounds = min(rounds, len(ordered) // self.world)
            parts = _parts(ordered, rounds * self.world)
            steps += [parts[i:i + self.world] for i in range(0, len(parts), self.world)]
        steps += _evened(loose, steps, self.world)
        if rng is not None:
            steps = [steps[i] for i in rng.permutation(len(steps))]
        return steps

    def _by_layout(self) -> list[Places]:
        """The places of each architecture: a batch has one."""
        numbers = shards.numbers(self._found.places)
        layouts = sorted(set(self._layout_of.values()))
        rank = {key: i for i, key in enumerate(layouts)}
        owner = np.array([rank[self._layout_of[int(n)]] for n in np.unique(numbers)])
        which = owner[np.searchsorted(np.unique(numbers), numbers)]
        return [self._found.places[which == i] for i in np.unique(which)]

    def _mixed(self, places: Places, rng: np.random.Generator | None) -> Places:
        """Shards in random order, ``pool`` of them at a time mixed: few files are open at once."""
        if rng is None:
            return places
        numbers = shards.numbers(places)
        order = rng.permutation(np.unique(numbers))
        by_shard = np.argsort(numbers, kind="stable")
        cuts = np.searchsorted(numbers[by_shard], np.unique(numbers))[1:]
        held = dict(zip(np.unique(numbers).tolist(), np.split(places[by_shard], cuts),
                        strict=True))
        pools = [order[i:i + self.pool] for i in range(0, len(order), self.pool)]
        return np.concatenate([
            rng.permutation(np.concatenate([held[int(n)] for n in pool])) for pool in pools])

    # ------------------------------------------------------------ iterating

    def __len__(self) -> int:
        """Batches of this rank in one epoch."""
        return len(self.plan(self.epoch))

    def __iter__(self) -> Iterator[ZooBatch]:
        """The rest of this epoch; in a worker, this worker's share of it."""
        info = get_worker_info()
        steps = self.plan(self.epoch)
        if info is not None:
            for at in range(self.position + info.id, len(steps), info.num_workers):
                yield self._batch(steps[at][self.rank])
            return
        for at in range(self.position, len(steps)):
            batch = self._batch(steps[at][self.rank])
            self._moved(at + 1, len(steps))
            yield batch

    def loader(self, workers: int = 0, **options: Any) -> Iterator[ZooBatch]:
        """The rest of this epoch, read ahead by worker processes, in the same order.

        Args:
            workers: processes; 0 reads in this one.
            options: of :class:`torch.utils.data.DataLoader`.
        """
        if workers < 1:
            yield from self
            return
        total, at = len(self), self.position
        for batch in DataLoader(self, batch_size=None, num_workers=workers, **options):
            at += 1
            self._moved(at, total)
            yield batch

    def _moved(self, position: int, total: int) -> None:
        self.position = position
        if position == total:
            self.epoch, self.position = self.epoch + 1, 0

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return self.zoo.layouts

    @cached_property
    def _spaces(self) -> dict[str, WeightSpace]:
        return self.zoo.spaces

    def _batch(self, places: Places) -> ZooBatch:
        layout = self._layouts[self._layout_of[int(shards.numbers(places[:1])[0])]]
        chosen = Selection(self.zoo, places, self._found.where)
        columns = chosen.arrays(self.columns) if self.columns else {}
        return ZooBatch(read_places(self.zoo.path, layout, self._sizes, places), chosen, layout,
                        self._spaces.get(layout.space or ""), columns)

    # ------------------------------------------------------------ the cursor

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        if epoch < 0:
            raise ZooError(f"epoch {epoch}: epochs count from 0")
        self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The cursor as plain data: which batch comes next; equal on all ranks after a step."""
        return {"version": _STATE, "epoch": self.epoch, "position": self.position,
                "world": self.world, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a cursor points.

        Raises:
            ZooError: if it was made with other members, another size, seed or number of ranks.
        """
        if state.get("version") != _STATE or state.get("fingerprint") != self.fingerprint:
            raise ZooError(f"this cursor belongs to another stream (of {state.get('world')} ranks; "
                           f"this one has {self.world}): members, size, seed, pool and ranks must "
                           "be the same. Begin an epoch with set_epoch instead")
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position < len(self.plan(epoch)):
            raise ZooError(f"cursor at batch {position} of epoch {epoch}: there is none")
        self.epoch, self.position = epoch, position


def _place(rank: int | None, world: int | None) -> tuple[int, int]:
    """(rank, world) as given, as torch.distributed says, or as torchrun left in the environment."""
    if (rank is None) != (world is None):
        raise ZooError("give rank and world together, or neither")
    if rank is not None and world is not None:
        return rank, world
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _parts(places: Places, n: int) -> list[Places]:
    return [np.asarray(part) for part in np.array_split(places, n)]


def _evened(loose: list[Places], steps: list[list[Places]], world: int) -> list[list[Places]]:
    """Batches of rare architectures as whole steps: some batches are halved until all ranks have
    equally many. Takes a step away from ``steps`` where the rare ones alone cannot be evened."""
    while len(loose) % world:
        at = max(range(len(loose)), key=lambda i: len(loose[i]))
        if len(loose[at]) > 1:
            loose[at:at + 1] = _parts(loose[at], 2)
            continue
        wide = [i for i, step in enumerate(steps) if max(map(len, step)) > 1]
        if not wide:
            raise ZooError(f"these members cannot be shared out evenly over {world} ranks, in "
                           "batches of one architecture each; use a number of ranks that divides "
                           "them, or choose other members")
        loose += steps.pop(wide[-1])
    return [loose[i:i + world] for i in range(0, len(loose), world)]
