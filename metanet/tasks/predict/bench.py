"""One suite: every row, every split, the same number of trials and seeds; resumable."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metanet.errors import MetanetError
from metanet.tasks.predict import metrics
from metanet.tasks.predict.attribution import attribution
from metanet.tasks.predict.data import Array, Part, Task, elsewhere, load_folds
from metanet.tasks.predict.images import is_inr, module_of, render
from metanet.tasks.predict.rows import ROWS, Budget, Fitted, Row, row
from metanet.tasks.predict.rows.neural import larger
from metanet.tasks.predict.strangers import strangers
from metanet.tasks.predict.suites import QUICK, QUICK_ROWS, Board, Suite
from metanet.tasks.predict.table import Scored, summarise
from metanet.tasks.predict.trust import Familiar, Interval, errors_of, scaled, shuffled

Say = Callable[[str], None]
_EXPLAINED = ("flagship-w", "flagship-q")


@dataclass(frozen=True)
class Options:
    """How a suite is run.

    Attributes:
        out: folder of the results.
        zoos: folder that holds zoos by the names of their recipes; what is not there is built.
        wild: folder of the strangers' folders.
        quick: the small size.
        rows: names of rows; by default all that suit.
        budget: of every row; by default the suite's.
        limit: members of each zoo to take, at most.
        force: replace results of another plan.
        data: where the data sets are; by default METANET_DATA.
    """

    out: Path
    zoos: Path | None = None
    wild: Path | None = None
    quick: bool = False
    rows: tuple[str, ...] = ()
    budget: Budget | None = None
    limit: int | None = None
    force: bool = False
    data: str | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """A task with everything that its rows are scored on.

    Attributes:
        name: of the board and the split, as in tables.
        tasks: parts to learn from; one for each fold, or a single one.
        others: name of a split → members that no seed learns from.
        census: of the tests.
    """

    name: str
    tasks: Sequence[Task]
    others: Mapping[str, Part]
    census: Mapping[str, Mapping[str, int]]

    @property
    def task(self) -> Task:
        """The task of seed 0."""
        return self.tasks[0]

    def at(self, seed: int) -> Task:
        """What a seed learns from."""
        return self.tasks[seed % len(self.tasks)]

    def tests(self, seed: int = 0) -> dict[str, Part]:
        """Name of a split → members that a seed is scored on."""
        task = self.at(seed)
        return {task.cut.name: task.parts["test"], **self.others}


def bench(suite: Suite, options: Options, say: Say = lambda line: None) -> dict[str, Any]:
    """Run a suite, or go on with it. Every fit is kept; ``OUT/result.json`` is
    written after every board.

    Raises:
        MetanetError: if the folder holds the results of another plan.
    """
    budget = options.budget or (QUICK if options.quick else suite.budget)
    names = options.rows or suite.rows or (QUICK_ROWS if options.quick else tuple(ROWS))
    chosen = [replace(one, settings=(suite.settings[one.name], *one.settings))
              if one.name in suite.settings else one for one in map(row, names)]
    _claim(suite, options, budget)
    stages = list(stages_of(suite, options, say))
    for stage in stages:
        _see(stage, options.out)
        trust = _trust(stage, options.out)
        say(f"{stage.name}: {', '.join(f'{k} {len(p)}' for k, p in stage.task.parts.items())}; "
            f"flag AUROC {', '.join(f'{k} {v:.2f}' for k, v in trust['auroc'].items())}")
        for one in chosen:
            if one.suits(stage.task):
                fill(one, stage, budget, options.out, say)
        write(suite, stages, chosen, budget, options)
    return write(suite, stages, chosen, budget, options)


def stages_of(suite: Suite, options: Options, say: Say) -> Iterator[Stage]:
    """Boards and their splits, zoos opened or built."""
    for board in suite.boards:
        zoo = _zoo(board, options, say)
        for number, cut in enumerate(board.cuts):
            tasks = _freed(load_folds(zoo, board.goal, cut, limit=options.limit))
            tests: dict[str, Part] = {}
            census = {cut.name: dict(tasks[0].census)}
            if number == 0 and board.wild and options.wild and not options.quick:
                tests["strangers"], census["strangers"] = strangers(options.wild / board.wild,
                                                                    tasks[0])
            if number == 0 and board.other and not options.quick:
                other = _given(board.other, options)
                if other is None:
                    say(f"no zoo {board.other} is given: the split by data set is left out")
                else:
                    tests["data set"], census["data set"] = elsewhere(other, tasks[0])
            short = board.goal.column.split(".")[-1]
            yield Stage(f"{board.recipe}, {short}, {cut.name}", tasks, tests, census)


def _freed(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Tasks that know their signs and scales, so that no fit has to find them again."""
    wide = larger(tasks[0])
    return tuple(replace(task, wide=wide) for task in tasks)


