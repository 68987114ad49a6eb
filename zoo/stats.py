"""What a zoo holds, in numbers; and one hash of all of it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from metanet.zoo.card import Card
from metanet.zoo.splits import stored

if TYPE_CHECKING:
    from metanet.zoo.store import Zoo


def stats(zoo: Zoo) -> dict[str, Any]:
    """Members, spaces, metrics, splits, bytes, recipe, complete: what `metanet zoo info` shows."""
    card = Card.read(zoo.path)
    size = zoo.index.rows("SELECT coalesce(sum(bytes), 0), count(*) FROM shards")[0]
    parts = zoo.index.rows("SELECT split, count(*) FROM members WHERE split IS NOT NULL "
                           "GROUP BY split ORDER BY split")
    return {
        "members": len(zoo),
        "spaces": spaces(zoo),
        "metrics": _numbers(zoo, "metrics."),
        "config": _numbers(zoo, "config."),
        "splits": {"parts": {str(part): n for part, n in parts}, "made": stored(zoo)},
        "bytes": size[0],
        "shards": size[1],
        "license": card.license,
        "labels": list(card.labels),
        "provenance": card.provenance,
        "recipe": card.recipe,
        "recipe_hash": card.recipe_hash,
        "complete": card.complete,
    }


def spaces(zoo: Zoo) -> list[dict[str, Any]]:
    """One entry per architecture: its space, size, and how many members have it."""
    counts = dict(zoo.index.rows("SELECT layout, sum(members) FROM shards GROUP BY layout"))
    known = zoo.spaces
    return [{"space": layout.space, "layout": key, "members": counts.get(key, 0),
             "tensors": len(layout.tensors), "parameters": layout.n_parameters,
             "status": known[layout.space].status if layout.space in known else None}
            for key, layout in zoo.layouts.items()]


def _numbers(zoo: Zoo, prefix: str) -> dict[str, dict[str, Any]]:
    """Least, mean, greatest and missing of every column below a prefix; of texts, how many."""
    out = {}
    for name, column in zoo.columns.items():
        if not name.startswith(prefix):
            continue
        q = f'"{column.sql}"'
        if column.kind == "str":
            row = zoo.index.rows(f"SELECT count(DISTINCT {q}), count({q}) FROM members")[0]  # noqa: S608
            out[name] = {"distinct": row[0], "missing": len(zoo) - int(str(row[1]))}
        else:
            row = zoo.index.rows(
                f"SELECT min({q}), avg({q}), max({q}), count({q}) FROM members")[0]  # noqa: S608
            out[name] = {"min": row[0], "mean": row[1], "max": row[2],
                         "missing": len(zoo) - int(str(row[3]))}
    return out


def digest(zoo: Zoo) -> str:
    """Hex sha256 of card, layouts, shard hashes, columns, rows and split."""
    out = hashlib.sha256()
    out.update(json.dumps(Card.read(zoo.path).to_json(), sort_keys=True).encode())
    columns = list(zoo.columns.values())
    listed = ", ".join(f'"{column.sql}"' for column in columns)
    for sql in ("SELECT * FROM layouts ORDER BY layout", "SELECT * FROM shards ORDER BY shard",
                "SELECT * FROM columns ORDER BY name", "SELECT * FROM facts ORDER BY key",
                f"SELECT place, {listed} FROM members ORDER BY place"):  # noqa: S608
        for row in zoo.index.rows(sql):
            out.update(repr(row).encode())
    return out.hexdigest()
