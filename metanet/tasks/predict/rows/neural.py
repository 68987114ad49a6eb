"""Rows that learn to read weights, or to query the networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from metanet.symmetry.kinds import SCALING
from metanet.tasks.predict import metrics
from metanet.tasks.predict.data import Array, Part, Task
from metanet.tasks.predict.images import activation_of, is_inr, modules_of
from metanet.tasks.predict.loop import Examples, Plan, train
from metanet.tasks.predict.nets import (
    Both,
    DeepSets,
    DWSNet,
    FlatMLP,
    MetanetReader,
    ProbeNet,
    Reader,
)
from metanet.tasks.predict.normal import Coordinates, Normal, Waves
from metanet.tasks.predict.rows.base import Budget, Fitted, Row, Setting, Track, register
from metanet.tasks.predict.rows.reference import boosted, forest, wired

Make = Callable[[Task, Budget, Setting], Reader]
_JOINT = 64


class Model:
    """A trained reader with the scale of its targets.

    Attributes:
        reader: the network.
        mean, scale: of the targets on the learned scale; 0 and 1 for classes.
        classes: whether it gives probabilities of classes.
    """

    def __init__(self, reader: Reader, mean: float, scale: float, classes: bool) -> None:
        self.reader, self.mean, self.scale, self.classes = reader.eval(), mean, scale, classes

    @torch.no_grad()
    def __call__(self, part: Part, size: int = 128) -> Array:
        """Probabilities ``[N, C]``, or numbers on the learned scale ``[N]``."""
        device = next(self.reader.parameters()).device
        batch, context = part.batch.to(device), part.context.to(device)
        found = torch.cat([self.reader(batch[rows], context[rows]).float().cpu() for rows in
                           torch.arange(len(part), device=device).split(size)])
        if self.classes:
            return np.asarray(found.double().softmax(1).numpy())
        return np.asarray(found[:, 0].double().numpy() * self.scale + self.mean)


def row_of(name: str, title: str, track: Track, make: Make, settings: tuple[Setting, ...],
           **more: Any) -> Row:
    """A row that trains what ``make`` builds."""
    return register(Row(name, title, track, learned(make), settings, make=make, **more))


def learned(make: Make) -> Callable[[Task, Budget, Setting, int], Fitted]:
    """A reader, trained by the one loop."""

    def fit(task: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reader = make(task, budget, setting)
        plan = Plan(epochs=budget.epochs, batch_size=budget.batch_size, patience=budget.patience,
                    lr=setting["lr"], seed=seed,
                    weight_decay=setting.get("weight_decay", 1e-2))
        return fit_reader(task, reader, plan)

    return fit


def fit_reader(task: Task, reader: Reader, plan: Plan, folder: Any = None,
               stop_after: int | None = None,
               progress: Callable[[int, int], None] | None = None) -> Fitted:
    """Train a reader on the training part, stopped by the validation part."""
    classes = task.goal.kind == "classification"
    z = task.goal.forward(task.parts["train"].y) if not classes else np.zeros(1)
    mean, scale = float(z.mean()), float(z.std()) or 1.0
    if classes:
        mean, scale = 0.0, 1.0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given, held = (examples(task, task.parts[p], mean, scale).to(device)
                   for p in ("train", "val"))
    done = train(reader.to(device), given, held, plan, folder, stop_after, progress)
    model = Model(reader, mean, scale, classes)

    def predict(part: Part) -> Array:
        return model(part) if classes else task.goal.back(model(part))

    return Fitted(predict, count(reader), done.curve, model)


def count(net: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def examples(task: Task, part: Part, mean: float, scale: float) -> Examples:
    """A part as the loop takes it."""
    if task.goal.kind == "classification":
        return Examples(part.batch, part.context, torch.from_numpy(part.y))
    z = (task.goal.forward(part.y) - mean) / scale
    return Examples(part.batch, part.context, torch.from_numpy(z).float()[:, None])


# ------------------------------------------------------------ readers and trees together


def blended(make: Make, alone: str) -> Callable[[Task, Budget, Setting, int], Fitted]:
    """A reader and trees (boosted and random ones), averaged by the weight best on validation.

    The trees see statistics, spectra and wiring of the same normalised weights as the reader, so
    that together they are as blind to signs and scales as it is. Little data suits trees, more
    data suits readers; which it is, validation says.

    Args:
        make: the reader.
        alone: name of the row of the reader alone, which is fitted on the way.
    """

    def fit(task: Task, budget: Budget, setting: Setting, seed: int) -> Fitted:
        start = time.process_time()
        reader = learned(make)(task, budget, setting, seed)
        reader.seconds = time.process_time() - start
        pre = [step for step in normaliser(task) if isinstance(step, Normal)]
        table = lru_cache(maxsize=8)(lambda part: _summary(part, pre))
        trees = [kind(table)(task, budget, _TREES, seed) for kind in (boosted, forest)]

        def grown(part: Part) -> Array:
            one, other = (tree.predict(part) for tree in trees)
            return _mixed(task, one, other, 0.5)

        val = task.parts["val"]
        share = _share(task, reader.predict(val), grown(val))

        def predict(part: Part) -> Array:
            return _mixed(task, reader.predict(part), grown(part), share)

        return Fitted(predict, reader.parameters, reader.curve, reader.model, {alone: reader})

    return fit


_TREES: Setting = {"max_leaf_nodes": 8, "learning_rate": 0.05, "max_features": 0.3}
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def _summary(part: Part, pre: Sequence[nn.Module]) -> Array:
    batch = part.batch
    for step in pre:
        batch = step(batch)
    return np.concatenate([wired(part.with_batch(batch)), part.context.numpy()], 1)


def _mixed(task: Task, one: Array, other: Array, share: float) -> Array:
    """Averages of probabilities, or of numbers on the learned scale."""
    if task.goal.kind == "classification":
        return share * one + (1 - share) * other
    return task.goal.back(share * task.goal.forward(one) + (1 - share) * task.goal.forward(other))


def _share(task: Task, one: Array, other: Array) -> float:
    """The share of the first with the least loss on validation; the middle one where they tie."""
    y = task.parts["val"].y

    def loss(share: float) -> tuple[float, float]:
        found = _mixed(task, one, other, share)
        if task.goal.kind == "classification":
            return metrics.log_loss(found, y), abs(share - 0.5)
        error = task.goal.forward(found) - task.goal.forward(y)
        return float(np.square(error).mean()), abs(share - 0.5)

    return min(_SHARES, key=loss)


# ------------------------------------------------------------ what each row is made of


def _wrapped(net: nn.Module, task: Task, setting: Setting, pre: Sequence[nn.Module] = ()
             ) -> Reader:
    """A reader with the augmentation that every reader gets alike."""
    training = [Coordinates(task.space, noise=setting.get("noise", 0.01), conventions=bool(
        setting.get("conventions")))] if is_inr(task) else []
    return Reader(net, pre, training)


def _context(task: Task) -> int:
    return len(task.kinds)


def _plain(kind: type[Any], **sizes: Any) -> Make:
    def make(task: Task, budget: Budget, setting: Setting) -> Reader:
        return _wrapped(kind(task.space, task.outputs, 1, _context(task), **sizes,
                             dropout=setting["dropout"]), task, setting)
    return make


def _dws(task: Task, budget: Budget, setting: Setting) -> Reader:
    # Its weights grow with the square of the folded axes: kernels and classes.
    width = budget.width if is_inr(task) else max(4, budget.width // 4)
    return _wrapped(DWSNet(task.space, task.outputs, 1, _context(task), width=width,
                           dropout=setting["dropout"]), task, setting)


def metanet(kind: str, width: float = 1.0, **options: Any) -> Make:
    """A ``Metanet`` of GMN or UNF layers."""
    def make(task: Task, budget: Budget, setting: Setting) -> Reader:
        net = MetanetReader(task.space, task.outputs, 1, _context(task), kind=kind,
                            width=round(width * budget.width), dropout=setting["dropout"],
                            **options)
        return _wrapped(net, task, setting)
    return make


def normaliser(task: Task) -> list[nn.Module]:
    """Removes the signs, scales and phases that the members' own code has."""
    if is_inr(task):
        w0 = task.recipe["model"]["w0"] if task.recipe["model"]["activation"] == "sine" else None
        found: list[nn.Module] = [Normal(larger(task), w0)]
        return [*found, Waves(w0 / 2)] if w0 else found
    space = larger(task)
    return [Normal(space)] if any(g.kind in SCALING for g in space.groups) else []