def _zoo(board: Board, options: Options, say: Say) -> Any:
    from metanet.zoo.build import build

    if options.quick:
        folder = options.out / "zoos" / board.recipe
        folder.parent.mkdir(parents=True, exist_ok=True)
        text = options.out / "zoos" / f"{board.recipe}-quick.yaml"
        text.write_text(board.quick, encoding="utf-8")
        return build(str(text), folder, n=board.quick_n, workers=1)
    given = _given(board.recipe, options)
    if given is not None:
        return given
    say(f"building the zoo {board.recipe}: minutes to hours, resumable")
    return build(board.recipe, options.out / "zoos" / board.recipe, n=board.n, data=options.data)


def _given(recipe: str, options: Options) -> Any:
    """The zoo of a recipe in the folder of zoos; None where there is none."""
    from metanet.zoo import Zoo

    folder = options.zoos / recipe if options.zoos else None
    if folder is None or not (folder / "zoo.json").exists():
        return None
    zoo = Zoo.open(folder)
    if not zoo.complete:
        raise MetanetError(f"{folder}: the zoo is not complete; finish it with `metanet zoo build "
                           f"{recipe} -o {folder}`")
    return zoo


def _claim(suite: Suite, options: Options, budget: Budget) -> None:
    """The folder is of this plan, or is made so."""
    plan = json.dumps({"suite": suite.name, "quick": options.quick, "budget": asdict(budget),
                       "limit": options.limit}, sort_keys=True)
    path = options.out / "plan.json"
    if path.exists() and path.read_text(encoding="utf-8") != plan and not options.force:
        raise MetanetError(f"{options.out}: holds results of another plan; name another folder, "
                           "or replace them with --force")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.force and path.exists() and path.read_text(encoding="utf-8") != plan:
        import shutil

        shutil.rmtree(options.out / "fits", ignore_errors=True)
    path.write_text(plan, encoding="utf-8")


# ------------------------------------------------------------ one row


def fit_path(out: Path, stage: Stage, name: str, what: str) -> Path:
    """Where the result of one fit stands."""
    folder = stage.name.replace(", ", ".").replace(" ", "-")
    return out / "fits" / folder / name / f"{what}.json"


def fill(one: Row, stage: Stage, budget: Budget, out: Path, say: Say) -> None:
    """One row: trials on seed 0, the best on validation, then the other seeds of that setting."""
    settings = (one.settings * budget.trials)[:budget.trials] if len(one.settings) > 1 \
        else one.settings[:1]
    trials = [_fit(one, stage, budget, setting, 0, fit_path(out, stage, one.name, f"trial-{i}"))
              for i, setting in enumerate(settings)]
    best = int(np.nanargmax([_finite(t["val"]) for t in trials]))
    choice = {"best": best, "setting": dict(settings[best]), "trials": len(trials),
              "val": [t["val"] for t in trials]}
    _write(fit_path(out, stage, one.name, "choice"), choice)
    seeds = range(1, budget.seeds if one.seeded or len(stage.tasks) > 1 else 1)
    done = [trials[best], *(
        _fit(one, stage, budget, settings[best], seed,
             fit_path(out, stage, one.name, f"seed-{seed}")) for seed in seeds)]
    for name in stage.tests():
        found = [_score(fit, stage, name) for fit in done]
        say(f"  {one.track} {one.title}, {name}: {np.mean(found):.3f} ± {np.std(found):.3f} "
            f"({sum(t['seconds'] for t in (*trials, *done[1:])):.0f} s)")


def _finite(value: float | None) -> float:
    return -1.0 if value is None or not np.isfinite(value) else value


