"""Images for rows that are no readers of weights: renders of INRs, labelled images for nets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metanet.errors import ZooError
from metanet.graph import WeightBatch
from metanet.graph.pack import join
from metanet.tasks.predict.data import Part, Task


def stacked(batch: WeightBatch) -> dict[str, Float[Tensor, "N ..."]]:
    """Tensors ``[N, …]`` of a batch, channel 0."""
    return {name: join(batch.space, name, batch.blocks, 1)[..., 0] for name in batch.space.tensors}


def module_of(recipe: Mapping[str, Any], activation: str | None = None) -> nn.Module:
    """The code of the members of a zoo that a recipe made.

    Raises:
        ZooError: for a recipe that says nothing about the architecture.
    """
    from metanet.zoo.nets import Coordinates, Shape, build

    if "model" in recipe:
        model = recipe["model"]
        net: nn.Module = Coordinates(tuple(model["sizes"]), model["activation"], model["w0"],
                                     model.get("shift", 0.5))
        return net
    if "arch" not in recipe:
        raise ZooError("the zoo has no recipe that names its architecture, so its members cannot "
                       "be run; rows of the tracks Q and D need their code")
    members, data = recipe["members"], recipe["data"]
    told = activation or members.get("activation")
    width = members.get("width")
    side = data.get("side") or 28
    own = {"small-cnn": 16, "mlp": 32}.get(recipe["arch"], 0)
    built: nn.Module = build(Shape(
        recipe["arch"], side, width if isinstance(width, int) else own,
        members["depth"] if isinstance(members.get("depth"), int) else 2,
        told if isinstance(told, str) else "relu"))
    return built.eval()


def modules_of(task: Task) -> list[nn.Module]:
    """One module for each column of the parts' context; a single one where there is none."""
    kinds = task.kinds
    return [module_of(task.recipe, kind) for kind in kinds] if kinds else [module_of(task.recipe)]


def activation_of(task: Task) -> str:
    """The nonlinearity of all members, where it is one."""
    if task.kinds or not task.recipe:
        return ""
    where = task.recipe["model"] if is_inr(task) else task.recipe.get("members", {})
    return str(where.get("activation", ""))


def is_inr(task: Task) -> bool:
    """Whether the members are functions of coordinates."""
    return "model" in task.recipe


@torch.no_grad()
def render(part: Part, module: nn.Module, side: int) -> Float[Tensor, "N side side"]:
    """What coordinate networks show on a grid of ``side`` by ``side`` points."""
    from metanet.zoo.fit_inr import grid

    x = grid(side, side)
    tensors = stacked(part.batch)
    found = vmap(lambda state: functional_call(module, state, (x,)), chunk_size=64)(tensors)
    pictures: Tensor = found[..., 0].reshape(len(part), side, side).contiguous()
    return pictures


@lru_cache(maxsize=2)
def labelled(name: str, side: int | None, gray: bool, k: int, seed: int
             ) -> tuple[Tensor, Int64[Tensor, " k"]]:
    """k test images in [0, 1] ``[k, 1, h, w]`` with their classes."""
    from metanet.zoo.make import dataset, images
    from metanet.zoo.recipe import Images

    x = images(Images(name, "test", side, gray), "test", None)
    y = torch.from_numpy(dataset(name, "test", None).y)
    pick = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:k]
    return x[pick], y[pick]


def tested_on(name: str) -> int:
    """How many images the test part of a data set has."""
    from metanet.zoo.make import dataset

    return len(dataset(name, "test", None))


def normalisations(recipe: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Shift and scale of the pixels, by the name in a recipe."""
    from metanet.zoo.make import _moments
    from metanet.zoo.recipe import Images

    data = recipe["data"]
    wanted = Images(data["name"], "train", data.get("side"), bool(data.get("gray")))
    return {"none": (0.0, 1.0), "half": (0.5, 0.5), "standard": _moments(wanted, None)}


@torch.no_grad()
def answers(part: Part, task: Task, k: int, seed: int = 0) -> Float[np.ndarray, "N 2"]:
    """Accuracy and mean log-loss of every member on k labelled images.

    A member's own normalisation is used where the index tells it; else the one of three that
    gives it the best accuracy on these very images.
    """
    recipe = part.recipe or task.recipe
    data = recipe["data"]
    x, y = labelled(data["name"], data.get("side"), bool(data.get("gray")), k, seed)
    known = part.info.get("config.normalise")
    found = {name: _scores(part, task, (x - shift) / scale, y)
             for name, (shift, scale) in normalisations(recipe).items()
             if known is None or name in set(known.tolist())}
    if known is not None:
        return np.stack([found[str(name)][i] for i, name in enumerate(known.tolist())])
    every = np.stack(list(found.values()))
    best = (every[..., 0] - 1e-3 * every[..., 1]).argmax(0)
    return np.asarray(every[best, np.arange(len(part))])


def _scores(part: Part, task: Task, x: Tensor, y: Tensor) -> Float[np.ndarray, "N 2"]:
    out = np.zeros((len(part), 2))
    kinds: list[str | None] = [*task.kinds]
    own = part.info.get("config.activation")
    for module, kind in zip(modules_of(task), kinds or [None], strict=True):
        rows = np.arange(len(part)) if kind is None or own is None else np.flatnonzero(
            own.astype(str) == kind)
        if not len(rows):
            continue
        tensors = stacked(part[rows].batch)
        for i, row in enumerate(rows):
            logits = functional_call(module, {n: t[i] for n, t in tensors.items()}, (x,))
            loss = torch.nn.functional.cross_entropy(logits, y)
            out[row] = float((logits.argmax(1) == y).double().mean()), float(loss)
    return out
