"""Tables of metrics that lie beside checkpoints: CSV, JSON, JSON lines, a manifest."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from metanet.checkpoint.names import printable
from metanet.errors import ZooError

FILES = ("file", "filename", "file_name", "checkpoint", "weights", "path", "model", "name", "id")
DEFAULT = ("manifest.json", "metrics.csv", "metrics.json", "metrics.jsonl", "index.csv")
_MOST = 256 << 20
_METRIC = re.compile(
    r"(^|_)(acc|accuracy|loss|losses|err|error|f1|auc|auroc|psnr|ssim|mse|mae|rmse|r2|nll|ce|ppl|"
    r"perplexity|bleu|rouge|map|iou|dice|precision|recall|score|reward|return|returns|eval|val|"
    r"valid|test|metric|metrics|diverged|bpc|elo)(_|$)", re.IGNORECASE)
# Words for one and the same number; the first that a table has, in this order, gets the name.
_CANONICAL = {
    "test_accuracy": ("test_accuracy", "test_acc", "accuracy_test", "acc_test", "test_acc_best",
                      "best_test_acc", "test_accuracy_best"),
    "test_loss": ("test_loss", "loss_test"),
    "train_accuracy": ("train_accuracy", "train_acc", "accuracy_train", "acc_train"),
    "train_loss": ("train_loss", "loss_train"),
}
_OWN = {"id", "parent", "step", "split"}
_DERIVED = {"shard", "row", "hash", "space", "layout"}


@dataclass(frozen=True)
class Table:
    """Rows that name a file each.

    Attributes:
        rows: (file, dotted column → value), in the order of the table.
        checks: sha256 that the table states for each file, or None.
        sha256: of the table itself.
        renamed: canonical metric → the table's word for it.
    """

    rows: tuple[tuple[str, Mapping[str, Any]], ...]
    checks: tuple[str | None, ...]
    sha256: str
    name: str
    renamed: Mapping[str, str]


def find_table(folder: Path) -> Path | None:
    """The table that lies in a folder under a usual name, or None."""
    return next((folder / name for name in DEFAULT if (folder / name).is_file()), None)


def read_table(path: Path, metrics: Sequence[str] | None = None) -> Table:
    """Read a table.

    Args:
        path: CSV with a header line, JSON (a list of maps, or a map file → map) or JSON lines.
        metrics: columns that are metrics; by default those whose names say so (accuracy, loss, …)
            or that start with ``metrics.``. The others are config.

    Raises:
        ZooError: if it cannot be read, or no column names the files.
    """
    if not path.is_file():
        raise ZooError(f"{path}: there is no such table; name a CSV or JSON file")
    if path.stat().st_size > _MOST:
        raise ZooError(f"{path}: larger than {_MOST} bytes; cut it into several tables")
    raw = path.read_bytes()
    try:
        rows = _rows(path, raw.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise ZooError(f"{path}: cannot be read as a table ({error})") from None
    column = next((name for name in FILES if rows and name in rows[0]), None)
    if column is None:
        known = ", ".join(printable(k, 40) for k in rows[0]) if rows else "no rows"
        raise ZooError(f"{path}: no column names the files (found {known}); call it "
                       f"{' or '.join(FILES[:3])}")
    flat = [(str(row[column]), _flat(row, skip=column)) for row in rows if row.get(column)]
    renamed = _canonical([values for _, values in flat], metrics)
    back = {old: new for new, old in renamed.items()}
    done = tuple((file, {_root(back.get(k, k), metrics): v for k, v in values.items()
                         if k not in _DERIVED}) for file, values in flat)
    checks = [values.get("sha256") for _, values in flat]
    return Table(done, tuple(c if isinstance(c, str) else None for c in checks),
                 hashlib.sha256(raw).hexdigest(), path.name, renamed)


def _rows(path: Path, text: str) -> list[dict[str, Any]]:
    if path.suffix.lower() in (".csv", ".tsv"):
        reader = csv.DictReader(io.StringIO(text, newline=""),
                                delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        return _typed([{str(k): v for k, v in row.items() if k is not None} for row in reader])
    if path.suffix.lower() == ".jsonl":
        found: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
        found = json.loads(text)
    if isinstance(found, Mapping):
        found = [{"file": name, **row} for name, row in found.items() if isinstance(row, Mapping)]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("it is neither a list of maps nor a map from files to maps")
    return found


def _typed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells of a CSV as numbers or truth values where a whole column is."""
    for name in {name for row in rows for name in row} - set(FILES):
        cells = [row.get(name) or "" for row in rows]
        for kind in (_int, _float, _bool):
            read = [kind(cell) if cell.strip() else None for cell in cells]
            if all(v is not None for v, cell in zip(read, cells, strict=True) if cell.strip()):
                break
        else:
            read = [cell or None for cell in cells]
        for row, value in zip(rows, read, strict=True):
            row[name] = value
    return rows


def _int(cell: str) -> int | None:
    return int(cell) if re.fullmatch(r"\s*[-+]?\d{1,18}\s*", cell) else None


def _float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _bool(cell: str) -> bool | None:
    return {"true": True, "false": False}.get(cell.strip().lower())


def _flat(row: Mapping[str, Any], skip: str | None = None, prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in row.items():
        if key == skip:
            continue
        if isinstance(value, Mapping):
            out.update(_flat(value, None, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def _root(name: str, metrics: Sequence[str] | None) -> str:
    """``config.`` or ``metrics.`` in front, unless it stands there already."""
    if name.startswith(("config.", "metrics.")) or name in _OWN:
        return name
    told = name in metrics if metrics is not None else bool(_METRIC.search(name.replace(".", "_")))
    return f"metrics.{name}" if told else f"config.{name}"


def _canonical(rows: Iterable[Mapping[str, Any]], metrics: Sequence[str] | None) -> dict[str, str]:
    """``test_accuracy`` → the column that holds it, where it has another name."""
    rows = list(rows)
    numeric = {k for row in rows for k, v in row.items()
               if isinstance(v, (int, float)) and not isinstance(v, bool)}
    out = {}
    for name, words in _CANONICAL.items():
        found = next((word for word in words if word in numeric), None)
        if found not in (None, name) and (metrics is None or found not in metrics):
            out[name] = str(found)
    return out


def inside(folder: Path, file: str) -> Path:
    """The path of a listed file; it must lie in the folder.

    Raises:
        ZooError: for an absolute path or one that leads out of the folder.
    """
    pure = PurePosixPath(file.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or "\x00" in file:
        raise ZooError("leads out of the folder")
    path = folder / pure
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ZooError("is a link that leads out of the folder")
    return path