def larger(task: Task) -> Any:
    """The members' space with the signs and scales that all of their modules have."""
    from metanet.symmetry import infer

    if task.wide is not None:
        return task.wide
    if not has_code(task):
        return task.space
    modules = modules_of(task)
    if len(modules) > 1:  # ReLU has scales, tanh has signs: none is common
        return task.space
    shape = (4, 2) if is_inr(task) else (2, 1, *[_side(task)] * 2)
    kind = _FREEDOM.get(activation_of(task))
    with torch.enable_grad():  # kinds are found from derivatives
        return infer(modules[0], (torch.rand(shape),), kinds=[kind]) if kind else task.space


# Odd functions leave signs free, homogeneous ones positive scales.
_FREEDOM = {"sine": "signed", "tanh": "signed", "relu": "positive", "leaky_relu": "positive"}


def _side(task: Task) -> int:
    return int(task.recipe["data"].get("side") or 28)


def _flagship_net(task: Task, budget: Budget, setting: Setting, outputs: int,
                  channels: int) -> nn.Module:
    inr = is_inr(task)
    kind = setting.get("kind", "product" if inr else "unf")
    # On validation, statistics helped to learn INRs by heart, and to read all other members.
    return MetanetReader(
        task.space, outputs, channels, _context(task), kind=kind, dropout=setting["dropout"],
        width=(_WIDER if kind == "product" else 1) * budget.width, pool=("mean", "std", "max"),
        encoding=("raw", "signlog") if inr else ("raw", "signlog", "activation"),
        statistics=not (inr and kind == "product"), **_SHAPES[kind])