def _score(fit: Mapping[str, Any], stage: Stage, name: str) -> float:
    part = stage.tests(fit["seed"])[name]
    return metrics.lead(np.array(fit["predictions"][name]), part.y, part.strata)


def _fit(one: Row, stage: Stage, budget: Budget, setting: Mapping[str, Any], seed: int,
         path: Path) -> dict[str, Any]:
    """One fit, or what is known of it."""
    known = _known(path, setting)
    if known:
        return known
    task = stage.at(seed)
    _reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    fitted = one.fit(task, budget, setting, seed)
    fitted.seconds = time.process_time() - cpu
    wall = time.perf_counter() - wall
    for name, inner in fitted.inner.items():
        beside = path.parent.parent / name / path.name
        if not _known(beside, setting):
            _write(beside, _result(name, inner, stage, setting, seed))
    result = {**_result(one.name, fitted, stage, setting, seed), "wall": wall}
    if seed == 0 and one.name in _EXPLAINED:
        result["attribution"] = attribution(fitted, task)
    _write(path, result)
    return result


def _known(path: Path, setting: Mapping[str, Any]) -> dict[str, Any] | None:
    """A fit that is finished; another choice of setting makes the seeds before it worthless."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["setting"] == dict(setting) else None


def _result(name: str, fitted: Fitted, stage: Stage, setting: Mapping[str, Any], seed: int
            ) -> dict[str, Any]:
    """What is kept of a fit: predictions of all tests, interval and coverage."""
    task = stage.at(seed)
    val, calib = task.parts["val"], task.parts["calib"]
    held = metrics.lead(fitted.predict(val), val.y, val.strata)
    width = Interval.of(errors_of(fitted.predict(calib), calib.y, task.goal.forward))
    result: dict[str, Any] = {
        "row": name, "setting": dict(setting), "seed": seed,
        "val": held if np.isfinite(held) else None, "seconds": fitted.seconds, "memory": _peak(),
        "parameters": fitted.parameters, "curve": list(fitted.curve),
        "interval": asdict(width) if np.isfinite(width.width) else None,
        "predictions": {}, "coverage": {}}
    for split, part in stage.tests(seed).items():
        found = fitted.predict(part)
        result["predictions"][split] = found.tolist()
        result["coverage"][split] = _coverage(found, part, task, width)
    return result


def _coverage(found: Array, part: Part, task: Task, width: Interval) -> float:
    return float((errors_of(found, part.y, task.goal.forward) <= width.width).mean())


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return  # what is finished keeps its date
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak() -> int | None:
    """Greatest resident memory since the last reset, in MiB; None where the system hides it."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return int(text.split("VmHWM:")[1].split()[0]) >> 10


# ------------------------------------------------------------ the flag, and all together


def _trust(stage: Stage, out: Path) -> dict[str, Any]:
    """How well strangers are told from members, once per stage."""
    path = fit_path(out, stage, "flag", "flag")
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    parts = stage.task.parts
    familiar = Familiar.fit(parts["train"].batch, parts["calib"].batch)
    test = parts["test"].batch
    inside = familiar.distance(test)
    others = {"shuffled entries": shuffled(test), "weights x 1.5": scaled(test, 1.5),
              **{k: p.batch for k, p in stage.others.items()}}
    result: dict[str, Any] = {"threshold": familiar.threshold, "flagged": {"test": float(
        familiar.strange(test).mean())}, "auroc": {}}
    for name, batch in others.items():
        result["auroc"][name] = metrics.auroc(inside, familiar.distance(batch))
        result["flagged"][name] = float(familiar.strange(batch).mean())
    _write(path, result)
    return result


def results(stage: Stage, one: Row, out: Path) -> list[dict[str, Any]] | None:
    """Fits of the chosen setting, one per seed; None while the row is not finished."""
    choice = fit_path(out, stage, one.name, "choice")
    if not choice.exists():
        return None
    best = json.loads(choice.read_text(encoding="utf-8"))
    first = fit_path(out, stage, one.name, f"trial-{best['best']}")
    found = [_known(path, best["setting"])
             for path in (first, *sorted(first.parent.glob("seed-*.json")))]
    return [{**fit, "trials": best["trials"]} for fit in found if fit]


