"""From a recipe and a range of runs to members: what a worker does.

A member depends on the recipe, on its image or run, and on nothing else: neither on how many are
made, nor on who makes them, nor on when.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from metanet.zoo import data as datasets
from metanet.zoo import fit_inr, fit_net, nets
from metanet.zoo.data import Dataset
from metanet.zoo.draw import Draw
from metanet.zoo.members import Entry
from metanet.zoo.recipe import Images, INRRecipe, NetRecipe, Recipe, Training, key_of
from metanet.zoo.seeds import numpy_rng, seed_of, torch_rng
from torch import Tensor

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Unit:
    """Runs that one worker makes in one go.

    Attributes:
        recipe: of the zoo.
        start, stop: the runs.
        source: where the data set is, or None for where it usually is.
        groups: near-duplicate group of every image of these runs, as a name.
        shared: the common start of coordinate networks, or None.
    """

    recipe: Recipe
    start: int
    stop: int
    source: str | None = None
    groups: tuple[str, ...] = ()
    shared: Arrays | None = None


@dataclass(frozen=True, eq=False)
class Made:
    """A member on its way: its entry, its weights, and what its space is found from."""

    entry: Entry
    weights: Arrays
    shape: nets.Shape | fit_inr.INR


def make(unit: Unit) -> list[Made]:
    """Make the members of a unit, in order."""
    if isinstance(unit.recipe, INRRecipe):
        return _inrs(unit, unit.recipe)
    return [made for run in range(unit.start, unit.stop)
            for made in _net(unit.recipe, run, unit.source)]


def first_id(recipe: Recipe, run: int, source: str | None) -> str:
    """Id of the first member that a run leaves behind."""
    if isinstance(recipe, NetRecipe):
        return _ids(recipe, run)[0]
    name = inr_id(recipe, dataset(recipe.data.name, recipe.data.part, source), run)
    return f"{name}@0" if _keeps(recipe, run) else name


# ------------------------------------------------------------ data


@lru_cache(maxsize=4)
def dataset(name: str, part: str, source: str | None) -> Dataset:
    """A data set, read once per process."""
    return datasets.load(name, source, part=part)


@lru_cache(maxsize=4)
def images(wanted: Images, part: str, source: str | None) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1], channels first; gray and resized as wanted."""
    return _converted(wanted, dataset(wanted.name, part, source))


def _converted(wanted: Images, found: Dataset) -> Float[Tensor, "n c h w"]:
    x = torch.from_numpy(np.ascontiguousarray(found.x)).float()
    x = x / (16 if wanted.name == "digits" else 255)
    x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2)
    if wanted.gray and x.shape[1] == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if wanted.side is not None and x.shape[-1] != wanted.side:
        x = torch.nn.functional.interpolate(x, size=wanted.side, mode="bilinear", antialias=True)
    return x.contiguous()


# ------------------------------------------------------------ coordinate networks


def inr_id(recipe: INRRecipe, found: Dataset, run: int) -> str:
    """Id of the network of a run: image id and view."""
    return f"{found.ids[run // recipe.views]}/{run % recipe.views}"


def _keeps(recipe: INRRecipe, run: int) -> bool:
    return bool(recipe.keep_start > 0 and run % recipe.keep_start == 0)


