"""What a recipe may say: the values that make sense, checked before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from metanet.zoo.data import NAMES

if TYPE_CHECKING:
    from metanet.zoo.draw import Draw
    from metanet.zoo.recipe import INRRecipe, NetRecipe, Recipe

_MOST = 10**9


def problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong with a recipe, one text each."""
    from metanet.zoo.recipe import INRRecipe

    for name in ("n", "chunk", "commit"):
        if not 0 < getattr(recipe, name) < _MOST:
            yield f"{name} must be a whole number above 0"
    if not 0 <= recipe.seed < 2**62:
        yield "seed must be a whole number from 0 to 2^62"
    if recipe.commit % recipe.chunk:
        yield f"commit ({recipe.commit}) must be a multiple of chunk ({recipe.chunk})"
    if recipe.data.name not in NAMES or recipe.data.name == "tiny-shakespeare":
        yield f"data.name {recipe.data.name!r} is no set of images; there are {', '.join(NAMES)}"
    if recipe.data.part not in ("train", "test"):
        yield "data.part must be train or test"
    if recipe.data.side is not None and not 2 <= recipe.data.side <= 256:
        yield "data.side must be from 2 to 256"
    yield from _inr(recipe) if isinstance(recipe, INRRecipe) else _net(recipe)


def _inr(recipe: INRRecipe) -> Iterator[str]:
    model, fit = recipe.model, recipe.fit
    if len(model.sizes) < 3 or min(model.sizes) < 1 or max(model.sizes) > 4096:
        yield "model.sizes needs at least three widths from 1 to 4096"
    channels = 3 if recipe.data.name == "cifar10" and not recipe.data.gray else 1
    if model.sizes[0] != 2 or model.sizes[-1] != channels:
        yield f"model.sizes must begin with 2 and end with {channels} for {recipe.data.name}"
    if model.w0 <= 0:
        yield "model.w0 must be above 0"
    yield from _word("model.activation", model.activation, ("sine", "relu"))
    yield from _word("init.kind", recipe.init.kind, ("independent", "shared", "meta"))
    yield from _word("init.scheme", recipe.init.scheme, ("dws", "siren", "kaiming"))
    yield from _word("fit.schedule", fit.schedule, ("constant", "cosine"))
    if fit.steps < 1 or fit.check < 1 or recipe.views < 1 or recipe.init.rounds < 1:
        yield "fit.steps, fit.check, init.rounds and views must be at least 1"
    if fit.lr <= 0 or not all(0 <= b < 1 for b in fit.betas) or not 0 <= fit.warmup < 1:
        yield "fit needs lr above 0, betas from 0 to below 1, and warmup from 0 to below 1"
    if fit.weight_decay < 0 or recipe.keep_start < 0:
        yield "fit.weight_decay and keep_start must be at least 0"


def _net(recipe: NetRecipe) -> Iterator[str]:
    from metanet.zoo.recipe import ACTIVATIONS, ARCHES, INITS, NORMALISATIONS, OPTIMIZERS

    yield from _word("arch", recipe.arch, ARCHES)
    yield from _word("family.init", recipe.family.init, ("independent", "shared"))
    if recipe.data.part != "train":
        yield "data.part must be train: the test part is for measuring"
    if recipe.family.size < 1 or recipe.train_images < 1:
        yield "family.size and train_images must be at least 1"
    points = recipe.checkpoints
    if not points or points[-1] != 1 or list(points) != sorted(set(points)) or points[0] < 0:
        yield "checkpoints must grow from 0 or more to 1, such as [0, 0.3, 1]"
    if recipe.data.name == "cifar10" and not recipe.data.gray:
        yield "these architectures take one channel: set data.gray to true for cifar10"
    if recipe.arch.startswith("mnist-") and (recipe.data.side or 0) not in (0, 28):
        yield f"{recipe.arch} takes images of 28 x 28 pixels: set data.side to 28, or leave it out"
    members = recipe.members
    words = {"optimizer": OPTIMIZERS, "activation": ACTIVATIONS, "init": INITS,
             "normalise": NORMALISATIONS}
    for name, allowed in words.items():
        problem = getattr(members, name).among(allowed)
        if problem:
            yield f"members.{name} {problem}"
    ranges = {"lr": (0, 1e6), "weight_decay": (0, 1e6), "init_scale": (0, 1e6),
              "steps": (1, 1e7), "batch": (1, 65536), "depth": (1, 32), "dropout": (0, 0.95),
              "fraction": (1e-9, 1), "label_noise": (0, 1), "width": (1, 65536)}
    for name, (low, high) in ranges.items():
        yield from _range(f"members.{name}", getattr(members, name), low, high)
    for name in ("steps", "batch", "depth", "width"):
        yield from _whole(f"members.{name}", getattr(members, name))


def _word(name: str, value: str, allowed: tuple[str, ...]) -> Iterator[str]:
    if value not in allowed:
        yield f"{name} must be one of {', '.join(allowed)}, not {value!r}"


def _range(name: str, draw: Draw | None, low: float, high: float) -> Iterator[str]:
    for value in draw.values if draw is not None else ():
        if isinstance(value, str) or not low <= value <= high:
            yield f"{name} must be from {low:g} to {high:g}, not {value!r}"


def _whole(name: str, draw: Draw | None) -> Iterator[str]:
    if draw is not None and (draw.kind in ("uniform", "log_uniform")
                             or any(not isinstance(v, int) for v in draw.values)):
        yield f"{name} must be whole: a number, a choice, integer or log_integer"
