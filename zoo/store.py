"""Zoo: a folder with a card, an SQLite index, and safetensors shards stacked per architecture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64, Shaped
from metanet.zoo import commit as _commit
from metanet.zoo import shard as shards
from metanet.zoo.batch import ZooBatch, read_places, untied
from metanet.zoo.card import Card, recipe_hash
from metanet.zoo.index import FILE, MAX_ROWS, Column, Index
from metanet.zoo.layout import Layout
from metanet.zoo.members import Entry, Member
from metanet.zoo.query import compiled, places
from metanet.zoo.selection import Selection

from metanet.checkpoint.names import printable
from metanet.errors import SymmetryError, ZooError

if TYPE_CHECKING:
    from metanet.zoo.splits import SplitReport
    from metanet.zoo.stream import ZooStream
    from metanet.zoo.verify import ZooVerification
    from torch import Tensor

    from metanet.symmetry import WeightSpace


class Zoo:
    """Networks as data: weights in shards, everything else in an index.

    Make one with :meth:`create` or :meth:`open`. Every change is one transaction: it happens as a
    whole or not at all, whenever the process is killed, and two writers take turns.
    """

    def __init__(self, path: Path, card: Card, index: Index) -> None:
        self.path, self.card, self.index = path, card, index
        self._layouts: dict[str, Layout] = {}
        self._spaces: dict[str, WeightSpace] = {}

    # ------------------------------------------------------------ making and opening

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Zoo:
        """Open a zoo; nothing but the card is read.

        Raises:
            ZooError: if the folder is no zoo, is damaged, or was written by a newer metanet.
        """
        folder = Path(path)
        card = Card.read(folder)
        return cls(folder, card, Index(folder / FILE))

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, resume: bool = False, force: bool = False,
               **card: Any) -> Zoo:
        """Make a zoo in a new or empty folder.

        Args:
            path: the folder.
            resume: open the zoo that stands there already, if it has the same recipe.
            force: remove another zoo that stands there (never anything else).
            card: fields of :class:`Card`: license, provenance, recipe (plain data), labels,
                groups, intrinsic.

        Raises:
            ZooError: if the folder holds something else, or a zoo of another recipe.
        """
        folder = Path(path)
        wanted = Card(recipe_hash=recipe_hash(card.get("recipe")),
                      **{k: tuple(v) if k == "labels" else v for k, v in card.items()})
        _check_free(folder)
        if force and (folder / "zoo.json").exists():
            if resume and Card.read(folder).recipe_hash == wanted.recipe_hash:
                return cls.open(folder)
            _remove(folder)
        if not (folder / "zoo.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            index = Index(folder / FILE, create=True)
            with index.transaction():  # of two makers the second finds the card of the first
                if not (folder / "zoo.json").exists():
                    wanted.write(folder)
                    return cls(folder, wanted, index)
        return cls._resumed(folder, wanted, resume)

    @classmethod
    def _resumed(cls, folder: Path, wanted: Card, resume: bool) -> Zoo:
        zoo = cls.open(folder)
        if not resume:
            raise ZooError(f"{folder}: a zoo stands there already; name another folder, or resume "
                           "it with the same recipe, or replace it with force (--force)")
        if zoo.card.recipe_hash != wanted.recipe_hash:
            raise ZooError(f"{folder}: the zoo there has another recipe (hash "
                           f"{(zoo.card.recipe_hash or 'none')[:12]}, not "
                           f"{(wanted.recipe_hash or 'none')[:12]}); name another folder, or "
                           "replace it with force (--force)")
        return zoo

    def __reduce__(self) -> tuple[Any, ...]:
        return (Zoo.open, (str(self.path),))

    def close(self) -> None:
        """Close the index; it opens again when needed."""
        self.index.close()

    def set_card(self, **fields: Any) -> None:
        """Change fields of the card, in one transaction with whatever else is written."""
        from dataclasses import replace

        with self.index.transaction():
            self.card = replace(Card.read(self.path), **fields)
            self.card.write(self.path)

    def finish(self) -> None:
        """Mark the build as complete."""
        self.set_card(complete=True)

    # ------------------------------------------------------------ adding

    def add(self, members: Iterable[Member]) -> int:
        """Add members: one shard per architecture, all of it in one transaction.

        Give a chunk of members at a time: they are stacked in memory, and each call makes shards
        of its own. Returns how many were added.

        Raises:
            ZooError: for an id that is there already or occurs twice, values that an index cannot
                hold, or a split that would leak. Nothing is added then.
        """
        return _commit.add(self, list(members))

    def add_stacked(self, tensors: Mapping[str, Shaped[Tensor, "n ..."]],
                    entries: Sequence[Entry], space: WeightSpace | None = None) -> int:
        """Add members whose tensors are stacked already, ``[n, …]``, as one shard.

        Args:
            tensors: name → the n members' tensors; tied ones as one tensor under two names.
            entries: their n entries, in the same order.
            space: their space, where it is known.
        """
        return _commit.add_stacked(self, tensors, entries, space)

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of the ids that the zoo does not hold yet: what a resumed build has to make."""
        wanted = list(ids)
        known = {row[0] for row in self.index.rows(
            "SELECT id FROM members WHERE id IN (SELECT value FROM json_each(?))",
            json.dumps(wanted))}
        return [name for name in wanted if name not in known]

    def merge(self, other: Zoo) -> int:
        """Add the members of another zoo; equal ones are skipped. Returns how many were added.

        Raises:
            ZooError: if an id stands for different weights in the two.
        """
        from metanet.zoo.merge import merge

        return merge(self, other)

    # ------------------------------------------------------------ asking

    def __len__(self) -> int:
        return int(str(self.index.rows("SELECT count(*) FROM members")[0][0]))

    def __contains__(self, name: object) -> bool:
        return bool(self.index.rows("SELECT 1 FROM members WHERE id = ?", str(name)))

    def __repr__(self) -> str:
        return f"Zoo({printable(self.path)!r}, {len(self)} members)"

    @property
    def columns(self) -> dict[str, Column]:
        """Dotted name → column of the index."""
        return self.index.columns()

    @property
    def recipe(self) -> Any:
        """The recipe as plain data, or None."""
        return self.card.recipe

    @property
    def complete(self) -> bool:
        """Whether the build has finished, as the folder says now."""
        return Card.read(self.path).complete

    def query(self, where: str | None = None, params: Mapping[str, Any] | None = None
              ) -> Selection:
        """Members that fulfil a condition; all of them by default.

        Args:
            where: such as ``split = 'test' and config_lr < 0.01``; columns as in :attr:`columns`,
                short names where they are clear; and, or, not, in, between, like.
            params: values of ``:name`` in the condition.

        Raises:
            ZooError: for what cannot be understood, naming the columns near a misspelt one.
        """
        if where is None or not where.strip():
            return Selection(self, self._places(), None)
        condition = compiled(where, self.columns)
        return Selection(self, places(self.index, condition, params or {}, where), where)

    def _places(self) -> Int64[np.ndarray, " n"]:
        """All places, from the sizes of the shards."""
        starts = sorted(self._sizes().items())
        parts = [np.arange(n, dtype=np.int64) + shard * MAX_ROWS for shard, n in starts]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def batches(self, where: str | Selection | None = None, size: int = 256, *,
                space: WeightSpace | str | None = None, columns: Sequence[str] = (),
                seed: int | None = None) -> Iterator[ZooBatch]:
        """Batches of one layout each, layout after layout, in the order of the zoo.

        Args:
            where: a condition or a Selection; all members by default.
            size: members per batch, at most.
            space: only members of this space: a WeightSpace, or the start of its digest or of the
                key of a layout.
            columns: columns to hand out with each batch.
            seed: shuffle the members of each layout.
        """
        found = where if isinstance(where, Selection) else self.query(where)
        if size < 1:
            raise ZooError(f"size {size}: a batch needs at least one member")
        shard_layout = {int(str(s)): str(key) for s, key in
                        self.index.rows("SELECT shard, layout FROM shards")}
        wanted = [key for key in self.layouts if self._is(key, space)]
        if space is not None and not wanted:
            raise ZooError(f"no member of space {printable(space, 80)!r}; there are "
                           f"{', '.join(key[:12] for key in self.layouts) or 'none'}")
        numbers = shards.numbers(found.places)
        for key in wanted:
            here = np.isin(numbers, [s for s, k in shard_layout.items() if k == key])
            places = found.places[here]
            if seed is not None:
                places = np.random.default_rng(seed).permutation(places)
            yield from self._batches(key, Selection(self, places, found.where), size, columns)

    def _batches(self, key: str, chosen: Selection, size: int, columns: Sequence[str]
                 ) -> Iterator[ZooBatch]:
        arrays = chosen.arrays(columns) if columns else {}
        layout, sizes = self.layouts[key], self._sizes()
        space = self.spaces.get(layout.space or "")
        for start in range(0, len(chosen), size):
            part = slice(start, start + size)
            mine = Selection(self, chosen.places[part], chosen.where)
            yield ZooBatch(read_places(self.path, layout, sizes, mine.places), mine, layout, space,
                           {name: array[part] for name, array in arrays.items()})

    def stream(self, where: str | Selection | None = None, size: int = 256, **options: Any
               ) -> ZooStream:
        """Batches for one of many processes, with a cursor; see :class:`ZooStream`."""
        from metanet.zoo.stream import ZooStream

        return ZooStream(self, where, size, **options)

    def member(self, name: str) -> dict[str, Tensor]:
        """State dict of one member, its own copy.

        Raises:
            ZooError: if there is no such member.
        """
        found = self.index.rows("SELECT place, layout FROM members WHERE id = ?", name)
        if not found:
            raise ZooError(f"no member {printable(name, 80)!r} in {self.path}; "
                           "see `metanet zoo query`")
        place, key = int(str(found[0][0])), str(found[0][1])
        layout = self.layouts[key]
        tensors = read_places(self.path, layout, self._sizes(), np.array([place]))
        return untied(layout, {n: t[0].clone() for n, t in tensors.items()})

    def row(self, name: str) -> dict[str, Any]:
        """All columns of one member."""
        found = self.query("id = :id", {"id": name})
        if not len(found):
            raise ZooError(f"no member {printable(name, 80)!r} in {self.path}; "
                           "see `metanet zoo query`")
        return next(found.rows())

    # ------------------------------------------------------------ spaces and layouts

    @property
    def layouts(self) -> dict[str, Layout]:
        """Key → layout of every architecture in the zoo, in the order of their keys."""
        for key, text, space in self.index.rows(
                "SELECT layout, signature, space FROM layouts ORDER BY layout"):
            if key not in self._layouts:
                layout = Layout.parse(str(text), None if space is None else str(space))
                if layout.key != key:
                    raise ZooError(f"{self.path}: layout {printable(key, 16)} does not have its "
                                   "key; the index is damaged")
                self._layouts[str(key)] = layout
        return dict(sorted(self._layouts.items()))

    @property
    def spaces(self) -> dict[str, WeightSpace]:
        """Digest → WeightSpace of every space that the zoo knows."""
        from metanet.symmetry import WeightSpace

        found = self.index.rows("SELECT DISTINCT space, definition FROM layouts "
                                "WHERE space IS NOT NULL ORDER BY space")
        for digest, text in found:
            if digest in self._spaces:
                continue
            try:
                space = WeightSpace.from_json(json.loads(str(text)))
            except (SymmetryError, ValueError) as error:
                raise ZooError(f"{self.path}: a space cannot be read ({error}); the index is "
                               "damaged") from None
            if space.digest != digest:
                raise ZooError(f"{self.path}: space {printable(digest, 16)} does not have its "
                               "digest; the index is damaged")
            self._spaces[str(digest)] = space
        return dict(self._spaces)

    def _is(self, key: str, space: WeightSpace | str | None) -> bool:
        if space is None:
            return True
        wanted = space if isinstance(space, str) else space.digest
        return key.startswith(wanted) or (self.layouts[key].space or " ").startswith(wanted)

    def _sizes(self) -> dict[int, int]:
        return {int(str(s)): int(str(n)) for s, n in
                self.index.rows("SELECT shard, members FROM shards")}

    # ------------------------------------------------------------ the rest has rooms of its own

    def stats(self) -> dict[str, Any]:
        """Members, spaces, metrics (min, mean, max, missing), splits, bytes, recipe, complete."""
        from metanet.zoo.stats import stats

        return stats(self)

    def digest(self) -> str:
        """Hex sha256 of all that the zoo holds; equal for equal adds, kills or not."""
        from metanet.zoo.stats import digest

        return digest(self)

    def split(self, by: str, parts: Mapping[str, float] | None = None, *, seed: int = 0,
              column: str | None = None, test: Sequence[Any] | None = None) -> SplitReport:
        """Split the members so that nothing leaks, and store it; see ``metanet.zoo.splits``."""
        from metanet.zoo.splits import split

        return split(self, by, parts, seed=seed, column=column, test=test)

    def set_split(self, parts: Mapping[str, str | None]) -> SplitReport:
        """Store a split of your own (id → part); refused, with the reason, if it leaks."""
        from metanet.zoo.splits import set_split

        return set_split(self, parts)

    def verify(self, deep: bool = True, **options: Any) -> ZooVerification:
        """Check the bytes, the split and the leak gate; see ``metanet.zoo.verify``."""
        from metanet.zoo.verify import verify

        return verify(self, deep, **options)

    def to_pandas(self, where: str | None = None) -> Any:
        """The index as a DataFrame; needs the extra ``data``."""
        return self.query(where).to_pandas()

    def to_parquet(self, path: str | os.PathLike[str], where: str | None = None) -> Path:
        """Write the index as Parquet; needs the extra ``data``."""
        from metanet.zoo.frames import to_parquet

        return to_parquet(self.query(where), Path(path))


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ZooError(f"{folder}: is a file; name a folder")
    if not folder.exists() or (folder / "zoo.json").exists():
        return
    # A maker that was killed leaves an index, its journal, and perhaps half a card.
    foreign = [p.name for p in folder.iterdir()
               if not p.name.startswith((FILE, ".zoo.json.", shards.FOLDER))]
    if foreign:
        raise ZooError(f"{folder}: is not empty (it holds {printable(sorted(foreign)[0], 80)!r}); "
                       "name a new folder")


def _remove(folder: Path) -> None:
    """Remove a zoo, its card first: what is left of a killed removal is no zoo."""
    (folder / "zoo.json").unlink()
    for path in folder.glob(f"{FILE}*"):
        path.unlink()
    for path in (folder / shards.FOLDER).glob("*"):
        if path.suffix == ".safetensors" or shards.is_temporary(path):
            path.unlink()