_SHAPES: dict[str, dict[str, Any]] = {
    "product": {"depth": 2, "channel_dropout": 0.1}, "unf": {"depth": 3},
    "gmn": {"depth": 2, "schedule": "forward"}}
_WIDER = 4  # products have no states of edges: for the same time their neurons may have more


def _flagship_w(task: Task, budget: Budget, setting: Setting) -> Reader:
    pre = normaliser(task)
    channels = 3 if any(isinstance(step, Waves) for step in pre) else 1
    net = _flagship_net(task, budget, setting, task.outputs, channels)
    return _wrapped(net, task, setting, pre)


def _flagship_q(task: Task, budget: Budget, setting: Setting) -> Reader:
    """Its probes see the weights of channel 0, normalised too: the function is the same."""
    pre = normaliser(task)
    channels = 3 if any(isinstance(step, Waves) for step in pre) else 1
    reader = _flagship_net(task, budget, setting, _JOINT, channels)
    probes = _probe_net(task, setting, _JOINT)
    return _wrapped(Both(reader, probes, _JOINT, task.outputs), task, setting, pre)


def _probe_net(task: Task, setting: Setting, outputs: int) -> ProbeNet:
    shape = (2,) if is_inr(task) else (1, *[_side(task)] * 2)
    return ProbeNet(task.space, outputs, modules_of(task), shape, probes=64,
                    generator=0 if is_inr(task) else 32, context=_context(task),
                    dropout=setting["dropout"])


def _probing(task: Task, budget: Budget, setting: Setting) -> Reader:
    return _wrapped(_probe_net(task, setting, task.outputs), task, setting)


def has_code(task: Task) -> bool:
    """Whether the zoo's recipe names the code of its members."""
    return bool(task.recipe)


_LRS: tuple[Setting, ...] = ({"lr": 4e-3, "dropout": 0.2}, {"lr": 1.5e-3, "dropout": 0.2},
                             {"lr": 4e-3, "dropout": 0.5}, {"lr": 1.5e-3, "dropout": 0.5})
_KINDS: tuple[Setting, ...] = ({"lr": 4e-3, "dropout": 0.2, "noise": 0.2},
                               {"lr": 1.5e-3, "dropout": 0.2, "noise": 0.2},
                               {"lr": 4e-3, "dropout": 0.2, "noise": 0.2, "kind": "gmn"},
                               {"lr": 4e-3, "dropout": 0.5, "noise": 0.2})
# On validation: beside probes, 1,200 INRs are read better by UNF layers and without noise.
_QUERIES: tuple[Setting, ...] = ({"lr": 4e-3, "dropout": 0.2, "kind": "unf"},
                                 {"lr": 1.5e-3, "dropout": 0.2, "kind": "unf"},
                                 {"lr": 4e-3, "dropout": 0.2, "kind": "gmn"},
                                 {"lr": 4e-3, "dropout": 0.5, "kind": "unf"})

row_of("mlp", "flat MLP", "W", _plain(FlatMLP), _LRS, invariant=False)
row_of("deepsets", "DeepSets per tensor", "W", _plain(DeepSets), _LRS)
row_of("dws", "DWS", "W", _dws, _LRS)
row_of("unf", "UNF", "W", metanet("unf", 1.5), _LRS)
row_of("gmn", "GMN, parallel", "W", metanet("gmn"), _LRS)
row_of("gmn-forward", "GMN, forward schedule", "W", metanet("gmn", schedule="forward"), _LRS)
row_of("product", "GMN with products", "W", metanet("product", _WIDER, **_SHAPES["product"]), _LRS)
register(Row("flagship-w", "flagship W", "W", blended(_flagship_w, "reader-w"), _KINDS,
             make=_flagship_w))
row_of("reader-w", "flagship W, its reader alone", "W", _flagship_w, _KINDS)
row_of("probing", "probing, 64 inputs", "Q", _probing, _LRS, suits=has_code)
register(Row("flagship-q", "flagship Q", "Q", blended(_flagship_q, "reader-q"), _QUERIES,
             suits=has_code, make=_flagship_q))
row_of("reader-q", "flagship Q, its network alone", "Q", _flagship_q, _QUERIES, suits=has_code)
