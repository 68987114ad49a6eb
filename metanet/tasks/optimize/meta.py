"""Meta-training: from a recipe to a folder with a net, a log, a curve and a card."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from math import cos, isfinite, pi
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metanet.checkpoint.names import printable
from metanet.errors import MetanetError
from metanet.tasks.optimize.estimate import Backward, Evolution
from metanet.tasks.optimize.families import tasks_of
from metanet.tasks.optimize.inner import check_data
from metanet.tasks.optimize.recipe import Recipe
from metanet.tasks.optimize.spec import Net, Spec
from metanet.tasks.optimize.structured import flat_weights
from metanet.tasks.optimize.worker import Worker

STATE, LOG, NET, PLOT, RUN = ("state.safetensors", "log.jsonl", "net.safetensors",
                              "meta_loss.svg", "run.json")
_BETAS = (0.9, 0.99)
_CLIP, _EXPLODED, _KNOWN, _MOST, _TAIL = 2.0, 100.0, 10, 1e6, 10.0


class Training:
    """One meta-training in a folder; what lies there is resumed.

    Args:
        recipe: what to do. out: the folder. source: of the data.
        minutes: between checkpoints, at most.
        force: replace what another recipe left in the folder.

    Raises:
        MetanetError: if the folder belongs to another recipe, or data is missing.
    """

    def __init__(self, recipe: Recipe, out: Path, source: str | None = None,
                 minutes: float = 5.0, force: bool = False) -> None:
        self.recipe, self.out, self.minutes = recipe, out, min(minutes, 10.0)
        self._claim(force)
        tasks = tasks_of(recipe.tasks)
        check_data(tuple(task.data for task in tasks), source)
        spec = Spec(recipe.kind, recipe.hidden, recipe.depth, recipe.base, design=recipe.design,
                    reach=recipe.reach)
        paired = recipe.estimator in ("pes", "es")
        workers = [Worker(task, spec, recipe, 2 * recipe.pairs, paired,
                          1000 * recipe.seed + i, source) for i, task in enumerate(tasks)]
        self.spec, self.theta = self._start(spec, workers)
        n = len(self.theta)
        self.sources = [Evolution(w, recipe.sigma, recipe.estimator == "pes", n) if paired
                        else Backward(w) for w in workers]
        self.mean, self.square = torch.zeros(n), torch.zeros(n)
        self.average = self.theta.clone()
        self.done, self.seconds, self.cpu = 0, 0.0, 0.0
        self.rows: list[dict[str, Any]] = []
        self._resume()

    def _start(self, spec: Spec, workers: list[Worker]) -> tuple[Spec, Tensor]:
        structured = workers[0].structured
        if structured is None:
            widths = [worker.layout.width for worker in workers]
            return replace(spec, width=max(widths)), spec.start(self.recipe.seed)
        return replace(spec, space=structured.space.digest), flat_weights(structured.module)

    def _claim(self, force: bool) -> None:
        path = self.out / RUN
        if path.exists() and self._told(path) != self.recipe.key:
            if not force:
                raise MetanetError(f"{printable(str(self.out))}: holds the training of another "
                                   "recipe; name another folder, or replace it with --force")
            for name in (STATE, LOG, NET, PLOT):
                (self.out / name).unlink(missing_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps({"key": self.recipe.key, "recipe": asdict(self.recipe)}, indent=1))

    def _told(self, path: Path) -> str:
        """The key of the training that lies in the folder; empty where it cannot be read."""
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["key"])
        except (ValueError, KeyError, TypeError):
            return ""

    # ------------------------------------------------------------ the loop

    def run(self, limit: float | None = None, say: Callable[[str], None] = lambda line: None
            ) -> Net:
        """Train to the end, or for so many CPU seconds of this call. Returns the net."""
        wall, cpu = time.monotonic(), time.process_time()
        saved = wall
        while self.done < self.recipe.steps:
            if limit is not None and time.process_time() - cpu > limit:
                break
            before, used = time.monotonic(), time.process_time()
            self._outer()
            self.seconds += time.monotonic() - before
            self.cpu += time.process_time() - used
            if time.monotonic() - saved > 60 * self.minutes:
                saved = time.monotonic()
                self._store()
                say(self._said())
        self._store()
        say(self._said())
        return self.net()

    def _outer(self) -> None:
        """One outer step: a truncation of one task, one step of Adam."""
        number = self.done % len(self.sources)
        source = self.sources[number]
        gradient, found = source.gradient(self.theta, self.recipe.truncation)
        norm = float(gradient.norm())
        gradient = gradient * self._share(norm, source.worker.task.name)
        self.done += 1
        self.mean.lerp_(gradient, 1 - _BETAS[0])
        self.square.lerp_(gradient * gradient, 1 - _BETAS[1])
        fix = (1 - _BETAS[1] ** self.done) ** 0.5 / (1 - _BETAS[0] ** self.done)
        share = 0.55 + 0.45 * cos(pi * self.done / self.recipe.steps)
        step = self.recipe.lr * share * fix * self.mean / (self.square.sqrt() + 1e-8)
        self.theta = self.theta - step
        self.average.lerp_(self.theta, min(1.0, _TAIL / self.recipe.steps))
        self.rows.append({"step": self.done, "task": source.worker.task.name,
                          "meta": float(found.meta.mean()), "loss": float(found.last.mean()),
                          "norm": norm, "seconds": round(self.seconds, 2)})

    def _share(self, norm: float, task: str) -> float:
        """Factor on a gradient: tasks count alike, each by the usual norm of its own gradients; of
        a longer one at most twice that counts, of one that exploded nothing."""
        if not isfinite(norm) or norm > _MOST:
            return 0.0
        known = [row["norm"] for row in self.rows
                 if row["task"] == task and row["norm"] <= _MOST][-_KNOWN:]
        usual = max(median([*known, norm]), 1e-12)
        return min(1.0, _CLIP * usual / max(norm, 1e-12)) / usual if norm < _EXPLODED * usual \
            else 0.0

    def net(self) -> Net:
        """The net of the average of, roughly, the last tenth of all outer steps."""
        tail = [row["meta"] for row in self.rows[-20 * len(self.sources):]]
        about = {"trained": self.done > 0, "recipe": asdict(self.recipe), "key": self.recipe.key,
                 "outer_steps": self.done, "of": self.recipe.steps,
                 "inner_steps": self.done * self.recipe.truncation * 2 * self.recipe.pairs,
                 "seconds": round(self.seconds), "cpu_seconds": round(self.cpu),
                 "meta_loss": sum(tail) / len(tail) if tail else None}
        return Net(self.spec, self.average.clone(), about)

    def _said(self) -> str:
        tail = [row["meta"] for row in self.rows[-10 * len(self.sources):]]
        return (f"outer step {self.done} of {self.recipe.steps}, meta-loss "
                f"{sum(tail) / max(len(tail), 1):.4f}, {self.cpu:.0f} CPU seconds")

    # ------------------------------------------------------------ state

    def _store(self) -> None:
        flat = {"theta": self.theta, "mean": self.mean, "square": self.square,
                "average": self.average}
        for i, source in enumerate(self.sources):
            flat.update({f"{i}/{name}": value for name, value in source.tensors().items()})
        told = {"key": self.recipe.key, "done": str(self.done), "seconds": str(self.seconds),
                "cpu": str(self.cpu)}
        part = self.out / f"{STATE}.part"
        # The log first: one that is longer than the state says is cut, a shorter one would be lost.
        _write(self.out / LOG, "".join(json.dumps(row) + "\n" for row in self.rows))
        save_file({name: value.contiguous().clone() for name, value in flat.items()}, part, told)
        os.replace(part, self.out / STATE)
        self.net().save(self.out / NET)
        if self.rows:
            (self.out / PLOT).write_bytes(curve(self.rows))

    def _resume(self) -> None:
        path = self.out / STATE
        if not path.exists():
            return
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if told.get("key") != self.recipe.key:
                raise MetanetError(f"{printable(str(path))}: is of another recipe")
            self.theta, self.mean = found["theta"], found["mean"]
            self.square, self.average = found["square"], found["average"]
            for i, source in enumerate(self.sources):
                source.restore({name.partition("/")[2]: value for name, value in found.items()
                                if name.startswith(f"{i}/")})
            self.done, self.seconds = int(told["done"]), float(told["seconds"])
            self.cpu = float(told["cpu"])
        except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
            raise MetanetError(f"{printable(str(path))}: cannot be read as the state of this "
                               f"training ({error}); name another folder, or replace it with "
                               "--force") from error
        lines = (self.out / LOG).read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines][:self.done]


def curve(rows: list[dict[str, Any]]) -> bytes:
    """The meta-loss over outer steps, all tasks together, in bins; SVG."""
    from metanet.report import plots

    size = max(1, len(rows) // 40)
    bins = [rows[i:i + size] for i in range(0, len(rows), size)]
    x = [float(part[-1]["step"]) for part in bins]
    y: list[float] = [sum(row["meta"] for row in part) / len(part) for part in bins]
    series: dict[str, tuple[Sequence[float], Sequence[float]]] = {"all tasks": (x, y)}
    panel = ("meta-training", "mean log loss over first loss", series)
    return plots.lines([panel], "outer step", "Meta-loss over outer steps").light


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