def _inrs(unit: Unit, recipe: INRRecipe) -> list[Made]:
    runs = range(unit.start, unit.stop)
    found = dataset(recipe.data.name, recipe.data.part, unit.source)
    rows = [run // recipe.views for run in runs]
    pictures = inr_images(recipe, unit.source, rows)
    x = fit_inr.grid(*pictures.shape[2:])
    starts = [_start(unit, recipe, found.ids[row], run % recipe.views)
              for run, row in zip(runs, rows, strict=True)]
    fitted = fit_inr.fit(recipe.model, recipe.fit, starts, x, pictures.flatten(2).transpose(1, 2))
    out: list[Made] = []
    for i, run in enumerate(runs):
        config = _inr_config(recipe, found, run, unit.groups[i])
        name = inr_id(recipe, found, run)
        parent = f"{name}@0" if _keeps(recipe, run) else None
        if parent:
            out.append(Made(Entry(parent, config, {}, None, 0), _numpy(starts[i]), recipe.model))
        mse = float(fitted.mse[i])
        metrics = {"mse": mse, "psnr": fit_inr.psnr(mse), "steps": fitted.steps[i],
                   "diverged": math.isnan(mse)}
        weights = {key: value[i].numpy() for key, value in fitted.weights.items()}
        out.append(Made(Entry(name, config, metrics, parent, fitted.steps[i]), weights,
                        recipe.model))
    return out


def inr_images(recipe: INRRecipe, source: str | None, rows: Sequence[int]
               ) -> Float[Tensor, "n c h w"]:
    """Images that networks are fitted to; only these are converted."""
    found = dataset(recipe.data.name, recipe.data.part, source)
    pick = np.asarray(rows)
    part = replace(found, x=found.x[pick])
    return _converted(recipe.data, part)


def _start(unit: Unit, recipe: INRRecipe, image: str, view: int) -> dict[str, Tensor]:
    if unit.shared is not None:
        return {name: tensor(value) for name, value in unit.shared.items()}
    rng = torch_rng(key_of(recipe), image, view)
    start: dict[str, Tensor] = recipe.model.init(rng, recipe.init.scheme)
    return start


def shared_start(recipe: Recipe, source: str | None) -> Arrays | None:
    """The common start of a recipe that has one."""
    if not isinstance(recipe, INRRecipe) or recipe.init.kind == "independent":
        return None
    rng = torch_rng(key_of(recipe), "start")
    if recipe.init.kind == "shared":
        return _numpy(recipe.model.init(rng, recipe.init.scheme))
    found = dataset(recipe.data.name, recipe.data.part, source)
    rows = np.arange(len(found))[-min(256, len(found)):]  # the last ones: the zoo uses the first
    pictures = inr_images(recipe, source, rows.tolist())
    return _numpy(fit_inr.meta_init(
        recipe.model, recipe.init.scheme, fit_inr.grid(*pictures.shape[2:]),
        pictures.flatten(2).transpose(1, 2), rng, rounds=recipe.init.rounds))


def _inr_config(recipe: INRRecipe, found: Dataset, run: int, group: str) -> dict[str, Any]:
    row = run // recipe.views
    return {"recipe": recipe.name, "arch": "inr", "data": found.name, "image": found.ids[row],
            "image_group": group, "label": int(found.y[row]), "view": run % recipe.views,
            "init": recipe.init.kind, "scheme": recipe.init.scheme, "lr": recipe.fit.lr,
            "activation": recipe.model.activation, "w0": recipe.model.w0,
            "shift": recipe.model.shift}


def tensor(value: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of an array that another process may have sent read-only."""
    return torch.from_numpy(value if value.flags.writeable else value.copy())


def _numpy(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.detach().numpy() for name, value in weights.items()}


# ------------------------------------------------------------ classifiers


def _ids(recipe: NetRecipe, run: int) -> list[str]:
    return [f"{run:06d}@{share:g}" if share < 1 else f"{run:06d}" for share in recipe.checkpoints]


def drawn(recipe: NetRecipe, run: int) -> dict[str, Any]:
    """Hyper-parameters of a run: one draw per family."""
    out: dict[str, Any] = {}
    for name in Training.__dataclass_fields__:
        draw: Draw | None = getattr(recipe.members, name)
        if draw is not None:
            out[name] = draw(numpy_rng(key_of(recipe), "draw", name, run // recipe.family.size))
    out.setdefault("width", nets.OWN_WIDTH[recipe.arch])
    return out


def _net(recipe: NetRecipe, run: int, source: str | None) -> list[Made]:
    key, family = key_of(recipe), run // recipe.family.size
    chosen = drawn(recipe, run)
    shape = nets.Shape(recipe.arch, images(recipe.data, "train", source).shape[-1],
                       chosen["width"], chosen["depth"], chosen["activation"])
    module = nets.build(shape, chosen["dropout"])
    who = family if recipe.family.init == "shared" else run
    fit_net.initialise(module, chosen["init"], chosen["init_scale"], torch_rng(key, "init", who))
    rng = torch_rng(key, "order", run)
    seen = _seen(recipe, chosen, rng, source)
    steps = chosen["steps"]
    points = tuple(dict.fromkeys(round(share * steps) for share in recipe.checkpoints))
    plan = fit_net.Plan(chosen["optimizer"], chosen["lr"], chosen["weight_decay"],
                        chosen["batch"], steps, points)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(key, "dropout", run))
        done = fit_net.train(module, plan, seen, rng)
    config = {"recipe": recipe.name, "arch": recipe.arch, "data": recipe.data.name,
              "run": run, "family": family, "seed": seed_of(key, run), **chosen,
              "images": len(seen), "epochs": steps * min(chosen["batch"], len(seen)) / len(seen)}
    return _checkpoints(recipe, run, done, module, shape, config, source)


def _seen(recipe: NetRecipe, chosen: Mapping[str, Any], rng: torch.Generator, source: str | None
          ) -> fit_net.Images:
    """The share of the training images that a network sees, their labels perhaps noisy."""
    everything = _part(recipe, "train", chosen["normalise"], source)
    n = max(1, round(chosen["fraction"] * len(everything)))
    rows = torch.randperm(len(everything), generator=rng)[:n]
    y = _noisy(everything.y[rows], chosen["label_noise"], rng)
    return replace(everything, y=y, rows=rows)


def _part(recipe: NetRecipe, part: str, normalise: str, source: str | None, n: int | None = None
          ) -> fit_net.Images:
    """The first n images of a part, normalised."""
    x = images(recipe.data, part, source)
    y = torch.from_numpy(dataset(recipe.data.name, part, source).y)[:n]
    if normalise == "standard":
        shift, scale = _moments(recipe.data, source)
    else:
        shift, scale = (0.5, 0.5) if normalise == "half" else (0.0, 1.0)
    return fit_net.Images(x, y, torch.arange(len(y)), shift, scale)


@lru_cache(maxsize=8)
def _moments(wanted: Images, source: str | None) -> tuple[float, float]:
    x = images(wanted, "train", source)
    return float(x.mean()), float(x.std())


def _noisy(y: Int64[Tensor, " n"], share: float, rng: torch.Generator) -> Int64[Tensor, " n"]:
    if not share:
        return y
    hit = torch.rand(len(y), generator=rng) < share
    return torch.where(hit, torch.randint(10, (len(y),), generator=rng), y)


def _checkpoints(recipe: NetRecipe, run: int, done: fit_net.Trained, module: torch.nn.Module,
                 shape: nets.Shape, config: dict[str, Any], source: str | None) -> list[Made]:
    test = _part(recipe, "test", config["normalise"], source)
    seen = _part(recipe, "train", config["normalise"], source, recipe.train_images)
    out: list[Made] = []
    parent = None
    for name, snapshot in zip(_points(recipe, run, done), done.snapshots, strict=True):
        metrics = _metrics(done, snapshot, module, test, seen)
        out.append(Made(Entry(name, config, metrics, parent, snapshot.step),
                        _numpy(snapshot.weights), shape))
        parent = name
    return out


def _metrics(done: fit_net.Trained, snapshot: fit_net.Snapshot, module: torch.nn.Module,
             test: fit_net.Images, seen: fit_net.Images) -> dict[str, Any]:
    """Accuracies and losses; NaN for a run that diverged."""
    lost = done.diverged is not None and snapshot.step >= done.diverged
    both = [(math.nan, math.nan) if lost else fit_net.measure(module, snapshot.weights, part)
            for part in (test, seen)]
    return {"test_accuracy": both[0][0], "test_loss": both[0][1], "train_accuracy": both[1][0],
            "train_loss": both[1][1], "diverged": lost or math.isnan(both[0][0])}


def _points(recipe: NetRecipe, run: int, done: fit_net.Trained) -> list[str]:
    """Ids of the snapshots; shares that round to one step are one, under the later name."""
    last = done.snapshots[-1].step
    by_step = {round(share * last): name
               for share, name in zip(recipe.checkpoints, _ids(recipe, run), strict=True)}
    return [by_step[snapshot.step] for snapshot in done.snapshots]
