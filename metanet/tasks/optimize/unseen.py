"""The benchmark's tasks: frozen before any optimizer was trained, and never trained on.

Wider and deeper than those of the training, of other shapes, sizes of images, and kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metanet.tasks.optimize.inner import Characters, Patches, Recurrent, Siren, Task, cnn, mlp

VERSION = 1


@dataclass(frozen=True)
class Unseen:
    """A task of the benchmark.

    Attributes:
        task: module and data.
        steps: of training.
        target: loss that counts as reached (mean of the last 10 batches).
        start: data set that the network is trained on before, with AdamW for 200 steps, for the
            task of fine-tuning; its head is drawn anew.
    """

    task: Task
    steps: int
    target: float
    start: str | None = None


def _batchnorm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10))


UNSEEN: dict[str, Unseen] = {item.task.name: item for item in (
    Unseen(Task("wide-mlp-mnist", "mnist", 14, lambda: mlp(196, (256, 256), 10), batch=128),
           300, 0.15),
    Unseen(Task("deep-mlp-digits", "digits", 8, lambda: mlp(64, (48,) * 5, 10, "tanh")),
           300, 0.10),
    Unseen(Task("mlp-cifar16", "cifar10", 16, lambda: mlp(768, (128, 64), 10, "gelu")),
           300, 1.60),
    Unseen(Task("cnn-mnist14", "mnist", 14, lambda: cnn(1, (16, 32, 32))), 300, 0.40),
    Unseen(Task("cnn-bn-cifar16", "cifar10", 16, _batchnorm), 200, 1.60),
    Unseen(Task("rnn-mnist14", "mnist", 14, lambda: Recurrent(14, 64, 10)), 300, 0.80),
    Unseen(Task("chars", "tiny-shakespeare", 32, lambda: Characters(65, 32, 4, 2, 32), "next",
                32), 300, 2.50),
    Unseen(Task("vit-mnist14", "mnist", 14, lambda: Patches(1, 14, 7, 32, 4, 2)), 300, 0.80),
    Unseen(Task("siren-cifar", "cifar10", 32, lambda: Siren(32, 3), "image", 256), 300, 0.05),
    Unseen(Task("finetune-mnist-digits", "digits", 8, lambda: mlp(64, (64, 64), 10)), 150, 0.15,
           start="mnist"),
)}
