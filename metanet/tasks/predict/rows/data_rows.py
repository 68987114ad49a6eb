"""Rows that run the networks on data: labelled images, or the picture that an INR holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metanet.tasks.predict.data import Array, Part, Task
from metanet.tasks.predict.images import answers, is_inr, module_of, render, tested_on
from metanet.tasks.predict.loop import Plan, loss_of
from metanet.tasks.predict.rows.base import Budget, Fitted, Row, Setting, register
from metanet.tasks.predict.rows.reference import boosted

_TRIES: tuple[Setting, ...] = ({"use": 0}, {"use": 1}, {"use": 2}, {"use": 2})


def _predicts_accuracy(k: int) -> Callable[[Task], bool]:
    """Whether nets are scored on enough images that k of them are few."""
    def suits(task: Task) -> bool:
        if is_inr(task) or "arch" not in task.recipe or task.goal.kind != "regression":
            return False
        return 3 * k <= tested_on(task.recipe["data"]["name"])
    return suits


def _labelled(k: int) -> Callable[[Task, Budget, Setting, int], Fitted]:
    """A line through accuracy, log-loss, or both, on k labelled images of the test part."""

    def fit(task: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
        columns = ([0], [1], [0, 1])[setting["use"]]

        def table(part: Part) -> Array:
            x = answers(part, task, k, seed)[:, columns]
            return np.concatenate([np.log(np.clip(x, 1e-4, None)), np.ones((len(x), 1))], 1)

        train = task.parts["train"]
        some = np.random.default_rng(seed).permutation(len(train))[:80]
        x, y = table(train[some]), task.goal.forward(train.y[some])
        weights = np.linalg.lstsq(x, y, rcond=None)[0]
        return Fitted(lambda part: task.goal.back(table(part) @ weights), len(weights))

    return fit


def _is_inr_class(task: Task) -> bool:
    return is_inr(task) and task.goal.kind == "classification"


def _side(task: Task) -> int:
    return int(task.recipe.get("data", {}).get("side") or 28)


def _rendered(task: Task) -> Callable[[Part], Tensor]:
    module, side = module_of(task.recipe), _side(task)
    return lambda part: render(part, module, side)


def _logistic(task: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels = _rendered(task)
    train = task.parts["train"]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=setting["C"], max_iter=300))
    model.fit(pixels(train).flatten(1).numpy(), train.y)

    def predict(part: Part) -> Array:
        out = np.zeros((len(part), task.classes))
        out[:, model.classes_] = model.predict_proba(pixels(part).flatten(1).numpy())
        return out

    return Fitted(predict, int(model[-1].coef_.size))


class PictureCNN(nn.Module):
    """Three convolutions and a hidden layer, for pictures of 16 to 32 pixels a side."""

    def __init__(self, side: int, outputs: int, dropout: float) -> None:
        super().__init__()
        small = (side + 3) // 4
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.GELU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(32, 64, 3, padding=1), nn.GELU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(64, 64, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(64 * small * small, 64), nn.GELU(), nn.Linear(64, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, side, side]`` → ``[N, outputs]``."""
        found: Tensor = self.net(x.unsqueeze(1))
        return found


def _cnn(task: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
    pixels = _rendered(task)
    x, held = pixels(task.parts["train"]), pixels(task.parts["val"])
    y, held_y = (torch.from_numpy(task.parts[p].y) for p in ("train", "val"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PictureCNN(_side(task), task.classes, setting["dropout"])
        kept = _fit_pictures(net, (x, y), (held, held_y), budget, setting["lr"])
    net.load_state_dict(kept)
    net.eval()

    @torch.no_grad()
    def predict(part: Part) -> Array:
        found: Array = net(pixels(part)).softmax(1).numpy()
        return found

    return Fitted(predict, sum(p.numel() for p in net.parameters()))


def _fit_pictures(net: nn.Module, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor],
                  budget: Budget, lr: float) -> dict[str, Any]:
    """The same budget as readers have, on pictures."""
    plan = Plan(epochs=budget.epochs, batch_size=budget.batch_size, lr=lr)
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=plan.weight_decay)
    best, kept = float("inf"), {k: v.clone() for k, v in net.state_dict().items()}
    batches = -(-len(train[1]) // plan.batch_size)
    for epoch in range(plan.epochs):
        net.train()
        for i, rows in enumerate(torch.randperm(len(train[1])).split(plan.batch_size)):
            for group in optimiser.param_groups:
                group["lr"] = plan.rate((epoch + (i + 1) / batches) / plan.epochs)
            optimiser.zero_grad()
            loss_of(net(train[0][rows]), train[1][rows]).backward()
            optimiser.step()
        net.eval()
        with torch.no_grad():
            held = float(loss_of(net(val[0]), val[1]))
        if held < best:
            best, kept = held, {k: v.clone() for k, v in net.state_dict().items()}
    return kept


def _psnr(part: Part) -> Array:
    return np.nan_to_num(part.info["metrics.psnr"].astype(np.float64))[:, None]


for _k in (10, 100, 1000):
    register(Row(f"images-{_k}", f"{_k} labelled images", "D", _labelled(_k), _TRIES,
                 suits=_predicts_accuracy(_k)))
register(Row("psnr", "PSNR of the fit, boosted", "D", boosted(_psnr),
             ({"max_leaf_nodes": 8}, {"max_leaf_nodes": 31}, {"max_leaf_nodes": 4},
              {"max_leaf_nodes": 16}),
             suits=lambda task: _is_inr_class(task) and "metrics.psnr" in
             task.parts["train"].info))
register(Row("render-logistic", "rendered pixels, logistic regression", "D", _logistic,
             ({"C": 0.01}, {"C": 0.1}, {"C": 0.001}, {"C": 1.0}), suits=_is_inr_class,
             seeded=False))
register(Row("render-cnn", "rendered pixels, CNN", "D", _cnn,
             ({"lr": 1e-3, "dropout": 0.2}, {"lr": 3e-3, "dropout": 0.2},
              {"lr": 1e-3, "dropout": 0.5}, {"lr": 3e-3, "dropout": 0.5}), suits=_is_inr_class))
