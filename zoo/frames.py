"""The index as a DataFrame, Parquet or CSV; a zoo as a folder of safetensors."""

from __future__ import annotations

import csv
import importlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.checkpoint.write import atomic, write_safetensors
from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.selection import Selection

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def _extra(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ZooError(f"{what} needs {module}, which is not installed: "
                       'pip install "metanet-toolkit[data]"') from None


def to_pandas(selection: Selection) -> Any:
    """See :meth:`Zoo.to_pandas`. Columns carry their dotted names."""
    pandas = _extra("pandas", "to_pandas")
    columns = selection.zoo.columns
    rows = selection._fetch(list(columns))
    frame = {}
    for i, column in enumerate(columns.values()):
        values = [row[i] for row in rows]
        kind = {"int": "Int64", "bool": "boolean", "float": "float64"}.get(column.kind, "object")
        if column.kind == "bool":
            values = [None if v is None else bool(v) for v in values]
        frame[column.name] = pandas.Series(values, dtype=kind)
    return pandas.DataFrame(frame)


def to_parquet(selection: Selection, path: Path) -> Path:
    """See :meth:`Zoo.to_parquet`; needs pyarrow alone. Atomic."""
    arrow = _extra("pyarrow", "to_parquet")
    parquet = _extra("pyarrow.parquet", "to_parquet")
    kinds = {"int": arrow.int64(), "bool": arrow.bool_(), "float": arrow.float64(),
             "str": arrow.string()}
    columns = selection.zoo.columns
    rows = selection._fetch(list(columns))
    arrays = {}
    for i, column in enumerate(columns.values()):
        values = [row[i] for row in rows]
        if column.kind == "bool":
            values = [None if v is None else bool(v) for v in values]
        elif column.kind == "float":
            values = [None if v is None else float(v) for v in values]
        arrays[column.name] = arrow.array(values, kinds[column.kind])
    with atomic(path) as handle:
        parquet.write_table(arrow.table(arrays), handle)
    return path


def export_folder(selection: Selection, out: Path) -> int:
    """Write every member as ``weights/ID.safetensors`` and the index as ``metrics.csv``.

    The table's column ``file`` names the file of each row, so that `metanet zoo ingest` reads the
    folder back. Returns the number of members.

    Raises:
        ZooError: if the folder exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ZooError(f"{out}: exists and is not empty; name a new folder")
    (out / "weights").mkdir(parents=True, exist_ok=True)
    names = _file_names(selection.ids)
    for batch in selection.batches(256):
        for name, weights in zip(batch.ids, batch.state_dicts(), strict=True):
            owners = dict(batch.layout.aliases)
            write_safetensors(weights, out / names[name], aliases=owners)
    _write_csv(selection, out / "metrics.csv", names)
    return len(selection)


def _file_names(ids: tuple[str, ...]) -> dict[str, str]:
    """A harmless, unique file name for every id."""
    taken: set[str] = set()
    out = {}
    for name in ids:
        stem = _UNSAFE.sub("_", name).strip("._") or "member"
        number, fresh = 0, stem
        while fresh.lower() in taken:
            number += 1
            fresh = f"{stem}-{number}"
        taken.add(fresh.lower())
        out[name] = f"weights/{fresh}.safetensors"
    return out


def _write_csv(selection: Selection, path: Path, names: dict[str, str]) -> None:
    with atomic(path) as handle:
        text = os.fdopen(os.dup(handle.fileno()), "w", encoding="utf-8", newline="")
        with text:
            writer = csv.writer(text, lineterminator="\n")
            columns = list(selection.zoo.columns)
            writer.writerow(["file", *columns])
            for row in selection.rows():
                cells = ["" if row[column] is None else row[column] for column in columns]
                writer.writerow([names[row["id"]], *cells])
