"""Small zoos for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from metanet.zoo import Entry, Member, Zoo

SHAPES = {"0.weight": (5, 3), "0.bias": (5,), "2.weight": (2, 5), "2.bias": (2,)}


def weights(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def member(i: int, **more: Any) -> Member:
    return Member(f"m{i:03d}", {"lr": 0.01 * i, "opt": ("adam", "sgd")[i % 2]},
                  {"test_accuracy": 1 / (1 + i), "diverged": i == 3}, weights=weights(i), **more)


def small(path: Path, n: int = 10, **card: Any) -> Zoo:
    zoo = Zoo.create(path, **card)
    zoo.add([member(i) for i in range(n)])
    return zoo


def labelled(path: Path, n: int = 300, *, order: np.ndarray[Any, Any] | None = None,
             bias: float = 0.0, steps: Any = None, classes: int = 5, views: int = 1,
             shared: bool = False, **card: Any) -> Zoo:
    """A population of runs with step-0 and final weights and a class each.

    ``order`` sorts the runs, ``bias`` shifts the initialisation by the class, ``steps(class)`` is
    how long each was trained.
    """
    rng = np.random.default_rng(1)
    label = rng.integers(classes, size=n // views).repeat(views)
    image = np.arange(n // views).repeat(views)
    if order is not None:
        ranked = order(label)
        label, image = label[ranked], image[ranked]
    zoo = Zoo.create(path, labels=("config.label",), **card)
    start = {k: torch.from_numpy(rng.normal(size=(n, *s))).float() for k, s in SHAPES.items()}
    if shared:
        start = {k: t[:1].expand_as(t).contiguous() for k, t in start.items()}
    start["0.bias"] = start["0.bias"] + bias * torch.from_numpy(label).float()[:, None]
    final = {k: t + torch.from_numpy(rng.normal(size=t.shape)).float() for k, t in start.items()}
    config = [{"label": int(c), "image": f"i{j}", "run": i, "chunk": i // 50}
              for i, (c, j) in enumerate(zip(label, image, strict=True))]
    zoo.add_stacked(start, [Entry(f"r{i}/0", c, step=0) for i, c in enumerate(config)])
    zoo.add_stacked(final, [
        Entry(f"r{i}", c, {"final_loss": float(rng.normal()),
                           "steps": float(steps(rng, c["label"])) if steps else 100},
              parent=f"r{i}/0", step=100) for i, c in enumerate(config)])
    return zoo
