"""kill -9 of writers at random moments: what is left must be whole, and the next run must end it.

Each writer runs in a process that forks, so that torch is imported once.
"""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import metanet.checkpoint as door
from metanet.errors import MetanetError

Work = Callable[[Path], None]


def build_zoo(folder: Path) -> None:
    """``zoo build``: 120 tiny coordinate networks."""
    from metanet.zoo.build import build

    recipe = folder / "kill.yaml"
    if not recipe.exists():
        recipe.write_text("base: inr-digits\nfit: {steps: 4}\nviews: 1\nn: 120\n",
                          encoding="utf-8")
    build(str(recipe), folder / "out", workers=1)


def train(folder: Path) -> None:
    """``train``: a small reader of a zoo of random networks."""
    from cli_runs import run_command
    from walk_world import population

    if not (folder / "ready").exists():
        shutil.rmtree(folder / "zoo", ignore_errors=True)
        population(folder / "zoo", folder / "member.safetensors")
        (folder / "ready").touch()
    done = run_command("train", "accuracy", folder / "zoo", "-o", folder / "out", "--model",
                       "deepsets", "--epochs", 12, "--width", 2, "--batch-size", 4)
    if done.code:
        raise MetanetError(done.err)


def merge(folder: Path) -> None:
    """``merge``: two models of 60 MB into shards."""
    from metanet.tasks.merge import merge as run
    from metanet.tasks.merge.recipe import of_models

    for seed in (1, 2):
        path = folder / f"{seed}.safetensors"
        if not path.exists():
            made = {f"w{i:02d}": torch.full((500, 500), float(i + seed)) for i in range(60)}
            save_file(made, folder / "fresh")
            os.replace(folder / "fresh", path)
    run(of_models([str(folder / "1.safetensors"), str(folder / "2.safetensors")], "linear", None),
        folder / "out", shard_bytes=8_000_000)


def convert(folder: Path) -> None:
    """``convert``: 60 MB from a torch file to safetensors."""
    path = folder / "net.pt"
    if not path.exists():
        torch.save({f"w{i}": torch.full((500, 500), float(i)) for i in range(60)}, folder / "new")
        os.replace(folder / "new", path)
    door.open(str(path)).convert(folder / "out.safetensors", force=True)


def pull(folder: Path) -> None:
    """``pull``: a zoo of 24 MB in 12 shards from a Hub on loopback that dies with its client."""
    import pytest
    from hub_server import served
    from metanet.zoo import Zoo
    from metanet.zoo import pull as run
    from small_zoos import member

    source = folder / "source"
    if not (folder / "ready").exists():
        shutil.rmtree(source, ignore_errors=True)
        zoo = Zoo.create(source, license="MIT")
        for i in range(12):
            zoo.add([replace(member(i), weights={"w": torch.full((500_000,), float(i))})])
        zoo.close()
        (folder / "ready").touch()
    files = {p.relative_to(source).as_posix(): p.read_bytes() for p in sorted(source.rglob("*"))
             if p.is_file()}
    with pytest.MonkeyPatch.context() as patch, served(patch, folder / "cache") as hub:
        hub.add("org/zoo", files)
        run("hf://org/zoo", folder / "out")


def train_optimizer(folder: Path) -> None:
    """``optim train``: six outer steps of a tiny net, each one stored."""
    from metanet.tasks.optimize.meta import Training
    from metanet.tasks.optimize.recipe import Recipe

    plan = Recipe(hidden=4, steps=6, truncation=3, pairs=1, horizon=(6, 20))
    Training(plan, folder / "out", minutes=0.0).run()


WRITERS: dict[str, Work] = {"zoo build": build_zoo, "train": train, "merge": merge,
                            "convert": convert, "pull": pull, "optim train": train_optimizer}
# Imported before the first fork, so that kills fall into the work and not into imports.
_IMPORTS = ("cli_runs", "hub_server", "huggingface_hub", "metanet.cli.train",
            "metanet.report.plots", "metanet.tasks.merge", "metanet.tasks.optimize.meta",
            "metanet.tasks.predict.running", "metanet.zoo.build", "metanet.zoo.hub",
            "sklearn.datasets", "walk_world")


def _child(work: Work, folder: Path) -> None:
    os.setsid()
    torch.set_num_threads(1)
    work(folder)


def _run(work: Work, folder: Path, after: float | None) -> bool:
    """Run to the end, or kill all of it after so many seconds. Whether it was killed."""
    child = multiprocessing.get_context("fork").Process(target=_child, args=(work, folder))
    child.start()
    child.join(after)
    if child.exitcode is None:
        os.killpg(child.pid or 0, signal.SIGKILL)
        child.join()
        return True
    if child.exitcode:
        raise AssertionError(f"{work.__name__} ended with {child.exitcode}")
    return False


def whole(out: Path) -> None:
    """What lies at the target reads in full, or is no checkpoint at all: never half of one."""
    for path in (p for p in (out, out.with_suffix(".safetensors")) if p.exists()):
        if (path / "zoo.json").is_file():
            from metanet.zoo import Zoo

            found = Zoo.open(path).verify(leaks=False)
            if not found.ok:
                raise AssertionError(f"{path}: {found.missing} {found.corrupt}")
        elif path.is_file() or (path / "model.safetensors.index.json").is_file():
            door.open(str(path)).state_dict()
        else:
            for part in path.glob("[!.]*.safetensors"):
                door.open(str(part)).state_dict()


def digest(out: Path) -> str:
    """Of the weights below a target: what does not depend on the clock."""
    if (out / "zoo.json").is_file():
        from metanet.zoo import Zoo

        return Zoo.open(out).digest()
    found = hashlib.sha256()
    for path in sorted(p for p in out.parent.rglob("out*/**/*.safetensors")) or sorted(
            out.parent.glob("out.safetensors")):
        for key, tensor in sorted(load_file(path).items()):  # headers name folders and dates
            found.update(key.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def _clear(folder: Path) -> None:
    """Take the result away: the writer begins anew."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out.safetensors").unlink(missing_ok=True)


def kill_many(name: str, number: int, seed: int = 0) -> str:
    """Kill a writer ``number`` times at random moments; its weights are always those of a calm run.

    Raises:
        AssertionError: if something half-written loads, or an end differs.
    """
    work, rng = WRITERS[name], random.Random(seed)
    for module in _IMPORTS:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as calm, tempfile.TemporaryDirectory() as rough:
        for folder in (calm, rough):
            _run(work, Path(folder), None)  # makes what it reads, too
            _clear(Path(folder))
        begin = time.monotonic()
        _run(work, Path(calm), None)
        usual, want = time.monotonic() - begin, digest(Path(calm) / "out")
        killed = ended = 0
        while killed < number or not ended:
            moment = rng.uniform(0.05, 0.95) * usual
            if _run(work, Path(rough), moment if killed < number else None):
                killed += 1
                whole(Path(rough) / "out")
                continue
            ended += 1
            whole(Path(rough) / "out")
            if digest(Path(rough) / "out") != want:
                raise AssertionError(f"{name}: other weights after {killed} kills")
            _clear(Path(rough))
    times = "1 time" if ended == 1 else f"{ended} times"
    return f"{killed} kills, resumed to the same weights {times}"
