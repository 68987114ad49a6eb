"""Tiny tasks of the predict room, built once per run of the tests."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from metanet.zoo import Zoo
from metanet.zoo.build import build

from metanet.tasks.predict.data import ACCURACY, LABEL, Cut, Task, load

RECIPES = {
    "inr": "base: inr-digits\nfit: {steps: 12}\nviews: 1\n",
    "net": "base: small-cnn-digits\ntrain_images: 50\ncheckpoints: [0, 1]\nmembers: {lr: "
           "{log_uniform: [0.003, 0.03]}, steps: {log_integer: [30, 60]}, optimizer: adam, "
           "activation: relu, init: default, init_scale: 1, fraction: 1.0, dropout: 0.0}\n",
    "mixed": "base: small-cnn-digits\ntrain_images: 50\ncheckpoints: [0, 1]\nmembers: {lr: 0.02, "
             "steps: {log_integer: [20, 40]}, optimizer: adam, init: default, init_scale: 1, "
             "fraction: 1.0, dropout: 0.0}\n",
}
SIZES = {"inr": 48, "net": 28, "mixed": 24}


@lru_cache(maxsize=3)
def zoo(kind: str) -> Zoo:
    """A zoo of a small recipe."""
    folder = Path(mkdtemp(prefix="metanet-predict-"))
    recipe = folder / f"{kind}.yaml"
    recipe.write_text(RECIPES[kind], encoding="utf-8")
    return build(str(recipe), folder / "zoo", n=SIZES[kind], workers=1)


@lru_cache(maxsize=3)
def task(kind: str) -> Task:
    """A task of that zoo: the digit of an INR, or the accuracy of a net."""
    if kind == "inr":
        return load(zoo(kind), LABEL, Cut("iid", "image"))
    return load(zoo(kind), ACCURACY)
