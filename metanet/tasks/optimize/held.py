"""Tasks to choose recipes by: neither trained on by a shipped recipe nor in the benchmark."""

from __future__ import annotations

from metanet.tasks.optimize.inner import Characters, Patches, Recurrent, Siren, Task, cnn, mlp
from metanet.tasks.optimize.unseen import Unseen

HELD: dict[str, Unseen] = {item.task.name: item for item in (
    Unseen(Task("held-mlp", "mnist", 10, lambda: mlp(100, (64, 32), 10)), 200, 0.3),
    Unseen(Task("held-cnn", "mnist", 8, lambda: cnn(1, (12, 24, 24))), 200, 0.6),
    Unseen(Task("held-rnn", "mnist", 8, lambda: Recurrent(8, 40, 10)), 200, 0.8),
    Unseen(Task("held-text", "tiny-shakespeare", 20, lambda: Characters(65, 24, 2, 2, 20), "next",
                16), 200, 2.7),
    Unseen(Task("held-vit", "mnist", 8, lambda: Patches(1, 8, 4, 24, 2, 1)), 200, 0.8),
    Unseen(Task("held-wide", "mnist", 20, lambda: mlp(400, (160, 160), 10)), 200, 0.3),
    Unseen(Task("held-wide-cifar", "cifar10", 12, lambda: mlp(432, (96, 96), 10, "gelu")), 200,
           1.8),
    Unseen(Task("held-siren", "mnist", 20, lambda: Siren(24, 2), "image", 128), 200, 0.1),
    Unseen(Task("held-siren-deep", "cifar10", 20, lambda: Siren(40, 3), "image", 100), 200, 0.1),
)}
