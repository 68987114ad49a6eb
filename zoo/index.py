"""The SQLite index of a zoo: schema, connections, transactions, columns.

A rollback journal, not a write-ahead log: a killed transaction is rolled back to the very bytes
that stood there before, a reader leaves no files behind, and a read-only copy opens. The file may
come from a stranger, so triggers and views are refused and nothing in the schema is trusted.
"""

from __future__ import annotations

import difflib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metanet.zoo.members import sql_name

from metanet.checkpoint.names import printable
from metanet.errors import ZooError

FILE = "index.sqlite"
APPLICATION, VERSION = 0x4D4E5A4F, 1
WAIT = 120.0  # seconds that a writer waits for another one
BASE = ("id", "space", "layout", "shard", "row", "hash", "parent", "step", "split")
MAX_ROWS = 1 << 20  # members of one shard: place = shard * MAX_ROWS + row
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS layouts (layout TEXT PRIMARY KEY, signature TEXT NOT NULL, space TEXT,
  definition TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shards (shard INTEGER PRIMARY KEY, layout TEXT NOT NULL,
  members INTEGER NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS columns (name TEXT PRIMARY KEY, sql TEXT NOT NULL UNIQUE COLLATE NOCASE,
  kind TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, space TEXT,
  layout TEXT NOT NULL, shard INTEGER NOT NULL, row INTEGER NOT NULL, hash TEXT NOT NULL,
  parent TEXT, step INTEGER, split TEXT);
CREATE INDEX IF NOT EXISTS members_hash ON members (hash);
CREATE INDEX IF NOT EXISTS members_split ON members (split)
"""
_KINDS = {"bool": "INTEGER", "int": "INTEGER", "float": "REAL", "str": "TEXT"}


@dataclass(frozen=True)
class Column:
    """A column: its dotted name, its name in SQL, and what it holds."""

    name: str
    sql: str
    kind: str


_BASE_COLUMNS = tuple(Column(n, n, "int" if n in ("shard", "row", "step") else "str") for n in BASE)


class Index:
    """The index of one zoo. Each process and thread gets its own connection.

    Args:
        path: file of the index; created where ``create`` is set.

    Raises:
        ZooError: if it is missing, damaged, of another version, or holds foreign objects.
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        self.path = path
        self._local = threading.local()
        if create:
            self._create()
        if not path.is_file():
            raise ZooError(f"{path}: missing; the zoo is incomplete. Pull or build it again")
        with self.reading("opening"):
            self._check()

    def _create(self) -> None:
        with self.reading("creating"), self.transaction(mode="rwc") as db:
            for statement in _TABLES.split(";"):
                db.execute(statement)
            if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {VERSION}")

    def _check(self) -> None:
        application = self.db.execute("PRAGMA application_id").fetchone()[0]
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION:
            raise ZooError(f"{self.path}: is not the index of a zoo")
        if version != VERSION:
            raise ZooError(f"{self.path}: index version {version}; this metanet reads version "
                           f"{VERSION}. Install a newer metanet")
        known = self.db.execute("SELECT type, name FROM sqlite_master").fetchall()
        foreign = [name for kind, name in known if kind not in ("table", "index")]
        if foreign:
            raise ZooError(f"{self.path}: holds {printable(foreign[0], 80)!r}, a trigger or view; "
                           "no index of a zoo has one. Do not use this file")

    # ------------------------------------------------------------ connections

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection; a forked process opens its own."""
        return self._connect("rw")

    def _connect(self, mode: str) -> sqlite3.Connection:
        if getattr(self._local, "pid", None) != os.getpid():
            uri = f"{self.path.resolve().as_uri()}?mode={mode}"
            db = sqlite3.connect(uri, uri=True, timeout=WAIT, isolation_level=None)
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = FULL",
                           "cache_size = -65536"):
                db.execute(f"PRAGMA {pragma}")
            self._local.db, self._local.pid = db, os.getpid()
        found: sqlite3.Connection = self._local.db
        return found

    def close(self) -> None:
        """Close this thread's connection; it opens again when needed."""
        if getattr(self._local, "pid", None) == os.getpid():
            self._local.db.close()
            self._local.pid = None

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn SQLite's errors into ZooErrors."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise ZooError(f"{self.path}: another writer kept it locked for {WAIT:.0f} s while "
                               f"{what}; try again when it has finished") from None
            raise ZooError(f"{self.path}: {what}: {error}. Check that the folder is writable and "
                           "the disk not full") from None
        except sqlite3.DatabaseError as error:
            raise ZooError(f"{self.path}: damaged ({error}) while {what}; run `metanet zoo verify`,"
                           " then pull or build it again") from None

    @contextmanager
    def transaction(self, mode: str = "rw") -> Iterator[sqlite3.Connection]:
        """All or nothing, one writer at a time."""
        with self.reading("writing"):
            db = self._connect(mode)
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def rows(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        """All rows of a statement of ours."""
        with self.reading("reading"):
            return self.db.execute(sql, values).fetchall()

    # ------------------------------------------------------------ columns

    def columns(self) -> dict[str, Column]:
        """Dotted name → column: those of every zoo first, then config and metrics by name."""
        found = self.rows("SELECT name, sql, kind FROM columns ORDER BY name")
        own = [Column(str(n), str(s), str(k)) for n, s, k in found]
        for column in own:
            if sql_name(column.name) != column.sql or column.kind not in _KINDS:
                raise ZooError(f"{self.path}: column {printable(column.name, 80)!r} is malformed; "
                               "the index is damaged")
        return {column.name: column for column in (*_BASE_COLUMNS, *own)}

    def register(self, db: sqlite3.Connection, kinds: Mapping[str, str]) -> dict[str, Column]:
        """Make sure that every column exists; call it inside a transaction.

        Raises:
            ZooError: for two names that are one in SQL, or a text where numbers stand.
        """
        known = self.columns()
        taken = {column.sql.lower(): column.name for column in known.values()}
        for name in sorted(kinds):
            kind, sql = kinds[name], sql_name(name)
            if name in known:
                self._widen(db, known[name], kind)
                continue
            if sql.lower() in taken:
                raise ZooError(f"columns {printable(name, 80)!r} and "
                               f"{printable(taken[sql.lower()], 80)!r} would both be {sql!r}; "
                               "rename one of them")
            taken[sql.lower()] = name
            db.execute("INSERT INTO columns VALUES (?, ?, ?)", (name, sql, kind))
            db.execute(f'ALTER TABLE members ADD COLUMN "{sql}" {_KINDS[kind]}')
        return self.columns()

    def _widen(self, db: sqlite3.Connection, column: Column, kind: str) -> None:
        if kind == column.kind:
            return
        if "str" in (kind, column.kind):
            raise ZooError(f"column {column.name!r} holds {column.kind}, not {kind}; give every "
                           "member the same kind of value")
        widest = max(kind, column.kind, key=["bool", "int", "float"].index)
        if widest != column.kind:
            db.execute("UPDATE columns SET kind = ? WHERE name = ?", (widest, column.name))


def resolve(columns: Mapping[str, Column], name: str) -> Column:
    """The column meant by ``config.lr``, ``config_lr`` or, where it is clear, ``lr``.

    Raises:
        ZooError: for an unknown or ambiguous name, with the names near it.
    """
    wanted = name.lower()
    for column in columns.values():
        if wanted in (column.name.lower(), column.sql.lower()):
            return column
    short = sql_name(wanted)
    found = [c for c in columns.values() if c.sql.lower().partition("_")[2] == short
             and c.name.startswith(("config.", "metrics."))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ZooError(f"column {printable(name, 80)!r} could be "
                       f"{' or '.join(c.sql for c in found)}; write it in full")
    raise ZooError(f"no column {printable(name, 80)!r}. {_near(short, columns.values())}")


def _near(wanted: str, columns: Iterable[Column]) -> str:
    names: dict[str, str] = {}
    for column in columns:
        names.setdefault(column.sql.lower(), column.sql)
        if column.name != column.sql:
            names.setdefault(column.sql.lower().partition("_")[2], column.sql)
    near = dict.fromkeys(names[hit] for hit in difflib.get_close_matches(wanted, names, 3, 0.7))
    listed = sorted({column.sql for column in columns}, key=lambda sql: (sql not in BASE, sql))
    known = ", ".join(listed[:40]) + (f" and {len(listed) - 40} more" if len(listed) > 40 else "")
    return (f"Did you mean {' or '.join(near)}? " if near else "") + f"Columns: {known}"
