"""``python -m tests.attacks``: the figures of the attacks, as a table.

Small by default; ``--million`` mutates until a million files have been read (five minutes of one
core), ``--mutations N`` sets the number per format, ``--kills N`` that of kill -9 per writer.
``--log FILE`` keeps what is counted, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PART = 10_000
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from attacks.hostile_files import CASES  # noqa: E402
from attacks.hostile_texts import TEXTS  # noqa: E402
from attacks.killing import WRITERS, kill_many  # noqa: E402
from attacks.test_mutations import KINDS, read_all, seed_file  # noqa: E402

import metanet.checkpoint as door  # noqa: E402
from metanet.errors import MetanetError  # noqa: E402


def attack(name: str, make: Callable[[Path, Path], None], read: Callable[[Path], object],
           counts: Counter[str], slowest: list[float]) -> None:
    """One hostile file: what became of it."""
    folder = Path(tempfile.mkdtemp())
    path, canary = folder / "inside" / "model.pt", folder / "canary"
    path.parent.mkdir()
    make(path, canary)
    before = sorted(map(str, folder.rglob("*")))
    begin = time.process_time()
    try:
        read(path)
        counts["opened, harmless"] += 1
    except MetanetError:
        counts["refused"] += 1
    except BaseException as error:
        counts["OTHER ERRORS"] += 1
        print(f"{name}: {error!r}", file=sys.stderr)
    slowest.append(time.process_time() - begin)
    counts["EXECUTED"] += canary.exists()
    counts["WRITTEN OUTSIDE"] += sorted(map(str, folder.rglob("*"))) != before
    shutil.rmtree(folder)


def hostile() -> str:
    """The figures of the corpus."""
    counts: Counter[str] = Counter()
    seconds: list[float] = []
    for name, (make, _) in CASES.items():
        attack(name, make, lambda path: door.open(path).state_dict(), counts, seconds)
    files = len(seconds)
    for name, (read, write) in TEXTS.items():
        attack(name, write, read, counts, seconds)
    return (f"hostile files: {files} checkpoints and {len(seconds) - files} texts and zoos; "
            f"{counts['refused']} refused, {counts['opened, harmless']} opened as data; executed "
            f"{counts['EXECUTED']}, written outside {counts['WRITTEN OUTSIDE']}, other errors "
            f"{counts['OTHER ERRORS']}; slowest {sorted(seconds)[-2]:.1f} s after the imports")


def fuzz(rounds: int, seed: int, log: Path | None) -> str:
    """The figures of the mutations; with a log, parts that stand in it are not done again."""
    lines = log.read_text(encoding="utf-8").splitlines() if log and log.exists() else []
    known = {tuple(row["part"]): row["counts"] for row in map(json.loads, lines)}
    found = []
    for kind in KINDS:
        counts: Counter[str] = Counter()
        for at in range(0, rounds, PART):
            part = (kind, min(PART, rounds - at), seed + at // PART)
            if part not in known:
                known[part] = fuzz_part(*part)
                if log:
                    with log.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"part": part, "counts": known[part]}) + "\n")
            counts.update(known[part])
        found.append(f"{kind} {counts['refused']:,} refused, {counts['read']:,} read in full")
    return f"mutations: {rounds:,} per format (seed {seed}): {'; '.join(found)}; other errors 0"


def fuzz_part(kind: str, rounds: int, seed: int) -> Counter[str]:
    """Mutations of one file; an error that is not ours ends the run."""
    with tempfile.TemporaryDirectory() as folder:
        path, rng = Path(folder) / "model.bin", random.Random(seed)
        torch.manual_seed(0)
        data = seed_file(kind, path)
        return Counter(read_all(path, data, rng) for _ in range(rounds))


def kills(number: int) -> str:
    """The figures of kill -9."""
    return "kill -9: " + "; ".join(f"{name} {kill_many(name, number)}" for name in WRITERS)


def main() -> None:
    """Print the figures."""
    words = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    words.add_argument("--mutations", type=int, default=700, metavar="N", help="per format")
    words.add_argument("--million", action="store_true", help="a million mutations")
    words.add_argument("--log", type=Path, metavar="FILE", help="what was counted, to go on with")
    words.add_argument("--kills", type=int, default=0, metavar="N", help="per writer; 0 for none")
    words.add_argument("--seed", type=int, default=7)
    told = words.parse_args()
    print(hostile(), flush=True)
    rounds = 1_000_000 // len(KINDS) + 1 if told.million else told.mutations
    print(fuzz(rounds, told.seed, told.log), flush=True)
    if told.kills:
        print(kills(told.kills), flush=True)


if __name__ == "__main__":
    main()
