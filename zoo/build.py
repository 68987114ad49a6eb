"""Building a zoo from a recipe: resumable, killed at any moment, always the same bytes.

Runs are cut into commits of a fixed size, which are added in order, each in one transaction. A
build that was killed holds the first few commits; it goes on with the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from metanet.zoo import data as datasets
from metanet.zoo import fit_inr, make, nets
from metanet.zoo.card import GROUPS
from metanet.zoo.engine import Engine, one_thread
from metanet.zoo.engine import engine as engine_by_name
from metanet.zoo.hub_data import pinned
from metanet.zoo.make import Made, Unit
from metanet.zoo.members import Member
from metanet.zoo.recipe import INRRecipe, NetRecipe, Recipe, factory_of, load, plain
from metanet.zoo.recipe_checks import problems
from metanet.zoo.store import Zoo

from metanet.errors import ZooError
from metanet.symmetry import WeightSpace

_FIT = "how well and how fast a network fits depends on the image that it shows"


@dataclass(frozen=True)
class Progress:
    """How far a build is.

    Attributes:
        done, total: runs.
        rate: runs per second since this build began or was resumed; None before the first.
        eta: seconds to go, or None.
    """

    done: int
    total: int
    rate: float | None
    eta: float | None


def build(recipe: Recipe | str | os.PathLike[str], out: str | os.PathLike[str], *,
          n: int | None = None, seed: int | None = None, engine: str | Engine = "local",
          workers: int = 2, data: str | os.PathLike[str] | None = None, force: bool = False,
          progress: Callable[[Progress], None] | None = None) -> Zoo:
    """Build a zoo, or go on with one that was interrupted.

    Args:
        recipe: a recipe, the name of one, or a YAML file.
        out: folder of the zoo: new, empty, or begun with the same recipe.
        n: runs to make; the recipe's by default.
        seed: of everything; the recipe's by default.
        engine: ``local``, ``ray``, or an engine of your own.
        workers: processes.
        data: file or folder of the data set; see ``metanet.zoo.data.load``.
        force: replace a zoo of another recipe; one of the same recipe goes on.
        progress: called after every unit of work.

    Raises:
        ZooError: for a wrong recipe, absent data, or a folder that holds something else.
    """
    wanted = _wanted(recipe, n, seed)
    source = _source(wanted.data.name, data)
    crew = engine_by_name(engine, workers) if isinstance(engine, str) else engine
    zoo = Zoo.create(out, resume=True, force=force, **_card(wanted, source))
    if zoo.complete:
        return zoo
    first = _committed(zoo, wanted, source)
    units = _units(wanted, first, source)
    _fill(zoo, wanted, first, crew.map(make.make, units), units, progress)
    zoo.finish()
    return zoo


def _source(name: str, data: str | os.PathLike[str] | None) -> str | None:
    """Where the data is, for every process alike; on the Hub at one commit."""
    if data is None:
        return None
    return pinned(name, str(data)) if datasets.on_the_hub(data) else str(Path(data).resolve())


def _wanted(recipe: Recipe | str | os.PathLike[str], n: int | None, seed: int | None) -> Recipe:
    found = recipe if isinstance(recipe, (INRRecipe, NetRecipe)) else load(recipe)
    found = replace(found, n=found.n if n is None else n,
                    seed=found.seed if seed is None else seed)
    for problem in problems(found):
        raise ZooError(f"recipe {found.name}: {problem}")
    return found


def _card(recipe: Recipe, source: str | None) -> dict[str, Any]:
    """Fields of the card: the recipe with the hash of its data, the labels, and the groups."""
    from metanet import __version__

    found = make.dataset(recipe.data.name, recipe.data.part, source)
    recorded = {"factory": factory_of(recipe), **plain(recipe)}
    recorded["data"] = {**recorded["data"], "content": found.content}
    groups = dict(GROUPS)
    if isinstance(recipe, NetRecipe) and recipe.family.init == "shared":
        groups["family"] = "config.family"
    inr = isinstance(recipe, INRRecipe)
    return {
        "license": recipe.license, "recipe": recorded, "groups": groups,
        "labels": ("config.label",) if inr else (),
        "intrinsic": dict.fromkeys(("step", "metrics.steps", "metrics.mse", "metrics.psnr"), _FIT)
        if inr else {},
        "provenance": {"made_by": "metanet zoo build", "metanet": __version__,
                       "torch": torch.__version__, "data": found.provenance()},
    }


# ------------------------------------------------------------ cutting the work


def _committed(zoo: Zoo, recipe: Recipe, source: str | None) -> int:
    """Runs that the zoo holds already: always the first ones, in whole commits."""
    from metanet.zoo.verify import clean

    clean(zoo)
    starts = list(range(0, recipe.n, recipe.commit))
    _enough(recipe, source)
    ids = [make.first_id(recipe, run, source) for run in starts]
    gone = set(zoo.missing(ids))
    first = next((i for i, name in enumerate(ids) if name in gone), len(ids))
    if any(name not in gone for name in ids[first:]):
        raise ZooError(f"{zoo.path}: holds later members of its recipe but not run "
                       f"{starts[first]}; it was changed. Build into another folder")
    return int(min(first * recipe.commit, recipe.n))


def _enough(recipe: Recipe, source: str | None) -> None:
    if not isinstance(recipe, INRRecipe):
        return
    found = make.dataset(recipe.data.name, recipe.data.part, source)
    if recipe.n > len(found) * recipe.views:
        raise ZooError(f"n = {recipe.n}: {found.name} has {len(found)} images and the recipe makes "
                       f"{recipe.views} networks of each; ask for {len(found) * recipe.views} at "
                       "most, or raise views in a recipe of your own")


def _units(recipe: Recipe, first: int, source: str | None) -> list[Unit]:
    groups = _groups(recipe, source)
    with one_thread():
        shared = make.shared_start(recipe, source) if first < recipe.n else None
    out = []
    for begin in range(first, recipe.n, recipe.commit):
        end = min(begin + recipe.commit, recipe.n)
        out += [Unit(recipe, start, min(start + recipe.chunk, end), source,
                     tuple(groups[start:min(start + recipe.chunk, end)]), shared)
                for start in range(begin, end, recipe.chunk)]
    return out


def _groups(recipe: Recipe, source: str | None) -> Sequence[str]:
    """Near-duplicate group of the image of every run: the id of the group's first image."""
    if not isinstance(recipe, INRRecipe):
        return ()
    found = make.dataset(recipe.data.name, recipe.data.part, source)
    n = -(-recipe.n // recipe.views)
    numbers = datasets.near_duplicates(found.x[:n])
    leader = np.unique(numbers, return_index=True)[1]
    return [found.ids[leader[numbers[run // recipe.views]]] for run in range(recipe.n)]


# ------------------------------------------------------------ filling the zoo


def _fill(zoo: Zoo, recipe: Recipe, first: int, results: Iterator[list[Made]],
          units: Sequence[Unit], progress: Callable[[Progress], None] | None) -> None:
    began, pending = time.monotonic(), list[Made]()
    for unit, made in zip(units, results, strict=True):
        pending += made
        if unit.stop % recipe.commit == 0 or unit.stop == recipe.n:
            zoo.add([_member(one) for one in pending])
            pending = []
        if progress:
            rate = (unit.stop - first) / max(time.monotonic() - began, 1e-9)
            progress(Progress(unit.stop, recipe.n, rate, (recipe.n - unit.stop) / rate))


def _member(made: Made) -> Member:
    entry = made.entry
    weights = {name: make.tensor(value) for name, value in made.weights.items()}
    return Member(entry.id, entry.config, entry.metrics, entry.parent, entry.step, entry.split,
                  weights, space_of(made.shape))


@lru_cache(maxsize=256)
def space_of(shape: nets.Shape | fit_inr.INR) -> WeightSpace:
    """The space of a network of this shape, found by tracing it."""
    from metanet.symmetry import infer

    if isinstance(shape, fit_inr.INR):
        module: torch.nn.Module = nets.Coordinates(shape.sizes, shape.activation, shape.w0)
        return infer(module, torch.zeros(3, shape.sizes[0]))
    return infer(nets.build(shape).eval(), torch.zeros(2, 1, shape.side, shape.side))
