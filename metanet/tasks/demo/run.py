"""``run``: the four parts in order, then the page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from metanet import report
from metanet.errors import MetanetError
from metanet.symmetry import WeightSpace, infer
from metanet.tasks.demo import meet as meeting
from metanet.tasks.demo import scramble as scrambling
from metanet.tasks.demo import see as seeing
from metanet.tasks.demo import story
from metanet.tasks.demo.data import Digits, load_digits
from metanet.tasks.demo.mlp import Weights, double, train_mlp
from metanet.tasks.demo.read import Plan, Read, read
from metanet.tasks.demo.words import count, interval, percent
from metanet.tasks.demo.workers import one_thread

FULL, QUICK = Plan(640, (30, 400), 10), Plan(80, (20, 80), 2)
EPOCHS = 40


def run(out: Path | str, *, quick: bool = False, seed: int = 0,
        say: Callable[[str], None] = print) -> dict[str, Any]:
    """See, scramble, meet and read networks, live, and write one page about it.

    Args:
        out: the page (``*.html``), or a folder that gets ``demo.html``. The figures go beside it,
            under the same name with ``.json``.
        quick: a smaller population and shorter trainings: seconds instead of minutes, and worse
            predictions.
        seed: of everything random.
        say: told one line of prose at a time.

    Returns:
        All figures as plain data; ``page`` and ``figures`` are the files written.

    Raises:
        MetanetError: if the files cannot be written.
    """
    with one_thread():
        return _run(_place(Path(out)), quick, seed, say)


def _run(page: Path, quick: bool, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    clock = _Clock(say)
    seen = _see(say)
    clock.lap("see")
    data = load_digits(seed)
    epochs = 12 if quick else EPOCHS
    space, a, b = _two_nets(data, seed, epochs, say)
    clock.lap("train two nets")
    scrambled = scrambling.scramble(space, a, b, data.test.x, seed)
    say(f"Scramble: cosine {scrambled.cosine:+.3f}, outputs change by at most "
        f"{scrambled.max_change:.0e}; match says "
        f"{'the same network' if scrambled.recovered else 'nothing certain'}")
    clock.lap("scramble")
    met = meeting.meet(space, a, b, data, epochs)
    say(f"Meet: the naive midpoint has accuracy {percent(met.naive.midpoint[1])}, the aligned one "
        f"{percent(met.aligned.midpoint[1])}; loss barrier {met.naive.barrier:.3f} and "
        f"{met.aligned.barrier:.3f}")
    clock.lap("meet")
    found = _read(QUICK if quick else FULL, data, seed, say)
    clock.lap("read")
    sections = [seeing.section(seen), scrambling.section(scrambled), meeting.section(met),
                story.section(found)]
    report.write(story.page(sections, clock.total(), _machine()), page)
    clock.lap("page")
    figures = {
        "quick": quick, "seed": seed, "machine": _machine(), "see": [_seen(x) for x in seen],
        "scramble": asdict(scrambled), "meet": asdict(met) | {
            "barrier": {"naive": met.naive.barrier, "aligned": met.aligned.barrier}},
        "read": _figures(found), "seconds": clock.laps | {"total": clock.total()},
        "page": str(page), "figures": str(page.with_suffix(".json")),
    }
    _write_json(page.with_suffix(".json"), figures)
    say(f"The page: {page} ({clock.total():.0f} s)")
    return figures


class _Clock:
    """Seconds of each part."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.start = say, perf_counter()
        self.last, self.laps = self.start, dict[str, float]()

    def lap(self, name: str) -> None:
        """End a part."""
        now = perf_counter()
        self.laps[name], self.last = now - self.last, now

    def total(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self.start


def _place(out: Path) -> Path:
    """The page, in a folder that can be written: said before the work, not after it."""
    page = out if out.suffix.lower() in (".html", ".htm") else out / "demo.html"
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MetanetError(f"cannot make the folder {str(page.parent)!r}: {error.strerror}; "
                           f"choose another place") from error
    if page.is_dir() or not os.access(page.parent, os.W_OK):
        raise MetanetError(f"cannot write the page {str(page)!r}: it is a folder, or stands in one "
                           f"that may not be written; choose another place")
    return page


def _see(say: Callable[[str], None]) -> tuple[seeing.Seen, ...]:
    say("See: reading the groups of two architectures off their code")
    seen = seeing.see()
    for x in seen:
        say(f"  {x.name}: {count(x.space.n_parameters)} parameters, {len(x.space.groups)} groups, "
            f"{x.seconds:.1f} s; {'verified' if x.proof.ok else 'NOT verified'} {x.proved}")
    return seen


def _two_nets(data: Digits, seed: int, epochs: int, say: Callable[[str], None]
              ) -> tuple[WeightSpace, Weights, Weights]:
    say("Training two MLPs from different seeds")
    models = [train_mlp(data.train, 2 * seed + i, epochs) for i in (1, 2)]
    return infer(models[0], (data.test.x[:2],)), double(models[0]), double(models[1])


def _read(plan: Plan, data: Digits, seed: int, say: Callable[[str], None]) -> Read:
    say(f"Read: training {plan.members} small CNNs, then networks that read them")
    found = read(plan, data, seed, say)
    width = max(len(row.prediction.name) for row in found.rows)
    for row in found.rows:
        say(f"  {row.prediction.name:{width}}  {row.prediction.track}  τ {interval(row.score.tau)}"
            f"  R² {interval(row.score.r2)}")
    say(f"  label-noise ceiling: τ {found.ceiling.tau:.3f}, R² {found.ceiling.r2:.3f}")
    say(f"  a permuted checkpoint changes the prediction by {found.permuted_change:.0e}, a "
        f"shuffled one by {found.shuffled_change:.2f}")
    return found


def _seen(x: seeing.Seen) -> dict[str, Any]:
    return {"name": x.name, "space": str(x.space), "status": x.space.status,
            "groups": len(x.space.groups), "parameters": x.space.n_parameters,
            "seconds": x.seconds, "proof": x.proof.to_json(), "proved": x.proved}


def _figures(found: Read) -> dict[str, Any]:
    rows = [{"name": row.prediction.name, "track": row.prediction.track,
             "trials": row.prediction.trials, "chosen": row.prediction.chosen,
             **asdict(row.score)} for row in found.rows]
    names = ("population", "metanets and reference rows", "scores")
    return {
        "census": asdict(found.census), "space": str(found.space),
        "proof": found.proof.to_json(), "rows": rows, "gain": asdict(found.gain),
        "ceiling": asdict(found.ceiling), "permuted_change": found.permuted_change,
        "shuffled_change": found.shuffled_change, "shuffled_tau": found.shuffled_tau,
        "seconds": dict(zip(names, found.seconds, strict=True)),
    }


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise MetanetError(f"cannot write the figures {str(path)!r}: {error.strerror}; choose "
                           f"another place") from error