def write(suite: Suite, stages: Sequence[Stage], chosen: Sequence[Row], budget: Budget,
          options: Options) -> dict[str, Any]:
    """Everything that is finished, as one document."""
    rows: list[dict[str, Any]] = []
    finished: list[tuple[Stage, dict[str, list[dict[str, Any]]]]] = []
    flags, census = {}, {}
    for stage in stages:
        path = fit_path(options.out, stage, "flag", "flag")
        if path.exists():
            flags[stage.name] = json.loads(path.read_text(encoding="utf-8"))
        census[stage.name] = {"parts": {k: len(p) for k, p in stage.task.parts.items()},
                              **{k: dict(v) for k, v in stage.census.items()}}
        done = {one.name: fits for one in chosen
                if (fits := results(stage, one, options.out)) is not None}
        finished.append((stage, done))
        rows += summarise(stage.name, stage.task, _tested(stage, budget), done)
    rows += _families(finished)
    document = {
        "suite": suite.name, "about": suite.about, "quick": options.quick,
        "notes": [] if options.quick else list(suite.notes),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
                   f"{torch.__version__}, {torch.get_num_threads()} thread",
        "command": _command(suite, budget, options),
        "budget": asdict(budget), "rows": rows, "census": census, "flags": flags}
    _write(options.out / "result.json", document)
    return document


def _tested(stage: Stage, budget: Budget) -> dict[str, list[Scored]]:
    """Split → what each seed is scored on: one where it is the same for all."""
    seeds = range(min(len(stage.tasks), budget.seeds))
    return {stage.task.cut.name: [Scored.of(stage.at(seed).parts["test"]) for seed in seeds],
            **{name: [Scored.of(part)] for name, part in stage.others.items()}}


def _families(finished: Sequence[tuple[Stage, Mapping[str, Sequence[Mapping[str, Any]]]]]
              ) -> list[dict[str, Any]]:
    """Strangers of all boards together; ranks are compared within each family alone."""
    found = [(stage, done) for stage, done in finished if "strangers" in stage.others]
    if len(found) < 2:
        return []
    together = Scored.together([Scored.of(stage.others["strangers"]) for stage, _ in found])
    joined = {name: [_beside(fits) for fits in zip(*(done[name] for _, done in found),
                                                   strict=False)]
              for name in found[0][1] if all(name in done for _, done in found)}
    return summarise("all families", found[0][0].task, {"strangers": [together]}, joined)


def _beside(fits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fits of one seed on several boards as one."""
    found = [value for fit in fits for value in fit["predictions"]["strangers"]]
    covered = np.average([fit["coverage"]["strangers"] for fit in fits],
                         weights=[len(fit["predictions"]["strangers"]) for fit in fits])
    return {**fits[0], "predictions": {"strangers": found}, "setting": {}, "attribution": None,
            "coverage": {"strangers": float(covered)},
            "seconds": sum(fit["seconds"] for fit in fits),
            "parameters": max(fit["parameters"] for fit in fits)}


def _command(suite: Suite, budget: Budget, options: Options) -> str:
    """What gives this result again."""
    usual = QUICK if options.quick else suite.budget
    words = ["--quick"] if options.quick else ["--zoos ZOOS"]
    words += [f"--{name} {getattr(budget, name)}" for name in ("epochs", "seeds", "trials")
              if getattr(budget, name) != getattr(usual, name)]
    words += ["--wild DIR"] if options.wild and any(b.wild for b in suite.boards) else []
    words += [f"--limit {options.limit}"] if options.limit else []
    return " ".join(["metanet bench", suite.name, *words, "-o OUT"])


def _see(stage: Stage, out: Path) -> None:
    """True values, and the pictures of some INRs, for the page."""
    path = fit_path(out, stage, "seen", "x").parent.with_suffix(".json")
    if path.exists():
        return
    found: dict[str, Any] = {"true": {k: p.y.tolist() for k, p in stage.tests().items()}}
    if is_inr(stage.task):
        shown = stage.task.parts["test"][range(min(16, len(stage.task.parts["test"])))]
        pictures = render(shown, module_of(stage.task.recipe), 28)
        found["pictures"] = [[[round(v, 2) for v in line] for line in one]
                             for one in pictures.tolist()]
    _write(path, found)


__all__ = ["Fitted", "Options", "Stage", "bench", "fill", "results", "stages_of", "write"]
